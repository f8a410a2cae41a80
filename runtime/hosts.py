"""What runs inside the processes of a cluster, free of Ray: a driver calls them, they call nobody
but the replay and the weights.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from core.types import Array, Batch, QueueSpec, Replay, Sample, TableSpec, Weights, WeightStore, Worker
from learner.weight_store import LocalWeights
from replay_server.server import ReplayServer
from runtime.blueprint import Blueprint, weight_groups
from runtime.turns import Report, Turns

Result = TypeVar("Result", bool, Sample | Batch | None)
IDLE_S = 0.2  # the longest a worker sleeps between two looks


class ReplayHost:
    """The replay for many callers: one at a time, and those it refuses may wait a while here."""

    def __init__(
        self,
        tables: Mapping[str, TableSpec | QueueSpec],
        seed: int,
        state: dict[str, Any] | None = None,
    ) -> None:
        self._server = ReplayServer(tables, seed)
        if state is not None:
            self._server.restore(state)
        self._lock = threading.Lock()
        condition = lambda: threading.Condition(self._lock)  # noqa: E731
        self._room: dict[str, threading.Condition] = defaultdict(condition)
        self._rows: dict[str, threading.Condition] = defaultdict(condition)

    def add(self, table: str, rows: Batch, streams: Array | None, wait_s: float) -> bool:
        """As Replay.add, waiting up to `wait_s` seconds for room."""
        with self._lock:
            added = _until(
                self._room[table], wait_s, lambda: self._server.add(table, rows, streams)
            )
            if added:
                self._rows[table].notify_all()
                self._room[table].notify()  # there may be room for another
            return added

    def sample(self, table: str, consumer: str, wait_s: float) -> Sample | Batch | None:
        """As Replay.sample, waiting up to `wait_s` seconds for rows."""
        with self._lock:
            sample = _until(
                self._rows[table], wait_s, lambda: self._server.sample(table, consumer)
            )
            if sample is not None:
                self._room[table].notify()
            return sample

    def update(self, table: str, keys: Array, priorities: Array) -> None:
        with self._lock:
            self._server.update(table, keys, priorities)

    def stats(self) -> dict[str, float]:
        with self._lock:
            return self._server.stats()

    def state(self) -> dict[str, Any]:
        with self._lock:
            return self._server.state()


def _until(
    changed: threading.Condition, seconds: float, attempt: Callable[[], Result]
) -> Result:
    """Try, and again whenever something changed, until it succeeds or the time is up."""
    deadline = time.monotonic() + seconds
    while True:
        result = attempt()
        remaining = deadline - time.monotonic()
        if (result is not None and result is not False) or remaining <= 0:
            return result
        changed.wait(remaining)
