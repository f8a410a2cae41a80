"""Computes importance weights, which correct for sampling that is not uniform."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from dreamfleet.core.types import Array, Sample


def relative_probability(real: Sample) -> Array:
    """Returns the sampling probability of each window, divided by that of uniform sampling.

    The result is float32, of shape (B,).
    """
    return np.asarray(real.size * real.prob, np.float32)


def importance_weights(relative_prob: Tensor, beta: Tensor | float) -> Tensor:
    """Returns the importance weights of windows, divided by the largest of them.

    relative_prob (B,): the results of `relative_probability`. beta: the exponent β, a scalar; 0
    gives all windows the same weight, 1 corrects fully.

    Source: Schaul et al. 2016, section 3.4.
    """
    weight = relative_prob**-beta
    return weight / weight.max()
