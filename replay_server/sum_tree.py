"""A tree of sums, read and written in batches."""

from __future__ import annotations

import numpy as np

from core.types import Array

FAN_OUT = 16  # children a node: the fewer levels, the fewer calls of numpy
SHIFT = FAN_OUT.bit_length() - 1
TOP = 4096  # nodes without a parent; scanning so many costs less than one more level


class SumTree:
    """Masses by slot. Each node above is the sum of `FAN_OUT` nodes of the level below it.

    A write recomputes what lies above it from below, so the sums never drift, and a slot named
    twice in one write keeps its last mass.
    """

    def __init__(self, size: int) -> None:
        sizes = level_sizes(size)
        self._levels = [np.zeros(nodes) for nodes in sizes]  # the top first, the masses last
        self._families = [level.reshape(-1, FAN_OUT) for level in self._levels[1:]]

    @property
    def total(self) -> float:
        return float(np.add.reduce(self._levels[0]))

    @property
    def masses(self) -> Array:
        """Of all slots, and some zeros after them. A view."""
        return self._levels[-1]

    def write(self, slots: Array, mass: Array | float) -> None:
        """Cheapest where neighbours stand together: they are carried up as one."""
        if not slots.size:
            return
        self.masses[slots] = mass
        for above, families in zip(self._levels[-2::-1], self._families[::-1], strict=True):
            slots = slots >> SHIFT
            fresh = np.empty(slots.size, bool)
            fresh[0] = True
            np.not_equal(slots[1:], slots[:-1], out=fresh[1:])
            slots = slots[fresh]
            above[slots] = np.add.reduce(families.take(slots, axis=0), axis=1)

    def replace(self, slots: Array, mass: Array) -> None:
        """Write these masses and 0 everywhere else."""
        self.masses[:] = 0.0
        self.masses[slots] = mass
        for above, families in zip(self._levels[-2::-1], self._families[::-1], strict=True):
            above[: len(families)] = np.add.reduce(families, axis=1)

    def sample(self, n: int, rng: np.random.Generator) -> Array:
        """Draw n slots in proportion to their mass, one from each n-th of the total. → (n,) i64.

        The order is shuffled, so a part of the draws is as fair as the whole. Needs total > 0.
        """
        before = np.zeros(len(self._levels[0]) + 1)  # the mass to the left of each node
        np.add.accumulate(self._levels[0], out=before[1:])
        target = (np.arange(n) + rng.random(n)) * (before[-1] / max(n, 1))
        # Rounding can leave a target past the last mass: each is held below the sum it looks in.
        # The first node whose right edge lies beyond it then has a mass.
        np.minimum(target, np.nextafter(before[-1], 0), out=target)
        node = before[1:].searchsorted(target, "right")
        target -= before[node]
        before = np.zeros((n, FAN_OUT + 1))
        edges, draws = before[:, 1:], np.arange(n)
        for families in self._families:
            np.add.accumulate(families.take(node, axis=0), axis=1, out=edges)
            np.minimum(target, np.nextafter(edges[:, -1], 0), out=target)
            child = (edges > target[:, None]).argmax(axis=1)
            target -= before[draws, child]
            node = node * FAN_OUT + child
        return rng.permutation(node)


def level_sizes(size: int) -> list[int]:
    """How many nodes a tree over `size` slots has on each level, the top first."""
    sizes = [size]
    while sizes[0] > TOP:
        families = -(-sizes[0] // FAN_OUT)
        sizes = [families, families * FAN_OUT, *sizes[1:]]
    return sizes
