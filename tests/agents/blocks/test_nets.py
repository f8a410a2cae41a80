from __future__ import annotations

import torch

from dreamfleet.agents.blocks.nets import MLP, Ensemble

SIZES = (3, 16, 8, 2)


def mlp_of(ensemble: Ensemble, member: int) -> MLP:
    """Returns an MLP with the weights of one ensemble member."""
    net = MLP(SIZES)
    with torch.no_grad():
        for linear, weight, bias in zip(net.linear, ensemble.weight, ensemble.bias, strict=True):
            linear.weight.copy_(weight[member].T)
            linear.bias.copy_(bias[member, 0])
    return net


def test_the_batched_computation_equals_each_member_alone():
    ensemble, x = Ensemble(4, SIZES), torch.randn(4, 5, 3)
    with torch.no_grad():
        for bias in ensemble.bias:
            bias.normal_()
    batched = ensemble(x)
    assert batched.shape == (4, 5, 2)
    for member in range(4):
        torch.testing.assert_close(batched[member], mlp_of(ensemble, member)(x[member]))


def test_members_have_different_weights_and_separate_gradients():
    ensemble = Ensemble(3, SIZES)
    x = torch.randn(5, 3).expand(3, -1, -1)
    out = ensemble(x)
    assert not torch.isclose(out[0], out[1]).any()
    out[1].square().sum().backward()
    for parameter in ensemble.parameters():
        assert parameter.grad is not None
        assert parameter.grad[1].any()
        assert not parameter.grad[[0, 2]].any()


def test_initial_outputs_have_about_unit_scale():
    x = torch.randn(2, 4096, 64)
    out = Ensemble(2, (64, 256, 256, 8))(x)
    assert 0.3 < out.std() < 1.5


def test_with_zero_last_initial_outputs_are_zero():
    x = torch.randn(2, 5, 3)
    assert not Ensemble(2, SIZES, zero_last=True)(x).any()
    assert not MLP(SIZES, zero_last=True)(x).any()
