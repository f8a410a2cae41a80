"""Ends dreams at the first untrusted step, and mixes windows of dreams into a batch of real ones.

A dream is a rollout of the policy in a world model.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dreamfleet.core.types import Batch


def trusted_steps(error: Tensor, max_error: float) -> Tensor:
    """Returns 1 for each step of a dream at which a world model is accurate enough, else 0.

    error (H,): the expected error of the world model after 1, 2, … H steps. Step h is 1 if the
    errors after 1, 2, … h steps are all at most `max_error`.
    """
    return (error <= max_error).cumprod(0)


def steps_to_dream(allowed: Tensor) -> int:
    """Returns how many steps of a dream to compute, from 1 to H.

    allowed (H,): 1 for steps that may be trusted, then 0. On a CPU later steps are left out. On
    another device all H steps are computed: reading `allowed` would wait for the device, and a CUDA
    graph always runs the same operations.
    """
    on_cpu = allowed.device.type == "cpu"
    return max(1, int(allowed.sum())) if on_cpu else len(allowed)


def stack_steps(steps: list[Tensor], length: int) -> Tensor:
    """Stacks values (B, …) of successive steps along a new second axis; returns (B, `length`, …).

    If there are fewer steps than `length`, the last one is repeated.
    """
    return torch.stack(steps + steps[-1:] * (length - len(steps)), 1)


def end_dreams(
    terminal: Tensor, disagreement: Tensor, max_disagreement: Tensor, allowed: Tensor, context: int
) -> Batch:
    """Returns the columns `last`, `terminal` and `weight` of B dreams, (B, context + 1 + H) each.

    The first context + 1 rows of a dream are real; H dreamed steps lead to the other rows. A step
    is trusted if it is allowed, if no step up to it disagrees too much, and if no earlier step
    terminates the episode. A dream ends (`last`) at the first row whose next step is not trusted. A
    predicted termination counts only on trusted steps. `weight` is 1 if the step after the row is
    trusted, else 0.

    - terminal (B, H): whether a step terminates the episode.
    - disagreement (B, H): the disagreement of the world model's members on a step; more than
      `max_disagreement`, a scalar, is too much.
    - allowed (H,): 1 for steps that may be trusted, else 0.
    """
    agreed = disagreement <= max_disagreement
    not_ended = F.pad((~terminal).cumprod(1)[:, :-1], (1, 0), value=1)
    trusted = agreed.cumprod(1) * allowed * not_ended  # (B, H)
    last = F.pad(trusted == 0, (context, 1), value=True)
    last[:, :context] = False
    return {
        "last": last,
        "terminal": F.pad(terminal & (trusted > 0), (context + 1, 0)),
        "weight": F.pad(trusted.float(), (context, 1)),
    }


def sample_windows(
    dreams: Batch, columns: Sequence[str], size: int, context: int, n: int, rng: torch.Generator
) -> tuple[Batch, Tensor]:
    """Samples windows of rows from dreams; returns the windows and their weights.

    dreams: columns (B, T, …), for B dreams of T rows. The column `weight` is 1 on trusted rows
    (dreamed rows that the agent may learn from), else 0.

    `size` trusted rows are sampled uniformly, with replacement. The window of a sampled row begins
    `context` rows before the row and ends `n` rows after it. Beyond the ends of a dream, its first
    or last row is repeated. The windows have the given `columns`, each (size, context + 1 + n, …).

    The weights (size,) are 1. If there are fewer trusted rows than windows, the weights sum to the
    number of trusted rows.
    """
    weight = dreams["weight"]
    steps, cumulative = weight.shape[1], weight.flatten().double().cumsum(0)
    # The inverse of the cumulative weight; `torch.multinomial` may wait for the device.
    uniform = torch.rand(size, dtype=torch.float64, generator=rng, device=weight.device)
    sampled = torch.searchsorted(cumulative, uniform * cumulative[-1], right=True)
    sampled = sampled.clamp(max=len(cumulative) - 1)  # if no row is trusted
    dream, row = sampled // steps, sampled % steps
    offsets = torch.arange(-context, n + 1, device=row.device)
    rows = (row.unsqueeze(1) + offsets).clamp(0, steps - 1)
    windows = {key: dreams[key][dream.unsqueeze(1), rows] for key in columns}
    trusted_per_window = (weight.sum() / size).clamp(max=1)
    return windows, weight.flatten()[sampled] * trusted_per_window


def add_dreamed_windows(
    rows: Batch, weight: Tensor, counts: Tensor, dreamed: tuple[Batch, Tensor] | None
) -> tuple[Batch, Tensor, Tensor]:
    """Appends D dreamed windows to R real ones; returns rows, weights and counts of all windows.

    - rows: columns (R, …) of the real windows.
    - weight (R,): the weight of each real window in the sum of losses.
    - counts (R,): how much each real window adds to the divisor of this sum.
    - dreamed: columns (D, …) of the dreamed windows, and their counts (D,). The weight of a dreamed
      window is its count times the mean weight of the real windows. None: no dreamed windows.
    """
    if dreamed is None:
        return rows, weight, counts
    dreamed_rows, dreamed_counts = dreamed
    rows = {key: torch.cat([value, dreamed_rows[key]]) for key, value in rows.items()}
    weight = torch.cat([weight, dreamed_counts * weight.mean()])
    return rows, weight, torch.cat([counts, dreamed_counts])
