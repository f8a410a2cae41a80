"""The settings known to work, by agent and environment: `agents/presets.yaml`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from dreamfleet.core.config import flatten
from dreamfleet.core.errors import UserError, nearest

PATH = Path(__file__).parent.parent / "agents" / "presets.yaml"


def every() -> dict[str, dict[str, dict[str, Any]]]:
    """All presets: agent → env → settings."""
    loaded: dict[str, dict[str, dict[str, Any]]] = yaml.safe_load(PATH.read_text())
    return loaded


def find(agent: str, env: str, name: str | None = None) -> dict[str, Any]:
    """Dotted settings of preset `name` of `agent`, or of the one for `env`, if there is one.

    Raises UserError when a preset asked for by name is not there.
    """
    known = every().get(agent, {})
    if name is not None and name not in known:
        raise UserError(
            f"{agent} has no preset {name!r}.{nearest(name, known)} See: launch.py list presets"
        )
    return flatten(known.get(name or env) or {})
