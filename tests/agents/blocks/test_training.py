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
from dreamfleet.agents.blocks.soft_update import SoftUpdate
from dreamfleet.agents.blocks.weight_groups import GroupState, load_net, net_state

SIZES = (3, 8, 1)


def loss(net: nn.Module, seed: int) -> Tensor:
    x = torch.randn(16, 3, generator=make_rng(seed, "cpu"))
    return (net(x).squeeze(-1) - x.sum(-1)).square().mean()


def learning(seed: int) -> tuple[GroupState, MLP, Optimizer, torch.Generator]:
    torch.manual_seed(seed)
    net, noise = MLP(SIZES), make_rng(seed, "cpu")
    optimizer = Optimizer(net, lr=1e-2, max_grad_norm=1.0)
    whole = GroupState({"net": net}, {"net": optimizer}, {"noise": noise}, published="net")
    return whole, net, optimizer, noise


def test_a_step_is_adam_on_the_clipped_gradient():
    _, net, optimizer, _ = learning(0)
    reference = copy.deepcopy(net)
    adam = torch.optim.Adam(reference.parameters(), lr=1e-2)
    for step in range(5):
        norm = optimizer.step(loss(net, step))
        adam.zero_grad()
        loss(reference, step).backward()
        gradients = [p.grad for p in reference.parameters() if p.grad is not None]
        total = torch.cat([g.flatten() for g in gradients]).norm()
        assert norm == pytest.approx(float(total), rel=1e-5)  # as it was before clipping
        for gradient in gradients:
            gradient.mul_(min(1.0, 1.0 / float(total)))
        adam.step()
        for mine, other in zip(net.parameters(), reference.parameters(), strict=True):
            torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 1e30])
def test_a_step_that_is_not_finite_is_skipped_and_counted(bad):
    """1e30: the loss is finite, and the square of its gradient is not."""
    _, net, optimizer, _ = learning(0)
    _, reference, same, _ = learning(0)
    for step in range(4):
        if step == 2:
            before = {**net_state(net), **optimizer.state()}
            for times in (1, 2):
                assert not optimizer.step(loss(net, step) * bad).isfinite()
                told = skipped_step_metrics("policy", optimizer)
                assert {name: float(value) for name, value in told.items()} == {
                    "fault/skipped_policy": times,
                    "fault/in_a_row": times,
                }
            after = {**net_state(net), **optimizer.state(), "skipped": before["skipped"]}
            assert all(np.array_equal(before[name], after[name]) for name in before)
        optimizer.step(loss(net, step))
        same.step(loss(reference, step))
    for mine, other in zip(net.parameters(), reference.parameters(), strict=True):
        assert torch.equal(mine, other)
    assert float(skipped_step_metrics("policy", optimizer)["fault/in_a_row"]) == 0
    assert float(skipped_step_metrics("policy", optimizer)["fault/skipped_policy"]) == 2


def test_a_buffer_that_older_weights_lack_stays_and_a_missing_parameter_is_an_error():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 2)
            self.register_buffer("seen", torch.randn(4))

    net, weights = Net(), net_state(Net())
    seen = weights.pop("seen")
    load_net(net, weights)
    assert not np.array_equal(net_state(net)["seen"], seen)
    assert np.array_equal(net_state(net)["linear.weight"], weights.pop("linear.weight"))
    with pytest.raises(RuntimeError, match=r"linear\.weight"):
        load_net(net, weights)


def test_moments_fade_to_zero_and_never_to_subnormal_numbers_which_are_slow():
    tiny = torch.finfo(torch.float32).tiny
    weight = nn.Linear(1, 1)
    optimizer = Optimizer(weight, lr=1e-2, max_grad_norm=1.0)
    optimizer.step(weight(torch.ones(1, 1)).sum())
    for _ in range(1000):
        optimizer.step(0 * weight(torch.ones(1, 1)).sum())
        momentum = torch.as_tensor(optimizer.state()["exp_avg"])
        assert torch.all((momentum == 0) | (momentum >= tiny))
    assert torch.all(momentum == 0)  # it has been through them
    assert torch.tensor([tiny]) / 2 > 0  # elsewhere they are what they were


