"""Converts between numpy arrays and PyTorch tensors."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from dreamfleet.core.memory import blocks_of
from dreamfleet.core.types import Array, Batch


def to_array(tensor: Tensor) -> Array:
    """Returns a copy of a tensor as a numpy array in main memory. bfloat16 becomes float32."""
    return np.array(without_bfloat16(tensor.detach().cpu()).numpy())


def without_bfloat16(tensor: Tensor) -> Tensor:
    """Returns `tensor`, as float32 if it is bfloat16, a dtype that numpy does not have."""
    return tensor.float() if tensor.dtype == torch.bfloat16 else tensor


def to_tensor(array: Array, device: str | torch.device = "cpu") -> Tensor:
    """Returns a copy of a numpy array as a tensor on `device`."""
    return torch.tensor(np.asarray(array), device=device)


def to_tensors(batch: Batch, device: str | torch.device) -> Batch:
    """Converts all columns of a batch, numpy arrays or tensors, to tensors on `device`.

    On the CPU, the tensor made from a numpy array shares the array's memory where PyTorch allows
    this. To a GPU, a sample of the replay is copied as a whole, asynchronously: the copy passes
    through pinned memory, which the GPU reads while the program goes on.
    """
    if torch.device(device).type != "cuda":
        return {name: torch.as_tensor(value, device=device) for name, value in batch.items()}
    moved = {name: value.to(device) for name, value in batch.items() if isinstance(value, Tensor)}
    arrays = {name: np.asarray(batch[name]) for name in batch.keys() - moved.keys()}

    def copy(block: Tensor) -> Tensor:
        return block.pin_memory().to(device, non_blocking=True)

    moved |= copy_blocks(arrays, copy)
    return {name: moved[name] for name in batch}


def copy_blocks(arrays: dict[str, Array], copy: Callable[[Tensor], Tensor]) -> Batch:
    """Copies arrays by `copy`, one call for each block of memory; returns tensors by name.

    The arrays of a sample of the replay share one block. copy: returns a copy of a tensor of bytes;
    the tensors are views of these copies.
    """
    columns = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    found = {}
    for memory, begins in blocks_of(columns):
        copied = copy(torch.from_numpy(memory))
        for name, begin in begins.items():
            column = columns[name]
            dtype = torch.from_numpy(np.empty(0, column.dtype)).dtype
            piece = copied[begin : begin + column.nbytes]
            found[name] = piece.view(dtype).view(column.shape)
    return found
