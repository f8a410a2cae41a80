"""A table saved while it goes on."""

from __future__ import annotations

from typing import Any

import numpy as np

from dreamfleet.core.types import Array
from dreamfleet.replay_server.rows import Rows

PIECE_BYTES = 1 << 20  # half a millisecond; several where the memory copied to is new


class Snapshot:
    """A table as it stood when this was made, though its rows are copied piece by piece.

    They are copied oldest first, the order in which they are overwritten: to save those about to
    go, one only has to hurry ahead. Each call is for whoever may use the table just then.
    """

    def __init__(self, rows: Rows, small: dict[str, Any]) -> None:
        """`small`: copies of all the rest that makes a state."""
        ring = rows.ring
        self._ring, self._small = ring, small
        self._columns = {name: _room(column, ring.held) for name, column in rows.columns.items()}
        self._previous = _room(rows.previous, ring.held)
        self._copies: list[tuple[Array, Array]] = [(rows.previous, self._previous)]
        self._copies += [(rows.columns[name], copy) for name, copy in self._columns.items()]
        self._begin = self._next = ring.oldest
        self._end = ring.inserted
        row = sum(column[:1].nbytes for column, _ in self._copies)
        self._piece = max(PIECE_BYTES // row, 1)
        self._cut: list[int] = []

    @property
    def done(self) -> bool:
        return self._next >= self._end

    def copy_piece(self) -> bool:
        """Copy some more rows. → whether any are left"""
        self.copy_until(self._next + self._piece)
        return not self.done

    def copy_until(self, key: int) -> None:
        """Copy what is older than `key`, before it is overwritten."""
        begin, end = self._next, min(key, self._end)
        if begin >= end:
            return
        for at, place in self._ring.runs(begin, end):
            into = slice(place.start + begin - self._begin, place.stop + begin - self._begin)
            for column, copy in self._copies:
                copy[into] = column[at]
        self._next = end

    def note_cut(self, keys: Array) -> None:
        """These rows are about to become `last`, which they are not in this snapshot."""
        self._cut += [key for key in keys.tolist() if self._next <= key < self._end]

    def state(self) -> dict[str, Any]:
        """What `Table.state` would have returned when this was made. Finishes the copying."""
        while self.copy_piece():
            pass
        self._columns["last"][np.array(self._cut, np.int64) - self._begin] = False
        return self._small | {"columns": self._columns, "previous": self._previous}


def _room(column: Array, rows: int) -> Array:
    return np.empty((rows, *column.shape[1:]), column.dtype)
