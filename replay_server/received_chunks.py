"""Recognises chunks of rows that a table has received before."""

from __future__ import annotations

from typing import Any

import numpy as np

from dreamfleet.core.types import ChunkId


class ReceivedChunks:
    """The id of the newest chunk of each actor.

    A call may arrive twice or late, but its rows must be stored once. An actor sends its chunks one
    after another, so a chunk that is not newer than the actor's newest one is not stored: it was
    received before, or an earlier process of that actor sent it.
    """

    def __init__(self) -> None:
        self._newest: dict[int, ChunkId] = {}  # by actor
        self.duplicates = 0  # chunks that were received before
        self.outdated = 0  # chunks of actor processes that have been replaced since

    @property
    def actors(self) -> int:
        """Number of actors that have sent chunks."""
        return len(self._newest)

    def newest(self, actor: int) -> ChunkId | None:
        """Returns the id of the newest chunk of an actor; None where there is none."""
        return self._newest.get(actor)

    def reject(self, chunk_id: ChunkId) -> bool:
        """Returns whether a chunk must not be stored. If it must not, counts it as rejected."""
        newest = self._newest.get(chunk_id.actor)
        if newest is None or chunk_id > newest:
            return False
        if chunk_id.restarts < newest.restarts:
            self.outdated += 1
        else:
            self.duplicates += 1
        return True

    def record(self, chunk_id: ChunkId) -> None:
        """Records that a chunk has been stored."""
        self._newest[chunk_id.actor] = chunk_id

    def stats(self) -> dict[str, float]:
        """Returns the counts of rejected chunks."""
        return {"duplicates": self.duplicates, "outdated": self.outdated}

    def state(self) -> dict[str, Any]:
        """Returns the counts, and the newest ids (actors, 3) i64: actor, restarts, sequence."""
        newest = [(chunk.actor, chunk.restarts, chunk.sequence) for chunk in self._newest.values()]
        return {"newest": np.array(newest, np.int64).reshape(-1, 3), **self.stats()}

    def restore(self, state: dict[str, Any]) -> None:
        """Continues from a `state`."""
        newest = [ChunkId(*row) for row in state["newest"].tolist()]
        self._newest = {chunk_id.actor: chunk_id for chunk_id in newest}
        self.duplicates, self.outdated = int(state["duplicates"]), int(state["outdated"])
