"""The pairwise quantile Huber loss, and the selection of the smallest quantiles.

The gradient is computed together with the loss, and autograd records nothing. On a CPU a loop
compiled by numba handles one pair after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dreamfleet.compiler import compiled
from dreamfleet.core.types import Array


def smallest(values: Tensor, count: int) -> Tensor:
    """Returns the `count` smallest numbers of each row, in any order, without gradients.

    values: B rows of N numbers. Shape of the result: (B, count).
    """
    if values.device.type == "cpu":  # numpy sorts short rows many times faster than PyTorch
        return torch.from_numpy(np.sort(values.detach().numpy()))[:, :count]
    return values.detach().topk(count, largest=False, sorted=False).values


def quantile_huber(quantiles: Tensor, target: Tensor) -> Tensor:
    """Returns the quantile Huber loss with κ = 1, one number per network and window.

    quantiles: (…, B, Z), predictions of Z quantiles for B windows. target: (B, Z'), Z' target
    values per window. The loss, of shape (…, B), is averaged over targets and summed over
    quantiles.

    Source: Dabney et al. 2018, equation 10.
    """
    with torch.no_grad():
        loop_fits = quantiles.device.type == "cpu" and quantiles.dtype == torch.float32
        if loop_fits and not torch.compiler.is_compiling() and find_spec("numba"):
            loss, gradient = loss_by_loop(quantiles, target)
        else:
            loss, gradient = loss_by_torch(quantiles, target)
    return loss + (gradient * (quantiles - quantiles.detach())).sum(-1)


def loss_by_torch(quantiles: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the quantile Huber loss and its gradient, computed by PyTorch.

    quantiles: (…, B, Z), Z quantiles for B windows. target: (B, Z'). The loss has shape (…, B). The
    gradient has the shape of `quantiles`.
    """
    count = quantiles.shape[-1]
    tau = ((torch.arange(count, device=quantiles.device) + 0.5) / count).unsqueeze(-1)
    error = target.unsqueeze(-2) - quantiles.unsqueeze(-1)  # (…, B, Z, Z')
    slope = error.clamp(-1, 1)  # derivative of the Huber loss
    weighted = torch.where(error < 0, 1 - tau, tau) * slope
    loss = (weighted * (error - 0.5 * slope)).mean(-1).sum(-1)
    return loss, -weighted.mean(-1)


def loss_by_loop(quantiles: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the quantile Huber loss and its gradient, computed by a loop that numba compiles.

    quantiles: (…, B, Z), Z quantiles for B windows. target: (B, Z'). The loss has shape (…, B). The
    gradient has the shape of `quantiles`.
    """
    flat = quantiles.detach().reshape(-1, *quantiles.shape[-2:]).contiguous()
    loss, gradient = torch.empty(flat.shape[:2]), torch.empty(flat.shape)
    _loop()(flat.numpy(), target.detach().contiguous().numpy(), loss.numpy(), gradient.numpy())
    return loss.view(quantiles.shape[:-1]), gradient.view(quantiles.shape)


@cache
def _loop() -> Callable[..., Any]:
    """Returns the function `write_loss` compiled to machine code by numba.

    numba is imported at the first call, because processes that only act do not need it.
    """
    arguments = "(f4[:, :, ::1], f4[:, ::1], f4[:, ::1], f4[:, :, ::1])"
    return compiled(write_loss, arguments, fastmath={"reassoc", "nsz", "contract"})


def write_loss(quantiles: Array, target: Array, loss: Array, gradient: Array) -> None:
    """Writes the quantile Huber loss and its gradient into the arrays `loss` and `gradient`.

    quantiles: (K, B, Z), Z quantiles of K networks for B windows. target: (B, Z'). loss: (K, B).
    gradient: (K, B, Z), with respect to the quantiles.
    """
    members, batch, count = quantiles.shape
    zero, half, one = np.float32(0), np.float32(0.5), np.float32(1)
    targets = np.float32(target.shape[1])
    targets_first = target.T.copy()  # (Z', B)
    quantile, slope, huber = np.empty((3, batch), np.float32)
    for k in range(members):
        huber[:] = zero
        for z in range(count):
            tau = np.float32((z + 0.5) / count)
            quantile[:], slope[:] = quantiles[k, :, z], zero
            for j in range(target.shape[1]):
                for b in range(batch):
                    error = targets_first[j, b] - quantile[b]
                    clipped = min(max(error, -one), one)
                    weighted = (one - tau if error < zero else tau) * clipped
                    slope[b] += weighted
                    huber[b] += weighted * (error - half * clipped)
            gradient[k, :, z] = -slope / targets
        loss[k] = huber / targets
