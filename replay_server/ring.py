"""The arithmetic of a ring buffer, and the flags of the rows at which windows may begin.

A window is a sequence of consecutive rows of one environment.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dreamfleet.core.types import Array
from dreamfleet.replay_server.compiled import fastest


@dataclass
class Ring:
    """Computes which rows a ring buffer stores, and in which slots. It does not hold the rows.

    A row's key is the number of rows that were inserted before it. The row's slot is key %
    capacity.
    """

    capacity: int  # rows
    inserted: int = 0  # rows ever inserted

    @property
    def stored(self) -> int:
        """Returns the number of rows that the ring buffer stores at present."""
        return min(self.inserted, self.capacity)

    @property
    def oldest(self) -> int:
        """Returns the key of the oldest stored row.

        A row's key is the number of rows that were inserted before it. The oldest stored row's key
        therefore equals the number of evicted rows.
        """
        return self.inserted - self.stored

    def contains(self, keys: Array) -> Array:
        """Returns a mask that says which rows are stored.

        keys: the rows' keys. A row's key is the number of rows that were inserted before it. Key -1
        stands for no row, and gives False.
        """
        return (keys >= self.oldest) & (keys < self.inserted)

    def slots(self, keys: Array) -> Array:
        """Returns the slots in which the rows with these keys are stored.

        A row's key is the number of rows that were inserted before it.
        """
        return keys % self.capacity

    def keys_at(self, slots: Array) -> Array:
        """Returns the keys of the newest rows that were written to these slots.

        A row's key is the number of rows that were inserted before it.
        """
        return fastest().keys_at(slots, self.inserted, self.capacity)

    def slices(self, begin: int, end: int) -> list[tuple[slice, slice]]:
        """Returns where the rows with keys `begin` to `end` - 1 are stored, as pairs of slices.

        A row's key is the number of rows that were inserted before it. In each pair, the first
        slice gives the rows' slots in the buffer, and the second slice gives their keys minus
        `begin`. At most `capacity` keys are allowed.
        """
        n, slot = end - begin, begin % self.capacity
        fit = min(n, self.capacity - slot)
        slices = [(slice(slot, slot + fit), slice(0, fit)), (slice(0, n - fit), slice(fit, n))]
        return slices if fit < n else slices[:1]

    def oldest_first(self, column: Array) -> Array:
        """Returns a copy of the stored rows of a column, from the oldest row to the newest.

        column: (capacity, …), one entry per slot of the ring buffer.
        """
        return np.concatenate([column[at] for at, _ in self.slices(self.oldest, self.inserted)])


class Starts:
    """Marks the rows at which one consumer's windows may begin (starts): one flag per slot.

    A slot is a position in the ring buffer. `count` is the number of starts.
    """

    def __init__(self, ring: Ring) -> None:
        self.ring = ring
        self.flags = np.zeros(ring.capacity, bool)
        self.count = 0

    def add(self, slots: Array) -> None:
        """Marks the rows in these slots as starts (rows at which a window may begin).

        slots: positions in the ring buffer. None of these rows may be marked already.
        """
        self.flags[slots] = True
        self.count += slots.size

    def remove(self, slots: Array) -> Array:
        """Removes the marks of the starts in `slots`. Returns the slots of these starts.

        A start is a row at which a window may begin. A slot is a position in the ring buffer.
        """
        slots = slots[self.flags[slots]]
        self.flags[slots] = False
        self.count -= slots.size
        return slots

    def between(self, begin: int, end: int) -> Array:
        """Returns the slots of all starts with keys from `begin` to `end` - 1, the oldest first.

        A row's key is the number of rows that were inserted before it.
        """
        slices = self.ring.slices(begin, end)
        return np.concatenate([at.start + np.flatnonzero(self.flags[at]) for at, _ in slices])

    def count_between(self, begin: int, end: int) -> int:
        """Returns the number of starts with keys from `begin` to `end` - 1.

        A start is a row at which a window may begin. A row's key is the number of rows that were
        inserted before it.
        """
        slices = self.ring.slices(begin, end)
        return sum(int(np.count_nonzero(self.flags[at])) for at, _ in slices)

    def restore(self, flags: Array) -> None:
        """Sets which of the stored rows are starts (rows at which a window may begin).

        flags: one per stored row, the oldest row first.
        """
        self.flags[:] = False
        for at, place in self.ring.slices(self.ring.oldest, self.ring.inserted):
            self.flags[at] = flags[place]
        self.count = int(np.count_nonzero(flags))
