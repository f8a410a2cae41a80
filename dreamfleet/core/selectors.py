"""Specifications of selectors. A selector is the rule by which windows of a table are sampled.

A specification is plain data. For each specification, `replay_server/selectors.py` has a class that
draws windows as specified.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from dreamfleet.core.types import Space


class Selector:
    """Base class of the specifications of selectors: the rules by which windows are sampled.

    A specification is a frozen dataclass with the parameters of a rule. A second class draws
    windows by this rule, and is decorated with `replay_server.start_selector.implements`.
    """

    @property
    def uses_priorities(self) -> bool:
        """Returns whether draws depend on the priorities that an agent returns after an update."""
        return False

    def fault(self, columns: Mapping[str, Space]) -> str | None:
        """Returns one line that says why this selector cannot be used with these columns.

        columns: the columns of the table. Returns None if the selector can be used.
        """
        return None

    def for_shard(self, shards: int) -> Selector:
        """Returns the specification of this selector for one of several shards of a replay.

        A shard is a process that stores a part of the rows. Parameters that count rows are divided
        by `shards`, the number of shards.
        """
        return self


@dataclass(frozen=True)
class Uniform(Selector):
    """Draws every start (row at which a window may begin) with the same probability.

    A window is a sequence of consecutive rows.
    """


@dataclass(frozen=True)
class Prioritized(Selector):
    """Prioritized replay: the probability of a start is proportional to priority^exponent.

    This is equation 1 of Schaul et al. 2016. A start is a row at which a window may begin. A
    start's first priority is read from column `initial`. Without such a column, a start's first
    priority is the largest priority so far, and 1.0 at the beginning.
    """

    exponent: float = 1.0  # 1: the agent applies an exponent of its own, which may change
    initial: str | None = None  # column of initial priorities

    @property
    def uses_priorities(self) -> bool:
        return True

    def fault(self, columns: Mapping[str, Space]) -> str | None:
        if not 0 <= self.exponent <= 8:
            return f"a priority exponent must lie in [0, 8], found {self.exponent}"
        return number_column_fault(self.initial, columns) if self.initial else None


@dataclass(frozen=True)
class Recency(Selector):
    """Prefers recent rows: the probability of a start is proportional to 2^(-age / half_life).

    A start is a row at which a window may begin. Its age is the number of rows inserted after it.
    """

    half_life: float  # rows

    def fault(self, columns: Mapping[str, Space]) -> str | None:
        if not self.half_life > 0:
            return f"a half-life must be more than 0 rows, found {self.half_life}"
        return None

    def for_shard(self, shards: int) -> Selector:
        return Recency(self.half_life / shards)


@dataclass(frozen=True)
class EmphasizeRecent(Selector):
    """Emphasizing Recent Experience (ERE): draws uniformly from the newest rows (Wang & Ross 2019).

    Sample k of a cycle of K = `cycle` samples draws from the newest max(N * eta^(1000 k / K),
    floor) of N stored rows, as in section 4 of the paper. `eta` rises linearly to 1 over the first
    `anneal` samples.
    """

    eta: float = 0.996
    floor: int = 5_000  # rows
    cycle: int = 1_000  # draws; K in the paper
    anneal: int = 1_000_000  # draws

    def fault(self, columns: Mapping[str, Space]) -> str | None:
        if 0 < self.eta <= 1 and self.floor >= 1 and self.cycle >= 1 and self.anneal >= 1:
            return None
        return f"eta must lie in (0, 1] and floor, cycle, anneal be at least 1, found {self}"

    def for_shard(self, shards: int) -> Selector:
        return replace(self, floor=-(-self.floor // shards))


@dataclass(frozen=True)
class ReturnDeviation(Selector):
    """Prefers windows (consecutive rows) with an unusual sum of rewards.

    The probability of a window is proportional to |sum - mean| / standard deviation. Mean and
    standard deviation are over the sums of all windows so far, weighted by 2^(-age / half_life).
    The age of a window is the number of newer windows.
    """

    half_life: float = 10_000.0  # windows

    def fault(self, columns: Mapping[str, Space]) -> str | None:
        if not self.half_life > 0:
            return f"a half-life must be more than 0 windows, found {self.half_life}"
        return number_column_fault("reward", columns)

    def for_shard(self, shards: int) -> Selector:
        return ReturnDeviation(self.half_life / shards)


@dataclass(frozen=True)
class Mixture(Selector):
    """Draws each window by one of several selectors, chosen at random with given probabilities.

    A window is a sequence of consecutive rows. A selector is a rule by which windows are drawn.
    """

    parts: tuple[tuple[float, Selector], ...]  # (probability, selector); probabilities sum to 1

    @property
    def uses_priorities(self) -> bool:
        return any(part.uses_priorities for _, part in self.parts)

    def fault(self, columns: Mapping[str, Space]) -> str | None:
        probabilities = [probability for probability, _ in self.parts]
        if min(probabilities, default=0) <= 0 or not math.isclose(sum(probabilities), 1):
            return (
                "the probabilities of a mixture must be positive and sum to 1, "
                f"found {probabilities}"
            )
        faults = (part.fault(columns) for _, part in self.parts)
        return next((fault for fault in faults if fault), None)

    def for_shard(self, shards: int) -> Selector:
        return Mixture(tuple((p, part.for_shard(shards)) for p, part in self.parts))


# ----------------------------------------------------------------------------------- columns


def unknown_column_fault(name: str, columns: Mapping[str, Space]) -> str | None:
    """Returns one line that says that column `name` is unknown; None if `columns` has it."""
    if name in columns:
        return None
    near = difflib.get_close_matches(name, columns, 1, 0) or ["none"]
    return f"there is no column {name!r}; the nearest is {near[0]!r}"


def number_column_fault(name: str, columns: Mapping[str, Space]) -> str | None:
    """Returns one line that says why column `name` does not hold one float per row.

    Returns None if it holds one float per row. columns: the columns of the table.
    """
    if fault := unknown_column_fault(name, columns):
        return fault
    space = columns[name]
    if space.shape or np.dtype(space.dtype).kind != "f":
        return f"column {name!r} must be a float of shape (), found {space.dtype} {space.shape}"
    return None
