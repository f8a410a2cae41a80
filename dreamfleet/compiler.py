"""Compiles numeric loops with numba. Only this module imports numba, and only when it compiles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def compiled(loop: Callable[..., Any], arguments: str, **options: Any) -> Callable[..., Any]:
    """Returns `loop`, compiled by numba now, so that even its first call is fast.

    arguments: the argument types, as a numba signature. options: keyword arguments for
    `numba.njit`. Raises ImportError if numba is missing.
    """
    from numba import njit

    try:
        return njit(arguments, cache=True, **options)(loop)
    except RuntimeError:  # neither place can be written to
        return njit(arguments, **options)(loop)
