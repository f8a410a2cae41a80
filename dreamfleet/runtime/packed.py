"""Packs a batch into one block of memory, so that it travels to another process as one buffer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from dreamfleet.core.types import Array, Batch, Sample

ALIGNMENT = 64  # bytes of a cache line; each column begins at a multiple of this


class Packed(NamedTuple):
    """A batch whose columns all lie in one block of memory."""

    columns: tuple[tuple[str, str, tuple[int, ...], int], ...]  # name, dtype, shape, first byte
    memory: Array  # u8, the bytes of all columns

    @classmethod
    def of(cls, batch: Batch) -> Packed:
        """Returns the batch, packed. Columns that already fill one block are not copied."""
        arrays = {name: np.ascontiguousarray(_on_host(value)) for name, value in batch.items()}
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
        """Returns the batch; its columns are views of the packed memory."""
        return {
            name: np.ndarray(shape, dtype, self.memory, offset)
            for name, dtype, shape, offset in self.columns
        }

    def unpack(self) -> Batch:
        """Returns the batch in new memory.

        Memory that Ray hands out is read-only, and a view would keep it in Ray's object store.
        """
        return self._replace(memory=self.memory.copy()).views()


class PackedSample(NamedTuple):
    """A `Sample` on its way to another process, with its data packed."""

    data: Packed
    sample: Sample  # complete but for its data

    def unpack(self) -> Sample:
        """Returns the sample in new memory."""
        keys, prob = self.sample.keys.copy(), self.sample.prob.copy()
        return replace(self.sample, data=self.data.unpack(), keys=keys, prob=prob)


def _on_host(value: Any) -> Array:
    """Returns a tensor or an array as an array in host memory."""
    return value.cpu().numpy() if hasattr(value, "cpu") else np.asarray(value)


def _fill(memory: Array, arrays: dict[str, Array], bases: list[Any]) -> bool:
    """Tells whether the arrays are views of `memory` and fill it, up to alignment."""
    if memory.dtype != np.uint8 or memory.ndim != 1 or any(base is not memory for base in bases):
        return False
    padding = ALIGNMENT * (len(arrays) + 1)
    return memory.nbytes <= sum(array.nbytes for array in arrays.values()) + padding


def _address(array: Array) -> int:
    return int(array.__array_interface__["data"][0])
