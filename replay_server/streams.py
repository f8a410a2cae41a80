"""What a table remembers of each stream between two chunks."""

from __future__ import annotations

from typing import Any

import numpy as np

from dreamfleet.core.types import Array


class Streams:
    """The newest `depth` keys of every stream (-1: no row), and whether its episode has ended.

    A stream never seen counts as ended: its next row must open an episode.
    """

    def __init__(self, depth: int) -> None:
        self._depth = depth
        self._place: dict[int, int] = {}
        self.tails = np.full((1, depth), -1)  # place 0 stands for every unknown stream
        self.ended = np.ones(1, bool)

    def places(self, ids: Array) -> Array:
        """Where `tails`, newest last, and `ended` have what they know of these streams."""
        return np.array([self._place.get(i, 0) for i in ids.tolist()], np.int64)

    def store(self, ids: Array, places: Array, tails: Array, ended: Array) -> None:
        """Remember of streams (N,) their tails (N, depth) and whether they have ended (N,)."""
        if new := ids[places == 0].tolist():
            known = len(self.ended)
            self._place.update(zip(new, range(known, known + len(new)), strict=True))
            self.tails = np.concatenate([self.tails, np.full((len(new), self._depth), -1)])
            self.ended = np.concatenate([self.ended, np.ones(len(new), bool)])
            places = self.places(ids)
        self.tails[places], self.ended[places] = tails, ended

    def state(self) -> dict[str, Any]:
        ids = np.array(list(self._place), np.int64)
        places = self.places(ids)
        return {"ids": ids, "tails": self.tails[places], "ended": self.ended[places]}

    def restore(self, state: dict[str, Any]) -> None:
        self._place.clear()
        self.tails, self.ended = self.tails[:1], self.ended[:1]
        ids = state["ids"]
        self.store(ids, np.zeros(len(ids), np.int64), state["tails"], state["ended"])
