"""Finds the newest checkpoint from which a run can be resumed."""

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


def load_resume_state(checkpoints: Path, config: RunConfig) -> dict[str, Any]:
    """Returns the content of the newest checkpoint that is undamaged and fits the run.

    checkpoints: the folder of the run's checkpoints. Raises UserError if no checkpoint fits, and if
    the run had already taken all its steps. Imports torch.
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
    """Raises UserError unless a run can continue from the content of a checkpoint.

    state: the content of the checkpoint. agent: a new agent of the run, into which the networks are
    loaded. empty: the state of each empty replay shard (a part of the replay).
    """
    for part in ("agent", "replay", "session"):
        if not isinstance(state.get(part), Mapping):
            raise UserError(f"{part} is missing.")
    restore_groups(agent, weight_groups(agent), state["agent"])
    _check_session(state["session"])
    for expected, found in zip(empty, split_state(state["replay"], len(empty)), strict=True):
        if problem := _mismatch(expected, found, "replay"):
            raise UserError(f"{problem}.")
        for name, table in expected.items():
            if "columns" in table:
                _check_rows(name, found[name])


def restore_groups(agent: Agent, groups: tuple[str, ...], states: Any) -> None:
    """Restores an agent's weight groups. Raises UserError if a group is missing or does not fit.

    states: weight group (`world` or `policy`) → saved state, not yet checked.
    """

    def restore(group: str, state: dict[str, Any]) -> None:
        agent.restore(group, state)
        if problem := _shape_mismatch(agent.state(group), state, group):
            raise ValueError(problem)

    load_groups(groups, states, restore)


def load_groups(
    groups: tuple[str, ...], states: Any, load: Callable[[str, dict[str, Any]], None]
) -> None:
    """Calls `load(group, state)` for each weight group of an agent.

    states: weight group (`world` or `policy`) → saved state. Raises UserError if a group is missing
    in `states`, and if `load` raises an error.
    """
    for group in groups:
        state = states.get(group) if isinstance(states, Mapping) else None
        if not isinstance(state, Mapping):
            raise UserError(f"weight group {group!r} is missing.")
        try:
            load(group, dict(state))
        except Exception as error:  # an agent may raise anything for a state that does not fit
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"weight group {group!r} does not fit: {reason:.200}.") from None


def _shape_mismatch(expected: Any, found: Any, where: str) -> str:
    """Returns a message about the first float array with a wrong shape, or "" if there is none.

    expected, found: nested dicts of arrays. where: the name of the state, for the message. Integer
    arrays are not compared.
    """
    if isinstance(expected, Mapping) and isinstance(found, Mapping):
        problems = (
            _shape_mismatch(expected[key], found[key], f"{where}.{key}")
            for key in expected
            if key in found
        )
        return next(filter(None, problems), "")
    if not isinstance(expected, np.ndarray) or expected.dtype.kind != "f":
        return ""
    if np.shape(found) != expected.shape:
        return f"{where} is of shape {np.shape(found)}, expected {expected.shape}"
    return ""


def _check_session(session: Mapping[str, Any]) -> None:
    """Raises UserError unless the saved counts of a run's steps, updates and starts are valid."""
    for name in ("updates", "starts", "envs"):
        if not isinstance(session.get(name), Mapping):
            raise UserError(f"session.{name} is {_shown(session.get(name))}.")
    counts = {name: session.get(name) for name in ("env_steps", "resumes")}
    for name in ("updates", "starts"):
        counts |= {f"{name}.{key}": value for key, value in session[name].items()}
    for name, value in counts.items():
        if type(value) is not int or not 0 <= value < 2**63:
            raise UserError(f"session.{name} is {_shown(value)}.")
    wall_s = session.get("wall_s")
    if not isinstance(wall_s, (int, float)) or not 0 <= wall_s < float("inf"):
        raise UserError(f"session.wall_s is {_shown(wall_s)}.")


def _mismatch(expected: Any, found: Any, where: str) -> str:
    """Returns a message about the first part of a saved replay that is wrong or missing, or "".

    expected: the state of an empty replay of this run. found: the saved state. The number of rows
    of an array may differ. where: the name of the part, for the message.
    """
    if isinstance(expected, Mapping):
        if not isinstance(found, Mapping):
            return f"{where} is missing"
        problems = (_mismatch(expected[key], found.get(key), f"{where}.{key}") for key in expected)
        return next(filter(None, problems), "")
    if isinstance(expected, np.ndarray):
        same = isinstance(found, np.ndarray) and found.dtype == expected.dtype
        fits = same and found.ndim == expected.ndim and found.shape[1:] == expected.shape[1:]
        wanted = f"rows of {expected.dtype} {expected.shape[1:]}"
        return "" if fits else f"{where} is {_shown(found)}, expected {wanted}"
    kinds = (int, float) if isinstance(expected, float) else (type(expected),)
    fits = isinstance(found, kinds) and not isinstance(found, bool)
    if not fits or (isinstance(expected, int) and found < 0):  # every integer is a count
        return f"{where} is {_shown(found)}"
    return ""


def _shown(value: Any) -> str:
    """Returns a value as short text for an error message: an array as its dtype and shape."""
    return f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else f"{value!r:.60}"


def _check_rows(name: str, table: Mapping[str, Any]) -> None:
    """Raises UserError unless all arrays in the saved state of a table have equally many rows.

    name: the name of the replay table. table: the saved state.
    """
    rows = {"previous": table["previous"], **table["columns"]}
    for name_of_consumer, consumer in table["consumers"].items():
        rows[f"{name_of_consumer}.starts"] = consumer["starts"]
    stored = len(table["previous"])
    for what, values in rows.items():
        if len(values) != stored:
            raise UserError(f"replay.{name} has {stored} rows, but {len(values)} of {what}.")
    if stored > table["inserted"]:
        raise UserError(f"replay.{name} has {stored} rows, but {table['inserted']} were inserted.")
    streams = {what: len(values) for what, values in table["streams"].items()}
    if len(set(streams.values())) > 1:
        raise UserError(f"replay.{name} has streams of different numbers: {streams}.")