def test_parameters_lie_in_one_piece_and_are_loaded_into_it():
    _, net, optimizer, _ = learning(0)
    _, other, _, _ = learning(1)
    load_net(net, net_state(other))
    pieces = [parameter.data_ptr() for parameter in net.parameters()]
    sizes = [4 * parameter.numel() for parameter in net.parameters()]
    assert np.array_equal(np.diff(pieces), sizes[:-1])
    optimizer.step(loss(net, 0))
    assert not torch.equal(next(net.parameters()), next(other.parameters()))


def test_a_restored_learning_continues_bit_for_bit():
    one, net, optimizer, noise = learning(0)
    for step in range(3):
        optimizer.step(loss(net, step))
    torch.randn(7, generator=noise)
    saved = one.state()
    other, same_net, same_optimizer, same_noise = learning(1)
    other.restore(saved)
    for step in range(3, 6):
        assert optimizer.step(loss(net, step)) == same_optimizer.step(loss(same_net, step))
        assert torch.equal(torch.randn(3, generator=noise), torch.randn(3, generator=same_noise))
    for mine, theirs in zip(net.parameters(), same_net.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("kept", [True, False])
def test_a_state_of_before_the_first_step_can_be_restored(kept):
    """Its moments are 0, or missing as in an older checkpoint."""
    fresh, _, _, _ = learning(0)
    saved = fresh.state()
    if not kept:
        saved["optimizers"]["net"] = {}
    other, net, optimizer, _ = learning(1)
    optimizer.step(loss(net, 0))
    other.restore(saved)
    assert not any(np.any(moment) for moment in optimizer.state().values())
    optimizer.step(loss(net, 0))


def test_a_generator_of_another_kind_of_device_keeps_its_own_seed():
    """Networks move from a GPU to a CPU; what a GPU's generator would have drawn cannot."""
    one, _, _, _ = learning(0)
    saved = one.state()
    saved["rngs"]["noise"] = np.zeros(16, np.uint8)  # the size of a GPU generator's state
    other, net, _, noise = learning(1)
    other.restore(saved)
    assert torch.equal(noise.get_state(), make_rng(1, "cpu").get_state())
    assert all(
        np.array_equal(net_state(net)[name], saved["nets"]["net"][name]) for name in net_state(net)
    )


def test_weights_are_copies_both_ways():
    net, other = MLP(SIZES), MLP(SIZES)
    weights = net_state(net)
    load_net(other, weights)
    kept = copy.deepcopy(weights)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    for name, value in kept.items():
        assert np.array_equal(weights[name], value)
        weights[name][...] = -1
    for name, value in net_state(other).items():
        assert np.array_equal(value, kept[name])


@pytest.mark.parametrize("rate", [0.0, 0.02, 1.0, torch.tensor(0.25)])
def test_the_slow_net_moves_by_the_rate_and_takes_the_buffers(rate):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 2)
            self.register_buffer("seen", torch.randn(4))

    slow, fast = Net(), Net()
    before, follower = net_state(slow), SoftUpdate(slow, fast)
    follower.step(rate)
    after, target = net_state(slow), net_state(fast)
    for name in ("linear.weight", "linear.bias"):
        expected = before[name] + float(rate) * (target[name] - before[name])
        np.testing.assert_allclose(after[name], expected, rtol=1e-5, atol=1e-7)
    assert np.array_equal(after["seen"], target["seen"])
    follower.step(rate)
    assert np.array_equal(net_state(fast)["linear.weight"], target["linear.weight"])


def test_a_step_does_without_the_compiler_that_torch_optim_brings():
    """It takes a process a second and 70 MB."""
    code = (
        "import sys, torch; from dreamfleet.agents.blocks.optimizer import Optimizer;"
        "net = torch.nn.Linear(1, 1);"
        "Optimizer(net, 1e-3, 1.0).step(net(torch.ones(1, 1)).sum());"
        "assert 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
