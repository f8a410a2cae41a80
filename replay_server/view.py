"""What one consumer of a table sees of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dreamfleet.core.types import Array, Batch, Consumer, EpisodeStats
from dreamfleet.replay_server.memory import LINE, from_line
from dreamfleet.replay_server.ring import Starts
from dreamfleet.replay_server.rows import Rows
from dreamfleet.replay_server.selectors import build


@dataclass
class Draw:
    """Windows that were chosen but not yet copied."""

    consumer: str
    keys: Array  # (B,) i64, of the starts
    prob: Array  # (B,) f64
    size: int  # starts there were
    slots: Array  # (B, context + T) i64, of the rows
    inserted: int  # rows there had ever been
    cuts: int  # episodes that had been cut
    episode_stats: EpisodeStats  # episodes that had ended


class Place(NamedTuple):
    """A column in the memory of a batch."""

    name: str
    column: Array  # of the table
    shape: tuple[int, ...]
    begin: int  # bytes


class View:
    """A consumer's starts and how it draws among them."""

    def __init__(self, spec: Consumer, rows: Rows) -> None:
        self.spec = spec
        self.starts = Starts(rows.ring)
        self.selector = build(spec.selector, self.starts, rows, spec.window)
        self._columns = {name: rows.columns[name] for name in spec.columns or rows.columns}
        self._layouts: dict[tuple[int, ...], tuple[list[Place], int]] = {}  # by (B, context + T)

    def admit(self, slots: Array) -> None:
        self.starts.admit(slots)
        self.selector.admit(slots)

    def withdraw(self, slots: Array) -> None:
        self.selector.withdraw(self.starts.withdraw(slots))

    def gather(self, slots: Array) -> Batch:
        """Copies of these rows, (B, context + T), in one piece of memory, column after column."""
        if slots.shape not in self._layouts:
            self._layouts[slots.shape] = self._layout(slots.shape)
        places, size = self._layouts[slots.shape]
        memory = from_line(np.empty(size + LINE, np.uint8))
        batch = {}
        for name, column, shape, begin in places:
            batch[name] = np.ndarray(shape, column.dtype, memory, begin)
            column.take(slots, 0, batch[name], "clip")
        return batch

    def _layout(self, lead: tuple[int, ...]) -> tuple[list[Place], int]:
        """Returns where the columns of a batch lie, and the bytes they take."""
        places, size = [], 0
        for name, column in self._columns.items():
            places.append(Place(name, column, lead + column.shape[1:], size))
            size += -(-math.prod(lead) * column[:1].nbytes // LINE) * LINE
        return places, size
