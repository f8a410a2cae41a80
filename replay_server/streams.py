"""Remembers the newest rows of each stream, so that later rows can be linked to them.

A stream is the rows of one environment, in order.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dreamfleet.core.types import Array


class Streams:
    """The keys of the newest `depth` rows of each stream, and whether its newest episode has ended.

    A stream is the rows of one environment. A row's key is the number of rows that were inserted
    before it; -1 stands for no row. Entry 0 of each array stands for all streams without rows.
    """

    def __init__(self, depth: int) -> None:
        self._depth = depth
        self._index: dict[int, int] = {}  # by stream id
        self.newest_keys = np.full((1, depth), -1)  # (indices, depth), the newest last
        self.ended = np.ones(1, bool)  # (indices,)

    def indices(self, ids: Array) -> Array:
        """Returns the index of each of N streams in the arrays of this object, (N,); 0 if unknown.

        A stream is the rows of one environment. ids: (N,), the ids of the streams.
        """
        return np.array([self._index.get(i, 0) for i in ids.tolist()], np.int64)

    def store(self, ids: Array, indices: Array, newest_keys: Array, ended: Array) -> None:
        """Stores the keys of the newest rows of N streams, and whether their episodes have ended.

        ids: (N,), the streams' ids. indices: (N,), the result of `indices(ids)`. newest_keys: (N,
        depth), the `depth` newest keys of each stream. ended: (N,), whether each stream's newest
        episode has ended.
        """
        if new := ids[indices == 0].tolist():
            known = len(self.ended)
            self._index.update(zip(new, range(known, known + len(new)), strict=True))
            no_rows = np.full((len(new), self._depth), -1)
            self.newest_keys = np.concatenate([self.newest_keys, no_rows])
            self.ended = np.concatenate([self.ended, np.ones(len(new), bool)])
            indices = self.indices(ids)
        self.newest_keys[indices], self.ended[indices] = newest_keys, ended

    def state(self) -> dict[str, Any]:
        """Returns copies of all streams' ids, newest keys and `ended` flags, for a checkpoint.

        A stream is the rows of one environment. A row's key is the number of rows that were
        inserted before it.
        """
        ids = np.array(list(self._index), np.int64)
        at = self.indices(ids)
        return {"ids": ids, "newest_keys": self.newest_keys[at], "ended": self.ended[at]}

    def restore(self, state: dict[str, Any]) -> None:
        """Replaces all streams by the streams of a saved `state`.

        A stream is the rows of one environment, in order.
        """
        self._index.clear()
        self.newest_keys, self.ended = self.newest_keys[:1], self.ended[:1]
        ids = state["ids"]
        self.store(ids, np.zeros(len(ids), np.int64), state["newest_keys"], state["ended"])
