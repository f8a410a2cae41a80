"""Finds the newest checkpoint that a run can go on from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dreamfleet.core import checkpoint
from dreamfleet.core.config import RunConfig
from dreamfleet.core.errors import UserError
from dreamfleet.core.types import Agent, QueueSpec, TableSpec
from dreamfleet.replay_server.shards import split_state
from dreamfleet.runtime.blueprint import Blueprint, weight_groups


def restored(checkpoints: Path, config: RunConfig) -> dict[str, Any]:
    """Returns the state to resume from: the newest whole one that fits the run.

    Raises UserError when there is none, or nothing is left to do. Imports torch.
    """
    made: list[Agent] = []

    def check(state: Mapping[str, Any]) -> None:
        if not made:
            made.append(Blueprint.of(config).agent("driver", "cpu"))
        check_resumable(state, made[0], config.train.replay_shards)

    saved = checkpoint.read_newest(checkpoints, agent=config.agent, env=config.env, check=check)
    if saved is None:
        raise UserError(f"no checkpoint in {checkpoints}: nothing to resume. Start a new run.")
    if saved.env_steps >= config.steps:
        raise UserError(
            f"{saved.path} has taken {saved.env_steps} of {config.steps} steps. "
            "Ask for more: --steps."
        )
    return saved.state


def check_resumable(state: Mapping[str, Any], agent: Agent, shards: int) -> None:
    """UserError unless a run with an agent like this one can go on from `state`.

    The agent is left with what the state holds of it.
    """
    for part in ("agent", "replay", "session"):
        if not isinstance(state.get(part), Mapping):
            raise UserError(f"{part} is missing.")
    restore_groups(agent, weight_groups(agent), state["agent"])
    _check_session(state["session"])
    for shard in split_state(state["replay"], shards):
        _check_replay(shard, agent.tables)


def restore_groups(agent: Agent, groups: tuple[str, ...], states: Any) -> None:
    """Restores weight groups of `agent`. Raises UserError where one is missing or does not fit."""

    def restore(group: str, state: dict[str, Any]) -> None:
        agent.restore(group, state)
        if wrong := _other_shape(agent.state(group), state, group):
            raise ValueError(wrong)

    each_group(groups, states, restore)


def each_group(
    groups: tuple[str, ...], states: Any, load: Callable[[str, dict[str, Any]], None]
) -> None:
    """Loads what `states` holds of each weight group. Raises UserError where that cannot be."""
    for group in groups:
        state = states.get(group) if isinstance(states, Mapping) else None
        if not isinstance(state, Mapping):
            raise UserError(f"weight group {group!r} is missing.")
        try:
            load(group, dict(state))
        except Exception as error:  # whatever an agent raises for what it cannot take
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"weight group {group!r} does not fit: {reason:.200}.") from None


def _other_shape(ours: Any, theirs: Any, where: str) -> str:
    """Says which array of floats has another shape than ours; empty when all fit.

    States of random generators, which are whole numbers, differ between kinds of devices.
    """
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        found = (
            _other_shape(ours[key], theirs[key], f"{where}.{key}") for key in ours if key in theirs
        )
        return next(filter(None, found), "")
    if isinstance(ours, np.ndarray) and ours.dtype.kind == "f" and np.shape(theirs) != ours.shape:
        return f"{where} is of shape {np.shape(theirs)}, expected {ours.shape}"
    return ""


def _check_session(session: Mapping[str, Any]) -> None:
    kinds: dict[str, tuple[type, ...]] = {
        "env_steps": (int,),
        "wall_s": (int, float),
        "updates": (Mapping,),
        "starts": (Mapping,),
        "resumes": (int,),
        "envs": (Mapping,),
    }
    for name, kind in kinds.items():
        if not isinstance(session.get(name), kind):
            raise UserError(f"session.{name} is {session.get(name)!r:.60}.")
    for name in ("updates", "starts"):
        for key, value in session[name].items():
            if not isinstance(value, int) or value < 0:
                raise UserError(f"session.{name}.{key} is {value!r:.60}.")


def _check_replay(state: Mapping[str, Any], tables: Mapping[str, TableSpec | QueueSpec]) -> None:
    """UserError unless the rows of every table have the columns that the agent wants of it."""
    for name, spec in tables.items():
        table = state.get(name)
        if not isinstance(table, Mapping):
            raise UserError(f"the replay's table {name!r} is missing.")
        if not isinstance(spec, TableSpec):
            continue
        columns, previous = table.get("columns"), table.get("previous")
        if not isinstance(columns, Mapping) or not isinstance(previous, np.ndarray):
            raise UserError(f"the replay's table {name!r} has no rows.")
        for column, space in spec.columns.items():
            found, expected = columns.get(column), (*previous.shape, *space.shape)
            shape = found.shape if isinstance(found, np.ndarray) else None
            if shape != expected:
                raise UserError(
                    f"the replay's column {name}.{column} is of shape {shape}, expected {expected}."
                )
