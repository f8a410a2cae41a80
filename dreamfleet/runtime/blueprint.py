"""Builds every part of a run (agent, replay tables, workers) from the run's configuration."""

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
from dreamfleet.core.errors import EnvironmentFault, UserError
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
from dreamfleet.dreamer_workers.dreamer import Dreamer, sharing_fault
from dreamfleet.learner.learner import Learner
from dreamfleet.replay_server import budget
from dreamfleet.replay_server.checks import Limits, check_memory, check_spec
from dreamfleet.replay_server.shards import shard_tables
from dreamfleet.runtime.watchdog import EnvCalls, WatchedEnv


@dataclass(frozen=True)
class Progress:
    """The counters and saved environment states with which a worker (such as an actor) starts.

    A worker starts when the run begins, when the run is resumed, and after the worker has failed.
    """

    env_steps: int = 0
    updates: Mapping[str, int] = field(default_factory=dict)  # role → gradient steps taken
    starts: int = 0  # earlier starts of this worker; every start has its own seeds
    env: Mapping[str, Any] = field(default_factory=dict)  # the saved state of its environments
    best_score: float | None = None  # the best evaluation score so far


@dataclass(frozen=True)
class Dependencies:
    """The objects from which a worker (actor, learner, …) is built, such as agent and replay."""

    agent: Agent
    replay: Replay
    weights: WeightStore
    pulls: tuple[str, ...]  # the weight groups to pull, as another process trains them
    progress: Progress
    stop: Callable[[], bool] = lambda: False  # True: an evaluation must end at its next step
    env_calls: EnvCalls = field(default_factory=EnvCalls)  # records calls of environments


