"""Sampling of windows from dreams."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dreamfleet.core.types import Batch


def sample_windows(
    dreams: Batch, columns: Sequence[str], size: int, context: int, n: int, rng: torch.Generator
) -> tuple[Batch, Tensor]:
    """Samples windows of dreamed rows; returns their `columns` and their weights (size,).

    dreams: columns (B, T, …), among them `weight` (B, T), which is 1 on trusted rows and else 0. A
    trusted row is sampled uniformly. Its window (size, context + 1 + n, …) begins `context` rows
    before this row and ends n rows after it. Rows beyond either end of the dream repeat the dream's
    first or last row.

    A window weighs 1, or less if there are fewer trusted rows than windows: the weights add up to
    the number of trusted rows at most.
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
