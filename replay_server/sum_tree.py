"""A tree of sums, read and written in batches."""

from __future__ import annotations

import numpy as np

from dreamfleet.core.types import Array
from dreamfleet.replay_server.compiled import fastest
from dreamfleet.replay_server.loops import FAN_OUT
from dreamfleet.replay_server.memory import from_line

TOP = 256  # nodes without a parent at most; scanning so many costs less than one more level


class SumTree:
    """Masses by slot. Each node above is the sum of `FAN_OUT` nodes of the level below it.

    A write recomputes what lies above it from below, so the sums never drift, and a slot named
    twice in one write keeps its last mass.
    """

    def __init__(self, size: int) -> None:
        sizes = level_sizes(size)
        self._begins = np.cumsum([0, *sizes])
        nodes = from_line(np.zeros(self._begins[-1] + FAN_OUT))  # so that a line holds a family
        self._nodes = nodes[: self._begins[-1]]
        self.masses = self._nodes[self._begins[-2] :]  # of all slots, and some zeros after them
        self.total = 0.0

    def write(self, slots: Array, mass: Array | float) -> None:
        """Cheapest where neighbours stand together: they are carried up as one."""
        masses = mass if isinstance(mass, np.ndarray) else np.full(slots.size, mass)
        self.total = fastest().write(self._nodes, self._begins, slots, masses)

    def replace(self, slots: Array, mass: Array) -> None:
        """Write these masses and 0 everywhere else."""
        self.masses[:] = 0.0
        self.masses[slots] = mass
        self.write(np.arange(self.masses.size), self.masses)

    def sample(self, n: int, rng: np.random.Generator) -> Array:
        """Draw n slots in proportion to their mass, one from each n-th of the total. → (n,) i64

        The order is shuffled, so a part of the draws is as fair as the whole. Needs total > 0.
        """
        return fastest().draw(self._nodes, self._begins, rng.random((2, n)))


def level_sizes(size: int) -> list[int]:
    """How many nodes a tree over `size` slots has on each level, the top first: whole families."""
    families = -(-size // FAN_OUT)
    above = level_sizes(families) if families * FAN_OUT > TOP else []
    return [*above, families * FAN_OUT]
