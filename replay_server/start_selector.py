"""The protocol of selectors, and the registry of their implementations.

A selector is a rule that draws the rows at which sampled windows begin (starts).
"""

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
    """Draws starts: rows at which windows may begin. One object serves one consumer of a table.

    Each row is given by its slot: its position in the ring buffer. `starts` has a
    flag for each slot: whether its row is a start. After flags have changed, `add` or `remove` is
    called with the changed slots. `probability` must return the exact probabilities of
    `draw`.
    """

    def __init__(self, spec: Any, starts: Starts, rows: Rows, window: int) -> None:
        """Makes the selector that `spec` specifies, for windows of `window` rows.

        starts: the rows at which windows may begin. rows: all stored rows. `window` does not count
        the context rows before a window.
        """

    @staticmethod
    def nbytes(spec: Any, rows: int) -> int:
        """Returns the memory, in bytes, of a selector in a table with a capacity of `rows` rows.

        A selector is a rule that draws the rows at which sampled windows begin. spec: its
        specification.
        """
        ...

    def add(self, slots: Array) -> None:
        """Adds rows that have become starts (rows at which a window may begin).

        slots: (n,), the positions of these rows in the ring buffer.
        """
        ...

    def remove(self, slots: Array) -> None:
        """Removes rows that have stopped being starts (rows at which a window may begin).

        slots: (n,), the positions of these rows in the ring buffer.
        """
        ...

    def update(self, slots: Array, priorities: Array) -> None:
        """Replaces the priorities of starts (rows at which a window may begin).

        slots: (n,), the positions of the starts in the ring buffer. priorities: (n,) f64, finite
        and not negative.
        """
        ...

    def draw(self, n: int, rng: np.random.Generator) -> Array:
        """Draws n starts with replacement. Returns their slots (n,) i64.

        A start is a row at which a window may begin. `draw` is only called if there is a start.
        """
        ...

    def probability(self, slots: Array) -> Array:
        """Returns the probability with which the last draw drew each of these slots, (n,) f64.

        slots: (n,), positions of rows in the ring buffer.
        """
        ...

    def priority_mass(self) -> float:
        """Returns the sum of the weights of all starts (rows at which a window may begin).

        This is only called if there is a start. The unit must be the same in all shards (processes)
        of a replay.
        """
        ...

    def state(self) -> dict[str, Any]:
        """Returns the data on which later draws depend, for a checkpoint.

        The starts (rows at which a window may begin) are not included, as the table saves them.
        """
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Restores a saved `state` of this selector.

        The table has already restored the starts (rows at which a window may begin).
        """
        ...


IMPLEMENTATIONS: dict[type[Selector], type[StartSelector]] = {}  # by specification


def implements(spec: type[Selector]) -> Callable[[Implementation], Implementation]:
    """Returns a class decorator, which registers the class as the implementation of a selector.

    A selector is a rule that draws the rows at which sampled windows begin. spec: the class of
    specifications that the decorated class implements.
    """

    def register(implementation: Implementation) -> Implementation:
        IMPLEMENTATIONS[spec] = implementation
        return implementation

    return register
