"""Chooses the form of the replay's inner loops: compiled by numba, or numpy's without numba."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import NamedTuple

from dreamfleet.compiler import compiled
from dreamfleet.core.types import Array
from dreamfleet.replay_server import loops, vectorised


class Loops(NamedTuple):
    """The inner loops in one form. Arguments and results are described in module `loops`."""

    write: Callable[[Array, Array, Array, Array], float]
    draw: Callable[[Array, Array, Array], Array]
    keys_at: Callable[[Array, int, int], Array]
    windows: Callable[[Array, int, int, Array, Array, Array], Array]
    valid_priorities: Callable[[Array, Array, int, int, int], tuple[Array, Array, int, int]]


IN_NUMPY = Loops(
    vectorised.write,
    vectorised.draw,
    vectorised.keys_at,
    vectorised.windows,
    vectorised.valid_priorities,
)


@cache
def fastest() -> Loops:
    """Returns the compiled loops where numba is installed, else numpy's.

    The first call of a process takes a second, and three more where no earlier process has cached
    the machine code. A table makes this call when it is built, so that no later call waits.
    Processes without tables never import numba.
    """
    if not find_spec("numba"):
        return IN_NUMPY
    return Loops(
        write=compiled(loops.write, "(f8[::1], i8[::1], i8[::1], f8[::1])"),
        draw=compiled(loops.draw, "(f8[::1], i8[::1], f8[:, ::1])"),
        keys_at=compiled(loops.keys_at, "(i8[:], i8, i8)"),
        windows=compiled(loops.windows, "(i8[::1], i8, i8, i8[::1], i8[::1], b1[::1])"),
        valid_priorities=compiled(loops.valid_priorities, "(i8[::1], f8[::1], i8, i8, i8)"),
    )
