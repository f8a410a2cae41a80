"""The running return and length of each episode."""

from __future__ import annotations

import numpy as np

from core.types import Batch


class Episodes:
    """Sums the rows of n environments and tells which episodes ended."""

    def __init__(self, n: int) -> None:
        self._return = np.zeros(n)  # undiscounted
        self._length = np.zeros(n, np.int64)  # agent steps: the rows that an action led to

    def add(self, rows: Batch) -> list[tuple[int, float, int]]:
        """Rows (N, …) → (environment, return, length) of each episode that ends with them."""
        self._return = np.where(rows["first"], 0.0, self._return) + rows["reward"]
        self._length = np.where(rows["first"], 0, self._length + 1)
        ended = np.flatnonzero(rows["last"])
        return [(int(i), float(self._return[i]), int(self._length[i])) for i in ended]
