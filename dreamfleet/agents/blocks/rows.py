"""Defines the columns of the replay table of real rows (rows from the environment)."""

from __future__ import annotations

from dreamfleet.core.types import EnvSpec, Space

FLAG, NUMBER = Space((), "bool"), Space((), "float32")


def columns(spec: EnvSpec, **more: Space) -> dict[str, Space]:
    """Returns the columns of the replay table of real rows: a dict from name to space.

    `more`: columns that only the calling agent needs, in addition to the columns that every agent
    needs.
    """
    return {
        **spec.observations,
        "action": spec.action,
        "reward": NUMBER,
        "first": FLAG,
        "last": FLAG,
        "terminal": FLAG,
        **more,
    }
