"""Where rows live, and which of them a window may begin at."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from core.types import Array


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

    @property
    def keys(self) -> Array:
        """The keys of all held rows, oldest first."""
        return np.arange(self.oldest, self.inserted)

    def live(self, keys: Array) -> Array:
        """Which keys belong to rows still held; -1 stands for no row."""
        return (keys >= self.oldest) & (keys < self.inserted)

    def slots(self, keys: Array) -> Array:
        return keys % self.capacity

    def keys_at(self, slots: Array) -> Array:
        """The keys of the newest rows written to these slots."""
        newest = self.inserted - 1
        return newest - (newest - slots) % self.capacity


class Starts:
    """The rows a window may begin at: a flag per slot, and how many are set."""

    def __init__(self, ring: Ring) -> None:
        self.ring = ring
        self.flags = np.zeros(ring.capacity, bool)
        self.count = 0

    def admit(self, keys: Array) -> None:
        """Set the flags of rows that have none."""
        self.flags[self.ring.slots(keys)] = True
        self.count += keys.size

    def withdraw(self, keys: Array) -> Array:
        """Clear the flags. → those keys that had one."""
        keys = keys[self.flags[self.ring.slots(keys)]]
        self.flags[self.ring.slots(keys)] = False
        self.count -= keys.size
        return keys

    def recent(self, reach: int) -> Array:
        """The flags of the newest `reach` rows (at least 1, at most all held), oldest first."""
        begin, end = (self.ring.inserted - reach) % self.ring.capacity, self.ring.inserted
        end %= self.ring.capacity
        if begin < end:
            return self.flags[begin:end]
        return np.concatenate([self.flags[begin:], self.flags[:end]])

    def restore(self, flags: Array) -> None:
        """Take over the flags of all held rows, oldest first."""
        self.flags[:] = False
        self.flags[self.ring.slots(self.ring.keys)] = flags
        self.count = int(np.count_nonzero(flags))
