"""The actor: a worker that acts in its environments, and adds the resulting rows to the replay."""

from __future__ import annotations

from typing import Any

import numpy as np

from dreamfleet.actors.episodes import Episodes
from dreamfleet.core.finite import check_actions
from dreamfleet.core.pull import pull
from dreamfleet.core.types import (
    Agent,
    Array,
    Batch,
    ChunkId,
    Event,
    Replay,
    VectorEnv,
    WeightStore,
)


class Actor:
    """A worker that steps N environments with the newest policy, and adds their rows to the replay.

    A stream is the rows of one environment. index: the number of this actor. restarts: how often
    this actor was restarted before. streams: (N,) i64, one id for each environment's stream. pulls:
    the weight groups to pull from the weight store. chunk: vector steps (steps of all N
    environments) whose rows are sent in one call. pull_every: vector steps between pulls.
    """

    def __init__(
        self,
        env: VectorEnv,
        agent: Agent,
        replay: Replay,
        weights: WeightStore,
        *,
        index: int,
        restarts: int,
        streams: Array,
        pulls: tuple[str, ...],
        chunk: int,
        pull_every: int,
    ) -> None:
        self._env, self._agent, self._replay, self._weights = env, agent, replay, weights
        self._index, self._restarts, self._streams = index, restarts, streams
        self._chunk_length, self._pull_every = chunk, pull_every
        self._chunk: list[Batch] = []
        self._rows: Batch | None = None
        self._state = agent.initial_state(env.num_envs)
        self._episodes = Episodes(env.num_envs)
        self._events: list[Event] = []
        self._steps = 0
        self.chunks = 0  # added to the replay
        self.versions = dict.fromkeys(pulls, 0)
        self.waiting_for = ""

    def step(self) -> bool:
        """Takes one step of all N environments (a vector step).

        Returns False, and steps no environment, if the replay has no room for the rows collected so
        far.
        """
        if len(self._chunk) == self._chunk_length:
            rows = {
                key: np.stack([row[key] for row in self._chunk], axis=1) for key in self._chunk[0]
            }
            chunk_id = ChunkId(self._index, self._restarts, self.chunks)
            if not self._replay.add("real", rows, self._streams, chunk_id):  # (N, T, …)
                self.waiting_for = "replay: room to insert"
                return False
            self._chunk = []
            self.chunks += 1
        if self._steps % self._pull_every == 0:
            pull(self._agent, self._weights, self.versions)
        self._steps += 1

        rows = self._env.reset() if self._rows is None else self._rows
        action, self._state, extras = self._agent.act(rows, self._state, explore=True)
        check_actions(action, extras, self._env.spec.action)
        self._chunk.append({**rows, "action": action, **extras})
        self._rows = self._env.step(action)
        self._report(self._rows)
        return True

    def drain(self) -> list[Event]:
        """Returns the events since the last call of `drain`: one for each finished episode."""
        events, self._events = self._events, []
        return events

    @property
    def env_state(self) -> dict[str, Any]:
        """Returns state that lasts longer than an episode, such as the level of a curriculum.

        New environments can continue from this state.
        """
        return self._env.state()

    def close(self) -> None:
        """Closes all environments of this actor."""
        self._env.close()

    def _report(self, rows: Batch) -> None:
        """Records an event for each episode that ends with one of these rows.

        rows: columns of shape (N, …), one row per environment. An episode ends with a row that is
        `last`.
        """
        for episode in self._episodes.add(rows, self._env.info):
            ended: Event = {"return": episode.total, **episode.facts, "length": episode.length}
            self._events.append({"kind": "episode", **ended, "actor": self._index})
