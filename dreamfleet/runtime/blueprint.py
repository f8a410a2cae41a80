"""How to build every part of a run, in whatever process it lives."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, cast

import numpy as np

from dreamfleet import agents
from dreamfleet.actors.actor import Actor
from dreamfleet.actors.evaluator import Evaluator
from dreamfleet.core import seeding
from dreamfleet.core.config import RunConfig, apply
from dreamfleet.core.errors import EnvironmentFault
from dreamfleet.core.types import (
    Agent,
    EnvSpec,
    QueueSpec,
    Replay,
    TableSpec,
    VectorEnv,
    WeightStore,
    Worker,
)
from dreamfleet.dreamer_workers.dreamer import Dreamer
from dreamfleet.learner.learner import Learner
from dreamfleet.replay_server import budget
from dreamfleet.replay_server.checks import Limits, check_memory, check_spec
from dreamfleet.replay_server.shards import shard_tables
from dreamfleet.runtime.watchdog import EnvCalls, WatchedEnv


@dataclass(frozen=True)
class Progress:
    """Where a worker takes up its work: at the start of a run, after a resume, after a restart."""

    env_steps: int = 0
    updates: Mapping[str, int] = field(default_factory=dict)  # role → gradient steps taken
    starts: int = 0  # how often this worker was started before; every start has seeds of its own
    env: Mapping[str, Any] = field(default_factory=dict)  # the state its environments had
    best_score: float | None = None  # of the evaluations so far


@dataclass(frozen=True)
class Site:
    """What a worker finds in its process."""

    agent: Agent
    replay: Replay
    weights: WeightStore
    pulls: tuple[str, ...]  # the weight groups to fetch, as another process writes them
    progress: Progress
    stop: Callable[[], bool] = lambda: False  # whether an evaluation is to end at once
    calls: EnvCalls = field(default_factory=EnvCalls)  # of environments that are built here


@dataclass(frozen=True)
class Blueprint:
    """A run's configuration and its environment's spaces; small, and travels between processes.

    A process imports what it builds: torch with an agent, gymnasium with an environment.
    `agent_path` is `module:Class`. Every seed follows from the run's seed, the part's name and how
    often that part was started, so that a restarted actor does not repeat itself.
    """

    config: RunConfig
    spec: EnvSpec
    agent_path: str
    registered: Any = None  # of the environment: what a process needs that does not know its id

    @classmethod
    def of(cls, config: RunConfig) -> Blueprint:
        """Returns the blueprint of a run. Raises UserError for an unknown agent or environment."""
        from dreamfleet.envs import registry

        path, entry = agents.find(config.agent).path, registry.registered(config.env)
        return cls(config, describe(config), path, entry)

    def agent(self, part: str, device: str, starts: int = 0) -> Agent:
        """Returns the agent of one process, drawing from generators of its own. Imports torch."""
        agent_class, options = self._agent_class()
        return cast(Agent, agent_class(options, self.spec, self.seed(part, starts), device))

    def agent_options(self, agent: Agent) -> dict[str, Any]:
        """Returns every option of an agent with its value.

        An agent may resolve options that were left open, in a `config` of its own class of options.
        """
        agent_class, options = self._agent_class()
        resolved = getattr(agent, "config", None)
        return asdict(resolved if isinstance(resolved, agent_class.Config) else options)

    def _agent_class(self) -> tuple[Any, Any]:
        """Returns the agent's class, and the options to build it with."""
        agent_class = agents.class_at(self.agent_path)
        return agent_class, apply(agent_class.Config(), self.config.agent_options, prefix="agent.")

    def tables(self, agent: Agent) -> dict[str, TableSpec | QueueSpec]:
        """Returns the agent's tables, within the memory that the run allows.

        Raises UserError where the replay could not serve them, or they do not fit into this machine
        (of those of a cluster it is not known which will hold them).
        """
        allowed, shards = self.config.train.replay_gb, self.config.train.replay_shards
        tables = agent.tables if allowed is None else budget.limited(agent.tables, allowed * 1e9)
        parts = shard_tables(tables, shards)
        limits = Limits("agent.capacity", "train.replay_gb")
        for name, spec in parts.items():
            if isinstance(spec, TableSpec):
                check_spec(name, spec, limits)
        if self.config.address is None:
            check_memory(parts, shards, limits)
        return tables

    def crew(self, groups: tuple[str, ...]) -> list[str]:
        """Returns the names of all workers, actors first; no dreamer without a world model."""
        config = self.config
        actors = [f"actor-{index}" for index in range(config.num_actors)]
        dreamers = [f"dreamer-{index}" for index in range(max(1, config.num_dreamers))]
        evaluators = ["evaluator"] if config.train.eval_every else []
        return actors + (dreamers if "world" in groups else []) + ["learner"] + evaluators

    def worker(self, name: str, site: Site) -> Worker:
        """Returns the worker called `actor-3`, `dreamer-0`, `learner` or `evaluator`."""
        role, _, index = name.partition("-")
        if role in ("actor", "evaluator"):
            from dreamfleet.envs import registry

            registry.register_missing(self.registered)
        if role == "actor":
            return self._actor(int(index), site)
        if role == "dreamer":
            return self._dreamer(int(index), site)
        return self._learner(site) if role == "learner" else self._evaluator(site)

    def seed(self, part: str, starts: int = 0) -> int:
        """Returns the seed of a part, the same in every wiring and on every machine."""
        return seeding.derive((self.config.seed, zlib.crc32(part.encode()), starts), 1)[0]

    def shard_seeds(self) -> list[int]:
        """Returns the seed of each shard of the replay."""
        names = ["replay", *(f"replay-{i}" for i in range(1, self.config.train.replay_shards))]
        return [self.seed(name) for name in names]

    def evaluation(self, episodes: int) -> VectorEnv:
        """Returns the environments that play so many episodes of an evaluation."""
        from dreamfleet.envs.vector import GymVector

        env = GymVector.to_play(self.config.env, episodes, self.config.evaluated_options)
        self._check_spaces(env)
        return env

    def _check_spaces(self, env: VectorEnv) -> None:
        """Raises EnvironmentFault for an environment whose spaces are not those of the agent."""
        if env.spec != self.spec:
            raise EnvironmentFault(
                f"{self.config.env} has {env.spec} here, but the agent has {self.spec}"
            )

    def _actor(self, index: int, site: Site) -> Actor:
        from dreamfleet.envs.vector import GymVector

        config, starts = self.config, site.progress.starts
        n, train = config.envs_per_actor, config.train
        seeding.seed_globals(self.seed(f"globals-{index}", starts))
        # Streams of its own for every start: a chunk of an actor that died may still be on its way.
        stream = (starts * config.num_actors + index) * n
        worker = f"actor-{index}"
        with site.calls.by(worker, n):
            seed = self.seed(f"env-{index}", starts)
            env = GymVector(config.env, n, seed, config.env_options)
            self._check_spaces(env)
            env.restore(site.progress.env)
        return Actor(
            WatchedEnv(env, worker, site.calls),
            site.agent,
            site.replay,
            site.weights,
            index=index,
            restarts=starts,
            streams=np.arange(stream, stream + n),
            pulls=site.pulls,
            chunk=train.chunk,
            pull_every=train.pull_every,
        )

    def _dreamer(self, index: int, site: Site) -> Dreamer:
        train = self.config.train
        return Dreamer(
            site.agent,
            site.replay,
            site.weights,
            pulls=site.pulls,
            trains=index == 0,
            publish_every=train.publish_every,
            log_every=train.log_every,
            updates=site.progress.updates.get("dreamer", 0) if index == 0 else 0,
        )

    def _learner(self, site: Site) -> Learner:
        train = self.config.train
        return Learner(
            site.agent,
            site.replay,
            site.weights,
            pulls=site.pulls,
            publish_every=train.publish_every,
            log_every=train.log_every,
            updates=site.progress.updates.get("learner", 0),
        )

    def _evaluator(self, site: Site) -> Evaluator:
        train = self.config.train

        def make_env() -> WatchedEnv:
            with site.calls.by("evaluator", train.eval_episodes):
                env = self.evaluation(train.eval_episodes)
            return WatchedEnv(env, "evaluator", site.calls)

        return Evaluator(
            make_env,
            site.agent,
            site.replay,
            site.weights,
            pulls=site.pulls,
            episodes=train.eval_episodes,
            every=train.eval_every,
            seed=self.seed("evaluator"),
            max_steps=train.eval_steps,
            stop=site.stop,
            best_score=site.progress.best_score,
            env_steps=site.progress.env_steps,
        )


def describe(config: RunConfig) -> EnvSpec:
    """Returns the spaces of a run's environment. Builds one; raises UserError as that does."""
    from dreamfleet.envs import registry

    return registry.describe(config.env, **config.env_options)


def weight_groups(agent: Agent) -> tuple[str, ...]:
    """Returns the groups this agent learns: a model-free one has no world."""
    real = agent.tables["real"]
    assert isinstance(real, TableSpec)
    return ("world", "policy") if "world" in real.consumers else ("policy",)
