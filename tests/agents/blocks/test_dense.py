from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamfleet.agents.blocks.dense import VECTOR, BatchRenorm, Dense

HIDDEN = (8, 6, 5)


def output_of(net: Dense, member: int, x: Tensor) -> Tensor:
    """Returns the output of one ensemble member for inputs x (B, in), computed layer by layer."""
    h = torch.zeros(len(x), 0)
    for layer, input_weight in enumerate(net.input_weights):
        *weights, bias = input_weight[member]
        inputs = [h, x] if weights else [h]
        if layer:
            weights = [*net.hidden_weights[layer - 1][member], *weights]
        h = torch.cat(inputs, -1) @ torch.stack(weights) + bias
        h = F.relu(F.layer_norm(h, h.shape[-1:]) if net.norm == "layer" else h)
    return h @ net.output_weight[member] + net.output_bias[member]


@pytest.mark.parametrize("norm", ["none", "layer"])
@pytest.mark.parametrize("dense", [True, False])
def test_the_batched_computation_equals_each_member_alone(dense, norm):
    net, x = Dense(5, 3, HIDDEN, 4, dense=dense, norm=norm), torch.randn(7, 3)
    batched = net(x)
    assert batched.shape == (5, 7, 4)
    for member in range(5):
        torch.testing.assert_close(batched[member], output_of(net, member, x))


def test_every_hidden_layer_reads_the_input_only_when_dense():
    for dense, layers in ((True, 3), (False, 1)):
        net = Dense(1, 3, HIDDEN, 4, dense=dense)
        inputs = [len(weight[0]) - 1 for weight in net.input_weights]  # the last row is the bias
        assert inputs == [3] * layers + [0] * (3 - layers)


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_padding_units_keep_weights_of_zero(norm):
    net = Dense(2, 3, HIDDEN, 4, norm=norm)
    adam = torch.optim.Adam(net.parameters(), lr=0.1)
    for _ in range(5):
        adam.zero_grad()
        net(torch.randn(7, 3)).square().sum().backward()
        adam.step()
    for layer, units in enumerate(HIDDEN):
        incoming = [net.input_weights[layer], *([net.hidden_weights[layer - 1]] if layer else [])]
        outgoing = [*net.hidden_weights, net.output_weight][layer]
        assert all(weight.shape[-1] % VECTOR == 0 for weight in incoming)
        assert all(weight[..., :units].any() for weight in incoming)
        assert not any(weight[..., units:].any() for weight in incoming)
        assert outgoing[:, :units].any() and not outgoing[:, units:].any()


def test_mean_returns_the_mean_of_the_outputs():
    net, x = Dense(5, 3, HIDDEN, 4), torch.randn(7, 3)
    torch.testing.assert_close(net(x, mean=True), net(x).mean(-1, keepdim=True))


def test_members_have_different_weights_and_separate_gradients():
    net = Dense(3, 4, HIDDEN, 2)
    out = net(torch.randn(5, 4))
    assert not torch.isclose(out[0], out[1]).any()
    out[1].square().sum().backward()
    for parameter in net.parameters():
        assert parameter.grad is not None
        assert parameter.grad[1].any()
        assert not parameter.grad[[0, 2]].any()


def test_frozen_outputs_are_equal_and_only_the_input_gets_a_gradient():
    net, x = Dense(2, 3, HIDDEN, 4), torch.randn(7, 3, requires_grad=True)
    frozen = net(x, frozen=True)
    torch.testing.assert_close(frozen, net(x))
    frozen.sum().backward()
    assert x.grad is not None
    assert x.grad.any()
    assert all(parameter.grad is None for parameter in net.parameters())


def test_dropout_masks_come_from_the_rng_and_keep_the_mean():
    net, x = Dense(2, 3, (64,), 1, dropout=0.5), torch.randn(1, 3)
    rng = torch.Generator().manual_seed(0)
    dropped = net(x.expand(4000, 3), rng=rng)
    plain = net(x)
    assert dropped.std(1).min() > 0.01
    assert ((dropped.mean(1) - plain[:, 0]).abs() < 5 * dropped.std(1) / 4000**0.5).all()
    again = net(x.expand(4000, 3), rng=torch.Generator().manual_seed(0))
    torch.testing.assert_close(again, dropped)


def test_renormalisation_equals_batch_normalisation_during_warmup():
    ours, theirs = BatchRenorm(2, 3), [nn.BatchNorm1d(3, eps=1e-3, momentum=0.01) for _ in range(2)]
    x = 2 + 3 * torch.randn(2, 50, 3)
    out = ours(x, frozen=False)
    for member in range(2):
        torch.testing.assert_close(out[member], theirs[member](x[member]))
        theirs[member].running_var.mul_(0).add_(
            ours.variance[member, 0]
        )  # BatchNorm1d uses the unbiased variance
        torch.testing.assert_close(ours.mean[member, 0], theirs[member].running_mean)
        theirs[member].eval()
        torch.testing.assert_close(ours(x, frozen=True)[member], theirs[member](x[member]))


def test_after_warmup_a_batch_is_normalised_by_the_running_statistics():
    norm, x = BatchRenorm(1, 3), 2 + 3 * torch.randn(1, 400, 3)
    norm.mean.copy_(x.mean(1, keepdim=True) + 1)
    norm.variance.copy_(x.var(1, keepdim=True, correction=0) * 4)
    norm.batches.fill_(BatchRenorm.WARMUP)
    expected = norm(x, frozen=True)
    torch.testing.assert_close(norm(x, frozen=False), expected)
    norm.mean.add_(1e6)  # more than MAX_SHIFT corrects
    assert norm(x, frozen=False).abs().max() < 20
