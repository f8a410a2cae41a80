"""The algorithms. One agent is one file and one line of REGISTRY."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from dreamfleet.core.errors import UserError, nearest
from dreamfleet.core.types import EnvSpec, Space


@dataclass(frozen=True)
class AgentEntry:
    """Where an agent lives and what it acts in, known without importing it."""

    path: str  # module:Class; the class has `.Config`, its frozen dataclass
    actions: tuple[str, ...]  # discrete, continuous
    observations: tuple[str, ...]  # vector, image


REGISTRY: dict[str, AgentEntry] = {
    "dreamer-lite": AgentEntry(
        "dreamfleet.agents.dreamer_lite:DreamerLite", ("discrete", "continuous"), ("vector",)
    ),
    "gated-rainbow": AgentEntry(
        "dreamfleet.agents.gated_rainbow.agent:GatedRainbow", ("discrete",), ("vector", "image")
    ),
    "dreamwalker": AgentEntry(
        "dreamfleet.agents.dreamwalker.agent:Dreamwalker", ("continuous",), ("vector",)
    ),
}


def find(name: str) -> AgentEntry:
    """The entry of agent `name`. Raises UserError with the nearest name."""
    if name not in REGISTRY:
        raise UserError(
            f"unknown agent {name!r}.{nearest(name, REGISTRY)} See: launch.py list agents"
        )
    return REGISTRY[name]


def load(name: str) -> Any:
    """The class of agent `name`; imports torch."""
    module, _, attribute = find(name).path.partition(":")
    return getattr(importlib.import_module(module), attribute)


def check(name: str, spec: EnvSpec) -> None:
    """UserError when agent `name` cannot act in an environment of `spec`; imports nothing."""
    entry = find(name)
    found = _observation(spec.obs), _action(spec.action)
    if found[0] in entry.observations and found[1] in entry.actions:
        return
    able = [
        other
        for other, it in REGISTRY.items()
        if found[0] in it.observations and found[1] in it.actions
    ]
    raise UserError(
        f"{name} acts in {' or '.join(entry.actions)} spaces on {' or '.join(entry.observations)} "
        f"observations, but {spec.env_id} has {found[1]} actions and {found[0]} observations "
        f"of shape {spec.obs.shape}. Agents that can: {', '.join(able) or 'none'}."
    )


def _observation(space: Space) -> str:
    if space.discrete:
        return "discrete"
    return {1: "vector", 3: "image"}.get(len(space.shape), f"{len(space.shape)}-dimensional")


def _action(space: Space) -> str:
    return "discrete" if space.discrete else "continuous"
