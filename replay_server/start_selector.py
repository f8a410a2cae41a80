"""The protocol of selectors in the replay, and the classes registered for specifications."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import numpy as np

from dreamfleet.core.selectors import Selector
from dreamfleet.core.types import Array
from dreamfleet.replay_server.ring import Starts
from dreamfleet.replay_server.rows import Rows

Implementation = TypeVar("Implementation", bound="type[StartSelector]")


class StartSelector(Protocol):
    """Draws starts: rows at which a consumer's windows begin. One object serves one consumer.

    Rows are named by their slots in the ring. `add`, `remove` and `update` are called after the
    flags in `starts` have changed. Draws are exact: `probability` is the probability by which
    `draw` draws from the present starts.
    """

    def __init__(self, spec: Any, starts: Starts, rows: Rows, window: int) -> None:
        """Makes the selector that `spec` specifies, for windows of `window` rows.

        starts: the rows at which windows may begin. rows: all stored rows. `window` does not count
        the context rows before a window.
        """

    @staticmethod
    def nbytes(spec: Any, rows: int) -> int:
        """Returns the bytes that an object takes whose table has a capacity of `rows` rows."""
        ...

    def add(self, slots: Array) -> None:
        """Adds rows (n,) that have become starts."""
        ...

    def remove(self, slots: Array) -> None:
        """Removes rows (n,) that are no longer starts."""
        ...

    def update(self, slots: Array, priorities: Array) -> None:
        """Replaces the priorities (n,) of starts (n,): f64, finite, not negative."""
        ...

    def draw(self, n: int, rng: np.random.Generator) -> Array:
        """Draws n slots with replacement, (n,) i64. There is at least one start."""
        ...

    def probability(self, slots: Array) -> Array:
        """Returns the probability with which the last `draw` drew each slot. (n,) -> (n,) f64."""
        ...

    def priority_mass(self) -> float:
        """Returns the sum of the weights of all starts, in a unit that is the same in all shards.

        There is at least one start.
        """
        ...

    def state(self) -> dict[str, Any]:
        """Returns all that later draws depend on, apart from the starts themselves."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Continues from `state`. The starts have been restored before."""
        ...


IMPLEMENTATIONS: dict[type[Selector], type[StartSelector]] = {}  # by specification


def implements(spec: type[Selector]) -> Callable[[Implementation], Implementation]:
    """Registers the decorated class as the one that draws by specifications of class `spec`."""

    def register(implementation: Implementation) -> Implementation:
        IMPLEMENTATIONS[spec] = implementation
        return implementation

    return register
