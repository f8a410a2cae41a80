"""One consumer's view of a table: its starts, its selector, and its batches."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dreamfleet.core.types import Array, Batch, Consumer, Sample
from dreamfleet.replay_server.alignment import CACHE_LINE, aligned
from dreamfleet.replay_server.ring import Starts
from dreamfleet.replay_server.rows import Rows
from dreamfleet.replay_server.selectors import build


@dataclass
class Draw:
    """Windows that a consumer drew, and whose rows are not copied yet.

    `inserted` and `truncated` are the table's counters at the draw. They tell afterwards whether a
    drawn row was overwritten or changed while it was copied.
    """

    consumer: str
    slots: Array  # (B, context + T) i64, of the rows
    inserted: int  # rows
    truncated: int  # episodes
    sample: Sample  # complete but for its data


class ColumnLayout(NamedTuple):
    """The position of one column in the memory of a batch."""

    name: str
    column: Array  # the table's, (capacity, …)
    shape: tuple[int, ...]  # in the batch
    begin: int  # bytes from the beginning of the memory


class ConsumerView:
    """A consumer's starts and selector, and the columns that its batches are made of."""

    def __init__(self, spec: Consumer, rows: Rows) -> None:
        self.spec = spec
        self.starts = Starts(rows.ring)
        self.selector = build(spec.selector, self.starts, rows, spec.window)
        self._columns = {name: rows.columns[name] for name in spec.columns or rows.columns}
        # By (B, context + T): the layouts of all columns, and the bytes that they take together.
        self._layouts: dict[tuple[int, ...], tuple[list[ColumnLayout], int]] = {}

    def add(self, slots: Array) -> None:
        """Adds rows (n,) that have become starts."""
        self.starts.add(slots)
        self.selector.add(slots)

    def remove(self, slots: Array) -> None:
        """Removes those rows of (n,) that are starts."""
        self.selector.remove(self.starts.remove(slots))

    def gather(self, slots: Array) -> Batch:
        """Copies rows, (B, context + T), into one piece of memory, column after column."""
        if slots.shape not in self._layouts:
            self._layouts[slots.shape] = self._layout(slots.shape)
        layouts, size = self._layouts[slots.shape]
        memory = aligned(np.empty(size + CACHE_LINE, np.uint8))
        batch = {}
        for name, column, shape, begin in layouts:
            batch[name] = np.ndarray(shape, column.dtype, memory, begin)
            column.take(slots, 0, batch[name], "clip")
        return batch

    def _layout(self, lead: tuple[int, ...]) -> tuple[list[ColumnLayout], int]:
        """Returns the layouts of a batch with these leading axes, and its size in bytes."""
        layouts, size = [], 0
        for name, column in self._columns.items():
            layouts.append(ColumnLayout(name, column, lead + column.shape[1:], size))
            size += -(-math.prod(lead) * column[:1].nbytes // CACHE_LINE) * CACHE_LINE
        return layouts, size
