"""Makes arrays begin at the boundary of a cache line."""

from __future__ import annotations

from dreamfleet.core.types import Array

CACHE_LINE = 64  # bytes


def aligned(array: Array) -> Array:
    """Returns a view of a 1-D array that begins at the array's first cache-line boundary.

    The items before this boundary are left out. The size of an item must divide the size of a cache
    line.
    """
    return array[-array.ctypes.data % CACHE_LINE // array.itemsize :]
