"""Rows that were dreamed, beside real ones in an update."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dreamfleet.core.types import Batch


def sample_windows(
    dreams: Batch, columns: Sequence[str], size: int, context: int, n: int, noise: torch.Generator
) -> tuple[Batch, Tensor]:
    """Windows (`size`, context + n + 1, …) at believed rows of dreams (B, T, …), drawn alike.

    → the `columns` of the windows, and how much each counts (`size`,). `weight` of a dream says
    which rows are believed. If they are fewer than the windows each counts as one window and no
    more, so that the dreamed part of an update weighs less.
    """
    weight = dreams["weight"]
    steps = weight.shape[1]
    chances = weight.flatten() + 1e-9  # so that something can be drawn where nothing counts
    drawn = chances.multinomial(size, replacement=True, generator=noise)
    dream, row = drawn // steps, drawn % steps
    ahead = torch.arange(-context, n + 1, device=row.device)
    # Beyond a dream there is nothing, but its own last row ends all windows.
    rows = (row.unsqueeze(1) + ahead).clamp(0, steps - 1)
    windows = {key: dreams[key][dream.unsqueeze(1), rows] for key in columns}
    enough = (weight.sum() / size).clamp(max=1)
    return windows, weight.flatten()[drawn] * enough
