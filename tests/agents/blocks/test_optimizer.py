from __future__ import annotations

import copy
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dreamfleet.agents.blocks.device import make_rng
from dreamfleet.agents.blocks.nets import MLP
from dreamfleet.agents.blocks.optimizer import Optimizer, skipped_step_metrics
from dreamfleet.agents.blocks.weight_groups import load_net, net_state


def build(seed: int) -> tuple[MLP, Optimizer]:
    torch.manual_seed(seed)
    net = MLP((3, 8, 1))
    return net, Optimizer(net, lr=1e-2, max_grad_norm=1.0)


def loss(net: nn.Module, seed: int) -> Tensor:
    x = torch.randn(16, 3, generator=make_rng(seed, "cpu"))
    return (net(x).squeeze(-1) - x.sum(-1)).square().mean()


def test_a_step_is_adam_on_the_clipped_gradient():
    net, optimizer = build(0)
    reference = copy.deepcopy(net)
    adam = torch.optim.Adam(reference.parameters(), lr=1e-2)
    for step in range(5):
        norm = optimizer.step(loss(net, step))
        adam.zero_grad()
        loss(reference, step).backward()
        gradients = [p.grad for p in reference.parameters() if p.grad is not None]
        total = torch.cat([g.flatten() for g in gradients]).norm()
        assert norm == pytest.approx(float(total), rel=1e-5)  # before clipping
        for gradient in gradients:
            gradient.mul_(min(1.0, 1.0 / float(total)))
        adam.step()
        for found, expected in zip(net.parameters(), reference.parameters(), strict=True):
            torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 1e30])
def test_a_step_that_is_not_finite_is_skipped_and_counted(bad):
    """If the loss is multiplied by 1e30, it stays finite, but its squared gradient overflows."""
    net, optimizer = build(0)
    reference, reference_optimizer = build(0)
    for step in range(4):
        if step == 2:
            before = {**net_state(net), **optimizer.state()}
            for times in (1, 2):
                assert not optimizer.step(loss(net, step) * bad).isfinite()
                metrics = skipped_step_metrics("policy", optimizer)
                assert {name: float(value) for name, value in metrics.items()} == {
                    "fault/skipped_policy": times,
                    "fault/in_a_row": times,
                }
            after = {**net_state(net), **optimizer.state(), "skipped": before["skipped"]}
            assert all(np.array_equal(before[name], after[name]) for name in before)
        optimizer.step(loss(net, step))
        reference_optimizer.step(loss(reference, step))
    for found, expected in zip(net.parameters(), reference.parameters(), strict=True):
        assert torch.equal(found, expected)
    assert float(skipped_step_metrics("policy", optimizer)["fault/in_a_row"]) == 0
    assert float(skipped_step_metrics("policy", optimizer)["fault/skipped_policy"]) == 2


def test_moments_decay_to_zero_without_subnormal_numbers():
    """Processors are slow on subnormal (tiny) numbers, so moments must become 0 instead."""
    tiny = torch.finfo(torch.float32).tiny
    net = nn.Linear(1, 1)
    optimizer = Optimizer(net, lr=1e-2, max_grad_norm=1.0)
    optimizer.step(net(torch.ones(1, 1)).sum())
    for _ in range(1000):
        optimizer.step(0 * net(torch.ones(1, 1)).sum())
        momentum = torch.as_tensor(optimizer.state()["exp_avg"])
        assert torch.all((momentum == 0) | (momentum >= tiny))
    assert torch.all(momentum == 0)
    assert torch.tensor([tiny]) / 2 > 0  # outside a step, subnormal numbers still exist


def test_parameters_lie_in_one_piece_and_loading_weights_keeps_them_there():
    net, optimizer = build(0)
    other, _ = build(1)
    load_net(net, net_state(other))
    addresses = [parameter.data_ptr() for parameter in net.parameters()]
    sizes = [4 * parameter.numel() for parameter in net.parameters()]
    assert np.array_equal(np.diff(addresses), sizes[:-1])
    optimizer.step(loss(net, 0))
    assert not torch.equal(next(net.parameters()), next(other.parameters()))


def test_a_step_does_not_import_the_compiler_of_torch_optim():
    """Importing torch's compiler would cost a second and 70 MB in every process."""
    code = (
        "import sys, torch; from dreamfleet.agents.blocks.optimizer import Optimizer;"
        "net = torch.nn.Linear(1, 1);"
        "Optimizer(net, 1e-3, 1.0).step(net(torch.ones(1, 1)).sum());"
        "assert 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
