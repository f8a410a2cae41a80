"""Compiles numeric loops with numba. The one module that imports numba, and only when called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def compiled(loop: Callable[..., Any], arguments: str, **options: Any) -> Callable[..., Any]:
    """Returns `loop` compiled now for one set of argument types, so that no call waits for it.

    arguments: the types, as a numba signature. options: of `numba.njit`. The machine code is cached
    beside the source file or, where that folder is read-only, in the user's cache; without either,
    it is compiled again in each process. Raises ImportError where numba is missing.
    """
    from numba import njit

    try:
        return njit(arguments, cache=True, **options)(loop)
    except RuntimeError:  # neither place can be written to
        return njit(arguments, **options)(loop)
