"""The algorithms. One agent is one file and one line of REGISTRY."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, is_dataclass
from importlib.metadata import entry_points
from typing import Any, Final

from dreamfleet.core.errors import UserError, nearest
from dreamfleet.core.own_code import import_module
from dreamfleet.core.types import EnvSpec, Space

ENTRY_POINTS: Final = "dreamfleet.agents"  # the group in which installed packages offer agents
METHODS: Final = ("initial_state", "act", "learn_policy", "weights", "load", "state", "restore")
ACTIONS: Final = ("discrete", "continuous")
OBSERVATIONS: Final = ("vector", "image")


@dataclass(frozen=True)
class AgentEntry:
    """Where an agent lives and what it acts in, known without importing it."""

    path: str  # module:Class; the class has `.Config`, its frozen dataclass
    actions: tuple[str, ...]  # of ACTIONS
    observations: tuple[str, ...]  # of OBSERVATIONS


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
    """Returns the entry of an agent: one of REGISTRY, an installed package's, or `module:Class`.

    An agent that is not in REGISTRY is imported, and says itself what it acts in. Raises UserError
    for an unknown name, and for a class that is no agent.
    """
    if name in REGISTRY:
        return REGISTRY[name]
    if ":" in name:
        return _entry_of(name)
    installed = {point.name: point.value for point in entry_points(group=ENTRY_POINTS)}
    if name in installed:
        return _entry_of(installed[name])
    hint = nearest(name, [*REGISTRY, *installed])
    raise UserError(
        f"unknown agent {name!r}.{hint} See: launch.py list agents. "
        "An agent of your own is named module:Class."
    )


def known() -> dict[str, str]:
    """Returns what each agent acts in and sees, in words, by name: ours and installed ones."""
    lines = {
        name: f"{', '.join(entry.actions)} actions, {', '.join(entry.observations)}"
        for name, entry in REGISTRY.items()
    }
    installed = {point.name: point.value for point in entry_points(group=ENTRY_POINTS)}
    return {**{name: f"from {path}" for name, path in installed.items()}, **lines}


def load(name: str) -> Any:
    """Returns the class of agent `name`. Imports torch."""
    return class_at(find(name).path)


def class_at(path: str) -> Any:
    """Returns the class that `module:Class` names."""
    module, _, attribute = path.partition(":")
    return getattr(importlib.import_module(module), attribute)


def check(name: str, spec: EnvSpec) -> None:
    """UserError when agent `name` cannot act in an environment of `spec`."""
    entry = find(name)
    found = _observation(spec.obs), _action(spec.action)
    if found[0] in entry.observations and found[1] in entry.actions:
        return
    able = [
        other
        for other, able_to in REGISTRY.items()
        if found[0] in able_to.observations and found[1] in able_to.actions
    ]
    raise UserError(
        f"{name} acts in {' or '.join(entry.actions)} spaces on {' or '.join(entry.observations)} "
        f"observations, but {spec.env_id} has {found[1]} actions and {found[0]} observations "
        f"of shape {spec.obs.shape}. Agents that can: {', '.join(able) or 'none'}."
    )


def _entry_of(path: str) -> AgentEntry:
    """Returns the entry of a person's own agent. Raises UserError where `path` names none."""
    module, _, attribute = path.partition(":")
    found = getattr(import_module(module, "agent"), attribute, None)
    if not isinstance(found, type):
        raise UserError(f"agent {path!r}: module {module} has no class {attribute!r}.")
    config = getattr(found, "Config", None)
    if not (isinstance(config, type) and is_dataclass(config)):
        raise UserError(f"agent {path!r} has no `Config`, the frozen dataclass of its settings.")
    lacking = [name for name in METHODS if not callable(getattr(found, name, None))]
    if lacking:
        raise UserError(f"agent {path!r} lacks {', '.join(lacking)}: see docs/own-agent.md.")
    declared: dict[str, tuple[str, ...]] = {}
    for name, allowed in (("actions", ACTIONS), ("observations", OBSERVATIONS)):
        kinds = getattr(found, name, None)
        if not isinstance(kinds, tuple) or not kinds or not set(kinds) <= set(allowed):
            raise UserError(
                f"agent {path!r} must declare `{name}`, a tuple of {' and '.join(allowed)}; "
                f"found {kinds!r}."
            )
        declared[name] = kinds
    return AgentEntry(path, **declared)


def _observation(space: Space) -> str:
    if space.discrete:
        return "discrete"
    return {1: "vector", 3: "image"}.get(len(space.shape), f"{len(space.shape)}-dimensional")


def _action(space: Space) -> str:
    return "discrete" if space.discrete else "continuous"
