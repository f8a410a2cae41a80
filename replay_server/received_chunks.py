"""Recognises chunks of rows (one call of an actor) that a table has received before.

Each chunk is therefore stored only once.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dreamfleet.core.types import ChunkId


class ReceivedChunks:
    """Remembers the newest chunk of each actor, and rejects chunks that are not newer.

    A chunk is the rows that an actor sends in one call. A chunk that is not newer was received
    before, or comes from an old process of an actor.
    """

    def __init__(self) -> None:
        self._newest: dict[int, ChunkId] = {}  # by actor
        self.duplicates = 0  # chunks that were received before
        self.outdated = 0  # chunks of actor processes that have been replaced since

    @property
    def actors(self) -> int:
        """Returns the number of actors that have sent chunks of rows."""
        return len(self._newest)

    def newest(self, actor: int) -> ChunkId | None:
        """Returns the id of the newest chunk that an actor has sent; None if it has sent none.

        A chunk is the rows that an actor sends in one call.
        """
        return self._newest.get(actor)

    def reject(self, chunk_id: ChunkId) -> bool:
        """Returns whether a chunk must not be stored. If it must not, counts it as rejected.

        A chunk must not be stored if it is not newer than the actor's newest stored chunk.
        """
        newest = self._newest.get(chunk_id.actor)
        if newest is None or chunk_id > newest:
            return False
        if chunk_id.restarts < newest.restarts:
            self.outdated += 1
        else:
            self.duplicates += 1
        return True

    def record(self, chunk_id: ChunkId) -> None:
        """Records a stored chunk as the newest chunk of its actor.

        A chunk is the rows that an actor sends in one call.
        """
        self._newest[chunk_id.actor] = chunk_id

    def stats(self) -> dict[str, float]:
        """Returns how many chunks were rejected as duplicates, and how many as outdated.

        A chunk is outdated if it is from an actor process that has been replaced since.
        """
        return {"duplicates": self.duplicates, "outdated": self.outdated}

    def state(self) -> dict[str, Any]:
        """Returns the counts of rejected chunks, and the ids of the actors' newest chunks.

        Each id is a row of an (actors, 3) i64 array: actor, restarts, sequence.
        """
        newest = [(chunk.actor, chunk.restarts, chunk.sequence) for chunk in self._newest.values()]
        return {"newest": np.array(newest, np.int64).reshape(-1, 3), **self.stats()}

    def restore(self, state: dict[str, Any]) -> None:
        """Restores the counts of rejected chunks and the ids of the actors' newest chunks.

        A chunk is the rows that an actor sends in one call. state: what method `state` returned.
        """
        newest = [ChunkId(*row) for row in state["newest"].tolist()]
        self._newest = {chunk_id.actor: chunk_id for chunk_id in newest}
        self.duplicates, self.outdated = int(state["duplicates"]), int(state["outdated"])
