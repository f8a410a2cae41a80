"""A first-in, first-out queue of batches, in which the replay holds dreams."""

from __future__ import annotations

from collections import deque
from typing import Any

from dreamfleet.core.errors import UserError
from dreamfleet.core.types import Batch, QueueSpec
from dreamfleet.replay_server.snapshot import Snapshot


class BatchQueue:
    """A first-in, first-out queue that returns each added batch once, without copying it."""

    def __init__(self, name: str, spec: QueueSpec) -> None:
        if spec.capacity < 1:
            raise UserError(f"table {name!r}: capacity must be at least 1, found {spec.capacity}")
        self.capacity = spec.capacity  # batches
        self._batches: deque[Batch] = deque()
        self.inserted = 0  # batches ever added
        self._sampled = 0  # batches ever returned

    @property
    def room(self) -> int:
        """Returns the number of batches that may be added before the queue is full."""
        return self.capacity - len(self._batches)

    def add(self, batch: Batch) -> bool:
        """Appends a batch. If the queue is full, returns False and stores nothing."""
        if not self.room:
            return False
        self._batches.append(batch)
        self.inserted += 1
        return True

    def sample(self) -> Batch | None:
        """Removes and returns the oldest batch. Returns None if the queue is empty."""
        if not self._batches:
            return None
        self._sampled += 1
        return self._batches.popleft()

    def stats(self) -> dict[str, float]:
        """Returns how many batches were inserted, are queued, were sampled and were discarded.

        Checkpoints do not contain the batches in the queue. When a checkpoint is restored, the
        batches that were in the queue count as discarded.
        """
        queued = len(self._batches)
        discarded = self.inserted - self._sampled - queued
        return {
            "inserted": self.inserted,
            "queued": queued,
            "samples": self._sampled,
            "discarded": discarded,
        }

    def snapshot(self) -> Snapshot:
        """Returns a copy of the queue's counters, for a checkpoint.

        Batches in the queue are not saved, as they can be made again.
        """
        return Snapshot({"inserted": self.inserted, "samples": self._sampled})

    def restore(self, state: dict[str, Any]) -> None:
        """Empties the queue, and sets its counters to the counters of a saved state."""
        self._batches.clear()
        self.inserted, self._sampled = int(state["inserted"]), int(state["samples"])
