"""The actor's loop without exploring and without adding."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from actors.episodes import Episodes
from core.pull import pull
from core.types import Agent, Array, Event, Replay, VectorEnv, WeightStore


class Evaluator:
    """Plays `episodes` fresh episodes greedily each time another `every` agent steps are in.

    The seed of an evaluation follows from `seed` and its place in the run, so that a resumed run
    plays the episodes an uninterrupted one would. env_steps: where the run is already; an
    evaluation that broke is not tried again.
    """

    def __init__(
        self,
        make_env: Callable[[int], VectorEnv],
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
        env = self._make_env(int(np.random.SeedSequence((self._seed, place)).generate_state(1)[0]))
        try:
            returns, lengths = play(env, self._agent, self._episodes)
        finally:
            env.close()
        took: Event = {"took_s": round(time.monotonic() - began, 3)}
        self._events.append({"kind": "eval", "at": at, **summary(returns, lengths), **took})
        return True

    def drain(self) -> list[Event]:
        """The events since the last call."""
        events, self._events = self._events, []
        return events


def play(env: VectorEnv, agent: Agent, episodes: int) -> tuple[Array, Array]:
    """Greedy episodes from a fresh start → undiscounted returns and lengths, (episodes,) each.

    Every environment plays its share and no more: counting whichever ends first would favour
    short episodes. With as many environments as episodes, each plays one.
    """
    share = np.full(env.num_envs, episodes // env.num_envs)
    share[: episodes % env.num_envs] += 1
    played: list[list[tuple[float, int]]] = [[] for _ in share]
    running = Episodes(env.num_envs)
    rows, state = env.reset(), agent.initial(env.num_envs)
    while any(len(mine) < due for mine, due in zip(played, share, strict=True)):
        action, state, _ = agent.act(rows, state, explore=False)
        rows = env.step(action)
        for i, episode_return, length in running.add(rows):
            if len(played[i]) < share[i]:
                played[i].append((episode_return, length))
    returns, lengths = zip(*(episode for mine in played for episode in mine), strict=True)
    return np.array(returns), np.array(lengths)


def summary(returns: Array, lengths: Array) -> dict[str, float]:
    """What an evaluation reports of its episodes."""
    return {
        "return_mean": float(returns.mean()),
        "return_std": float(returns.std()),
        "return_min": float(returns.min()),
        "length_mean": float(lengths.mean()),
        "episodes": len(returns),
    }
