"""Copies the state of a table for a checkpoint, while rows are added to the table."""

from __future__ import annotations

from typing import Any

import numpy as np

from dreamfleet.core.types import Array
from dreamfleet.replay_server.rows import Rows

PIECE_BYTES = 1 << 20  # takes half a millisecond, or a few where the memory is new


class Snapshot:
    """The state of a table at the moment when this object was made. Rows are copied piece by piece.

    Before the table overwrites rows, it calls `copy_until`, which copies them. Before the table
    changes values of stored rows, it calls `keep`. Call the methods only while you hold the table's
    lock. rest: everything in the state except rows. rows: the table's rows; None for a queue.
    """

    def __init__(self, rest: dict[str, Any], rows: Rows | None = None) -> None:
        self.rest = rest
        self._begin = self._next = self._end = 0  # keys: first, next to be copied, end
        self._kept: dict[str, Array] = {}  # column → (stored,) rows copied before the others
        if rows is None:
            return
        self._ring = ring = rows.ring
        columns = {name: _empty(column, ring.stored) for name, column in rows.columns.items()}
        previous = _empty(rows.previous, ring.stored)
        self._copies: dict[str, tuple[Array, Array]] = {
            name: (rows.columns[name], copy) for name, copy in columns.items()
        }
        self._copies |= {"": (rows.previous, previous)}
        self.rest |= {"columns": columns, "previous": previous}
        self._begin = self._next = ring.oldest
        self._end = ring.inserted
        row_bytes = sum(column[:1].nbytes for column, _ in self._copies.values())
        self._piece = max(PIECE_BYTES // row_bytes, 1)  # rows

    def copy_piece(self) -> bool:
        """Copies the next rows, about a megabyte. Returns whether rows are left to copy."""
        if self._next < self._end:
            self.copy_until(self._next + self._piece)
        return self._next < self._end

    def copy_until(self, key: int) -> None:
        """Copies all rows with keys below `key` that are not copied yet.

        A row's key is the number of rows that were inserted before it. The table calls this method
        before it overwrites these rows.
        """
        begin, end = self._next, min(key, self._end)
        if begin >= end:
            return
        for at, place in self._ring.slices(begin, end):
            into = slice(place.start + begin - self._begin, place.stop + begin - self._begin)
            for name, (column, copy) in self._copies.items():
                if name in self._kept:
                    missing = ~self._kept[name][into]
                    copy[into][missing] = column[at][missing]
                else:
                    copy[into] = column[at]
        self._next = end

    def keep(self, keys: Array, column: str) -> None:
        """Copies values of a column that the table is about to change in place.

        The snapshot thus holds the old values. keys: for each of the rows that change, the number
        of rows that were inserted before it.
        """
        keys = keys[(self._next <= keys) & (keys < self._end)]
        if not keys.size:
            return
        values, copy = self._copies[column]
        kept = self._kept.setdefault(column, np.zeros(len(copy), bool))
        keys = keys[~kept[keys - self._begin]]
        copy[keys - self._begin] = values[self._ring.slots(keys)]
        kept[keys - self._begin] = True

    def state(self) -> dict[str, Any]:
        """Copies all remaining rows. Returns the table's whole state as nested dicts."""
        while self.copy_piece():
            pass
        return self.rest


def _empty(column: Array, rows: int) -> Array:
    return np.empty((rows, *column.shape[1:]), column.dtype)
