"""A sum tree, which draws slots with probability proportional to their weights.

A slot is a position in the ring buffer.
"""

from __future__ import annotations

import numpy as np

from dreamfleet.core.types import Array
from dreamfleet.replay_server.alignment import aligned
from dreamfleet.replay_server.compiled import fastest
from dreamfleet.replay_server.loops import FAN_OUT

TOP = 256  # nodes of the top level, at most; scanning so many costs less than one more level


class SumTree:
    """A tree over the weights of all slots. Each inner node is the sum of its `FAN_OUT` children.

    A slot is a position in a ring buffer. If a slot occurs several times in one call of `write`,
    its last weight is kept.
    """

    def __init__(self, size: int) -> None:
        sizes = level_sizes(size)
        self._begins = np.cumsum([0, *sizes])
        nodes = aligned(np.zeros(self._begins[-1] + FAN_OUT))  # siblings share a cache line
        self._nodes = nodes[: self._begins[-1]]
        self.weights = self._nodes[self._begins[-2] :]  # (size,) and some zeros
        self.total = 0.0  # sum of all weights

    @staticmethod
    def nbytes(size: int) -> int:
        """Returns the memory, in bytes, of a tree over `size` slots."""
        return sum(level_sizes(size)) * 8

    def write(self, slots: Array, weights: Array | float) -> None:
        """Sets the weights of slots (n,). A slot is a position in a ring buffer.

        This is fastest for consecutive slots, as they share parent nodes.
        """
        if not isinstance(weights, np.ndarray):
            weights = np.full(slots.size, weights)
        self.total = fastest().write(self._nodes, self._begins, slots, weights)

    def replace(self, slots: Array, weights: Array) -> None:
        """Sets the weights of the slots (n,), and sets the weights of all other slots to 0."""
        self.weights[:] = 0.0
        self.weights[slots] = weights
        self.write(np.arange(self.weights.size), self.weights)

    def sample(self, n: int, rng: np.random.Generator) -> Array:
        """Draws n slots by stratified sampling. Returns them in random order, (n,) i64.

        The total weight is divided into n equal strata, and one slot is drawn from each stratum.
        `total` must be more than 0.
        """
        return fastest().draw(self._nodes, self._begins, rng.random((2, n)))


def level_sizes(size: int) -> list[int]:
    """Returns the number of nodes on each level of a sum tree over `size` slots, top level first.

    Each number is a multiple of `FAN_OUT`, the number of children of a node.
    """
    families = -(-size // FAN_OUT)
    above = level_sizes(families) if families * FAN_OUT > TOP else []
    return [*above, families * FAN_OUT]
