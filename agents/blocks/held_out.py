"""How far off a world model is on episodes that it never learned from, by steps ahead."""

from __future__ import annotations

import torch
from torch import Tensor

MEMORY = 500.0  # held-out windows that the error is a moving average of


@torch.no_grad()
def take_in(error: Tensor, seen: Tensor, found: Tensor, counts: Tensor) -> None:
    """Move the squared `error` and how many windows were `seen`, both (H,) and in place.

    found: the squared errors of windows (B, H); counts: which of them count (B, H).
    """
    count = counts.sum(0)
    mean = (found * counts).sum(0) / count.clamp(min=1)
    seen.copy_((seen + count).clamp(max=MEMORY))
    error.lerp_(mean, (count / seen.clamp(min=1)).clamp(max=1))


def expected_error(error: Tensor, seen: Tensor, horizon: int) -> Tensor:
    """The root of the squared `error` (H',) after 1 … `horizon` steps (H,).

    Beyond the steps that were measured it is taken to grow in proportion to them. Infinite where
    nothing was held out yet.
    """
    measured = torch.where(seen > 0, error.sqrt(), torch.inf)
    steps = torch.arange(1, horizon + 1, device=measured.device)
    longest = len(measured)
    return measured[steps.clamp(max=longest) - 1] * (steps / longest).clamp(min=1)
