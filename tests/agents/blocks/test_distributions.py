from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import distributions as oracle

from dreamfleet.agents.blocks.device import make_rng
from dreamfleet.agents.blocks.distributions import Categorical, TanhNormal


def categorical(logits: torch.Tensor, seed: int = 0) -> Categorical:
    return Categorical(logits, make_rng(seed, "cpu"))


def tanh_normal(stats: torch.Tensor, seed: int = 0) -> TanhNormal:
    return TanhNormal(stats, make_rng(seed, "cpu"))


def reference_of(policy: TanhNormal) -> oracle.Distribution:
    """Returns the same distribution as `policy`, built from torch.distributions."""
    normal = oracle.Normal(policy.mean.double(), policy.log_std.double().exp())
    tanh = oracle.TanhTransform(cache_size=1)
    return oracle.Independent(oracle.TransformedDistribution(normal, [tanh]), 1)


# --------------------------------------------------------------------------------- discrete


def test_categorical_is_a_softmax_mixed_with_one_percent_of_the_uniform():
    logits = torch.randn(4, 6, 5, generator=make_rng(1, "cpu"), dtype=torch.float64) * 3
    policy = categorical(logits)
    exp = np.exp(logits.numpy())
    p = 0.99 * exp / exp.sum(-1, keepdims=True) + 0.01 / 5
    np.testing.assert_allclose(policy.probs, p, rtol=1e-12)
    np.testing.assert_allclose(policy.entropy(), -(p * np.log(p)).sum(-1), rtol=1e-12)
    np.testing.assert_array_equal(policy.mode, p.argmax(-1))
    action = torch.arange(4 * 6).view(4, 6) % 5
    expected = np.take_along_axis(np.log(p), action.numpy()[..., None], -1)[..., 0]
    np.testing.assert_allclose(policy.log_prob(action), expected, rtol=1e-12)


def test_every_action_keeps_a_positive_probability():
    policy = categorical(torch.tensor([[1e4, 0.0, -1e4]]))
    assert policy.log_probs.exp().min() >= 0.99 * 0.01 / 3
    assert torch.isfinite(policy.entropy()).all()


def test_categorical_samples_have_the_probabilities_of_their_rows():
    logits = torch.tensor([[0.0, 1.0, -2.0], [2.0, 0.0, 0.0]])
    policy = categorical(logits.expand(20_000, 2, 3))
    action, log_prob = policy.sampled
    assert action.shape == log_prob.shape == (20_000, 2)
    assert action.dtype == torch.int64
    torch.testing.assert_close(log_prob, policy.log_prob(action))
    for row in range(2):
        expected = 20_000 * policy.probs[0, row]
        chi_square = ((action[:, row].bincount(minlength=3) - expected) ** 2 / expected).sum()
        assert chi_square < 20  # two degrees of freedom: exceeded once in 20,000 times


def test_the_mean_value_of_a_categorical_is_the_sum_over_its_actions():
    policy = categorical(torch.randn(3, 4, 5, generator=make_rng(1, "cpu")))
    q = torch.randn(3, 4, 5, generator=make_rng(2, "cpu"))
    expected = np.einsum("bta,bta->bt", policy.probs.numpy(), q.numpy())
    np.testing.assert_allclose(policy.mean_value(q), expected, rtol=1e-5, atol=1e-6)


def test_the_categorical_policy_loss_maximises_mean_value_plus_weighted_entropy():
    """Of 10,000 random distributions, none scores higher than the trained policy."""
    q, entropy_weight = torch.tensor([[[1.0, 0.7, -0.5, 0.9]]]), 0.3
    logits = torch.tensor(
        [[[-6.0, 4.0, 0.0, 0.0]]], requires_grad=True
    )  # almost sure of a wrong action
    adam = torch.optim.Adam([logits], lr=0.1)
    for _ in range(500):
        adam.zero_grad()
        categorical(logits).policy_loss(q, entropy_weight).sum().backward()
        adam.step()
    with torch.no_grad():
        policy = categorical(logits)
        score = float(policy.mean_value(q) + entropy_weight * policy.entropy())
    others = np.random.default_rng(0).dirichlet(np.ones(4), 10_000)
    scores = others @ q[0, 0].numpy() - entropy_weight * (others * np.log(others)).sum(-1)
    assert score >= scores.max() - 1e-4


# ------------------------------------------------------------------------------- continuous


def test_log_prob_agrees_with_torch_distributions():
    stats = torch.randn(7, 5, 6, generator=make_rng(1, "cpu"), dtype=torch.float64)
    policy = tanh_normal(stats)
    action = torch.rand(7, 5, 3, generator=make_rng(2, "cpu"), dtype=torch.float64) * 1.98 - 0.99
    found = policy.log_prob(action)
    assert found.shape == (7, 5)
    torch.testing.assert_close(found, reference_of(policy).log_prob(action))


