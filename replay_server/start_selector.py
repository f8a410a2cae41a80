"""The protocol of selectors (rules by which starts of windows are sampled), and their registry."""

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
    """Samples starts: rows at which windows may begin. One object serves one consumer of a table.

    A row is given by its slot in the ring buffer. `add`, `remove` and `update` are called after the
    flags in `starts` have changed. `probability` must return the exact probabilities of `draw`.
    """

    def __init__(self, spec: Any, starts: Starts, rows: Rows, window: int) -> None:
        """Makes the selector that `spec` specifies, for windows of `window` rows.

        starts: the rows at which windows may begin. rows: all stored rows. `window` does not count
        the context rows before a window.
        """

    @staticmethod
    def nbytes(spec: Any, rows: int) -> int:
        """Returns the memory, in bytes, of a selector in a table with a capacity of `rows` rows."""
        ...

    def add(self, slots: Array) -> None:
        """Adds the rows in slots (n,), which have become starts."""
        ...

    def remove(self, slots: Array) -> None:
        """Removes the rows in slots (n,), which have stopped being starts."""
        ...

    def update(self, slots: Array, priorities: Array) -> None:
        """Replaces the priorities (n,) f64 of the starts in slots (n,).

        All are finite and not negative.
        """
        ...

    def draw(self, n: int, rng: np.random.Generator) -> Array:
        """Draws n starts with replacement, and returns their slots (n,) i64.

        At least one start exists.
        """
        ...

    def probability(self, slots: Array) -> Array:
        """Returns the probability with which the last `draw` drew each slot. (n,) -> (n,) f64."""
        ...

    def priority_mass(self) -> float:
        """Returns the sum of the weights of all starts. At least one start exists.

        The unit must be the same in all shards (processes) of a replay.
        """
        ...

    def state(self) -> dict[str, Any]:
        """Returns everything that later draws depend on, except the starts, for a checkpoint."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Restores a saved `state`. The starts have been restored before this call."""
        ...


IMPLEMENTATIONS: dict[type[Selector], type[StartSelector]] = {}  # by specification


def implements(spec: type[Selector]) -> Callable[[Implementation], Implementation]:
    """Returns a class decorator, which registers the class as the implementation of a selector.

    spec: the class of specifications that the decorated class implements.
    """

    def register(implementation: Implementation) -> Implementation:
        IMPLEMENTATIONS[spec] = implementation
        return implementation

    return register
