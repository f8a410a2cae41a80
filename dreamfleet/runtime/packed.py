"""A batch in one piece of memory, for its way between two processes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from dreamfleet.core.types import Array, Batch, Sample

ALIGNMENT = 64  # bytes of a cache line


class Packed(NamedTuple):
    """A batch in one piece: where each of its columns lies, and the bytes of them all."""

    columns: tuple[tuple[str, str, tuple[int, ...], int], ...]  # name, dtype, shape, first byte
    memory: Array  # u8

    @classmethod
    def of(cls, batch: Batch) -> Packed:
        """Copies what lies in several pieces; what is in one already stays where it is."""
        arrays = {name: np.ascontiguousarray(_on_host(value)) for name, value in batch.items()}
        shapes = {name: np.shape(value) for name, value in batch.items()}  # () became (1,)
        bases = [array.base for array in arrays.values()]
        memory = bases[0] if bases else None
        if isinstance(memory, np.ndarray) and _is_whole(memory, arrays, bases):
            begins = [_address(array) - _address(memory) for array in arrays.values()]
        else:
            sizes = [-(-array.nbytes // ALIGNMENT) * ALIGNMENT for array in arrays.values()]
            begins = [sum(sizes[:i]) for i in range(len(sizes))]
            memory = np.empty(sum(sizes), np.uint8)
            for begin, array in zip(begins, arrays.values(), strict=True):
                memory[begin : begin + array.nbytes] = array.reshape(-1).view(np.uint8)
        columns = tuple(
            (name, array.dtype.str, shapes[name], begin)
            for (name, array), begin in zip(arrays.items(), begins, strict=True)
        )
        return cls(columns, memory)

    def batch(self) -> Batch:
        """Returns the columns, as views."""
        return {
            name: np.ndarray(shape, dtype, self.memory, begin)
            for name, dtype, shape, begin in self.columns
        }

    def owned(self) -> Batch:
        """Returns the columns in memory of their own.

        What Ray hands out is read-only, and a view of it would keep it in the object store.
        """
        return self._replace(memory=self.memory.copy()).batch()


class Drawn(NamedTuple):
    """A sample with its data packed."""

    data: Packed
    sample: Sample  # complete but for its data

    def owned(self) -> Sample:
        keys, prob = self.sample.keys.copy(), self.sample.prob.copy()
        return replace(self.sample, data=self.data.owned(), keys=keys, prob=prob)


def _on_host(value: Any) -> Array:
    """Arrays stay, tensors become arrays."""
    return value.cpu().numpy() if hasattr(value, "cpu") else np.asarray(value)


def _is_whole(memory: Array, arrays: dict[str, Array], bases: list[Any]) -> bool:
    """Tells whether these arrays are views of this memory, and most of it."""
    if memory.dtype != np.uint8 or memory.ndim != 1 or any(base is not memory for base in bases):
        return False
    slack = ALIGNMENT * (len(arrays) + 1)
    return memory.nbytes <= sum(array.nbytes for array in arrays.values()) + slack


def _address(array: Array) -> int:
    return int(array.__array_interface__["data"][0])
