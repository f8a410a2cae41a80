"""Stores the rows of a table, and links each row to the rows before and after it in its stream.

A stream is the rows of one environment, in order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from dreamfleet.core.types import Array, Batch, Space
from dreamfleet.replay_server.compiled import fastest
from dreamfleet.replay_server.ring import Ring


class Rows:
    """The columns of all rows of a ring buffer, and links between consecutive rows of a stream.

    A row's key is the number of rows that were inserted before it. `previous` holds, for each slot,
    the key of the row before it in the stream; -1 if there is none. `following` holds, for each
    slot, the slot of the row after it in the stream, or the slot itself if that row has not
    arrived.
    """

    def __init__(self, ring: Ring, columns: Mapping[str, Space]) -> None:
        self.ring = ring
        self.columns = {
            name: np.zeros((ring.capacity, *space.shape), space.dtype)
            for name, space in columns.items()
        }
        self.previous = np.zeros(ring.capacity, np.int64)
        self.following = np.zeros(ring.capacity, np.int64)

    def write(self, rows: Batch, newest_keys: Array) -> Array:
        """Appends T rows to each of N streams, in place of the oldest rows.

        Returns the keys of the new rows, (N, T). A row's key is the number of rows that were
        inserted before it. rows: columns of shape (N, T, …). newest_keys: (N,), the key of each
        stream's newest row so far; -1 for a stream without rows.
        """
        ring, shape = self.ring, rows["last"].shape
        begin, end = ring.inserted, ring.inserted + rows["last"].size
        for name, column in self.columns.items():
            flat = rows[name].reshape(-1, *column.shape[1:])
            for at, place in ring.slices(begin, end):
                column[at] = flat[place]
        keys = np.arange(begin, end)
        for at, place in ring.slices(begin, end):
            self.previous[at] = keys[place] - 1
            self.following[at] = np.arange(at.start + 1, at.stop + 1)
        ring.inserted = end
        keys = keys.reshape(shape)
        # So far all rows are linked as if of one stream. Correct the links where one stream ends
        # and the next begins, and where slots wrap around.
        oldest, newest = ring.slots(keys[:, 0]), ring.slots(keys[:, -1])  # of each stream's chunk
        self.following[-1] %= ring.capacity
        self.following[newest] = newest
        self.previous[oldest] = newest_keys
        stored = ring.contains(newest_keys)
        self.following[ring.slots(newest_keys[stored])] = oldest[stored]
        return keys

    def restore_following(self) -> None:
        """Computes each stored row's link to the next row of the same environment.

        The links are computed from the links to the previous rows.
        """
        slots = self.ring.slots(np.arange(self.ring.oldest, self.ring.inserted))
        self.following[slots] = slots
        slots = slots[self.ring.contains(self.previous[slots])]
        self.following[self.ring.slots(self.previous[slots])] = slots

    def windows(self, starts: Array, context: int, window: int) -> Array:
        """Returns the slots (B, context + T) of all rows of B windows.

        A window has T = `window` rows, after the `context` rows before them. If the episode has
        fewer than `context` earlier rows, its first row is repeated. starts: (B,), the slot of the
        first of the T rows of each window.
        """
        return fastest().windows(
            starts, context, window, self.following, self.previous, self.columns["first"]
        )

    def has_context(self, slots: Array, context: int) -> Array:
        """Returns a mask (n,) of the rows whose context is stored completely.

        The context of a row is the `context` rows before it in its episode. slots: (n,), the
        positions of the rows in the ring buffer.
        """
        complete = np.ones(slots.size, bool)
        for _ in range(context):
            keys = self._previous_in_episode(slots)
            complete &= keys >= self.ring.oldest
            slots = self.ring.slots(keys)  # of another row where this one is evicted: no harm
        return complete

    def losing_context(self, end: int, context: int) -> Iterator[Array]:
        """Yields the slots of rows that lose context if rows with keys below `end` are evicted.

        A row's key is the number of rows that were inserted before it. Yields `context` arrays of
        slots: array k has the rows that are k steps after the newest evicted row of their
        environment, in the same episode.
        """
        if not context:
            return
        ring, first = self.ring, self.columns["first"]
        evicted = end - ring.oldest
        slots = np.concatenate([self.following[at] for at, _ in ring.slices(ring.oldest, end)])
        slots = slots[(slots - ring.oldest) % ring.capacity >= evicted]
        for _ in range(context):
            slots = slots[~first[slots]]
            yield slots
            after = self.following[slots]
            slots = after[after != slots]

    def _previous_in_episode(self, slots: Array) -> Array:
        """Returns, for each row, the key of the row before it; its own key if it begins an episode.

        A row's key is the number of rows that were inserted before it.
        """
        first = self.columns["first"][slots]
        return np.where(first, self.ring.keys_at(slots), self.previous[slots])
