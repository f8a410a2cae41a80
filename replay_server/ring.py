"""The arithmetic of the ring buffer, and the flags of the rows at which windows may begin."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dreamfleet.core.types import Array
from dreamfleet.replay_server.compiled import fastest


@dataclass
class Ring:
    """The positions of rows in a ring buffer: which keys are stored, and in which slots.

    A row's key is the number of rows inserted before it. Its slot is key % capacity, until the row
    with key + capacity overwrites it. So the oldest row is evicted first, no key is used twice, and
    the age of a row is `inserted - 1 - key`.
    """

    capacity: int  # rows
    inserted: int = 0  # rows ever inserted

    @property
    def stored(self) -> int:
        """Number of rows in the ring now."""
        return min(self.inserted, self.capacity)

    @property
    def oldest(self) -> int:
        """Key of the oldest stored row; also the number of evicted rows."""
        return self.inserted - self.stored

    def contains(self, keys: Array) -> Array:
        """Returns a mask of the keys whose rows are stored now. Key -1 stands for no row."""
        return (keys >= self.oldest) & (keys < self.inserted)

    def slots(self, keys: Array) -> Array:
        """Returns the slots of keys."""
        return keys % self.capacity

    def keys_at(self, slots: Array) -> Array:
        """Returns the keys of the newest rows written to these slots."""
        return fastest().keys_at(slots, self.inserted, self.capacity)

    def slices(self, begin: int, end: int) -> list[tuple[slice, slice]]:
        """Returns the slots of the keys begin … end - 1 as one slice, or as two around the end.

        Each slice of slots comes with the slice of its keys, counted from `begin`. There are at
        most `capacity` keys.
        """
        n, slot = end - begin, begin % self.capacity
        fit = min(n, self.capacity - slot)
        slices = [(slice(slot, slot + fit), slice(0, fit)), (slice(0, n - fit), slice(fit, n))]
        return slices if fit < n else slices[:1]

    def oldest_first(self, column: Array) -> Array:
        """Returns a copy of the values of all stored rows, oldest first. column: (capacity, …)."""
        return np.concatenate([column[at] for at, _ in self.slices(self.oldest, self.inserted)])


class Starts:
    """The starts of one consumer: a flag per slot, and the number of flags that are set."""

    def __init__(self, ring: Ring) -> None:
        self.ring = ring
        self.flags = np.zeros(ring.capacity, bool)
        self.count = 0

    def add(self, slots: Array) -> None:
        """Sets the flags of slots that are not set yet."""
        self.flags[slots] = True
        self.count += slots.size

    def remove(self, slots: Array) -> Array:
        """Clears the flags of slots → the slots whose flag was set."""
        slots = slots[self.flags[slots]]
        self.flags[slots] = False
        self.count -= slots.size
        return slots

    def between(self, begin: int, end: int) -> Array:
        """Returns the slots of the starts among the keys begin … end - 1, oldest first."""
        slices = self.ring.slices(begin, end)
        return np.concatenate([at.start + np.flatnonzero(self.flags[at]) for at, _ in slices])

    def count_between(self, begin: int, end: int) -> int:
        """Returns the number of starts among the keys begin … end - 1."""
        slices = self.ring.slices(begin, end)
        return sum(int(np.count_nonzero(self.flags[at])) for at, _ in slices)

    def restore(self, flags: Array) -> None:
        """Replaces the flags of all stored rows by `flags`, oldest first."""
        self.flags[:] = False
        for at, place in self.ring.slices(self.ring.oldest, self.ring.inserted):
            self.flags[at] = flags[place]
        self.count = int(np.count_nonzero(flags))
