from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from dreamfleet.agents.blocks.laprop import LaProp
from dreamfleet.agents.blocks.optimizer import Optimizer

LR, CLIP, WARMUP = 0.01, 0.3, 4


class Net(nn.Module):
    """Parameters of three sizes, one of which is 0 at first."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(3, 2, generator=rng).to(dtype))
        self.small = nn.Parameter(0.001 * torch.randn(4, generator=rng).to(dtype))
        self.zero = nn.Parameter(torch.zeros(2, dtype=dtype))

    def loss(self, factors: list[torch.Tensor]) -> torch.Tensor:
        """Returns a loss whose gradients are the factors."""
        pairs = zip(self.parameters(), factors, strict=True)
        return torch.stack([(parameter * factor).sum() for parameter, factor in pairs]).sum()


def gradients(step: int, size: float = 1.0) -> list[torch.Tensor]:
    rng = torch.Generator().manual_seed(step)
    sizes = (size, 1e-4 * size, 1e-6 * size)  # the first two are clipped, the last one is not
    return [
        s * torch.randn(*p.shape, generator=rng)
        for s, p in zip(sizes, Net().parameters(), strict=True)
    ]


class Reference:
    """LaProp for one tensor, number by number."""

    def __init__(self, values: list[float]) -> None:
        self.values, n = list(values), len(values)
        self.square, self.momentum, self.steps = [0.0] * n, [0.0] * n, 0

    def step(self, gradient: list[float]) -> None:
        self.steps += 1
        t = self.steps
        norm = math.sqrt(sum(g * g for g in gradient))
        limit = CLIP * max(1e-3, math.sqrt(sum(v * v for v in self.values)))
        factor = min(1.0, limit / norm)
        rate = LR * min(1.0, t / WARMUP)
        for i, raw in enumerate(gradient):
            g = raw * factor
            self.square[i] = 0.999 * self.square[i] + 0.001 * g * g
            scaled = g / (math.sqrt(self.square[i] / (1 - 0.999**t)) + 1e-20)
            self.momentum[i] = 0.9 * self.momentum[i] + 0.1 * scaled
            self.values[i] -= rate * self.momentum[i] / (1 - 0.9**t)


def flat(net: nn.Module) -> list[float]:
    return [x for parameter in net.parameters() for x in parameter.flatten().tolist()]


def test_steps_are_those_of_a_plain_computation():
    net = Net()
    optimizer = LaProp(net, LR, CLIP, WARMUP)
    references = [Reference(parameter.flatten().tolist()) for parameter in net.parameters()]
    for step in range(10):
        factors = gradients(step)
        norm = optimizer.step(net.loss(factors))
        total = math.sqrt(sum(x * x for factor in factors for x in factor.flatten().tolist()))
        assert norm.item() == pytest.approx(total, rel=1e-5)  # before clipping
        for parameter, factor, reference in zip(net.parameters(), factors, references, strict=True):
            reference.step(factor.flatten().tolist())
            assert parameter.flatten().tolist() == pytest.approx(reference.values, rel=1e-3)


def test_clipping_follows_the_norm_of_each_tensor():
    """Far beyond the limit, the size of a gradient does not matter; below, it does."""
    moments = []
    for size in (1e2, 1e5):
        net = Net()
        optimizer = LaProp(net, LR, CLIP, WARMUP)
        limits = [CLIP * max(1e-3, p.detach().norm().item()) for p in net.parameters()]
        optimizer.step(net.loss(gradients(0, size)))
        square = torch.from_numpy(optimizer.state()["exp_avg_sq"])
        sizes = [parameter.numel() for parameter in net.parameters()]
        moments.append([1e3 * piece.sum().item() for piece in square.split(sizes)])
        assert moments[-1][:2] == pytest.approx([limit**2 for limit in limits[:2]], rel=1e-4)
    assert moments[0][2] < moments[1][2] == pytest.approx((CLIP * 1e-3) ** 2, rel=1e-4)


def test_without_warm_up_the_first_step_has_the_whole_rate():
    net = Net()
    before = flat(net)
    LaProp(net, LR, CLIP, 0).step(net.loss(gradients(0)))
    moved = [abs(a - b) for a, b in zip(flat(net), before, strict=True)]
    assert moved == pytest.approx([LR] * len(moved), rel=1e-3)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_step_that_is_not_finite_changes_nothing(where, value):
    net, twin = Net(), Net()
    optimizer, other = (LaProp(part, LR, CLIP, WARMUP) for part in (net, twin))
    for step in range(3):
        for part, rule in ((net, optimizer), (twin, other)):
            rule.step(part.loss(gradients(step)))
    before = optimizer.state()
    if where == "loss":
        loss = net.loss(gradients(9)) + value
    else:
        factors = gradients(9)
        factors[1][2] = value
        loss = torch.nan_to_num(net.loss(factors), 0, 0, 0) * 0 + net.loss(factors)
    optimizer.step(loss)
    after = optimizer.state()
    assert after.pop("skipped") == 1 and before.pop("skipped") == 0
    assert all((after[name] == before[name]).all() for name in before)
    assert flat(net) == flat(twin)
    assert optimizer.skipped_in_a_row == 1
    for part, rule in ((net, optimizer), (twin, other)):  # and goes on as if nothing had happened
        rule.step(part.loss(gradients(4)))
    assert flat(net) == flat(twin)
    assert optimizer.skipped_in_a_row == 0


def test_a_gradient_that_is_not_finite_under_a_finite_loss_changes_nothing():
    net = Net()
    optimizer = LaProp(net, LR, CLIP, WARMUP)
    before = flat(net)
    optimizer.step(net.zero.sqrt().sum())  # the derivative of the root at 0 is infinite
    assert flat(net) == before
    assert optimizer.skipped == 1
    optimizer.step(net.loss(gradients(0)))
    assert all(map(math.isfinite, flat(net)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_restored_optimizer_continues_bit_for_bit(dtype):
    net, twin = Net(dtype), Net(dtype)
    optimizer = LaProp(net, LR, CLIP, WARMUP)
    for step in range(3):
        optimizer.step(net.loss(gradients(step)))
    restored = LaProp(twin, LR, CLIP, WARMUP)
    twin.load_state_dict(net.state_dict())
    restored.restore(optimizer.state())
    for step in range(3, 8):
        for part, rule in ((net, optimizer), (twin, restored)):
            rule.step(part.loss(gradients(step)))
    assert flat(net) == flat(twin)
    left, right = optimizer.state(), restored.state()
    assert all((left[name] == right[name]).all() for name in left)


@pytest.mark.parametrize("kind", ["laprop", "adamw"])
def test_small_steps_are_not_lost_in_parameters_of_16_bits(kind):
    """Each step is a thousandth of what bfloat16 can tell apart at 1; a thousand add up."""
    net = nn.ParameterList([nn.Parameter(torch.ones(4, dtype=torch.bfloat16))])
    lr = 1e-5
    rule = LaProp(net, lr, CLIP, 1) if kind == "laprop" else Optimizer(net, lr, 1.0)
    for _ in range(1000):
        rule.step(net[0].float().sum())
    assert net[0].dtype == torch.bfloat16
    assert net[0].tolist() == pytest.approx([0.99] * 4, abs=0.002)


@pytest.mark.parametrize("kind", ["laprop", "adamw"])
def test_several_losses_make_one_step_on_their_sum(kind):
    nets = Net(), Net()
    rules = [
        LaProp(net, LR, CLIP, WARMUP) if kind == "laprop" else Optimizer(net, LR, 1.0)
        for net in nets
    ]
    asked = []

    def losses(net: Net, step: int):
        for part in range(3):
            asked.append((step, part))
            yield net.loss(gradients(10 * step + part))

    for step in range(4):
        norms = (
            rules[0].step(losses(nets[0], step)),
            rules[1].step(torch.stack([*losses(nets[1], step)]).sum()),
        )
        assert norms[0].item() == pytest.approx(norms[1].item(), rel=1e-5)
    assert flat(nets[0]) == pytest.approx(flat(nets[1]), rel=1e-4, abs=1e-7)
    assert rules[0].state()["step"] == 4


def test_one_bad_loss_of_several_skips_the_step():
    net = Net()
    before = flat(net)
    optimizer = LaProp(net, LR, CLIP, WARMUP)
    optimizer.step(iter([net.loss(gradients(0)), net.loss(gradients(1)) + math.nan]))
    assert flat(net) == before
    assert optimizer.skipped == 1
