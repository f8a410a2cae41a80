"""Specifications of selectors. A selector is the rule by which a consumer draws its windows.

A specification is plain data: agents and settings hold it, and it travels between processes. The
class that draws by it is registered for it in the replay server (`replay_server/selectors.py`).
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
    """Base class of all specifications. A subclass is a frozen dataclass of the rule's parameters.

    A new selector is two classes in one module: its specification, and the class that draws by it,
    decorated with `replay_server.start_selector.implements`. Tables, shards, the memory budget and
    the checks of a table's specification need nothing else.
    """

    @property
    def uses_priorities(self) -> bool:
        """Whether draws depend on the priorities that the agent returns after an update."""
        return False

    def fault(self, columns: Mapping[str, Space]) -> str | None:
        """Returns in one line why a table with these columns cannot draw so; None where it can."""
        return None

    def for_shard(self, shards: int) -> Selector:
        """Returns the specification for each of `shards` shards of one replay.

        Each shard stores its part of the rows, so parameters that count rows are divided.
        """
        return self


@dataclass(frozen=True)
class Uniform(Selector):
    """Draws every start with the same probability."""


@dataclass(frozen=True)
class Prioritized(Selector):
    """Draws with probability proportional to priority^exponent (Schaul et al. 2016, eq. 1).

    New rows get the priority in column `initial`, which actors write. Without such a column they
    get the largest priority so far (1.0 at the beginning). A sample carries the probability of each
    draw, from which the agent computes its importance weights.
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
    """Draws a start with probability proportional to 2^(-age / half_life).

    The age of a row is the number of rows inserted after it.
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
    """Draws uniformly from the newest rows, fewer with every draw (Wang & Ross 2019, section 4).

    Draw k of a cycle of K draws takes the newest max(N * eta^(1000 k / K), floor) of N rows. `eta`
    rises linearly to 1 over the first `anneal` draws. Draws are samples of the consumer.
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
    """Draws windows whose sum of rewards is unusual.

    The probability is proportional to |sum - mean| / standard deviation. Mean and standard
    deviation are of the sums so far, each weighted by 2^(-age / half_life). A window's probability
    weight is computed once, when its last row arrives. Meant as part of a `Mixture` with `Uniform`.
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
    """Draws each window by one of `parts`, chosen at random with the part's probability."""

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
    """Returns a line that says that a column is unknown; None where it is one of `columns`."""
    if name in columns:
        return None
    near = difflib.get_close_matches(name, columns, 1, 0) or ["none"]
    return f"there is no column {name!r}; the nearest is {near[0]!r}"


def number_column_fault(name: str, columns: Mapping[str, Space]) -> str | None:
    """Returns why a column is not one float per row, in one line; None where it is."""
    if fault := unknown_column_fault(name, columns):
        return fault
    space = columns[name]
    if space.shape or np.dtype(space.dtype).kind != "f":
        return f"column {name!r} must be a float of shape (), found {space.dtype} {space.shape}"
    return None
