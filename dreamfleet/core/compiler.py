"""Loops over numbers, compiled by numba."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def compiled(loop: Callable[..., Any], arguments: str, **options: Any) -> Callable[..., Any]:
    """`loop` compiled at once, for these types and no others: nobody waits for a compiler later.

    What is compiled is kept beside the source, or in the user's cache where that is read-only.
    `options` are numba's. Raises ImportError where numba is missing.
    """
    from numba import njit

    try:
        return njit(arguments, cache=True, **options)(loop)
    except RuntimeError:  # neither can be written to
        return njit(arguments, **options)(loop)
