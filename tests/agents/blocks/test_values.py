from __future__ import annotations

import pytest
import torch

from agents.blocks import values
from agents.blocks.values import quantile_huber, quantile_slopes


@pytest.mark.parametrize("cached", [1, 2_000, 10**9], ids=["one by one", "some", "at once"])
def test_slopes_are_those_of_the_loss_against_every_target(monkeypatch, cached):
    monkeypatch.setattr(values, "CACHED_PAIRS", cached)
    torch.manual_seed(0)
    quantiles = (2 * torch.randn(3, 10, 5)).requires_grad_()
    target = 2 * torch.randn(10, 7)
    total = torch.zeros(())
    for k in range(3):
        for b in range(10):
            for i in range(5):
                for j in range(7):
                    u = target[b, j] - quantiles[k, b, i]
                    huber = 0.5 * u * u if u.abs() <= 1 else u.abs() - 0.5
                    total = total + abs((i + 0.5) / 5 - float(u < 0)) * huber / 7
    assert float(quantile_huber(quantiles, target).sum().detach()) == pytest.approx(
        float(total.detach()), rel=1e-5
    )
    (expected,) = torch.autograd.grad(total, quantiles)
    torch.testing.assert_close(quantile_slopes(quantiles, target), expected)
