"""Where arrays begin."""

from __future__ import annotations

from dreamfleet.core.types import Array

LINE = 64  # bytes of a cache line


def from_line(array: Array) -> Array:
    """The part of a 1-d array that begins at a cache line; its items' size divides one. A view."""
    return array[-array.ctypes.data % LINE // array.itemsize :]
