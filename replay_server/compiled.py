"""Which form of the replay's inner loops runs: compiled by numba or, without it, numpy's."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import NamedTuple

from dreamfleet.compiler import compiled
from dreamfleet.core.types import Array
from dreamfleet.replay_server import loops, vectorised


class Loops(NamedTuple):
    """What each takes and does is said where it is a loop, in `loops`."""

    write: Callable[[Array, Array, Array, Array], float]
    draw: Callable[[Array, Array, Array], Array]
    keys_at: Callable[[Array, int, int], Array]
    windows: Callable[[Array, int, int, Array, Array, Array], Array]
    sift: Callable[[Array, Array, int, int, int], tuple[Array, Array, int, int]]


IN_NUMPY = Loops(
    vectorised.write,
    vectorised.draw,
    vectorised.keys_at,
    vectorised.windows,
    vectorised.sift,
)


@cache
def fastest() -> Loops:
    """The compiled loops if numba is there, else numpy's; the same for all of a process.

    The first call takes a second, and three more where no earlier process left what it compiled.
    A table makes it before it is asked for anything; who holds no table never imports numba.
    """
    if not find_spec("numba"):
        return IN_NUMPY
    return Loops(
        write=compiled(loops.write, "(f8[::1], i8[::1], i8[::1], f8[::1])"),
        draw=compiled(loops.draw, "(f8[::1], i8[::1], f8[:, ::1])"),
        keys_at=compiled(loops.keys_at, "(i8[:], i8, i8)"),
        windows=compiled(loops.windows, "(i8[::1], i8, i8, i8[::1], i8[::1], b1[::1])"),
        sift=compiled(loops.sift, "(i8[::1], f8[::1], i8, i8, i8)"),
    )
