"""Finds the blocks of memory that hold the columns of a batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from dreamfleet.core.types import Array

ALIGNMENT = 64  # bytes of a cache line; each column begins at a multiple of this
LARGEST_ITEM = 16  # bytes of an item of the largest dtype, and of the words that a GPU reads


class Block(NamedTuple):
    """A block of memory that holds one or more columns, and almost nothing else."""

    memory: Array  # u8, the bytes
    begins: dict[str, int]  # column → its first byte


def blocks_of(columns: Mapping[str, Array]) -> list[Block]:
    """Returns the blocks of memory of contiguous columns (arrays by name), without copying.

    Columns share a block if they are views of one array of bytes and fill it, up to small gaps. Any
    other column is a block of its own.
    """
    by_base: dict[int, list[str]] = {}
    for name, column in columns.items():
        assert column.flags.c_contiguous
        by_base.setdefault(id(column if column.base is None else column.base), []).append(name)
    blocks = []
    for names in by_base.values():
        base = columns[names[0]].base
        arrays = [columns[name] for name in names]
        if isinstance(base, np.ndarray) and _fill(base, arrays):
            begins = [_address(array) - _address(base) for array in arrays]
            blocks.append(Block(base, dict(zip(names, begins, strict=True))))
        else:
            blocks += [
                Block(array.reshape(-1).view(np.uint8), {name: 0})
                for name, array in zip(names, arrays, strict=True)
            ]
    return blocks


def _fill(memory: Array, arrays: list[Array]) -> bool:
    """Returns whether the arrays are aligned parts of the bytes `memory`, and together fill it."""
    if memory.dtype != np.uint8 or memory.ndim != 1:
        return False
    if any((_address(array) - _address(memory)) % LARGEST_ITEM for array in arrays):
        return False
    padding = ALIGNMENT * (len(arrays) + 1)
    return memory.nbytes <= sum(array.nbytes for array in arrays) + padding


def _address(array: Array) -> int:
    return int(array.__array_interface__["data"][0])
