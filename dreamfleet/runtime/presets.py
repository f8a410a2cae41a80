"""Reads the presets, settings that are known to work, from `agents/presets.yaml`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from dreamfleet.core.config import flatten
from dreamfleet.core.errors import UserError, nearest

PATH = Path(__file__).parent.parent / "agents" / "presets.yaml"


def every() -> dict[str, dict[str, dict[str, Any]]]:
    """Returns all presets: agent → env → settings."""
    loaded: dict[str, dict[str, dict[str, Any]]] = yaml.safe_load(PATH.read_text())
    return loaded


def find(agent: str, env: str, name: str | None = None) -> dict[str, Any]:
    """Returns the settings of a preset by dotted name; none when the agent has no such preset.

    The preset is `name`, or without a name the one for `env`. Raises UserError for an unknown name.
    """
    known = every().get(agent, {})
    if name is not None and name not in known:
        raise UserError(
            f"{agent} has no preset {name!r}.{nearest(name, known)} See: launch.py list presets"
        )
    return flatten(known.get(name or env) or {})
