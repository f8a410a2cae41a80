from __future__ import annotations

import torch

from dreamfleet.agents.blocks.nets import MLP, Ensemble

SIZES = (3, 16, 8, 2)


def alone(ensemble: Ensemble, member: int) -> MLP:
    """A plain network with one member's weights."""
    net = MLP(SIZES)
    with torch.no_grad():
        for linear, weight, bias in zip(net.linear, ensemble.weight, ensemble.bias, strict=True):
            linear.weight.copy_(weight[member].T)
            linear.bias.copy_(bias[member, 0])
    return net


def test_an_ensemble_is_its_members_side_by_side():
    ensemble, x = Ensemble(4, SIZES), torch.randn(4, 5, 3)
    with torch.no_grad():
        for bias in ensemble.bias:
            bias.normal_()
    together = ensemble(x)
    assert together.shape == (4, 5, 2)
    for member in range(4):
        torch.testing.assert_close(together[member], alone(ensemble, member)(x[member]))


def test_members_start_apart_and_learn_apart():
    ensemble = Ensemble(3, SIZES)
    x = torch.randn(5, 3).expand(3, -1, -1)
    out = ensemble(x)
    assert not torch.isclose(out[0], out[1]).any()
    out[1].square().sum().backward()
    for parameter in ensemble.parameters():
        assert parameter.grad is not None
        assert parameter.grad[1].any()
        assert not parameter.grad[[0, 2]].any()


def test_outputs_keep_their_scale_at_the_start():
    x = torch.randn(2, 4096, 64)
    out = Ensemble(2, (64, 256, 256, 8))(x)
    assert 0.3 < out.std() < 1.5


def test_a_zero_last_layer_answers_zero():
    x = torch.randn(2, 5, 3)
    assert not Ensemble(2, SIZES, zero_last=True)(x).any()
    assert not MLP(SIZES, zero_last=True)(x).any()
