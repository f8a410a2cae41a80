"""How to build every part of a run, in whatever process it lives."""

from __future__ import annotations

import importlib
import zlib
from dataclasses import dataclass
from typing import cast

import numpy as np

from actors.actor import Actor
from actors.evaluator import Evaluator
from core.config import RunConfig, apply
from core.types import Agent, EnvSpec, Replay, TableSpec, WeightStore
from dreamer_workers.dreamer import Dreamer
from envs.vector import GymVector
from learner.learner import Learner

Groups = tuple[str, ...]


@dataclass(frozen=True)
class Blueprint:
    """A run's configuration and its environment's spaces; small, and travels between processes.

    `agent_path` is `module:Class`. Every seed follows from the run's seed, the part's name and how
    often that part was started, so that a restarted actor does not repeat itself. `pulls` are the
    weight groups a part must fetch because another process writes them.
    """

    config: RunConfig
    spec: EnvSpec
    agent_path: str

    def agent(self, part: str, device: str, start: int = 0) -> Agent:
        """The agent of one process. Imports torch."""
        module, _, name = self.agent_path.partition(":")
        agent_class = getattr(importlib.import_module(module), name)
        options = apply(agent_class.Config(), self.config.agent_options, prefix="agent.")
        return cast(Agent, agent_class(options, self.spec, self.seed(part, start), device))

    def actor(
        self,
        index: int,
        agent: Agent,
        replay: Replay,
        weights: WeightStore,
        pulls: Groups,
        start: int = 0,
    ) -> Actor:
        n, train = self.config.envs_per_actor, self.config.train
        return Actor(
            GymVector(self.config.env, n, self.seed(f"env-{index}", start)),
            agent,
            replay,
            weights,
            index=index,
            streams=np.arange(index * n, (index + 1) * n),
            pulls=pulls,
            chunk=train.chunk,
            pull_every=train.pull_every,
        )

    def evaluator(
        self, agent: Agent, replay: Replay, weights: WeightStore, pulls: Groups
    ) -> Evaluator:
        train = self.config.train
        return Evaluator(
            lambda seed: GymVector(self.config.env, train.eval_episodes, seed),
            agent,
            replay,
            weights,
            pulls=pulls,
            episodes=train.eval_episodes,
            every=train.eval_every,
            seed=self.seed("evaluator"),
        )

    def learner(self, agent: Agent, replay: Replay, weights: WeightStore, pulls: Groups) -> Learner:
        train = self.config.train
        return Learner(
            agent,
            replay,
            weights,
            pulls=pulls,
            publish_every=train.publish_every,
            log_every=train.log_every,
        )

    def dreamer(
        self, agent: Agent, replay: Replay, weights: WeightStore, pulls: Groups, trains: bool
    ) -> Dreamer:
        train = self.config.train
        return Dreamer(
            agent,
            replay,
            weights,
            pulls=pulls,
            trains=trains,
            publish_every=train.publish_every,
            log_every=train.log_every,
        )

    def seed(self, part: str, start: int = 0) -> int:
        """The seed of a part, the same in every wiring and on every machine."""
        name = zlib.crc32(part.encode())
        return int(np.random.SeedSequence((self.config.seed, name, start)).generate_state(1)[0])


def weight_groups(agent: Agent) -> Groups:
    """The groups this agent learns: a model-free one has no world."""
    real = agent.tables["real"]
    assert isinstance(real, TableSpec)
    return ("world", "policy") if "world" in real.consumers else ("policy",)
