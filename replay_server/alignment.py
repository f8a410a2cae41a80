"""Aligns arrays to cache lines."""

from __future__ import annotations

from dreamfleet.core.types import Array

CACHE_LINE = 64  # bytes


def aligned(array: Array) -> Array:
    """Returns the part of a 1-d array from its first cache line boundary on, as a view.

    The size of an item must divide the size of a cache line.
    """
    return array[-array.ctypes.data % CACHE_LINE // array.itemsize :]
