"""What one consumer of a table sees of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from core.types import Array, Batch, Consumer
from replay_server.ring import Starts
from replay_server.rows import Rows
from replay_server.selectors import build

ALIGNMENT = 64  # bytes of a cache line


@dataclass
class Draw:
    """Windows that were chosen but not yet copied."""

    consumer: str
    keys: Array  # (B,) i64, of the starts
    prob: Array  # (B,) f64
    size: int  # starts there were
    slots: Array  # (B, context + T) i64, of the rows
    oldest: int  # the key of the oldest of these rows
    cuts: int  # episodes that had been cut


class View:
    """A consumer's starts and how it draws among them."""

    def __init__(self, spec: Consumer, rows: Rows) -> None:
        self.spec = spec
        self.starts = Starts(rows.ring)
        self.selector = build(spec.selector, self.starts, rows, spec.window)
        names = spec.columns or rows.columns
        self._columns = {name: rows.columns[name] for name in names}
        self._row_bytes = {name: column[:1].nbytes for name, column in self._columns.items()}

    def admit(self, slots: Array) -> None:
        self.starts.admit(slots)
        self.selector.admit(slots)

    def withdraw(self, slots: Array) -> None:
        self.selector.withdraw(self.starts.withdraw(slots))

    def gather(self, slots: Array) -> Batch:
        """Copies of these rows, (B, context + T), in one piece of memory, column after column."""
        sizes = [-(-slots.size * row // ALIGNMENT) * ALIGNMENT for row in self._row_bytes.values()]
        memory = np.empty(sum(sizes) + ALIGNMENT, np.uint8)
        begin = -memory.__array_interface__["data"][0] % ALIGNMENT
        batch = {}
        for (name, column), size in zip(self._columns.items(), sizes, strict=True):
            shape = slots.shape + column.shape[1:]
            batch[name] = np.ndarray(shape, column.dtype, memory, begin)
            column.take(slots, axis=0, out=batch[name], mode="clip")
            begin += size
        return batch
