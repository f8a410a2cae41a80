"""The columns of the replay's table of real rows."""

from __future__ import annotations

from dreamfleet.core.types import EnvSpec, Space

FLAG, NUMBER = Space((), "bool"), Space((), "float32")


def columns(spec: EnvSpec, **more: Space) -> dict[str, Space]:
    """Returns the columns of a table of real rows, as spaces by name.

    The columns are those that every agent needs, and the columns `more` of one agent.
    """
    return {
        "obs": spec.obs,
        "action": spec.action,
        "reward": NUMBER,
        "first": FLAG,
        "last": FLAG,
        "terminal": FLAG,
        **more,
    }
