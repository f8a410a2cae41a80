from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from dreamfleet.agents.blocks.two_hot import NUMBER_HEADS, HLGauss, TwoHot, symexp, symlog

SIZE = 255


def target_of(head: TwoHot | HLGauss, number: float) -> Tensor:
    """Returns the target distribution (Z,) of a number, read from the gradient of the loss.

    The gradient of a cross-entropy with logits 0 is the uniform distribution minus the target.
    """
    size = len(head.bins if isinstance(head, TwoHot) else head.centres)
    logits = torch.zeros(size, requires_grad=True)
    (gradient,) = torch.autograd.grad(head.loss(logits, torch.tensor(number)), logits)
    return 1 / size - gradient.double()


def numbers_of_all_sizes(n: int = 400) -> list[float]:
    rng = np.random.default_rng(0)
    return [0.0, *(rng.choice([-1, 1], n) * 10 ** rng.uniform(-6, 8.6, n)).astype(np.float32)]


def test_symexp_is_the_inverse_of_symlog():
    x = torch.tensor(numbers_of_all_sizes(), dtype=torch.float64)
    torch.testing.assert_close(symexp(symlog(x)), x)
    np.testing.assert_allclose(symlog(x).numpy(), np.sign(x.numpy()) * np.log1p(np.abs(x.numpy())))


