"""Packs a batch of arrays into one buffer, which is sent to another process as a whole."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from dreamfleet.core.memory import ALIGNMENT, blocks_of
from dreamfleet.core.types import Array, Batch, Sample, Weights
from dreamfleet.core.weights import from_bfloat16, to_bfloat16
from dreamfleet.core.write_back import on_host


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
        blocks = blocks_of(arrays)
        if len(blocks) == 1:
            memory, begins = blocks[0]
            offsets = [begins[name] for name in arrays]
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


class PackedWeights(NamedTuple):
    """Weights packed into one buffer; some of them may be shortened to bfloat16."""

    data: Packed
    shortened: frozenset[str]  # names of the weights that are sent as bfloat16

    @classmethod
    def of(cls, weights: Weights, dtype: str) -> PackedWeights:
        """Packs weights into one buffer.

        dtype: "bfloat16" shortens the trained float32 parameters; other weights stay exact.
        """
        trained: frozenset[str] = getattr(weights, "trained", frozenset())
        trained = trained if dtype == "bfloat16" else frozenset()
        shortened = frozenset(name for name in trained if weights[name].dtype == np.float32)
        batch = {
            name: to_bfloat16(value) if name in shortened else value
            for name, value in weights.items()
        }
        return cls(Packed.of(batch), shortened)

    def views(self) -> Weights:
        """Returns the weights by name: views of the buffer, except for the shortened weights."""
        return {
            name: from_bfloat16(value) if name in self.shortened else value
            for name, value in self.data.views().items()
        }
