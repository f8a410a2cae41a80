"""The evaluator: a worker that plays greedy episodes with the newest policy, and reports scores."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dreamfleet.actors.episodes import Episode, Episodes, summary
from dreamfleet.core import seeding
from dreamfleet.core.finite import check_actions
from dreamfleet.core.pull import pull
from dreamfleet.core.types import (
    Agent,
    Batch,
    BestEvaluation,
    Event,
    Replay,
    VectorEnv,
    WeightStore,
)

Stop = Callable[[], bool]  # returns whether the evaluation must end now
Watch = Callable[[Batch], object]  # is given rows (N, …) with actions and all further columns


class Stopped(Exception):
    """Raised when an evaluation is interrupted, because its function `stop` has returned True."""


class Evaluator:
    """A worker that plays an evaluation (some greedy episodes) at regular intervals of the run.

    An evaluation has `episodes` episodes, and is due every `every` agent steps (actions in the
    actors' environments). An evaluation with at least the best score keeps its weights for
    `take_best`.

    pulls: the weight groups to pull from the weight store. max_steps: steps after which an episode
    is truncated. stop: called at every step; True interrupts the evaluation. best_score: the best
    mean return of a resumed run; None if there is none. env_steps: the number of agent steps that a
    resumed run has already taken; 0 for a new run.
    """

    def __init__(
        self,
        make_env: Callable[[], VectorEnv],
        agent: Agent,
        replay: Replay,
        weights: WeightStore,
        *,
        pulls: tuple[str, ...],
        episodes: int,
        every: int,
        seed: int,
        max_steps: int,
        stop: Stop = lambda: False,
        best_score: float | None = None,
        env_steps: int = 0,
    ) -> None:
        self._make_env, self._agent, self._replay, self._weights = make_env, agent, replay, weights
        self._episodes, self._every, self._seed = episodes, every, seed
        self._max_steps, self._stop = max_steps, stop
        self._best: BestEvaluation | None = None
        self._best_score = float("-inf") if best_score is None else best_score
        self._next = (env_steps // every + 1) * every
        self._events: list[Event] = []
        self.versions = dict.fromkeys(pulls, 0)
        self.waiting_for = ""

    def step(self) -> bool:
        """Pulls the newest weights, and plays an evaluation with all its episodes.

        Returns False if no evaluation is due, or if it was interrupted.
        """
        at = int(self._replay.stats()["env_steps"])
        if at < self._next:
            self.waiting_for = f"replay: the next evaluation at {self._next} steps"
            return False
        self._next = (at // self._every + 1) * self._every
        pull(self._agent, self._weights, self.versions)
        return self._evaluate(at)

    def evaluate_saved(self, at: int, states: Mapping[str, Any]) -> None:
        """Evaluates the policy that was saved after `at` agent steps of the run.

        states: the saved state of each weight group (the networks of one process).
        """
        for group, state in states.items():
            self._agent.restore(group, state)
        self._evaluate(at)

    def _evaluate(self, at: int) -> bool:
        """Plays an evaluation with the weights that the agent has now.

        Returns False if the evaluation was interrupted. at: agent steps of the run so far.
        """
        began = time.monotonic()
        (seed,) = seeding.derive((self._seed, at // self._every), 1)
        with seeding.seeded_globals(seed):
            env = self._make_env()
            try:
                episodes = play(env, self._agent, self._episodes, seed, self._max_steps, self._stop)
            except Stopped:
                self.waiting_for = "shutdown: the evaluation was interrupted"
                return False
            finally:
                env.close()
        found = summary(episodes)
        took: Event = {"took_s": round(time.monotonic() - began, 3)}
        self._events.append({"kind": "eval", "at": at, **found, **took})
        score = found["return_mean"]
        if score >= self._best_score:  # of two equal scores the newer is kept
            weights = {group: self._agent.weights(group) for group in self._agent.act_groups}
            self._best_score, self._best = score, BestEvaluation(at, score, len(episodes), weights)
        return True

    def drain(self) -> list[Event]:
        """Returns the events since the last call of `drain`: one for each evaluation."""
        events, self._events = self._events, []
        return events

    def take_best(self) -> BestEvaluation | None:
        """Returns the run's best evaluation and its weights, if it was played since the last call.

        Returns None if no evaluation since the last call was at least as good as the best before.
        """
        best, self._best = self._best, None
        return best


def play(
    env: VectorEnv,
    agent: Agent,
    episodes: int,
    seed: int,
    max_steps: int,
    stop: Stop = lambda: False,
    watch: Watch | None = None,
) -> list[Episode]:
    """Plays `episodes` greedy episodes, and returns them in order.

    The seed of episode k is the k-th seed derived from `seed`. max_steps: steps after which an
    episode is truncated. stop: called at every step; if it returns True, `play` raises Stopped.
    watch: called with the rows of every step, and with the rows after the last step.
    """
    n = env.num_envs
    seeds = seeding.derive(seed, -(-episodes // n) * n)
    played: list[Episode] = []
    for begin in range(0, episodes, n):
        due = min(n, episodes - begin)
        played += _play_each(env, agent, seeds[begin : begin + n], due, max_steps, stop, watch)
    return played


def _play_each(
    env: VectorEnv,
    agent: Agent,
    seeds: Sequence[int],
    due: int,
    max_steps: int,
    stop: Stop,
    watch: Watch | None,
) -> list[Episode]:
    """Plays one greedy episode in each of the first `due` of N environments. Returns the episodes.

    seeds: (N,). max_steps: steps after which an episode is truncated. stop: called at every step;
    if it returns True, Stopped is raised. watch: called with the rows of every step.
    """
    running, ended = Episodes(env.num_envs), dict[int, Episode]()
    rows, state = env.reset(seeds), agent.initial_state(env.num_envs)
    for _ in range(max_steps):
        if stop():
            raise Stopped
        action, state, extras = agent.act(rows, state, explore=False)
        check_actions(action, {}, env.spec.action)
        if watch is not None:
            watch({**rows, "action": action, **extras})
        rows = env.step(action)
        for episode in running.add(rows, env.info):
            ended.setdefault(episode.environment, episode)
        if all(i in ended for i in range(due)):
            break
    if watch is not None:
        action, _, extras = agent.act(rows, state, explore=False)
        watch({**rows, "action": action, **extras})
    return [ended[i] if i in ended else running.truncate(i, env.info) for i in range(due)]
