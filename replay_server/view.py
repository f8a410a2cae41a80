"""What one consumer of a table sees of it."""

from __future__ import annotations

from collections.abc import Mapping
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
        self.columns = {name: rows.columns[name] for name in spec.columns or rows.columns}
        self._batch = _record(spec.batch, spec.context + spec.window, self.columns)

    def admit(self, slots: Array) -> None:
        self.starts.admit(slots)
        self.selector.admit(slots)

    def withdraw(self, slots: Array) -> None:
        self.selector.withdraw(self.starts.withdraw(slots))

    def gather(self, slots: Array) -> Batch:
        """Copies of these rows, (B, context + T), in one piece of memory."""
        memory = np.empty(self._batch.itemsize + ALIGNMENT, np.uint8)
        begin = -memory.__array_interface__["data"][0] % ALIGNMENT
        batch = np.ndarray((), self._batch, memory, begin)
        data = {name: batch[name] for name in self.columns}
        for name, column in self.columns.items():
            column.take(slots, axis=0, out=data[name], mode="clip")
        return data


def _record(batch: int, length: int, columns: Mapping[str, Array]) -> np.dtype[np.void]:
    """Columns (B, L, …) one after another, each where a cache line begins."""
    formats = [(column.dtype, (batch, length, *column.shape[1:])) for column in columns.values()]
    sizes = [-(-np.dtype(each).itemsize // ALIGNMENT) * ALIGNMENT for each in formats]
    offsets = [sum(sizes[:i]) for i in range(len(sizes))]
    names = list(columns)
    fields = {"names": names, "formats": formats, "offsets": offsets, "itemsize": sum(sizes)}
    return np.dtype(fields)  # type: ignore[call-overload]
