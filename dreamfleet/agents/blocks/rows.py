"""The columns of a table of real rows."""

from __future__ import annotations

from dreamfleet.core.types import EnvSpec, Space

FLAG, NUMBER = Space((), "bool"), Space((), "float32")


def columns(spec: EnvSpec, **more: Space) -> dict[str, Space]:
    """Returns the columns that every table of real rows has, and `more` columns of one agent."""
    return {
        "obs": spec.obs,
        "action": spec.action,
        "reward": NUMBER,
        "first": FLAG,
        "last": FLAG,
        "terminal": FLAG,
        **more,
    }
