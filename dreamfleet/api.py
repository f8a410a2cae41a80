"""What a person imports: train a run, read what it did, act as its policy does."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from dreamfleet.core.config import Flags, RunConfig, apply
from dreamfleet.core.errors import UserError, WorkerFailed, nearest
from dreamfleet.core.types import Agent, Array, Event, State
from dreamfleet.envs.codec import Codec
from dreamfleet.runtime import start
from dreamfleet.runtime.run_folder import read_config


def load(run: str | Path, checkpoint: str = "latest", device: str = "auto") -> Policy:
    """Returns the policy that a run learned.

    run: its folder, or `latest`. checkpoint: `latest`, `best` by evaluation score, or the path of
    one. device: auto, cpu or cuda. Raises UserError where there is no such run or checkpoint.
    """
    return Run(start.run_path(str(run))).policy(checkpoint, device)


def train(
    agent: str = "dreamer-lite",
    env: str = "CartPole-v1",
    *,
    settings: Mapping[str, Any] | None = None,
    resume: str | Path | None = None,
    **flags: Any,
) -> Run:
    """Trains an agent until its steps are done → its run.

    agent, env: as `--agent` and `--env`. settings: as `--set`, by dotted name:
    `{"agent.horizon": 10}`. resume: a run's folder, or `latest`; agent and env are then that
    run's. flags: every other flag of the command line: `steps=5_000`, `seed=1`, `local=True`.
    Raises UserError for a mistake, WorkerFailed when a part breaks for good, and
    KeyboardInterrupt after a checkpoint is saved when somebody interrupts.
    """
    given = {"agent": agent, "env": env, **flags} if resume is None else flags
    known = [flag.name for flag in fields(Flags)]
    for name in given:
        if name not in known:
            raise UserError(f"train takes no {name!r}.{nearest(name, known)}")
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as the command line does
    planned = start.plan(
        lambda base: apply(base, given, "--"),
        settings or {},
        None if resume is None else str(resume),
    )
    words = [f"{name}={value!r}" for name, value in given.items()]
    words += [f"settings={dict(settings)!r}"] if settings else []
    words += [f"resume={str(resume)!r}"] if resume is not None else []
    code, path = start.start(planned, f"dreamfleet.train({', '.join(words)})")
    if code == 128 + signal.SIGINT:
        raise KeyboardInterrupt(f"stopped. Go on: dreamfleet.train(resume={str(path)!r})")
    if code:
        raise WorkerFailed(f"the run ended early (exit code {code}): see {path}.")
    return Run(path)


@dataclass(frozen=True)
class Run:
    """A run's folder: what was asked for, what happened, how good it is."""

    path: Path

    @property
    def config(self) -> RunConfig:
        """Everything the run is."""
        return read_config(self.path)

    def metrics(self, kind: str | None = None) -> list[Event]:
        """Returns the events of `metrics.jsonl`, oldest first; of one kind if it is named.

        Kinds are `episode`, `eval`, `learn`, `world`, `run`, `fault`, `milestone` and `resume`.
        """
        lines = (self.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        events = [json.loads(line) for line in lines]
        return [event for event in events if kind in (None, event["kind"])]

    def evaluate(
        self,
        episodes: int = 100,
        seed: int = 0,
        checkpoint: str = "latest",
        device: str = "auto",
        video: str | Path | None = None,
    ) -> dict[str, Any]:
        """Plays greedy episodes → their figures, as `launch.py eval --json` prints them.

        video: a folder for films.
        """
        from dreamfleet.runtime.evaluate import evaluate

        return evaluate(
            self.path, episodes, seed, device, Path(video) if video else None, checkpoint
        )

    def policy(self, checkpoint: str = "latest", device: str = "auto") -> Policy:
        """Returns the policy of a checkpoint: `latest`, `best` or the path of one."""
        from dreamfleet.runtime.evaluate import player

        played = player(self.path, checkpoint, device)
        config = played.blueprint.config
        codec = Codec(config.env, config.evaluated_options)
        return Policy(played.agent, codec, played.env_steps, played.checkpoint)


@dataclass(frozen=True)
class PolicyState:
    """What a policy remembers of the episodes of n environments. Opaque."""

    n: int
    memory: State = field(repr=False)


class Policy:
    """Acts greedily, as a checkpoint of a run does.

    env_steps: how long it had learned. checkpoint: where it is kept.
    """

    def __init__(self, agent: Agent, codec: Codec, env_steps: int, checkpoint: Path) -> None:
        self._agent, self._codec = agent, codec
        self.env_steps, self.checkpoint = env_steps, checkpoint

    def act(
        self, obs: Any, state: PolicyState | None = None, first: Array | None = None
    ) -> tuple[Any, PolicyState]:
        """Chooses actions for one observation, or for a batch of N → (action, the next state).

        obs: as the environment returns it. state: what the last call returned, None when all
        episodes start here. first: (N,) bool, which episodes of a batch start here although `state`
        is given. Actions are in the environment's own units. Raises ValueError for observations of
        another shape, or of another number of environments than `state` is of.
        """
        rows, batched = self._codec.encode(obs)
        n = len(rows)
        if state is None:
            state, first = PolicyState(n, self._agent.initial(n)), np.ones(n, bool)
        elif state.n != n:
            raise ValueError(
                f"the state is of {state.n} environments, but there are {n} observations"
            )
        elif first is None:
            first = np.zeros(n, bool)
        nothing = np.zeros(n, bool)
        row = {
            "obs": rows,
            "reward": np.zeros(n, np.float32),
            "first": np.asarray(first, bool).reshape(n),
            "last": nothing,
            "terminal": nothing,
        }
        action, memory, _ = self._agent.act(row, state.memory, explore=False)
        decoded = self._codec.decode(action)
        return (decoded if batched else decoded[0]), PolicyState(n, memory)
