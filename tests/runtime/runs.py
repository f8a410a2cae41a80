"""Helpers for tests: train the fake agent in one thread or on Ray, and read the results."""

from __future__ import annotations

import importlib
import io
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from dreamfleet.agents import AgentEntry
from dreamfleet.core import checkpoint
from dreamfleet.core.config import RunConfig, TrainConfig
from dreamfleet.replay_server.shards import NearShard
from dreamfleet.runtime.blueprint import Blueprint, weight_groups
from dreamfleet.runtime.display import Display
from dreamfleet.runtime.run_folder import RunFolder, read_config

FAKE = AgentEntry("tests.fakes:FakeAgent", ("discrete",), ("vector",))
REWRITING = AgentEntry("tests.fakes:RewritingAgent", ("discrete",), ("vector",))
SHARING = AgentEntry("tests.fakes:SharingAgent", ("discrete",), ("vector",))
INTERVALS = TrainConfig(
    chunk=4,
    pull_every=4,
    publish_every=5,
    log_every=10,
    eval_every=0,
    eval_episodes=2,
    checkpoint_every=10_000,
)


def config(path: Path, train: TrainConfig = INTERVALS, **flags: Any) -> RunConfig:
    """Returns the configuration of a test run of 300 steps, with the fake agent.

    The environment's observations count its episodes and steps. path: the run's folder. train: the
    settings `train.…`. flags: other settings of the run.
    """
    given = {"env": "dreamfleet.envs.probe:Count-v0", "steps": 300, "num_actors": 1, **flags}
    return RunConfig(
        agent="fake",
        run_dir=str(path),
        dashboard=False,
        train=train,
        agent_options={"capacity": 20_000, **given.pop("agent_options", {})},
        **given,
    )


@dataclass
class Outcome:
    """The result of a run: exit code, newest checkpoint, lines of metrics, and screen output."""

    code: int
    state: dict[str, Any]
    events: list[dict[str, Any]]
    output: str

    @property
    def kinds(self) -> Counter[str]:
        return Counter(event["kind"] for event in self.events)

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["kind"] == kind]


def train(placement: str, config: RunConfig, resume: bool = False) -> Outcome:
    """Trains in one thread (placement `local`) or on Ray (`cluster`), and returns the outcome.

    resume: whether to continue from the newest checkpoint in the run's folder.
    """
    start = importlib.import_module(f"dreamfleet.runtime.{placement}").train
    path = Path(config.run_dir or "")
    output = io.StringIO()
    state = state_in(path) if resume else None
    opened = RunFolder.reopen(path, config) if resume else RunFolder.create(config)
    with opened as folder, Display("test", Console(file=output)) as display:
        code = start(folder.config, folder, state, display)
    return outcome(path, code, output.getvalue())


def outcome(path: Path, code: int, output: str) -> Outcome:
    lines = (path / "metrics.jsonl").read_text().splitlines()
    return Outcome(code, state_in(path), [json.loads(line) for line in lines], output)


def state_in(path: Path) -> dict[str, Any]:
    """Returns the state in the newest checkpoint of the run in folder `path`."""
    newest = checkpoint.newest(path / "checkpoints")
    assert newest is not None
    return checkpoint.load(newest)


def save_start(path: Path, env_steps: int) -> dict[str, Any]:
    """Saves a checkpoint of a run that has not learned anything. Returns the checkpoint's state.

    path: the run's folder. env_steps: the env steps that the checkpoint claims.
    """
    config = read_config(path)
    blueprint = Blueprint.of(config)
    agent = blueprint.agent("local", "cpu")
    replay = NearShard(blueprint.tables(agent), seed=0).state()
    session = {"env_steps": env_steps, "wall_s": 1.0, "resumes": 0}
    session |= {"updates": {}, "starts": {}, "envs": {}}
    groups = {group: agent.state(group) for group in weight_groups(agent)}
    state = {"agent": groups, "replay": replay, "session": session}
    folder = path / "checkpoints"
    checkpoint.save(folder, env_steps, state, agent=config.agent, env=config.env)
    return state


def streams(state: dict[str, Any]) -> list[dict[str, np.ndarray]]:
    """Returns the rows of each stream (the rows of one environment, in order) in a checkpoint.

    state: the checkpoint's state. Follows the saved links between rows. No row may be evicted yet.
    """
    table = state["replay"]["real"]
    before = table["previous"].tolist()
    after = {key: place for place, key in enumerate(before)}
    found, seen = [], 0
    for head in (place for place, key in enumerate(before) if key < 0):
        keys = [head]
        while keys[-1] in after:
            keys.append(after[keys[-1]])
        seen += len(keys)
        found.append({name: column[keys] for name, column in table["columns"].items()})
    assert seen == len(before) == table["inserted"], "a row is in two streams, or in no stream"
    return found


def assert_counted(rows: dict[str, np.ndarray], length: int = 5) -> None:
    """Asserts that the rows are the first rows of one `dreamfleet.envs.probe:Count` environment.

    The fake agent must have acted. length: steps of an episode.
    """
    n = len(rows["reward"])
    episode, t = np.divmod(np.arange(n), length + 1)
    np.testing.assert_array_equal(rows["obs"], np.stack([episode, t], 1))
    np.testing.assert_array_equal(rows["reward"], t)
    np.testing.assert_array_equal(rows["action"], t % 2)
    np.testing.assert_array_equal(rows["first"], t == 0)
    np.testing.assert_array_equal(rows["last"], t == length)
    np.testing.assert_array_equal(rows["terminal"], t == length)
