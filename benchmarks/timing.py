"""Two sides of a comparison, timed in turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

COPIED: Final = 1 << 26  # bytes of one copy: beyond any cache


@dataclass(frozen=True)
class Side:
    """One side. `work(n)` does n repetitions of `items` each; `name` says who and how.

    clock: seconds; `time.process_time` counts this process's own, where nothing is waited for.
    """

    name: str
    work: Callable[[int], None]
    items: float
    clock: Callable[[], float] = time.perf_counter

    def calibrated(self, seconds: float) -> int:
        """How many repetitions take about so long. Warms up, too: caches, pages, lazy imports."""
        n = 1
        while (took := self.time(n)) < seconds / 2:
            n *= 2
        return max(1, round(n * seconds / took))

    def time(self, n: int) -> float:
        began = self.clock()
        self.work(n)
        return self.clock() - began

    def rate(self, n: int) -> float:
        """Items a second over n repetitions."""
        return n * self.items / self.time(n)


def interleaved(sides: list[Side], rounds: int, seconds: float) -> Iterator[list[float]]:
    """The rates of all sides, round by round, each measured for about `seconds` after a warm-up.

    Every second round goes through the sides backwards, so that none is always the first.
    """
    repetitions = [side.calibrated(seconds) for side in sides]
    for turn in range(rounds):
        order = range(len(sides)) if turn % 2 == 0 else reversed(range(len(sides)))
        rates = {i: sides[i].rate(repetitions[i]) for i in order}
        yield [rates[i] for i in range(len(sides))]


def each(once: Callable[[], object]) -> Callable[[int], None]:
    """The work of a side from what one repetition is."""

    def work(n: int) -> None:
        for _ in range(n):
            once()

    return work


class CopyBandwidth:
    """`np.copyto` between two arrays of 64 MiB: how fast this machine moves memory just now."""

    def __init__(self) -> None:
        self._from, self._to = np.ones(COPIED, np.uint8), np.zeros(COPIED, np.uint8)
        self.measure()

    def measure(self, times: int = 4) -> float:
        """GB copied a second."""
        began = time.perf_counter()
        for _ in range(times):
            np.copyto(self._to, self._from)
        return times * COPIED / (time.perf_counter() - began) / 1e9
