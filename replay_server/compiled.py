"""Chooses the implementation of the replay's inner loops: numba if it is installed, else numpy."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import NamedTuple

from dreamfleet.compiler import compiled
from dreamfleet.core.types import Array
from dreamfleet.replay_server import loops, vectorised


class Loops(NamedTuple):
    """One implementation of the replay's inner loops: one function for each loop.

    Module `loops` documents the functions.
    """

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
    """Returns the inner loops compiled by numba, or written in numpy if numba is not installed.

    With numba, the first call in a process takes four seconds, or one second if the machine code is
    cached.
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