@pytest.mark.parametrize("stats", [(0.0, 0.0), (1.5, -2.0), (-0.5, 1.0)])
def test_densities_integrate_to_one(stats):
    """Integrates the density over actions on a grid that is evenly spaced before the tanh."""
    raw = torch.linspace(-7, 7, 20_001, dtype=torch.float64)
    action = torch.tanh(raw)
    policy = tanh_normal(torch.tensor(stats, dtype=torch.float64).expand(raw.numel(), 2))
    density = policy.log_prob(action.unsqueeze(-1)).exp()
    assert torch.trapezoid(density, action) == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize("mean", [0.0, 2.0, -4.0, 30.0])
@pytest.mark.parametrize("raw_std", [-30.0, -3.0, 0.0, 3.0])
def test_the_log_prob_of_a_sample_equals_that_of_its_action(mean, raw_std):
    """Importance ratios divide the second by the first, which is stored while acting."""
    stats = torch.tensor([mean, mean, raw_std, raw_std]).expand(5_000, 4)
    policy = tanh_normal(stats)
    action, log_prob = policy.sampled
    assert (action.abs() <= 1).all()
    # 0.1: the precision of float32 near ±1, for the smallest standard deviation
    torch.testing.assert_close(policy.log_prob(action), log_prob, rtol=0, atol=0.1)


def test_the_entropy_estimate_agrees_with_the_integral():
    stats = torch.tensor([0.3, 0.5], dtype=torch.float64)
    raw = torch.linspace(-9, 9, 40_001, dtype=torch.float64)
    reference = reference_of(tanh_normal(stats))
    log_prob = reference.log_prob(torch.tanh(raw).unsqueeze(-1))
    expected = torch.trapezoid(-log_prob.exp() * log_prob, torch.tanh(raw))
    estimate = tanh_normal(stats.expand(100_000, 2).float()).entropy().mean()
    assert estimate == pytest.approx(float(expected), abs=0.02)


def test_the_mode_is_the_tanh_of_the_mean_and_the_sample_is_drawn_once_by_the_rng():
    stats = torch.randn(4, 6, generator=make_rng(1, "cpu"))
    policy = tanh_normal(stats)
    torch.testing.assert_close(policy.mode, torch.tanh(policy.mean))
    assert policy.sampled[0] is policy.sampled[0]
    assert torch.equal(policy.sampled[0], tanh_normal(stats).sampled[0])
    assert not torch.equal(policy.sampled[0], tanh_normal(stats, seed=1).sampled[0])


def test_standard_deviations_start_at_a_half_and_stay_in_their_range():
    raw_std = torch.tensor([-1e3, 0.0, 1e3])
    log_std = tanh_normal(torch.stack([torch.zeros(3), raw_std], -1)).log_std.squeeze(-1)
    low, high = TanhNormal.LOG_STD
    assert log_std.tolist() == pytest.approx([low, math.log(0.5), high], abs=0.1)
    assert torch.all((log_std >= low) & (log_std <= high))


def test_gradients_pass_through_the_sample():
    """Compares the gradient of the mean sampled action with a finite difference."""
    stats = torch.tensor([0.2, -0.4], dtype=torch.float64)

    def average(mean: torch.Tensor) -> torch.Tensor:
        rows = torch.stack([mean, stats[1]]).expand(1_000, 2)
        return tanh_normal(rows).sampled[0].mean()

    mean = stats[0].clone().requires_grad_()
    average(mean).backward()
    step = 1e-5
    slope = (average(stats[0] + step) - average(stats[0] - step)) / (2 * step)
    assert mean.grad == pytest.approx(float(slope), rel=1e-6)


def test_the_tanh_normal_policy_loss_finds_the_best_action_and_keeps_entropy():
    """The best action is 0.5. A larger entropy weight gives a larger standard deviation."""

    def trained(entropy_weight: float) -> TanhNormal:
        stats = torch.zeros(1, 1, 2, requires_grad=True)
        adam, rng = torch.optim.Adam([stats], lr=0.05), make_rng(0, "cpu")
        for _ in range(300):
            policy = TanhNormal(stats.expand(64, 1, 2), rng)
            q = -(policy.sampled[0] - 0.5).square()
            adam.zero_grad()
            policy.policy_loss(q, entropy_weight).mean().backward()
            adam.step()
            assert torch.equal(policy.mean_value(q), q.squeeze(-1))
        return tanh_normal(stats.detach())

    narrow, wide = trained(1e-3), trained(0.3)
    assert narrow.mode.item() == pytest.approx(0.5, abs=0.05)
    assert narrow.log_std.item() < -2 < wide.log_std.item()
