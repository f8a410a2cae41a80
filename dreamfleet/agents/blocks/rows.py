"""What a row is made of in every agent's replay."""

from __future__ import annotations

from dreamfleet.core.types import EnvSpec, Space

FLAG, NUMBER = Space((), "bool"), Space((), "float32")


def columns(spec: EnvSpec, **more: Space) -> dict[str, Space]:
    """The columns of a table of real rows: those that actors fill, and `more` of an agent's own."""
    return {
        "obs": spec.obs,
        "action": spec.action,
        "reward": NUMBER,
        "first": FLAG,
        "last": FLAG,
        "terminal": FLAG,
        **more,
    }
