from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dreamfleet.agents.blocks.device import make_rng
from dreamfleet.agents.blocks.nets import MLP
from dreamfleet.agents.blocks.optimizer import Optimizer
from dreamfleet.agents.blocks.weight_groups import GroupState, load_net, net_state
from dreamfleet.core.memory import blocks_of

SIZES = (3, 8, 1)


def build(seed: int) -> tuple[GroupState, MLP, Optimizer, torch.Generator]:
    """Returns a weight group, and its network, optimizer and random generator."""
    torch.manual_seed(seed)
    net, rng = MLP(SIZES), make_rng(seed, "cpu")
    optimizer = Optimizer(net, lr=1e-2, max_grad_norm=1.0)
    group = GroupState({"net": net}, {"net": optimizer}, {"rng": rng}, published="net")
    return group, net, optimizer, rng


def loss(net: nn.Module, seed: int) -> Tensor:
    x = torch.randn(16, 3, generator=make_rng(seed, "cpu"))
    return (net(x).squeeze(-1) - x.sum(-1)).square().mean()


def test_load_net_keeps_a_missing_buffer_and_refuses_a_missing_parameter():
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


def test_a_restored_group_continues_bit_for_bit():
    group, net, optimizer, rng = build(0)
    for step in range(3):
        optimizer.step(loss(net, step))
    torch.randn(7, generator=rng)
    saved = group.state()
    restored, other_net, other_optimizer, other_rng = build(1)
    restored.restore(saved)
    for step in range(3, 6):
        assert other_optimizer.step(loss(other_net, step)) == optimizer.step(loss(net, step))
        assert torch.equal(torch.randn(3, generator=other_rng), torch.randn(3, generator=rng))
    for found, expected in zip(other_net.parameters(), net.parameters(), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("with_moments", [True, False])
def test_restoring_a_state_of_before_the_first_step_sets_the_moments_to_zero(with_moments):
    """In a state from before the first step the optimizer's moments are 0 or missing."""
    fresh, _, _, _ = build(0)
    saved = fresh.state()
    if not with_moments:
        saved["optimizers"]["net"] = {}
    group, net, optimizer, _ = build(1)
    optimizer.step(loss(net, 0))
    group.restore(saved)
    assert not any(np.any(moment) for moment in optimizer.state().values())
    optimizer.step(loss(net, 0))


def test_a_generator_keeps_its_state_if_the_saved_one_is_of_another_kind_of_device():
    """Networks can move from a GPU to a CPU, but a CPU cannot continue a GPU's random numbers."""
    group, _, _, _ = build(0)
    saved = group.state()
    saved["rngs"]["rng"] = np.zeros(16, np.uint8)  # the size of a GPU generator's state
    restored, net, _, rng = build(1)
    restored.restore(saved)
    assert torch.equal(rng.get_state(), make_rng(1, "cpu").get_state())
    assert all(
        np.array_equal(value, saved["nets"]["net"][name]) for name, value in net_state(net).items()
    )


def test_net_state_and_load_net_copy_the_weights():
    net, other = MLP(SIZES), MLP(SIZES)
    weights = net_state(net)
    load_net(other, weights)
    expected = copy.deepcopy(weights)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    for name, value in expected.items():
        assert np.array_equal(weights[name], value)
        weights[name][...] = -1
    for name, value in net_state(other).items():
        assert np.array_equal(value, expected[name])


def test_net_state_fills_one_block_of_memory_and_names_the_trained_parameters():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 5)
            self.register_buffer("mean", torch.randn(7, dtype=torch.float64))
            self.register_buffer("updates", torch.zeros(()))
            self.register_buffer("seen", torch.tensor([True, False]))
            self.register_buffer("turned", torch.arange(6).view(2, 3).T)
            self.register_buffer("nothing", torch.zeros(0, 2))

    net = Net()
    weights = net_state(net)
    assert len(blocks_of(weights)) == 1
    assert weights.trained == {"linear.weight", "linear.bias"}
    assert weights.keys() == net.state_dict().keys()
    for name, value in net.state_dict().items():
        np.testing.assert_array_equal(weights[name], value.numpy())
        assert weights[name].dtype == value.numpy().dtype
        assert weights[name].shape == value.shape
