"""Converts between numpy arrays and PyTorch tensors."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dreamfleet.core.types import Array, Batch


def to_array(tensor: Tensor) -> Array:
    """Returns a copy of a tensor as a numpy array in main memory."""
    return np.array(tensor.detach().cpu().numpy())


def to_tensor(array: Array, device: str | torch.device = "cpu") -> Tensor:
    """Returns a copy of a numpy array as a tensor on `device`."""
    return torch.tensor(np.asarray(array), device=device)


def to_tensors(batch: Batch, device: str | torch.device) -> Batch:
    """Converts all columns of a batch, numpy arrays or tensors, to tensors on `device`.

    On the CPU, the tensor made from a numpy array shares the array's memory where PyTorch allows
    this. Copies to a GPU are asynchronous: they pass through pinned memory, which the GPU reads
    while the program goes on.
    """
    if torch.device(device).type != "cuda":
        return {name: torch.as_tensor(value, device=device) for name, value in batch.items()}
    return {
        name: (
            value.to(device)
            if isinstance(value, Tensor)
            else torch.from_numpy(value).pin_memory().to(device, non_blocking=True)
        )
        for name, value in batch.items()
    }
