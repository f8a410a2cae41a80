"""Act, step, add."""

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
    """Steps its environments with the newest policy and streams the rows into the replay.

    restarts: how often this actor was started before; its chunks are numbered anew in each.
    streams: (N,) i64, the replay stream of each environment. pulls: the weight groups to keep
    fresh, empty where the agent is shared with its learner. chunk: vector steps handed over at
    once. pull_every: vector steps. What an environment raises passes through to the supervisor.
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
        self.chunks = 0  # taken by the replay
        self.versions = dict.fromkeys(pulls, 0)
        self.waiting_for = ""

    def step(self) -> bool:
        """Hand over a finished chunk, then take one vector step. False: the replay has no room."""
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
        """Returns the events since the last call."""
        events, self._events = self._events, []
        return events

    @property
    def env_state(self) -> dict[str, Any]:
        """What its environments would go on from."""
        return self._env.state()

    def close(self) -> None:
        """Close the environments."""
        self._env.close()

    def _report(self, rows: Batch) -> None:
        for episode in self._episodes.add(rows, self._env.info):
            ended: Event = {"return": episode.total, **episode.facts, "length": episode.length}
            self._events.append({"kind": "episode", **ended, "actor": self._index})
