"""Holds published weights in one block of memory, and shortens them to bfloat16."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from dreamfleet.core.types import Array


class FlatWeights(dict[str, Array]):
    """Weights by name, which together fill one block of memory.

    trained: the names of the parameters that gradient steps train. These may be sent with fewer
    bits; all other weights, such as running statistics and counters, must stay exact.
    """

    def __init__(self, weights: Mapping[str, Array], trained: Iterable[str]) -> None:
        super().__init__(weights)
        self.trained = frozenset(trained)


def to_bfloat16(array: Array) -> Array:
    """Rounds float32 numbers to bfloat16. Returns their 16 bits as uint16; numpy has no bfloat16.

    bfloat16 has the range of float32 and 8 bits of precision. A number half-way between two
    becomes the even one, as in PyTorch.
    """
    bits = array.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(array), 0x7FC0, rounded).astype(np.uint16)


def from_bfloat16(array: Array) -> Array:
    """Returns the float32 numbers of which `to_bfloat16` returned the bits."""
    return (array.astype(np.uint32) << 16).view(np.float32)
