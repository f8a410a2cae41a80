"""What a table remembers of each stream between two chunks."""

from __future__ import annotations

from typing import Any

import numpy as np

from core.types import Array


class Streams:
    """The newest `depth` keys of every stream (-1: no row), and whether its episode has ended.

    A stream never seen counts as ended: its next row must open an episode.
    """

    def __init__(self, depth: int) -> None:
        self._depth = depth
        self._row: dict[int, int] = {}
        self._tails = np.full((1, depth), -1)  # row 0 stands for every unknown stream
        self._ended = np.ones(1, bool)

    def tails(self, ids: Array) -> Array:
        """→ (N, depth), newest last."""
        tails: Array = self._tails[self._rows(ids)]
        return tails

    def ended(self, ids: Array) -> Array:
        """→ (N,)"""
        ended: Array = self._ended[self._rows(ids)]
        return ended

    def store(self, ids: Array, tails: Array, ended: Array) -> None:
        new = [i for i in ids.tolist() if i not in self._row]
        if new:
            self._row.update({i: len(self._row) + 1 + n for n, i in enumerate(new)})
            empty = np.full((len(new), self._depth), -1)
            self._tails = np.concatenate([self._tails, empty])
            self._ended = np.concatenate([self._ended, np.ones(len(new), bool)])
        rows = self._rows(ids)
        self._tails[rows], self._ended[rows] = tails, ended

    def state(self) -> dict[str, Any]:
        ids = np.array(list(self._row), np.int64)
        return {"ids": ids, "tails": self.tails(ids), "ended": self.ended(ids)}

    def restore(self, state: dict[str, Any]) -> None:
        self._row.clear()
        self._tails, self._ended = self._tails[:1], self._ended[:1]
        self.store(state["ids"], state["tails"], state["ended"])

    def _rows(self, ids: Array) -> Array:
        return np.array([self._row.get(i, 0) for i in ids.tolist()], np.int64)
