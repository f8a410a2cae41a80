from __future__ import annotations

import numpy as np
import pytest
import torch

from dreamfleet.agents.blocks.importance import importance_weights, relative_probability
from dreamfleet.core.types import Sample


def test_the_relative_probability_of_uniform_sampling_is_1():
    real = Sample({}, np.arange(3), np.array([0.25, 0.5, 0.0625]), size=4)
    found = relative_probability(real)
    assert found.dtype == np.float32
    assert found.tolist() == [1.0, 2.0, 0.25]


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_importance_weights_make_a_weighted_mean_independent_of_the_sampling(beta):
    """With β = 1 the mean of the weights times any value is the uniform mean, up to a factor."""
    prob, value = np.array([0.1, 0.2, 0.7]), np.array([3.0, -1.0, 2.0])
    weight = importance_weights(torch.tensor(3 * prob), beta).numpy()
    assert weight.max() == 1
    np.testing.assert_allclose(weight / weight[2], (prob[2] / prob) ** beta)
    if beta == 1:
        mean = (prob * weight * value).sum() / (prob * weight).sum()
        assert mean == pytest.approx(value.mean())
