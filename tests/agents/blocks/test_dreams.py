from __future__ import annotations

import numpy as np
import pytest
import torch

from dreamfleet.agents.blocks.dreams import sample_windows


def dreams(context: int) -> dict[str, torch.Tensor]:
    """Two dreams of 4 steps, the second believed for one; a row's observation is its place."""
    rows = context + 5
    weight = torch.zeros(2, rows)
    weight[0, context : context + 4] = 1
    weight[1, context] = 1
    return {"obs": torch.arange(2 * rows).view(2, rows), "weight": weight}


@pytest.mark.parametrize("context", [0, 3])
def test_windows_lie_around_believed_rows_of_one_dream_drawn_alike(context):
    noise, size = torch.Generator().manual_seed(0), 2000
    windows, weight = sample_windows(dreams(context), ("obs",), size, context, 1, noise)
    assert windows.keys() == {"obs"}
    assert windows["obs"].shape == (size, context + 2)
    assert (windows["obs"].diff(dim=1) == 1).all()
    begun = windows["obs"][:, context].numpy()
    places, counts = np.unique(begun, return_counts=True)
    believed = [context + h for h in range(4)] + [context + 5 + context]
    assert places.tolist() == believed
    assert np.abs(counts / size - 0.2).max() < 0.05
    assert float(weight.sum()) == pytest.approx(5)  # no more than the rows that are believed


def test_where_nothing_is_believed_nothing_counts():
    nothing = dreams(0)
    nothing["weight"] = torch.zeros_like(nothing["weight"])
    _, weight = sample_windows(nothing, ("obs",), 6, 0, 1, torch.Generator())
    assert weight.tolist() == [0.0] * 6
