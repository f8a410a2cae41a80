"""The error of a world model on held-out episodes, by the number of predicted steps."""

from __future__ import annotations

import torch
from torch import Tensor

MEMORY = 500.0  # the moving average is over about this many held-out windows


@torch.no_grad()
def update_averages(seen: Tensor, mask: Tensor, *errors: tuple[Tensor, Tensor]) -> None:
    """Updates moving averages of squared errors, in place, with held-out windows.

    seen: number of windows behind the averages, for each of 1 … H steps (H,); updated in place.
    mask: whether a window counts at a step (B, H).
    errors: pairs of an average (H,) and the squared errors of the windows (B, H).
    """
    count = mask.sum(0)
    seen.copy_((seen + count).clamp(max=MEMORY))
    for average, error in errors:
        mean = (error * mask).sum(0) / count.clamp(min=1)
        average.lerp_(mean, (count / seen.clamp(min=1)).clamp(max=1))


def expected_error(error: Tensor, seen: Tensor, horizon: int) -> Tensor:
    """Returns the expected root mean squared error after 1 … `horizon` steps (horizon,).

    error, seen: moving averages of squared errors, and the windows behind them, (H,). Beyond H
    steps the error is assumed to grow in proportion to the steps. It is infinite before the first
    held-out window.
    """
    measured = torch.where(seen > 0, error.sqrt(), torch.inf)
    steps = torch.arange(1, horizon + 1, device=measured.device)
    longest = len(measured)
    return measured[steps.clamp(max=longest) - 1] * (steps / longest).clamp(min=1)
