"""Holds what one consumer of a table needs: its starts, its selector, and its columns.

A consumer is a named sampler of a table, such as `policy`. A start is a row at which a window may
begin.
"""

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
    """A sample of windows (consecutive rows) whose rows are not copied yet.

    `inserted` and `truncated` are the table's counters when the windows were drawn.
    """

    consumer: str
    slots: Array  # (B, context + T) i64, of the rows
    inserted: int  # rows
    truncated: int  # episodes
    sample: Sample  # complete but for its data


class ColumnLayout(NamedTuple):
    """The position of one column in the block of memory that holds a sampled batch."""

    name: str
    column: Array  # the table's, (capacity, …)
    first_only: bool  # whether the batch holds the first row of each window only
    shape: tuple[int, ...]  # in the batch
    begin: int  # bytes from the beginning of the memory


class ConsumerView:
    """One consumer's starts (rows at which windows may begin), its selector, and its columns.

    A consumer is a named sampler of a table, such as `policy`. A selector samples starts. The
    columns are those of the consumer's batches.
    """

    def __init__(self, spec: Consumer, rows: Rows) -> None:
        self.spec = spec
        self.starts = Starts(rows.ring)
        self.selector = build(spec.selector, self.starts, rows, spec.window)
        whole = spec.columns or [name for name in rows.columns if name not in spec.first_columns]
        self._columns = {name: rows.columns[name] for name in (*whole, *spec.first_columns)}
        # By (B, context + T): the layouts of all columns, and the bytes that they take together.
        self._layouts: dict[tuple[int, ...], tuple[list[ColumnLayout], int]] = {}

    def add(self, slots: Array) -> None:
        """Adds rows at which a window may now begin (starts).

        slots: (n,), the positions of these rows in the ring buffer.
        """
        self.starts.add(slots)
        self.selector.add(slots)

    def remove(self, slots: Array) -> None:
        """Removes starts (rows at which a window may begin).

        slots: (n,), the positions of these rows in the ring buffer. Rows that are no starts are
        ignored.
        """
        self.selector.remove(self.starts.remove(slots))

    def gather(self, slots: Array) -> Batch:
        """Copies rows into one block of memory, column after column. Returns the columns by name.

        Their shape is (B, context + T, …), or (B, …) for the consumer's `first_columns`. slots: (B,
        context + T), the positions of the rows in the ring buffer.
        """
        if slots.shape not in self._layouts:
            self._layouts[slots.shape] = self._layout(slots.shape)
        layouts, size = self._layouts[slots.shape]
        memory = aligned(np.empty(size + CACHE_LINE, np.uint8))
        batch = {}
        for name, column, first_only, shape, begin in layouts:
            batch[name] = np.ndarray(shape, column.dtype, memory, begin)
            column.take(slots[:, 0] if first_only else slots, 0, batch[name], "clip")
        return batch

    def _layout(self, rows: tuple[int, ...]) -> tuple[list[ColumnLayout], int]:
        """Returns each column's position in the block of memory of a batch, and the block's size.

        rows: (B, context + T), the leading axes of most columns. The size is in bytes.
        """
        layouts, size = [], 0
        for name, column in self._columns.items():
            first_only = name in self.spec.first_columns
            lead = rows[:1] if first_only else rows
            shape = lead + column.shape[1:]
            layouts.append(ColumnLayout(name, column, first_only, shape, size))
            size += -(-math.prod(lead) * column[:1].nbytes // CACHE_LINE) * CACHE_LINE
        return layouts, size
