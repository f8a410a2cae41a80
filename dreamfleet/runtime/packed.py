"""Packs a batch of arrays into one buffer, which is sent to another process as a whole."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from dreamfleet.core.types import Array, Batch, Sample
from dreamfleet.core.write_back import on_host

ALIGNMENT = 64  # bytes of a cache line; each column begins at a multiple of this


class Packed(NamedTuple):
    """A batch whose columns (named arrays) all lie in one buffer of bytes."""

    columns: tuple[tuple[str, str, tuple[int, ...], int], ...]  # name, dtype, shape, first byte
    memory: Array  # u8, the bytes of all columns

    @classmethod
    def of(cls, batch: Batch) -> Packed:
        """Packs a batch into one buffer. Copies nothing if its arrays already fill one buffer."""
        arrays = {name: np.ascontiguousarray(on_host(value)) for name, value in batch.items()}
        # np.ascontiguousarray turned shape () into (1,), hence the shapes of the originals.
        shapes = {name: np.shape(value) for name, value in batch.items()}
        bases = [array.base for array in arrays.values()]
        memory = bases[0] if bases else None
        if isinstance(memory, np.ndarray) and _fill(memory, arrays, bases):
            offsets = [_address(array) - _address(memory) for array in arrays.values()]
        else:
            sizes = [-(-array.nbytes // ALIGNMENT) * ALIGNMENT for array in arrays.values()]
            offsets = [sum(sizes[:i]) for i in range(len(sizes))]
            memory = np.empty(sum(sizes), np.uint8)
            for offset, array in zip(offsets, arrays.values(), strict=True):
                memory[offset : offset + array.nbytes] = array.reshape(-1).view(np.uint8)
        columns = tuple(
            (name, array.dtype.str, shapes[name], offset)
            for (name, array), offset in zip(arrays.items(), offsets, strict=True)
        )
        return cls(columns, memory)

    def views(self) -> Batch:
        """Returns the packed batch without copying: its arrays are views of the buffer."""
        return {
            name: np.ndarray(shape, dtype, self.memory, offset)
            for name, dtype, shape, offset in self.columns
        }

    def unpack(self) -> Batch:
        """Returns the batch with its arrays copied out of the buffer.

        The copy can be written to. A buffer that Ray hands out is read-only, and views of it would
        keep it in Ray's object store.
        """
        return self._replace(memory=self.memory.copy()).views()


class PackedSample(NamedTuple):
    """A sample of replay windows, with the columns of its rows packed into one buffer."""

    data: Packed
    sample: Sample  # complete but for its data

    def unpack(self) -> Sample:
        """Returns the sample with all its arrays copied out of the buffer."""
        keys, prob = self.sample.keys.copy(), self.sample.prob.copy()
        return replace(self.sample, data=self.data.unpack(), keys=keys, prob=prob)


def _fill(memory: Array, arrays: dict[str, Array], bases: list[Any]) -> bool:
    """Returns whether the arrays are parts of the buffer `memory` and together fill it.

    Small gaps between the arrays are allowed. bases: numpy's attribute `base` of each array.
    """
    if memory.dtype != np.uint8 or memory.ndim != 1 or any(base is not memory for base in bases):
        return False
    padding = ALIGNMENT * (len(arrays) + 1)
    return memory.nbytes <= sum(array.nbytes for array in arrays.values()) + padding


def _address(array: Array) -> int:
    return int(array.__array_interface__["data"][0])
