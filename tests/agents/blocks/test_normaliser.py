from __future__ import annotations

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounter

from dreamfleet.agents.blocks.normaliser import Normaliser, ReturnRange
from dreamfleet.core.types import Space


def test_normalised_observations_have_mean_0_and_variance_1():
    normaliser, rng = Normaliser(Space((2, 3), "float32")), np.random.default_rng(0)
    scale, shift = np.arange(1, 7).reshape(2, 3), np.arange(6).reshape(2, 3) * 10
    obs = rng.normal(size=(200, 8, 4, 2, 3)) * scale + shift
    for batch in torch.tensor(obs, dtype=torch.float32):
        normaliser.update(batch, torch.zeros(8, 4))
    x = normaliser(torch.tensor(obs, dtype=torch.float32))
    assert x.shape == (200, 8, 4, 6)
    np.testing.assert_allclose(x.mean((0, 1, 2)), 0, atol=0.02)
    np.testing.assert_allclose(x.std((0, 1, 2)), 1, atol=0.05)


def test_bytes_and_constant_components_are_normalised():
    normaliser = Normaliser(Space((2,), "uint8"))
    obs = torch.tensor([[[7, 0], [7, 255]]], dtype=torch.uint8)
    normaliser.update(obs, torch.zeros(1, 2))
    assert normaliser(obs).tolist() == pytest.approx(np.array([[[0, -1], [0, 1]]]), abs=1e-3)
    assert normaliser(torch.tensor([[8, 0]])).abs().max() <= 10  # a new value is clipped


def test_reward_rms_is_the_root_mean_square_of_the_rewards():
    normaliser, rng = Normaliser(Space((1,), "float32")), np.random.default_rng(0)
    reward = rng.normal(3, 2, (50, 8, 4))
    for batch in torch.tensor(reward, dtype=torch.float32):
        normaliser.update(torch.zeros(8, 4, 1), batch)
    assert float(normaliser.reward_rms) == pytest.approx(np.sqrt(np.square(reward).mean()))
    normaliser = Normaliser(Space((1,), "float32"))
    normaliser.update(torch.zeros(8, 4, 1), torch.zeros(8, 4))
    assert 0 < float(normaliser.reward_rms) < 0.01  # all rewards are 0, and no division by 0


def test_the_return_range_is_a_moving_average_of_weighted_percentiles():
    return_range, rng = ReturnRange(rate=0.1), np.random.default_rng(0)
    expected = None
    for scale in (5.0, 5.0, 20.0, 20.0):
        returns = (rng.normal(size=(30, 15)) * scale).astype(np.float32)
        weight = rng.uniform(size=returns.shape).astype(np.float32)
        weight[:, 10:] = 0
        low, high = np.percentile(
            returns.flatten(), [5, 95], weights=weight.flatten(), method="inverted_cdf"
        )
        expected = high - low if expected is None else 0.9 * expected + 0.1 * (high - low)
        found = return_range.update(torch.tensor(returns), torch.tensor(weight))
        assert float(found) == pytest.approx(expected, rel=1e-4)


def test_the_return_range_has_a_minimum_and_ignores_nan_and_zero_weights():
    return_range = ReturnRange(0.1)
    assert float(return_range.update(torch.ones(4, 5), torch.ones(4, 5))) == pytest.approx(1e-3)
    return_range.value.fill_(3.0)
    for returns, weight in (
        (torch.full((2, 3), torch.nan), torch.ones(2, 3)),
        (torch.randn(2, 3), torch.zeros(2, 3)),
    ):
        assert float(return_range.update(returns, weight)) == 3.0


# -------------------------------------------------------------------------- faulty numbers


def poisoned(share: float, size: float, batches: int = 3000) -> tuple[Normaliser, torch.Tensor]:
    """Returns a normaliser that has seen faulty rows, and 1,000 clean rows that it normalised.

    share: the fraction of faulty rows in each batch. size: the standard deviation of the faulty
    numbers, which are Gaussian.
    """
    normaliser, rng = Normaliser(Space((2,), "float32")), np.random.default_rng(0)
    scale, shift = np.array([1.0, 0.01]), np.array([0.0, 5.0])
    for _ in range(batches):
        obs = rng.normal(size=(200, 2)) * scale + shift
        reward = np.ones(200)
        faulty = rng.random(200) < share
        bad = np.clip(rng.normal(size=(200, 3)) * size, -3e38, 3e38)
        obs[faulty], reward[faulty] = bad[faulty, :2], bad[faulty, 2]
        normaliser.update(
            torch.tensor(obs, dtype=torch.float32), torch.tensor(reward, dtype=torch.float32)
        )
    clean = torch.tensor(rng.normal(size=(1000, 2)) * scale + shift, dtype=torch.float32)
    return normaliser, normaliser(clean)


@pytest.mark.parametrize("size", [1e3, 1e6, 1e12, 1e20, 3e38])
@pytest.mark.parametrize("share", [0.005, 0.01])
def test_faulty_rows_hardly_change_the_statistics(share, size):
    normaliser, x = poisoned(share, size)
    np.testing.assert_allclose(x.mean(0), 0, atol=0.2)
    assert ((x.std(0) > 0.5) & (x.std(0) < 1.1)).all()
    reward = torch.tensor([1.0, -1.0, 0.0, 1e20, -3e38])
    found = normaliser.clip_outliers(reward)
    if size >= 1e6:
        assert float(normaliser.reward_rms) < 30  # nearly all faulty rewards are outliers
        bound = 10 * float(normaliser.reward_rms)
        np.testing.assert_allclose(found, [1, -1, 0, bound, -bound], rtol=1e-5)


