"""Times workloads alternately, so that a slow moment of the machine affects all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

COPY_BYTES: Final = 1 << 26  # of the copy whose speed is measured: larger than any cache


@dataclass(frozen=True)
class Workload:
    """Work to be timed: `run(n)` repeats it n times. One repetition processes `items` items.

    clock: returns seconds. `time.perf_counter` counts wall time; `time.process_time` counts the
    processor time of this process.
    """

    name: str
    run: Callable[[int], None]
    items: float
    clock: Callable[[], float] = time.perf_counter

    def repetitions(self, seconds: float) -> int:
        """Returns how many repetitions of the work take about `seconds`, at least 1.

        The method runs the work to find this out. This also warms up caches, memory pages and lazy
        imports.
        """
        n = 1
        while (took := self.time(n)) < seconds / 2:
            n *= 2
        return max(1, round(n * seconds / took))

    def time(self, n: int) -> float:
        """Returns how many seconds n repetitions of the work take."""
        began = self.clock()
        self.run(n)
        return self.clock() - began

    def rate(self, n: int) -> float:
        """Returns the rate of the work in items per second, measured over n repetitions."""
        return n * self.items / self.time(n)


def interleaved(workloads: list[Workload], rounds: int, seconds: float) -> Iterator[list[float]]:
    """Times all workloads in every round, and yields a list of their rates per round.

    A rate is a number of items per second. In each round every workload runs once, for about
    `seconds`.
    """
    repetitions = [workload.repetitions(seconds) for workload in workloads]
    indices = range(len(workloads))
    for number in range(rounds):
        order = indices if number % 2 == 0 else reversed(indices)
        rates = {i: workloads[i].rate(repetitions[i]) for i in order}
        yield [rates[i] for i in indices]


def repeated(once: Callable[[], object]) -> Callable[[int], None]:
    """Returns a function of n that calls `once` n times."""

    def run(n: int) -> None:
        for _ in range(n):
            once()

    return run


class CopyBandwidth:
    """Measures how fast the machine copies memory: `size` bytes with `np.copyto`."""

    def __init__(self, size: int = COPY_BYTES) -> None:
        self._source, self._target = np.ones(size, np.uint8), np.zeros(size, np.uint8)
        self.measure()

    def measure(self, times: int = 4) -> float:
        """Copies an array `times` times, and returns the bandwidth in gigabytes per second."""
        began = time.perf_counter()
        for _ in range(times):
            np.copyto(self._target, self._source)
        return times * self._source.size / (time.perf_counter() - began) / 1e9
