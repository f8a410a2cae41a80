"""Tests that a run is resumed from the newest checkpoint that is complete and valid."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dreamfleet.core import checkpoint
from dreamfleet.core.config import RunConfig, TrainConfig
from dreamfleet.core.errors import UserError
from dreamfleet.runtime.resume import load_resume_state
from dreamfleet.runtime.run_folder import RunFolder
from tests.runtime.runs import save_start

pytest.importorskip("torch")


@pytest.fixture
def config(tmp_path) -> RunConfig:
    given = RunConfig(
        steps=500,
        run_dir=str(tmp_path / "run"),
        train=TrainConfig(eval_every=0),
        agent_options={"capacity": 2000},
    )
    with RunFolder.create(given):
        return given


def policy(state: dict[str, Any]) -> dict[str, Any]:
    return state["agent"]["policy"]


def first_array(tree: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Returns the first float array of two or more dimensions in nested dicts.

    The result is the dict that contains the array, and the key of the array in this dict.
    """
    for key, value in tree.items():
        if isinstance(value, dict):
            found = first_array(value)
            if found:
                return found
        elif isinstance(value, np.ndarray) and value.dtype.kind == "f" and value.ndim > 1:
            return tree, key
    return ()  # type: ignore[return-value]


def reshape_weight(state: dict[str, Any]) -> None:
    place, key = first_array(policy(state)["nets"])
    place[key] = place[key][:-1]


def reshape_moments(state: dict[str, Any]) -> None:
    optimizer = next(iter(policy(state)["optimizers"].values()))
    optimizer["exp_avg"] = np.zeros(1, np.float32)  # torch would broadcast this


def put(*path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(state: dict[str, Any]) -> None:
        for key in path[:-1]:
            state = state[key]
        state[path[-1]] = value

    return change


def drop(*path: str) -> Callable[[dict[str, Any]], None]:
    def change(state: dict[str, Any]) -> None:
        for key in path[:-1]:
            state = state[key]
        del state[path[-1]]

    return change


def add_uninserted_rows(state: dict[str, Any]) -> None:
    table = state["replay"]["real"]
    starts = [consumer["starts"] for consumer in table["consumers"].values()]
    for values in (*table["columns"].values(), table["previous"], *starts):
        values.resize((3, *values.shape[1:]), refcheck=False)


DAMAGES: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "agent": (drop("agent"), "agent is missing"),
    "agent a list": (put("agent", value=[]), "agent is missing"),
    "policy": (drop("agent", "policy"), "weight group 'policy' is missing"),
    "world": (drop("agent", "world"), "weight group 'world' is missing"),
    "world a text": (put("agent", "world", value="x"), "weight group 'world' is missing"),
    "nets": (drop("agent", "policy", "nets"), "weight group 'policy' does not fit"),
    "a shape": (reshape_weight, "weight group 'policy' does not fit"),
    "moments": (reshape_moments, r"exp_avg is of shape \(1,\), expected"),
    "replay": (drop("replay"), "replay is missing"),
    "a table": (drop("replay", "real"), r"replay\.real is missing"),
    "rows": (drop("replay", "real", "columns"), r"replay\.real\.columns is missing"),
    "a column": (drop("replay", "real", "columns", "obs"), r"columns\.obs is None, expected rows"),
    "a column of a shape": (
        put("replay", "real", "columns", "obs", value=np.zeros((0, 1), np.float32)),
        r"columns\.obs is float32 \(0, 1\), expected rows of float32 \(4,\)",
    ),
    "a column of a type": (
        put("replay", "real", "columns", "obs", value=np.zeros((0, 4), np.int64)),
        r"columns\.obs is int64",
    ),
    "fewer rows": (
        put("replay", "real", "columns", "obs", value=np.zeros((3, 4), np.float32)),
        "has 0 rows, but 3 of obs",
    ),
    "more rows than were inserted": (add_uninserted_rows, "has 3 rows, but 0 were inserted"),
    "counts": (put("replay", "real", "limiter", "samples", value=3), "limiter.samples is missing"),
    "a count": (put("replay", "real", "inserted", value="x"), "real.inserted is 'x'"),
    "a negative count": (put("replay", "real", "inserted", value=-1), "real.inserted is -1"),
    "a consumer": (drop("replay", "real", "consumers", "policy"), "consumers.policy is missing"),
    "a stream": (
        put("replay", "real", "streams", "ended", value=np.zeros(2, bool)),
        "streams of different numbers",
    ),
    "the queue": (put("replay", "dream", "inserted", value=None), "dream.inserted is None"),
    "shards": (
        lambda state: state.update(replay={f"shard-{i}": state["replay"] for i in range(2)}),
        "has 2 shards, here are 1",
    ),
    "a shard": (
        lambda state: state.update(replay={"shard-1": state["replay"]}),
        r"replay\.real is missing",
    ),
    "session": (drop("session"), "session is missing"),
    "steps": (put("session", "env_steps", value="7"), "session.env_steps is '7'"),
    "negative steps": (put("session", "env_steps", value=-7), "session.env_steps is -7"),
    "resumes": (put("session", "resumes", value=True), "session.resumes is True"),
    "a time": (put("session", "wall_s", value=float("nan")), "session.wall_s is nan"),
    "updates": (put("session", "updates", value={"learner": -1}), "session.updates.learner is -1"),
    "starts": (put("session", "starts", value=None), "session.starts is None"),
    "envs": (put("session", "envs", value=[1]), "session.envs is"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_an_invalid_checkpoint_is_passed_over_for_an_older_one(config, caplog, damage, message):
    folder = Path(config.run_dir) / "checkpoints"
    state = save_start(folder.parent, 100)
    damage(state)
    checkpoint.save(folder, 200, state, agent=config.agent, env=config.env)
    with caplog.at_level(logging.WARNING):
        assert load_resume_state(folder, config)["session"]["env_steps"] == 100
    assert "ckpt-000000000200.000 cannot be used" in caplog.text
    for path in folder.glob("*100.000/*"):
        path.unlink()
    with pytest.raises(UserError, match=message):
        load_resume_state(folder, config)


def test_a_finished_run_asks_for_more_steps(config):
    save_start(Path(config.run_dir), 500)
    with pytest.raises(UserError, match=r"has taken 500 of 500 steps. Ask for more: --steps"):
        load_resume_state(Path(config.run_dir) / "checkpoints", config)


def test_a_run_without_a_checkpoint_cannot_be_resumed(config):
    with pytest.raises(UserError, match=r"nothing to resume. Start a new run"):
        load_resume_state(Path(config.run_dir) / "checkpoints", config)
