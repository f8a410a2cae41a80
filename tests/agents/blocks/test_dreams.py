from __future__ import annotations

import numpy as np
import pytest
import torch

from dreamfleet.agents.blocks.dreams import sample_windows


def dreams(context: int) -> dict[str, torch.Tensor]:
    """Returns two dreams of 4 steps; the second dream is trusted for one step only.

    Each observation is the number of its row.
    """
    rows = context + 5
    weight = torch.zeros(2, rows)
    weight[0, context : context + 4] = 1
    weight[1, context] = 1
    return {"obs": torch.arange(2 * rows).view(2, rows), "weight": weight}


@pytest.mark.parametrize("context", [0, 3])
def test_windows_lie_around_trusted_rows_sampled_uniformly(context):
    rng, size = torch.Generator().manual_seed(0), 2000
    windows, weight = sample_windows(dreams(context), ("obs",), size, context, 1, rng)
    assert windows.keys() == {"obs"}
    assert windows["obs"].shape == (size, context + 2)
    assert (windows["obs"].diff(dim=1) == 1).all()
    rows, counts = np.unique(windows["obs"][:, context].numpy(), return_counts=True)
    trusted = [context + h for h in range(4)] + [context + 5 + context]
    assert rows.tolist() == trusted
    assert np.abs(counts / size - 0.2).max() < 0.05
    assert float(weight.sum()) == pytest.approx(5)  # the number of trusted rows


def test_windows_weigh_nothing_if_no_row_is_trusted():
    untrusted = dreams(0)
    untrusted["weight"] = torch.zeros_like(untrusted["weight"])
    _, weight = sample_windows(untrusted, ("obs",), 6, 0, 1, torch.Generator())
    assert weight.tolist() == [0.0] * 6
