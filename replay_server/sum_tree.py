"""A binary tree of sums, read and written in batches."""

from __future__ import annotations

import numpy as np

from core.types import Array


class SumTree:
    """Masses by slot in a flat heap: node i is the sum of nodes 2i and 2i + 1; node 1 is the root.

    A write recomputes its ancestors from their children, so the sums never drift, and a slot
    named twice in one write keeps its last mass.
    """

    def __init__(self, size: int) -> None:
        self._depth = (size - 1).bit_length()
        self._width = 1 << self._depth
        self._nodes = np.zeros(2 * self._width)
        self._children = self._nodes.reshape(-1, 2)

    @property
    def total(self) -> float:
        return float(self._nodes[1])

    @property
    def nbytes(self) -> int:
        return self._nodes.nbytes

    def mass(self, slots: Array) -> Array:
        mass: Array = self._nodes[self._width + slots]
        return mass

    def write(self, slots: Array, mass: Array | float) -> None:
        nodes = self._width + slots
        self._nodes[nodes] = mass
        for _ in range(self._depth):
            nodes = nodes >> 1
            self._nodes[nodes] = self._children[nodes, 0] + self._children[nodes, 1]

    def replace(self, slots: Array, mass: Array) -> None:
        """Write these masses and 0 everywhere else."""
        self._nodes[:] = 0.0
        self._nodes[self._width + slots] = mass
        for level in range(self._depth - 1, -1, -1):
            nodes = slice(1 << level, 2 << level)
            self._nodes[nodes] = self._children[nodes].sum(axis=1)

    def sample(self, n: int, rng: np.random.Generator) -> Array:
        """Draw n slots in proportion to their mass, one from each n-th of the total. → (n,) i64.

        The order is shuffled, so a part of the draws is as fair as the whole. Needs total > 0.
        """
        target = (rng.permutation(n) + rng.random(n)) * (self.total / max(n, 1))
        node = np.ones(n, np.int64)
        for _ in range(self._depth):
            left, right = self._children[node].T
            # Rounding can leave a target past the last mass: never step into an empty subtree.
            go_right = (target >= left) & (right > 0)
            target -= left * go_right
            node = 2 * node + go_right
        return node - self._width
