"""Finds an agent by its name, and checks which environments the agent supports.

The name is one of three: the name of a built-in agent, the name of an agent in an installed
package, or `module:Class`.
"""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass, is_dataclass
from importlib.metadata import entry_points
from typing import Any, Final

from dreamfleet.core.errors import UserError, nearest
from dreamfleet.core.own_code import import_module
from dreamfleet.core.types import EnvSpec, Space

ENTRY_POINTS: Final = "dreamfleet.agents"  # the group in which installed packages offer agents
METHODS: Final = ("initial_state", "act", "learn_policy", "weights", "load", "state", "restore")
ACTIONS: Final = ("discrete", "continuous", "multi-discrete")
OBSERVATIONS: Final = ("vector", "image", "mixed")  # mixed: several parts, see core/types.py


@dataclass(frozen=True)
class AgentEntry:
    """Names an agent's class, and the kinds of actions and observations that the agent supports.

    REGISTRY holds an entry for each built-in agent, so that these agents can be listed without
    importing their code.
    """

    path: str  # module:Class; the class attribute `Config` is the dataclass of the settings
    actions: tuple[str, ...]  # from ACTIONS
    observations: tuple[str, ...]  # from OBSERVATIONS


REGISTRY: dict[str, AgentEntry] = {
    "dreamer-lite": AgentEntry(
        "dreamfleet.agents.dreamer_lite.agent:DreamerLite", ("discrete", "continuous"), ("vector",)
    ),
    "gated-rainbow": AgentEntry(
        "dreamfleet.agents.gated_rainbow.agent:GatedRainbow", ("discrete",), ("vector", "image")
    ),
    "dreamwalker": AgentEntry(
        "dreamfleet.agents.dreamwalker.agent:Dreamwalker", ("continuous",), ("vector",)
    ),
    "barlow-dreamer": AgentEntry(
        "dreamfleet.agents.barlow_dreamer.agent:BarlowDreamer",
        ("discrete", "continuous", "multi-discrete"),
        ("vector", "image", "mixed"),
    ),
}


def find(name: str) -> AgentEntry:
    """Returns the AgentEntry of an agent: its class and the kinds of environments it supports.

    `name` is a key of REGISTRY, an entry point of an installed package, or `module:Class`. Raises
    UserError for an unknown name, and for a class that is not an agent.
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
        "Name an agent of your own as module:Class."
    )


def known() -> dict[str, str]:
    """Returns a dict from the name of each known agent to one line of text about the agent.

    The line of a built-in agent gives the supported actions and observations. The line of an
    installed agent gives its `module:Class`.
    """
    lines = {
        name: f"{', '.join(entry.actions)} actions, {', '.join(entry.observations)}"
        for name, entry in REGISTRY.items()
    }
    installed = {point.name: point.value for point in entry_points(group=ENTRY_POINTS)}
    return {**{name: f"from {path}" for name, path in installed.items()}, **lines}


def load(name: str) -> Any:
    """Returns the class of the agent `name`, after importing its module.

    Importing a built-in agent also imports torch.
    """
    return class_at(find(name).path)


def class_at(path: str) -> Any:
    """Imports a module and returns one of its classes; `path` names both, as `module:Class`."""
    module, _, attribute = path.partition(":")
    return getattr(importlib.import_module(module), attribute)


def check(name: str, spec: EnvSpec) -> None:
    """Raises UserError unless an agent supports the actions and observations of an environment.

    name: the agent's name. spec: the environment's name and its spaces.
    """
    entry = find(name)
    observation, action = _observation_kind(spec), _action_kind(spec.action)

    def supports(agent: AgentEntry) -> bool:
        return observation in agent.observations and action in agent.actions

    if supports(entry):
        return
    others = [other for other, agent in REGISTRY.items() if supports(agent)]
    actions, observations = f"{action} actions", f"{observation} observations"
    if spec.action.choices:
        actions += f" with {math.prod(spec.action.choices):,} combinations"
    if spec.more_obs:
        parts = (f"{column} {space}" for column, space in spec.observations.items())
        observations += f" ({', '.join(parts)})"
    else:
        observations += f" of shape {spec.obs.shape}"
    raise UserError(
        f"{name} supports {_listed(entry.actions, 'or')} actions and "
        f"{_listed(entry.observations, 'or')} observations, but {spec.env_id} has {actions} and "
        f"{observations}. Agents that support them: {', '.join(others) or 'none'}. Wrappers that "
        "change actions and observations: docs/own-environment.md."
    )


def _entry_of(path: str) -> AgentEntry:
    """Imports an agent that is not built in, and returns its AgentEntry.

    path: the agent's class, as `module:Class`. Raises UserError if the class is missing, or lacks a
    method or a declaration that every agent must have.
    """
    module, _, attribute = path.partition(":")
    found = getattr(import_module(module, "agent"), attribute, None)
    if not isinstance(found, type):
        raise UserError(f"agent {path!r}: module {module} has no class {attribute!r}.")
    config = getattr(found, "Config", None)
    if not (isinstance(config, type) and is_dataclass(config)):
        raise UserError(f"agent {path!r} has no `Config`, the frozen dataclass of its settings.")
    missing = [name for name in METHODS if not callable(getattr(found, name, None))]
    if missing:
        raise UserError(
            f"agent {path!r} lacks the methods {', '.join(missing)}. See docs/own-agent.md."
        )
    declared: dict[str, tuple[str, ...]] = {}
    for name, allowed in (("actions", ACTIONS), ("observations", OBSERVATIONS)):
        kinds = getattr(found, name, None)
        if not isinstance(kinds, tuple) or not kinds or not set(kinds) <= set(allowed):
            raise UserError(
                f"agent {path!r} must declare `{name}`, a tuple of {_listed(allowed, 'and')}; "
                f"found {kinds!r}."
            )
        declared[name] = kinds
    return AgentEntry(path, **declared)


def _observation_kind(spec: EnvSpec) -> str:
    if spec.more_obs:
        return "mixed"
    if spec.obs.discrete:
        return "discrete"
    axes = len(spec.obs.shape)
    return {1: "vector", 3: "image"}.get(axes, f"{axes}-dimensional")


def _action_kind(space: Space) -> str:
    if space.choices:
        return "multi-discrete"
    return "discrete" if space.discrete else "continuous"


def _listed(names: tuple[str, ...], word: str) -> str:
    """Returns names as a list in a sentence, such as "vector, image or mixed".

    word: what stands before the last name, "and" or "or".
    """
    return f" {word} ".join(filter(None, (", ".join(names[:-1]), names[-1])))