@dataclass(frozen=True)
class Blueprint:
    """The configuration of a run and its environment's spaces.

    Its methods build all parts of the run. agent_path: `module:Class` of the agent. registry_entry:
    the environment's entry in Gymnasium's registry.
    """

    config: RunConfig
    spec: EnvSpec
    agent_path: str
    registry_entry: Any = None

    @classmethod
    def of(cls, config: RunConfig) -> Blueprint:
        """Returns the blueprint of a run: its configuration and the spaces of its environment.

        Raises UserError for an unknown agent or environment.
        """
        from dreamfleet.envs import registry

        path, entry = agents.find(config.agent).path, registry.registered(config.env)
        return cls(config, env_spec(config), path, entry)

    def agent(self, part: str, device: str, starts: int = 0) -> Agent:
        """Builds the agent of one process, with random generators of its own. Imports torch.

        part: the name of the process. starts: how many times the process was started before.
        device: cpu, cuda or auto.
        """
        agent_class, options = self._agent_class()
        return cast(Agent, agent_class(options, self.spec, self.seed(part, starts), device))

    def agent_options(self, agent: Agent) -> dict[str, Any]:
        """Returns every option of an agent with the value that the agent uses.

        An agent may compute a value itself, such as a batch size that the configuration gives as 0.
        """
        agent_class, options = self._agent_class()
        resolved = getattr(agent, "config", None)
        return asdict(resolved if isinstance(resolved, agent_class.Config) else options)

    def _agent_class(self) -> tuple[Any, Any]:
        """Returns the agent's class, and the options with which the class is called."""
        agent_class = agents.class_at(self.agent_path)
        return agent_class, apply(agent_class.Config(), self.config.agent_options, prefix="agent.")

    def tables(self, agent: Agent) -> dict[str, TableSpec | QueueSpec]:
        """Returns the agent's replay tables, made smaller if `train.replay_gb` allows less memory.

        Raises UserError for invalid tables, and for tables that do not fit into the memory of this
        machine. Memory is not checked if the run joins a Ray cluster.
        """
        if fault := sharing_fault(agent.tables):
            raise UserError(f"agent {self.config.agent!r}: {fault}")
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

    def worker_names(self, groups: tuple[str, ...]) -> list[str]:
        """Returns the names of all workers: actors, dreamers, the learner and the evaluator.

        groups: the agent's weight groups (networks that one process trains): `world` and `policy`,
        or `policy` alone. Without `world` there are no dreamers.
        """
        config = self.config
        actors = [f"actor-{index}" for index in range(config.num_actors)]
        dreamers = [f"dreamer-{index}" for index in range(max(1, config.num_dreamers))]
        evaluators = ["evaluator"] if config.train.eval_every else []
        return actors + (dreamers if "world" in groups else []) + ["learner"] + evaluators

    def worker(self, name: str, deps: Dependencies) -> Worker:
        """Builds one worker: an actor, a dreamer, the learner or the evaluator.

        name: `actor-3`, `dreamer-0`, `learner` or `evaluator`. deps: the objects that the worker
        uses, such as agent and replay.
        """
        role, _, index = name.partition("-")
        if role in ("actor", "evaluator"):
            from dreamfleet.envs import registry

            registry.register_missing(self.registry_entry)
        if role == "actor":
            return self._actor(int(index), deps)
        if role == "dreamer":
            return self._dreamer(int(index), deps)
        return self._learner(deps) if role == "learner" else self._evaluator(deps)

    def seed(self, part: str, starts: int = 0) -> int:
        """Returns the seed of one part of the run, which is the same in every process.

        part: a name, such as `replay`. starts: how many times the part was started before.
        """
        return seeding.derive((self.config.seed, zlib.crc32(part.encode()), starts), 1)[0]

    def shard_seeds(self) -> list[int]:
        """Returns the seeds of the replay shards.

        A shard stores a part of the rows, in its own process.
        """
        names = ["replay", *(f"replay-{i}" for i in range(1, self.config.train.replay_shards))]
        return [self.seed(name) for name in names]

    def evaluation_env(self, episodes: int) -> VectorEnv:
        """Builds the environments for an evaluation.

        episodes: the number of episodes of the evaluation. No more environments than episodes are
        built.
        """
        from dreamfleet.envs.vector import GymVector

        env = GymVector.to_play(self.config.env, episodes, self.config.evaluated_options)
        self._check_spaces(env)
        return env

    def check_evaluated_spaces(self) -> None:
        """Raises UserError unless evaluation environments have the spaces that the agent expects.

        Their arguments may differ from those of the training.
        """
        from dreamfleet.envs import registry

        found = registry.describe(self.config.env, **self.config.evaluated_options)
        if found != self.spec:
            raise UserError(
                f"with these arguments {self.config.env} has {found}, but the agent was trained on "
                f"{self.spec}. Leave out arguments that change the spaces."
            )

    def _check_spaces(self, env: VectorEnv) -> None:
        """Raises EnvironmentFault unless an environment has the spaces that the agent expects."""
        if env.spec != self.spec:
            raise EnvironmentFault(
                f"{self.config.env} has {env.spec} here, but the agent has {self.spec}"
            )

    def _actor(self, index: int, deps: Dependencies) -> Actor:
        from dreamfleet.envs.vector import GymVector

        config, starts = self.config, deps.progress.starts
        n, train = config.envs_per_actor, config.train
        seeding.seed_globals(self.seed(f"globals-{index}", starts))
        # Every start writes to new streams: a chunk of the earlier start may still arrive.
        stream = (starts * config.num_actors + index) * n
        worker = f"actor-{index}"
        with deps.env_calls.record(worker, n):
            seed = self.seed(f"env-{index}", starts)
            env = GymVector(config.env, n, seed, config.env_options)
            self._check_spaces(env)
            env.restore(deps.progress.env)
        return Actor(
            WatchedEnv(env, worker, deps.env_calls),
            deps.agent,
            deps.replay,
            deps.weights,
            index=index,
            restarts=starts,
            streams=np.arange(stream, stream + n),
            pulls=deps.pulls,
            chunk=train.chunk,
            pull_every=train.pull_every,
        )

    def _dreamer(self, index: int, deps: Dependencies) -> Dreamer:
        train = self.config.train
        return Dreamer(
            deps.agent,
            deps.replay,
            deps.weights,
            pulls=deps.pulls,
            trains=index == 0,
            publish_every=train.publish_every,
            log_every=train.log_every,
            updates=deps.progress.updates.get("dreamer", 0) if index == 0 else 0,
        )

    def _learner(self, deps: Dependencies) -> Learner:
        train = self.config.train
        return Learner(
            deps.agent,
            deps.replay,
            deps.weights,
            pulls=deps.pulls,
            publish_every=train.publish_every,
            log_every=train.log_every,
            updates=deps.progress.updates.get("learner", 0),
        )

    def _evaluator(self, deps: Dependencies) -> Evaluator:
        train = self.config.train

        def make_env() -> WatchedEnv:
            with deps.env_calls.record("evaluator", train.eval_episodes):
                env = self.evaluation_env(train.eval_episodes)
            return WatchedEnv(env, "evaluator", deps.env_calls)

        return Evaluator(
            make_env,
            deps.agent,
            deps.replay,
            deps.weights,
            pulls=deps.pulls,
            episodes=train.eval_episodes,
            every=train.eval_every,
            seed=self.seed("evaluator"),
            max_steps=train.eval_steps,
            stop=deps.stop,
            best_score=deps.progress.best_score,
            env_steps=deps.progress.env_steps,
        )


def env_spec(config: RunConfig) -> EnvSpec:
    """Builds a run's environment once and returns its spaces. Raises UserError if this fails."""
    from dreamfleet.envs import registry

    return registry.describe(config.env, **config.env_options)


def weight_groups(agent: Agent) -> tuple[str, ...]:
    """Returns the names of an agent's weight groups: ("world", "policy"), or ("policy",).

    A weight group is the set of networks that one process trains. A model-free agent has no group
    `world`.
    """
    real = agent.tables["real"]
    assert isinstance(real, TableSpec)
    return ("world", "policy") if "world" in real.consumers else ("policy",)
