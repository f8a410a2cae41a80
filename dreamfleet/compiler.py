"""Compiles numeric loops with numba. No other module imports numba; this one does so in a call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def compiled(loop: Callable[..., Any], arguments: str, **options: Any) -> Callable[..., Any]:
    """Compiles `loop` at once for one set of argument types, so that its first call is fast.

    arguments: the types of the arguments, as a numba signature. options: keyword arguments for
    `numba.njit`. The machine code is cached beside the source file. If that folder is read-only, it
    is cached in the user's cache folder. If neither is possible, each process compiles it again.
    Raises ImportError if numba is missing.
    """
    from numba import njit

    try:
        return njit(arguments, cache=True, **options)(loop)
    except RuntimeError:  # neither place can be written to
        return njit(arguments, **options)(loop)
