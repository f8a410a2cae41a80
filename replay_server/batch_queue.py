"""A queue in the place of a table."""

from __future__ import annotations

from collections import deque
from typing import Any

from dreamfleet.core.errors import UserError
from dreamfleet.core.types import Batch, QueueSpec


class BatchQueue:
    """Hands over the very batches it was given, in order, each once."""

    def __init__(self, name: str, spec: QueueSpec) -> None:
        if spec.capacity < 1:
            raise UserError(f"table {name!r}: capacity must be at least 1, found {spec.capacity}")
        self.capacity = spec.capacity
        self._batches: deque[Batch] = deque()
        self._inserted = 0
        self._handed = 0

    @property
    def inserted(self) -> int:
        return self._inserted

    @property
    def room(self) -> int:
        """Batches that may still be added."""
        return self.capacity - len(self._batches)

    def add(self, batch: Batch) -> bool:
        if not self.room:
            return False
        self._batches.append(batch)
        self._inserted += 1
        return True

    def sample(self) -> Batch | None:
        if not self._batches:
            return None
        self._handed += 1
        return self._batches.popleft()

    def stats(self) -> dict[str, float]:
        held = len(self._batches)
        lost = self._inserted - self._handed - held
        return {"inserted": self._inserted, "held": held, "samples": self._handed, "lost": lost}

    def state(self) -> dict[str, Any]:
        """The counters. Batches may live on a device and can be made again: they are let go."""
        return {"inserted": self._inserted, "handed": self._handed}

    def restore(self, state: dict[str, Any]) -> None:
        self._batches.clear()
        self._inserted, self._handed = int(state["inserted"]), int(state["handed"])