def test_bins_are_dreamerv3s():
    expected = np.sinh(np.zeros(SIZE))
    for i, x in enumerate(np.linspace(-20, 20, SIZE)):
        expected[i] = math.copysign(math.expm1(abs(x)), x)
    np.testing.assert_allclose(TwoHot(SIZE).bins, expected, rtol=1e-5, atol=1e-6)
    assert TwoHot(SIZE).bins[SIZE // 2] == 0


def test_a_two_hot_target_is_linear_between_the_two_neighbouring_bins():
    """DreamerV3's definition: each neighbour's weight is its share of the distance to the other."""
    head = TwoHot(SIZE)
    bins = head.bins.double().numpy()
    for number in numbers_of_all_sizes(100):
        expected = np.zeros(SIZE)
        below = max(i for i in range(SIZE) if bins[i] <= number or i == 0)
        below = min(below, SIZE - 2)
        to_below, to_above = abs(bins[below] - number), abs(bins[below + 1] - number)
        expected[below] = to_above / (to_below + to_above)
        expected[below + 1] = to_below / (to_below + to_above)
        np.testing.assert_allclose(target_of(head, number), expected, atol=1e-5)


@pytest.mark.parametrize("size", [63, 127, 255])
def test_the_mean_of_a_two_hot_target_is_the_number(size):
    head = TwoHot(size)
    bins = head.bins.double()
    for number in numbers_of_all_sizes(100):
        target = target_of(head, number)
        target = torch.where(target.abs() < 1e-6, 0, target)
        above = int(torch.searchsorted(bins, float(number)))
        gap = float(bins[min(above, size - 1)] - bins[max(above - 1, 0)])
        assert abs(float(target @ bins) - number) <= 1e-5 * max(gap, 1e-3)
        logits = target.clamp(min=1e-38).log()
        assert head.mean(logits).item() == pytest.approx(number, rel=1e-4, abs=1e-4 + 1e-5 * gap)


@pytest.mark.parametrize("kind", NUMBER_HEADS)
@pytest.mark.parametrize("size", [63, 127, 255])
def test_equal_logits_give_exactly_zero(kind, size):
    head = NUMBER_HEADS[kind](size)
    for level in (0.0, 1.7, -30.0):
        assert head.mean(torch.full((3, size), level)).tolist() == [0, 0, 0]


@pytest.mark.parametrize("kind", NUMBER_HEADS)
def test_numbers_outside_the_bins_count_as_the_nearest_bin(kind):
    head = NUMBER_HEADS[kind](SIZE)
    largest = float(symexp(torch.tensor(20.0)))
    for sign in (-1, 1):
        expected = target_of(head, sign * largest)
        for number in (sign * 1e12, sign * 3.4e38, sign * math.inf):
            torch.testing.assert_close(target_of(head, number), expected)
        if kind == "two-hot":
            assert expected[0 if sign < 0 else -1] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("kind", NUMBER_HEADS)
def test_the_loss_of_a_number_that_is_nan_is_nan(kind):
    """Optimizers skip a step with such a loss."""
    head = NUMBER_HEADS[kind](SIZE)
    loss = head.loss(torch.zeros(2, SIZE), torch.tensor([math.nan, 1.0]))
    assert loss.isnan().tolist() == [True, False]


@pytest.mark.parametrize("kind", NUMBER_HEADS)
def test_the_loss_is_the_cross_entropy_and_that_of_equal_logits_is_log_bins(kind):
    head = NUMBER_HEADS[kind](SIZE)
    logits = torch.randn(4, 3, SIZE, generator=torch.Generator().manual_seed(0))
    number = torch.tensor([[0.0, 1, -2], [30, 0.5, 1e6], [-7, 1e-3, 5], [2, 2, -900]])
    found = head.loss(logits, number)
    for b in range(4):
        for t in range(3):
            log_probs = logits[b, t].double() - logits[b, t].double().exp().sum().log()
            expected = -float(target_of(head, number[b, t].item()) @ log_probs)
            assert found[b, t].item() == pytest.approx(expected, abs=1e-4)
    uniform = head.loss(torch.zeros(4, 3, SIZE), number)
    torch.testing.assert_close(uniform, torch.full((4, 3), math.log(SIZE)))


def test_hl_gauss_targets_are_integrals_of_a_gaussian_over_the_bins():
    head = HLGauss(SIZE)
    width = 40 / (SIZE - 1)
    deviation = 0.75 * width
    for number in (0.0, 0.37, -12.5, 4_000.0, -1e6):
        centre = math.copysign(math.log1p(abs(number)), number)
        expected = np.zeros(SIZE)
        for i in range(SIZE):
            left = -20 + (i - 0.5) * width
            x = left + (np.arange(200) + 0.5) * width / 200  # the midpoint rule
            density = np.exp(-0.5 * ((x - centre) / deviation) ** 2)
            expected[i] = density.sum() * width / 200 / (deviation * math.sqrt(2 * math.pi))
        target = target_of(head, number)
        np.testing.assert_allclose(target, expected / expected.sum(), atol=2e-5)
        assert float(target.sum()) == pytest.approx(1, abs=1e-5)


def test_the_mean_of_an_hl_gauss_target_is_near_the_number():
    head = HLGauss(SIZE)
    for number in numbers_of_all_sizes(100):
        if abs(number) < 1e8:  # further out, the last bin cuts the Gaussian off
            logits = target_of(head, number).clamp(min=1e-12).log()
            assert head.mean(logits).item() == pytest.approx(number, rel=0.01, abs=0.01)


@pytest.mark.parametrize("kind", NUMBER_HEADS)
def test_descending_the_loss_makes_the_mean_the_number(kind):
    head = NUMBER_HEADS[kind](63)
    number = torch.tensor([0.0, 1.0, -3.5, 200.0])
    logits = torch.zeros(4, 63, requires_grad=True)
    optimizer = torch.optim.Adam([logits], 0.3)
    for _ in range(300):
        optimizer.zero_grad()
        head.loss(logits, number).sum().backward()
        optimizer.step()
    share = logits.detach().softmax(-1)
    share = torch.where(share < 1e-3, 0, share)  # far bins are huge
    torch.testing.assert_close(head.mean(share.log()), number, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("kind", NUMBER_HEADS)
def test_bins_stay_in_float32_in_a_network_of_16_bits(kind):
    head, low = (NUMBER_HEADS[kind](SIZE) for _ in range(2))
    low.to(torch.bfloat16)
    logits = torch.randn(6, SIZE, generator=torch.Generator().manual_seed(0)).bfloat16()
    number = torch.tensor([0.0, 1, -2.3, 457, 0.01, 1e5])
    assert torch.equal(head.loss(logits, number), low.loss(logits, number))
    assert torch.equal(head.mean(logits), low.mean(logits))
