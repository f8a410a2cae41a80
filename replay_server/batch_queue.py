"""A queue of batches, which the replay can hold in place of a table."""

from __future__ import annotations

from collections import deque
from typing import Any

from dreamfleet.core.errors import UserError
from dreamfleet.core.types import Batch, QueueSpec
from dreamfleet.replay_server.snapshot import Snapshot


class BatchQueue:
    """Returns the batches that were added, each once and in order, without copying them."""

    def __init__(self, name: str, spec: QueueSpec) -> None:
        if spec.capacity < 1:
            raise UserError(f"table {name!r}: capacity must be at least 1, found {spec.capacity}")
        self.capacity = spec.capacity  # batches
        self._batches: deque[Batch] = deque()
        self.inserted = 0  # batches ever added
        self._sampled = 0  # batches ever returned

    @property
    def room(self) -> int:
        """Number of batches that may be added now."""
        return self.capacity - len(self._batches)

    def add(self, batch: Batch) -> bool:
        """Appends a batch. Returns False, and takes nothing, when the queue is full."""
        if not self.room:
            return False
        self._batches.append(batch)
        self.inserted += 1
        return True

    def sample(self) -> Batch | None:
        """Removes and returns the oldest batch; None when the queue is empty."""
        if not self._batches:
            return None
        self._sampled += 1
        return self._batches.popleft()

    def stats(self) -> dict[str, float]:
        """Returns counts of batches. `discarded`: queued when a state was saved and restored."""
        queued = len(self._batches)
        discarded = self.inserted - self._sampled - queued
        return {
            "inserted": self.inserted,
            "queued": queued,
            "samples": self._sampled,
            "discarded": discarded,
        }

    def snapshot(self) -> Snapshot:
        """Returns the counters. Queued batches are not saved: they can be made again."""
        return Snapshot({"inserted": self.inserted, "samples": self._sampled})

    def restore(self, state: dict[str, Any]) -> None:
        """Empties the queue and restores its counters."""
        self._batches.clear()
        self.inserted, self._sampled = int(state["inserted"]), int(state["samples"])
