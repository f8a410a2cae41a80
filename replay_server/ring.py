"""Where rows live, and which of them a window may begin at."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dreamfleet.core.types import Array
from dreamfleet.replay_server.compiled import fastest


@dataclass
class Ring:
    """Row n ever inserted, its key, sits in slot n % capacity until row n + capacity takes it.

    So eviction is first in, first out, a key is never used twice, and the age of a row is
    `inserted - 1 - key`.
    """

    capacity: int
    inserted: int = 0

    @property
    def held(self) -> int:
        return min(self.inserted, self.capacity)

    @property
    def oldest(self) -> int:
        return self.inserted - self.held

    def live(self, keys: Array) -> Array:
        """Which keys belong to rows still held; -1 stands for no row."""
        return (keys >= self.oldest) & (keys < self.inserted)

    def slots(self, keys: Array) -> Array:
        return keys % self.capacity

    def keys_at(self, slots: Array) -> Array:
        """The keys of the newest rows written to these slots."""
        return fastest().keys_at(slots, self.inserted, self.capacity)

    def runs(self, begin: int, end: int) -> list[tuple[slice, slice]]:
        """The slots of the keys begin … end - 1, at most a ring of them, as slices.

        Each comes with the place of its keys among all of these.
        """
        n, slot = end - begin, begin % self.capacity
        fit = min(n, self.capacity - slot)
        runs = [(slice(slot, slot + fit), slice(0, fit)), (slice(0, n - fit), slice(fit, n))]
        return runs if fit < n else runs[:1]

    def ordered(self, column: Array) -> Array:
        """A copy of what the held rows have in a column of slots, oldest first."""
        return np.concatenate([column[at] for at, _ in self.runs(self.oldest, self.inserted)])


class Starts:
    """The rows a window may begin at: a flag per slot, and how many are set."""

    def __init__(self, ring: Ring) -> None:
        self.ring = ring
        self.flags = np.zeros(ring.capacity, bool)
        self.count = 0

    def admit(self, slots: Array) -> None:
        """Set the flags of slots that have none."""
        self.flags[slots] = True
        self.count += slots.size

    def withdraw(self, slots: Array) -> Array:
        """Clear the flags. → those slots that had one"""
        slots = slots[self.flags[slots]]
        self.flags[slots] = False
        self.count -= slots.size
        return slots

    def within(self, begin: int, end: int) -> Array:
        """The slots of the starts among the keys begin … end - 1, oldest first."""
        runs = [at.start + np.flatnonzero(self.flags[at]) for at, _ in self.ring.runs(begin, end)]
        return np.concatenate(runs)

    def count_within(self, begin: int, end: int) -> int:
        return sum(int(np.count_nonzero(self.flags[at])) for at, _ in self.ring.runs(begin, end))

    def restore(self, flags: Array) -> None:
        """Take over the flags of all held rows, oldest first."""
        self.flags[:] = False
        for at, place in self.ring.runs(self.ring.oldest, self.ring.inserted):
            self.flags[at] = flags[place]
        self.count = int(np.count_nonzero(flags))
