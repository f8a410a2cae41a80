"""Tests both implementations of the quantile Huber loss against its definition."""

from importlib.util import find_spec

import pytest
import torch

from dreamfleet.agents.blocks.quantiles import loss_by_loop, loss_by_torch

FORMS = [loss_by_torch, *([loss_by_loop] if find_spec("numba") else [])]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("lead", [(), (3,), (2, 3)])
def test_loss_and_gradient_agree_with_the_definition(form, lead):
    torch.manual_seed(0)
    quantiles = (2 * torch.randn(*lead, 10, 5)).requires_grad_()
    target = 2 * torch.randn(10, 7)
    error = target[:, None, :] - quantiles[..., None]  # (…, B, Z, Z')
    huber = torch.where(error.abs() <= 1, 0.5 * error**2, error.abs() - 0.5)
    tau = (torch.arange(5) + 0.5)[:, None] / 5
    expected = ((tau - (error < 0).float()).abs() * huber).mean(-1).sum(-1)
    loss, gradient = form(quantiles.detach(), target)
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(gradient, *torch.autograd.grad(expected.sum(), quantiles))