def test_rare_events_are_no_outliers():
    """A rarely set flag and a rare large force are kept; 1e5 and -1e20 are outliers."""
    normaliser, rng = Normaliser(Space((3,), "float32")), np.random.default_rng(0)
    for _ in range(200):
        force = np.where(rng.random(200) < 0.01, rng.exponential(50, 200), 0)
        obs = np.stack([rng.normal(size=200), rng.random(200) < 0.002, force], 1)
        normaliser.update(torch.tensor(obs, dtype=torch.float32), torch.ones(200))
    rows = torch.tensor([[2.0, 0, 0], [0, 1, 0], [0, 0, 300], [1e5, 0, 0], [0, 0, -1e20]])
    assert normaliser.inliers(rows).tolist() == [1, 1, 1, 0, 0]
    kept = normaliser.replace_outliers(rows)
    assert torch.equal(kept[:3], rows[:3])
    assert kept[3:].abs().max() < 5


@pytest.mark.parametrize("value", [1e20, -3e38, 1e38])
@pytest.mark.parametrize("when", [0, 1, 50])
def test_one_outlier_does_not_change_the_statistics(value, when):
    """The outlier is in batch number `when`, in an observation and in a reward."""
    found = []
    for outlier in (None, value):
        normaliser, rng = Normaliser(Space((2,), "float32")), np.random.default_rng(0)
        for batch in range(100):
            obs, reward = rng.normal(3, 2, (100, 2)), rng.normal(1, 1, 100)
            if batch == when and outlier is not None:
                obs[7, 0], reward[7] = outlier, outlier
            tensors = (torch.tensor(it, dtype=torch.float32) for it in (obs, reward))
            normaliser.update(*tensors)
        found.append([*normaliser.obs_mean, *normaliser.deviation, normaliser.reward_rms])
    np.testing.assert_allclose(found[1], found[0], rtol=0.05)


def test_statistics_of_clean_rows_are_plain_means():
    """Rarely set flags, skewed numbers and rare large rewards are not treated as outliers."""
    normaliser, rng = Normaliser(Space((3,), "float32")), np.random.default_rng(0)
    batches = []
    for _ in range(500):
        flag = rng.random((200, 1)) < 0.05
        obs = np.concatenate([flag, rng.exponential(2, (200, 1)), rng.normal(size=(200, 1))], 1)
        reward = np.where(rng.random(200) < 0.01, 100.0, -0.1)
        normaliser.update(*(torch.tensor(it, dtype=torch.float32) for it in (obs, reward)))
        batches.append((obs, reward))
    obs, reward = (np.concatenate(part) for part in zip(*batches, strict=True))
    np.testing.assert_allclose(normaliser.obs_mean, obs.mean(0), rtol=0.03, atol=0.02)
    np.testing.assert_allclose(normaliser.deviation, obs.std(0), rtol=0.03)
    assert float(normaliser.reward_rms) == pytest.approx(np.sqrt(np.square(reward).mean()))
    assert normaliser.clip_outliers(torch.tensor([100.0])).tolist() == [100.0]


def test_statistics_follow_a_change_of_scale():
    """An agent that improves reaches larger numbers, which must not count as faulty."""
    normaliser, rng = Normaliser(Space((1,), "float32")), np.random.default_rng(0)
    for scale in (1.0, 1000.0):
        for _ in range(1500):
            normaliser.update(
                torch.tensor(rng.normal(size=(100, 1)) * scale, dtype=torch.float32),
                torch.full((100,), scale),
            )
    assert float(normaliser.deviation) == pytest.approx(1000, rel=0.5)
    assert float(normaliser.reward_rms) == pytest.approx(1000, rel=0.5)
    assert normaliser.clip_outliers(torch.tensor([1000.0])).tolist() == [1000.0]


@pytest.mark.parametrize("step", [0.0, 1.0, 1000.0])
def test_large_time_stamps_are_centred(step):
    """Time stamps of about 1.7e9 are normalised, although float32 resolves only 128 there."""
    normaliser, at = Normaliser(Space((1,), "float32")), 0
    for _ in range(3000):
        stamps = 1.7e9 + step * np.arange(at, at + 20)
        obs = torch.tensor(stamps, dtype=torch.float32)[:, None]
        normaliser.update(obs, torch.ones(20))
        at = (at + 20) % 2000
    x = normaliser(obs)
    assert x.isfinite().all()
    assert x.abs().max() < 5
    if step == 1000:
        mean = 1.7e9 + step * 1000
        assert float(normaliser.obs_mean) == pytest.approx(mean, abs=2e5)


@pytest.mark.parametrize("share", [0.002, 0.01, 0.3])
def test_the_variance_of_a_rarely_set_flag_is_not_clipped(share):
    normaliser, rng = Normaliser(Space((1,), "float32")), np.random.default_rng(0)
    for _ in range(500):
        obs = (rng.random((400, 1)) < share).astype(np.float32)
        normaliser.update(torch.tensor(obs), torch.zeros(400))
    found = float(normaliser.obs_var)
    assert found == pytest.approx(share * (1 - share), rel=0.1)


def test_an_update_is_compiled_once_and_equals_the_uncompiled_update():
    """Compares the first updates, in which both versions compute percentiles in each update."""
    plain, compiled = (Normaliser(Space((3,), "float32")) for _ in range(2))
    graphs = CompileCounter()
    fast = torch.compile(compiled.update, backend=graphs, fullgraph=True, dynamic=False)
    rng = torch.Generator().manual_seed(0)
    for _ in range(12):
        obs, reward = torch.randn(8, 4, 3, generator=rng), torch.randn(8, 4, generator=rng)
        plain.update(obs, reward)
        fast(obs, reward)
    assert graphs.frame_count == 1
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(compiled.state_dict()[name], value, msg=name)
