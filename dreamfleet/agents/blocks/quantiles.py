"""Quantiles: the smallest of them, and the loss of each against every target.

All pairs are many numbers: the gradient is worked out with the loss instead of being recorded, and
on a CPU a compiled loop holds a pair at a time, where PyTorch fetches megabytes.
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
    """The `count` smallest of each row, in any order, detached: (B, N) → (B, count)."""
    if values.device.type == "cpu":  # numpy sorts short rows many times faster than PyTorch
        return torch.from_numpy(np.sort(values.detach().numpy()))[:, :count]
    return values.detach().topk(count, largest=False, sorted=False).values


def quantile_huber(quantiles: Tensor, target: Tensor) -> Tensor:
    """Sum over quantiles of the mean loss against every target (Dabney et al. 2018, eq. 10; κ = 1).

    quantiles: (…, B, Z), target: (B, Z') → (…, B).
    """
    with torch.no_grad():
        in_loop = quantiles.device.type == "cpu" and quantiles.dtype == torch.float32
        if in_loop and not torch.compiler.is_compiling() and find_spec("numba"):
            loss, gradient = looped(quantiles, target)
        else:
            loss, gradient = at_once(quantiles, target)
    return loss + (gradient * (quantiles - quantiles.detach())).sum(-1)


def at_once(quantiles: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The loss (…, B) and its gradient (…, B, Z), from all pairs."""
    count = quantiles.shape[-1]
    tau = ((torch.arange(count, device=quantiles.device) + 0.5) / count).unsqueeze(-1)
    error = target.unsqueeze(-2) - quantiles.unsqueeze(-1)  # (…, B, Z, Z')
    slope = error.clamp(-1, 1)  # of Huber's loss
    weighted = torch.where(error < 0, 1 - tau, tau) * slope
    loss = (weighted * (error - 0.5 * slope)).mean(-1).sum(-1)
    return loss, -weighted.mean(-1)


def looped(quantiles: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The same, pair by pair."""
    flat = quantiles.detach().reshape(-1, *quantiles.shape[-2:]).contiguous()
    loss, gradient = torch.empty(flat.shape[:2]), torch.empty(flat.shape)
    _loop()(flat.numpy(), target.detach().contiguous().numpy(), loss.numpy(), gradient.numpy())
    return loss.view(quantiles.shape[:-1]), gradient.view(quantiles.shape)


@cache
def _loop() -> Callable[..., Any]:
    """Made when first needed: it imports numba, which acting can do without."""
    arguments = "(f4[:, :, ::1], f4[:, ::1], f4[:, ::1], f4[:, :, ::1])"
    return compiled(pairs, arguments, fastmath={"reassoc", "nsz", "contract"})


def pairs(quantiles: Array, target: Array, loss: Array, gradient: Array) -> None:
    """(K, B, Z), (B, Z') → `loss` (K, B) and `gradient` (K, B, Z).

    The innermost loop is over the batch, so that a processor sums for many returns at once.
    """
    members, batch, count = quantiles.shape
    zero, half, one = np.float32(0), np.float32(0.5), np.float32(1)
    targets = np.float32(target.shape[1])
    across = target.T.copy()
    quantile, slope, huber = np.empty((3, batch), np.float32)
    for k in range(members):
        huber[:] = zero
        for z in range(count):
            tau = np.float32((z + 0.5) / count)
            quantile[:], slope[:] = quantiles[k, :, z], zero
            for j in range(target.shape[1]):
                for b in range(batch):
                    error = across[j, b] - quantile[b]
                    clipped = min(max(error, -one), one)
                    weighted = (one - tau if error < zero else tau) * clipped
                    slope[b] += weighted
                    huber[b] += weighted * (error - half * clipped)
            gradient[k, :, z] = -slope / targets
        loss[k] = huber / targets
