"""The rows themselves, and the links between those that follow one another in a stream."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from dreamfleet.core.types import Array, Batch, Space
from dreamfleet.replay_server.compiled import fastest
from dreamfleet.replay_server.ring import Ring


class Rows:
    """Columns of a ring, and for each row its neighbours in its stream.

    `previous` holds the key of the row before, which may be gone (-1: there was none). `following`
    holds the slot of the row after, which is younger and so never gone (its own: not yet there).
    """

    def __init__(self, ring: Ring, columns: Mapping[str, Space]) -> None:
        self.ring = ring
        self.columns = {
            name: np.zeros((ring.capacity, *space.shape), space.dtype)
            for name, space in columns.items()
        }
        self.previous = np.zeros(ring.capacity, np.int64)
        self.following = np.zeros(ring.capacity, np.int64)

    def write(self, rows: Batch, tails: Array) -> Array:
        """Append rows (N, T, …) to the streams whose newest keys are `tails` (N,). → keys (N, T)"""
        ring, shape = self.ring, rows["last"].shape
        begin, end = ring.inserted, ring.inserted + rows["last"].size
        for name, column in self.columns.items():
            flat = rows[name].reshape(-1, *column.shape[1:])
            for at, place in ring.runs(begin, end):
                column[at] = flat[place]
        keys = np.arange(begin, end)
        for at, place in ring.runs(begin, end):
            self.previous[at] = keys[place] - 1
            self.following[at] = np.arange(at.start + 1, at.stop + 1)
        ring.inserted = end
        keys = keys.reshape(shape)
        # Now all are one line: mend it where one stream meets the next, and where the ring closes.
        opening, newest = ring.slots(keys[:, 0]), ring.slots(keys[:, -1])
        self.following[-1] %= ring.capacity
        self.following[newest] = newest
        self.previous[opening] = tails
        live = ring.live(tails)
        self.following[ring.slots(tails[live])] = opening[live]
        return keys

    def relink(self) -> None:
        """Find the row after each, given the row before each."""
        slots = self.ring.slots(np.arange(self.ring.oldest, self.ring.inserted))
        self.following[slots] = slots
        slots = slots[self.ring.live(self.previous[slots])]
        self.following[self.ring.slots(self.previous[slots])] = slots

    def windows(self, starts: Array, context: int, window: int) -> Array:
        """Of each start (B,) the slots of its rows, those of its context first. → (B, context + T)

        Where the episode began later than that, its first row stands in for what was before.
        """
        return fastest().windows(
            starts, context, window, self.following, self.previous, self.columns["first"]
        )

    def rooted(self, slots: Array, context: int) -> Array:
        """Which of these rows have all rows of their context still."""
        rooted = np.ones(slots.size, bool)
        for _ in range(context):
            keys = self._before(slots)
            rooted &= keys >= self.ring.oldest
            slots = self.ring.slots(keys)  # of another row where this one is gone: no matter
        return rooted

    def uprooted(self, end: int, context: int) -> Iterator[Array]:
        """The slots of rows that lose some of their context when all rows older than `end` go.

        Those 1, then 2, … `context` steps after the newest row to go of their stream, and in its
        episode.
        """
        if not context:
            return
        ring, first = self.ring, self.columns["first"]
        going = end - ring.oldest
        slots = np.concatenate([self.following[at] for at, _ in ring.runs(ring.oldest, end)])
        slots = slots[(slots - ring.oldest) % ring.capacity >= going]
        for _ in range(context):
            slots = slots[~first[slots]]
            yield slots
            after = self.following[slots]
            slots = after[after != slots]

    def _before(self, slots: Array) -> Array:
        """The keys of the rows before in the episode; its first row is before itself."""
        first = self.columns["first"][slots]
        return np.where(first, self.ring.keys_at(slots), self.previous[slots])
