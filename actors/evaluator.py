"""The actor's loop without exploring and without adding."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from dreamfleet.actors.episodes import Episode, Episodes, summary
from dreamfleet.core.pull import pull
from dreamfleet.core.soundness import check_choice
from dreamfleet.core.types import Agent, Event, Replay, VectorEnv, WeightStore


class Evaluator:
    """Plays `episodes` fresh episodes greedily each time another `every` agent steps are in.

    The seed of an evaluation follows from `seed` and its place in the run, so that a resumed run
    plays the episodes an uninterrupted one would. env_steps: where the run is already; an
    evaluation that broke is not tried again.
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
        env_steps: int = 0,
    ) -> None:
        self._make_env, self._agent, self._replay, self._weights = make_env, agent, replay, weights
        self._episodes, self._every, self._seed = episodes, every, seed
        self._next = (env_steps // every + 1) * every
        self._events: list[Event] = []
        self.versions = dict.fromkeys(pulls, 0)
        self.waiting_for = ""

    def step(self) -> bool:
        """One whole evaluation. False: it is not due yet."""
        at = int(self._replay.stats()["env_steps"])
        if at < self._next:
            self.waiting_for = f"replay: the next evaluation at {self._next} steps"
            return False
        place = at // self._every
        self._next = (place + 1) * self._every
        pull(self._agent, self._weights, self.versions)
        began = time.monotonic()
        seed = int(np.random.SeedSequence((self._seed, place)).generate_state(1)[0])
        env = self._make_env()
        try:
            episodes = play(env, self._agent, self._episodes, seed)
        finally:
            env.close()
        took: Event = {"took_s": round(time.monotonic() - began, 3)}
        self._events.append({"kind": "eval", "at": at, **summary(episodes), **took})
        return True

    def drain(self) -> list[Event]:
        """The events since the last call."""
        events, self._events = self._events, []
        return events


def play(env: VectorEnv, agent: Agent, episodes: int, seed: int) -> list[Episode]:
    """Greedy episodes, in order. Episode k has seed k of those that `seed` leads to, so the same
    are played however many environments there are.

    Each environment plays one at a time, and all wait for the longest: counting whichever ends
    first would favour short ones.
    """
    n = env.num_envs
    seeds = np.random.SeedSequence(seed).generate_state(-(-episodes // n) * n).tolist()
    played: list[Episode] = []
    for begin in range(0, episodes, n):
        due = min(n, episodes - begin)
        played += _play_each(env, agent, seeds[begin : begin + n], due)
    return played


def _play_each(env: VectorEnv, agent: Agent, seeds: Sequence[int], due: int) -> list[Episode]:
    """The first greedy episode of the first `due` environments, from seeds (N,)."""
    running, ended = Episodes(env.num_envs), dict[int, Episode]()
    rows, state = env.reset(seeds), agent.initial(env.num_envs)
    while not all(i in ended for i in range(due)):
        action, state, _ = agent.act(rows, state, explore=False)
        check_choice(action, {})
        rows = env.step(action)
        for episode in running.add(rows, env.info):
            ended.setdefault(episode.environment, episode)
    return [ended[i] for i in range(due)]
