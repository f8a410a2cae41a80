"""Measures a world model's error on held-out episodes, by the number of predicted steps.

Held-out episodes are those that the world model never learns from.
"""

from __future__ import annotations

import torch
from torch import Tensor

MEMORY = 500.0  # the moving average is over about this many held-out windows


@torch.no_grad()
def update_averages(seen: Tensor, mask: Tensor, *errors: tuple[Tensor, Tensor]) -> None:
    """Updates moving averages of a world model's squared prediction errors, in place.

    There is one average for each number of steps predicted ahead, 1 to H.

    - seen (H,): the number of windows in the averages, at most `MEMORY`; updated in place.
    - mask (B, H): 1 where the error of one of B windows enters its average, else 0.
    - errors: pairs of moving averages (H,) and the new squared errors (B, H).
    """
    count = mask.sum(0)
    seen.copy_((seen + count).clamp(max=MEMORY))
    for average, error in errors:
        mean = (error * mask).sum(0) / count.clamp(min=1)
        average.lerp_(mean, (count / seen.clamp(min=1)).clamp(max=1))


def expected_error(error: Tensor, seen: Tensor, horizon: int) -> Tensor:
    """Returns the expected root mean square error after 1, 2, … `horizon` predicted steps.

    error (H,): moving averages of squared errors after 1 to H steps. seen (H,): the number of
    windows in each average. The result has shape (horizon,). The expected error is infinite while
    `seen` is 0. Beyond H steps it grows in proportion to the number of steps.
    """
    measured = torch.where(seen > 0, error.sqrt(), torch.inf)
    steps = torch.arange(1, horizon + 1, device=measured.device)
    longest = len(measured)
    return measured[steps.clamp(max=longest) - 1] * (steps / longest).clamp(min=1)
