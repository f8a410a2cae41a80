"""How far off a world model is on episodes that it never learned from, by steps ahead."""

from __future__ import annotations

import torch
from torch import Tensor

MEMORY = 500.0  # held-out windows that the error is a moving average of


@torch.no_grad()
def update_averages(seen: Tensor, counts: Tensor, *errors: tuple[Tensor, Tensor]) -> None:
    """Move moving averages of squared errors and how many windows were `seen`, (H,) and in place.

    counts: which windows count (B, H). errors: averages (H,), each with what was found (B, H).
    """
    count = counts.sum(0)
    seen.copy_((seen + count).clamp(max=MEMORY))
    for average, found in errors:
        mean = (found * counts).sum(0) / count.clamp(min=1)
        average.lerp_(mean, (count / seen.clamp(min=1)).clamp(max=1))


def expected_error(error: Tensor, seen: Tensor, horizon: int) -> Tensor:
    """The root of the squared `error` (H',) after 1 … `horizon` steps (H,).

    Beyond the steps that were measured it is taken to grow in proportion to them. Infinite where
    nothing was held out yet.
    """
    measured = torch.where(seen > 0, error.sqrt(), torch.inf)
    steps = torch.arange(1, horizon + 1, device=measured.device)
    longest = len(measured)
    return measured[steps.clamp(max=longest) - 1] * (steps / longest).clamp(min=1)
