"""Reads presets (settings of an agent that work in an environment) from `agents/presets.yaml`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from dreamfleet.core.config import flatten
from dreamfleet.core.errors import UserError, nearest

PATH = Path(__file__).parent.parent / "agents" / "presets.yaml"


def every() -> dict[str, dict[str, dict[str, Any]]]:
    """Returns all presets as nested dicts: agent → environment → settings."""
    loaded: dict[str, dict[str, dict[str, Any]]] = yaml.safe_load(PATH.read_text())
    return loaded


def find(agent: str, env: str, name: str | None = None) -> dict[str, Any]:
    """Returns the settings of a preset as a dict: dotted name, such as `agent.lr_policy` → value.

    name: the preset; None: the preset for `env`, or an empty dict if there is none. Raises
    UserError if the agent has no preset `name`.
    """
    known = every().get(agent, {})
    if name is not None and name not in known:
        raise UserError(
            f"{agent} has no preset {name!r}.{nearest(name, known)} See: launch.py list presets"
        )
    return flatten(known.get(name or env) or {})
