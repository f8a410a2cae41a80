"""The actor's loop without exploring and without adding."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dreamfleet.actors.episodes import Episode, Episodes, summary
from dreamfleet.core import seeding
from dreamfleet.core.finite import check_actions
from dreamfleet.core.pull import pull
from dreamfleet.core.types import Agent, BestEvaluation, Event, Replay, VectorEnv, WeightStore

Stop = Callable[[], bool]  # whether somebody wants the evaluation to end at once


class Stopped(Exception):
    """Somebody interrupted an evaluation."""


class Evaluator:
    """Plays `episodes` fresh episodes greedily each time another `every` agent steps are in.

    The seed of an evaluation follows from `seed` and its place in the run, so that a resumed run
    plays the episodes an uninterrupted one would. max_steps: an episode is cut short there.
    best_score: of the run so far; an evaluation at or above it hands over the weights that it
    played. env_steps: where the run is already; an evaluation that broke is not tried again.
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
        """Plays one whole evaluation. False: it is not due yet."""
        at = int(self._replay.stats()["env_steps"])
        if at < self._next:
            self.waiting_for = f"replay: the next evaluation at {self._next} steps"
            return False
        self._next = (at // self._every + 1) * self._every
        pull(self._agent, self._weights, self.versions)
        return self._evaluate(at)

    def evaluate_saved(self, at: int, states: Mapping[str, Any]) -> None:
        """Evaluate the policy that was saved after `at` steps: `states`, by weight group."""
        for group, state in states.items():
            self._agent.restore(group, state)
        self._evaluate(at)

    def _evaluate(self, at: int) -> bool:
        """Play with the weights that the agent has now. False: somebody interrupted."""
        began = time.monotonic()
        (seed,) = seeding.derive((self._seed, at // self._every), 1)
        with seeding.seeded_globals(seed):
            env = self._make_env()
            try:
                episodes = play(env, self._agent, self._episodes, seed, self._max_steps, self._stop)
            except Stopped:
                self.waiting_for = "whoever interrupted"
                return False
            finally:
                env.close()
        found = summary(episodes)
        took: Event = {"took_s": round(time.monotonic() - began, 3)}
        self._events.append({"kind": "eval", "at": at, **found, **took})
        score = found["return_mean"]
        if score >= self._best_score:  # of two equal ones the newer is kept
            weights = {group: self._agent.weights(group) for group in self._agent.act_groups}
            self._best_score, self._best = score, BestEvaluation(at, score, len(episodes), weights)
        return True

    def drain(self) -> list[Event]:
        """Returns the events since the last call."""
        events, self._events = self._events, []
        return events

    def take_best(self) -> BestEvaluation | None:
        """Returns the newest evaluation that was the best of its run, once; None without one."""
        best, self._best = self._best, None
        return best


def play(
    env: VectorEnv,
    agent: Agent,
    episodes: int,
    seed: int,
    max_steps: int,
    stop: Stop = lambda: False,
) -> list[Episode]:
    """Plays greedy episodes, in order → what became of each.

    Episode k has seed k of those that `seed` leads to, so the same are played however many
    environments there are.

    Each environment plays one at a time, and all wait for the longest: counting whichever ends
    first would favour short ones. An episode is cut short after `max_steps` steps. Raises Stopped
    as soon as `stop` says so, which is asked at every step.
    """
    n = env.num_envs
    seeds = seeding.derive(seed, -(-episodes // n) * n)
    played: list[Episode] = []
    for begin in range(0, episodes, n):
        due = min(n, episodes - begin)
        played += _play_each(env, agent, seeds[begin : begin + n], due, max_steps, stop)
    return played


def _play_each(
    env: VectorEnv, agent: Agent, seeds: Sequence[int], due: int, max_steps: int, stop: Stop
) -> list[Episode]:
    """Plays the first greedy episode of the first `due` environments, from seeds (N,)."""
    running, ended = Episodes(env.num_envs), dict[int, Episode]()
    rows, state = env.reset(seeds), agent.initial_state(env.num_envs)
    for _ in range(max_steps):
        if stop():
            raise Stopped
        action, state, _ = agent.act(rows, state, explore=False)
        check_actions(action, {}, env.spec.action)
        rows = env.step(action)
        for episode in running.add(rows, env.info):
            ended.setdefault(episode.environment, episode)
        if all(i in ended for i in range(due)):
            break
    return [ended[i] if i in ended else running.cut(i, env.info) for i in range(due)]
