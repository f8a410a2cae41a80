"""One seed for a run, a seed of its own for each of its parts."""

from __future__ import annotations

import zlib

import numpy as np


def derive(seed: int, role: str, index: int = 0) -> int:
    """A seed in [0, 2**31) for part `index` of `role`: always the same, unrelated between parts."""
    sequence = np.random.SeedSequence((seed, zlib.crc32(role.encode()), index))
    return int(sequence.generate_state(1)[0] >> 1)
