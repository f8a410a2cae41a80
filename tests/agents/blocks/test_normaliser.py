from __future__ import annotations

import numpy as np
import pytest
import torch

from dreamfleet.agents.blocks.normaliser import Normaliser, ReturnRange
from dreamfleet.core.types import Space


def test_observations_come_to_zero_mean_and_unit_variance():
    normaliser, noise = Normaliser(Space((2, 3), "float32")), np.random.default_rng(0)
    scale, shift = np.arange(1, 7).reshape(2, 3), np.arange(6).reshape(2, 3) * 10
    obs = noise.normal(size=(200, 8, 4, 2, 3)) * scale + shift
    for batch in torch.tensor(obs, dtype=torch.float32):
        normaliser.update(batch, torch.zeros(8, 4))
    x = normaliser(torch.tensor(obs, dtype=torch.float32))
    assert x.shape == (200, 8, 4, 6)
    np.testing.assert_allclose(x.mean((0, 1, 2)), 0, atol=0.02)
    np.testing.assert_allclose(x.std((0, 1, 2)), 1, atol=0.05)


def test_bytes_and_a_number_that_never_moves_are_fine():
    normaliser = Normaliser(Space((2,), "uint8"))
    obs = torch.tensor([[[7, 0], [7, 255]]], dtype=torch.uint8)
    normaliser.update(obs, torch.zeros(1, 2))
    assert normaliser(obs).tolist() == pytest.approx(np.array([[[0, -1], [0, 1]]]), abs=1e-3)
    assert normaliser(torch.tensor([[8, 0]])).abs().max() <= 10  # what was never seen is cut


def test_the_typical_reward_is_the_root_of_the_mean_square():
    normaliser, noise = Normaliser(Space((1,), "float32")), np.random.default_rng(0)
    reward = noise.normal(3, 2, (50, 8, 4))
    for batch in torch.tensor(reward, dtype=torch.float32):
        normaliser.update(torch.zeros(8, 4, 1), batch)
    assert float(normaliser.reward_rms) == pytest.approx(np.sqrt(np.square(reward).mean()))
    normaliser = Normaliser(Space((1,), "float32"))
    normaliser.update(torch.zeros(8, 4, 1), torch.zeros(8, 4))
    assert 0 < float(normaliser.reward_rms) < 0.01  # no reward yet, and nothing divided by zero


def test_the_return_range_begins_with_the_first_and_follows_the_percentiles():
    tracked, noise = ReturnRange(rate=0.1), np.random.default_rng(0)
    expected = None
    for scale in (5.0, 5.0, 20.0, 20.0):
        returns = (noise.normal(size=(30, 15)) * scale).astype(np.float32)
        low, high = np.percentile(returns, [5, 95])
        expected = high - low if expected is None else 0.9 * expected + 0.1 * (high - low)
        assert float(tracked.update(torch.tensor(returns))) == pytest.approx(expected, rel=1e-4)


def test_the_return_range_is_never_nothing():
    assert float(ReturnRange(0.1).update(torch.ones(4, 5))) == pytest.approx(1e-3)
