"""Samples training windows from dreams (rollouts of the policy in a world model)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dreamfleet.core.types import Batch


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
    steps = weight.shape[1]
    prob = weight.flatten() + 1e-9  # `multinomial` needs a positive sum
    sampled = prob.multinomial(size, replacement=True, generator=rng)
    dream, row = sampled // steps, sampled % steps
    offsets = torch.arange(-context, n + 1, device=row.device)
    rows = (row.unsqueeze(1) + offsets).clamp(0, steps - 1)
    windows = {key: dreams[key][dream.unsqueeze(1), rows] for key in columns}
    trusted_per_window = (weight.sum() / size).clamp(max=1)
    return windows, weight.flatten()[sampled] * trusted_per_window
