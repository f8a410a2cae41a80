"""Which chunks of rows a table has taken already."""

from __future__ import annotations

from typing import Any

import numpy as np

from dreamfleet.core.types import ChunkId


class ReceivedChunks:
    """The newest chunk of each actor. Calls may come twice, and late; rows must not.

    An actor hands over its chunks one after another, so what is not newer than its newest one was
    taken before, or comes from an restarts that has been replaced.
    """

    def __init__(self) -> None:
        self._newest: dict[int, ChunkId] = {}
        self.duplicates = 0  # chunks offered again after they had been taken
        self.outdated = 0  # chunks of an actor that has been replaced

    @property
    def actors(self) -> int:
        return len(self._newest)

    def newest(self, actor: int) -> ChunkId | None:
        return self._newest.get(actor)

    def known(self, chunk_id: ChunkId) -> bool:
        """Tells whether this chunk is not to be stored; if so, it is counted."""
        newest = self._newest.get(chunk_id.actor)
        if newest is None or chunk_id > newest:
            return False
        if chunk_id.restarts < newest.restarts:
            self.outdated += 1
        else:
            self.duplicates += 1
        return True

    def take(self, chunk_id: ChunkId) -> None:
        """This chunk has been stored."""
        self._newest[chunk_id.actor] = chunk_id

    def stats(self) -> dict[str, float]:
        return {"duplicates": self.duplicates, "outdated": self.outdated}

    def state(self) -> dict[str, Any]:
        newest = [(of.actor, of.restarts, of.sequence) for of in self._newest.values()]
        return {"newest": np.array(newest, np.int64).reshape(-1, 3), **self.stats()}

    def restore(self, state: dict[str, Any]) -> None:
        newest = [ChunkId(*row) for row in state["newest"].tolist()]
        self._newest = {chunk_id.actor: chunk_id for chunk_id in newest}
        self.duplicates, self.outdated = int(state["duplicates"]), int(state["outdated"])
