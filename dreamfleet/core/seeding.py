"""Derives seeds, and seeds the global random generators."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import numpy as np

LARGEST: Final = 2**31 - 1  # of a signed 32-bit integer, which is what simulators take


def derive(seed: int | tuple[int, ...], n: int) -> list[int]:
    """Returns n independent seeds, derived from one seed or from a tuple of seeds.

    The seeds are whole numbers from 0 to 2^31 - 1.
    """
    words = np.random.SeedSequence(seed).generate_state(n)
    return [int(word) & LARGEST for word in words]


def seed_globals(seed: int) -> None:
    """Seeds the global random generators of the modules `random` and `np.random`.

    Only environments draw from the global generators. This package has generators of its own.
    """
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - the global generator is what is meant


@contextmanager
def seeded_globals(seed: int) -> Iterator[None]:
    """Seeds the global random generators for a `with` block, and then restores their states."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    seed_globals(seed)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
