"""Finds the newest checkpoint that a run can go on from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dreamfleet.core import checkpoint
from dreamfleet.core.config import RunConfig
from dreamfleet.core.errors import UserError
from dreamfleet.core.types import Agent
from dreamfleet.replay_server.shards import NearShard, shard_tables, split_state
from dreamfleet.runtime.blueprint import Blueprint, weight_groups


def restored(checkpoints: Path, config: RunConfig) -> dict[str, Any]:
    """Returns the state to resume from: the newest whole one that fits the run.

    Raises UserError when there is none, or nothing is left to do. Imports torch.
    """
    if not any(checkpoints.glob("ckpt-*")):
        raise UserError(f"no checkpoint in {checkpoints}: nothing to resume. Start a new run.")
    blueprint = Blueprint.of(config)
    agent = blueprint.agent("driver", "cpu")
    shards = config.train.replay_shards
    empty = NearShard(shard_tables(blueprint.tables(agent), shards), seed=0).state()

    def check(state: Mapping[str, Any]) -> None:
        check_resumable(state, agent, [empty] * shards)

    saved = checkpoint.read_newest(checkpoints, agent=config.agent, env=config.env, check=check)
    assert saved is not None
    if saved.env_steps >= config.steps:
        raise UserError(
            f"{saved.path} has taken {saved.env_steps} of {config.steps} steps. "
            "Ask for more: --steps."
        )
    return saved.state


def check_resumable(
    state: Mapping[str, Any], agent: Agent, empty: Sequence[Mapping[str, Any]]
) -> None:
    """UserError unless a run with an agent like this one can go on from `state`.

    empty: what the state of each shard of the replay is like. The agent is left with what the
    state holds of it.
    """
    for part in ("agent", "replay", "session"):
        if not isinstance(state.get(part), Mapping):
            raise UserError(f"{part} is missing.")
    restore_groups(agent, weight_groups(agent), state["agent"])
    _check_session(state["session"])
    for ours, theirs in zip(empty, split_state(state["replay"], len(empty)), strict=True):
        if wrong := _unlike(ours, theirs, "replay"):
            raise UserError(f"{wrong}.")
        for name, table in ours.items():
            if "columns" in table:
                _check_rows(name, theirs[name])


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
    """UserError unless what a Session goes on from is there and can be counted on."""
    for name in ("updates", "starts", "envs"):
        if not isinstance(session.get(name), Mapping):
            raise UserError(f"session.{name} is {_kind(session.get(name))}.")
    counts = {name: session.get(name) for name in ("env_steps", "resumes")}
    for name in ("updates", "starts"):
        counts |= {f"{name}.{key}": value for key, value in session[name].items()}
    for name, value in counts.items():
        if type(value) is not int or not 0 <= value < 2**63:
            raise UserError(f"session.{name} is {_kind(value)}.")
    wall_s = session.get("wall_s")
    if not isinstance(wall_s, (int, float)) or not 0 <= wall_s < float("inf"):
        raise UserError(f"session.wall_s is {_kind(wall_s)}.")


def _unlike(ours: Any, theirs: Any, where: str) -> str:
    """Says what `theirs` lacks of the state of an empty replay; empty when it is like it."""
    if isinstance(ours, Mapping):
        if not isinstance(theirs, Mapping):
            return f"{where} is missing"
        found = (_unlike(ours[key], theirs.get(key), f"{where}.{key}") for key in ours)
        return next(filter(None, found), "")
    if isinstance(ours, np.ndarray):
        same = isinstance(theirs, np.ndarray) and theirs.dtype == ours.dtype
        fits = same and theirs.ndim == ours.ndim and theirs.shape[1:] == ours.shape[1:]
        wanted = f"rows of {ours.dtype} {ours.shape[1:]}"
        return "" if fits else f"{where} is {_kind(theirs)}, expected {wanted}"
    kinds = (int, float) if isinstance(ours, float) else (type(ours),)
    fits = isinstance(theirs, kinds) and not isinstance(theirs, bool)
    if not fits or (isinstance(ours, int) and theirs < 0):  # whole numbers are counts
        return f"{where} is {_kind(theirs)}"
    return ""


def _kind(value: Any) -> str:
    return f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else f"{value!r:.60}"


def _check_rows(name: str, table: Mapping[str, Any]) -> None:
    """UserError unless all that a table says of its rows is of as many rows."""
    rows = {"previous": table["previous"], **table["columns"]}
    for name_of_consumer, consumer in table["consumers"].items():
        rows[f"{name_of_consumer}.starts"] = consumer["starts"]
    held = len(table["previous"])
    for what, values in rows.items():
        if len(values) != held:
            raise UserError(f"replay.{name} has {held} rows, but {len(values)} of {what}.")
    if held > table["inserted"]:
        raise UserError(f"replay.{name} has {held} rows, but {table['inserted']} were inserted.")
    streams = {what: len(values) for what, values in table["streams"].items()}
    if len(set(streams.values())) > 1:
        raise UserError(f"replay.{name} has streams of different numbers: {streams}.")
