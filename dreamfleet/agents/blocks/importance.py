"""Computes importance weights, which correct for sampling that is not uniform."""

from __future__ import annotations

import torch
from torch import Tensor

from dreamfleet.core.types import Sample


def relative_probability(real: Sample, device: str) -> Tensor:
    """Returns the sampling probability of each window, divided by that of uniform sampling, (B,).

    The result is float32, on `device`.
    """
    return torch.as_tensor(real.size * real.prob, dtype=torch.float32, device=device)


def importance_weights(relative_prob: Tensor, beta: Tensor | float) -> Tensor:
    """Returns the importance weights of windows, divided by the largest of them.

    relative_prob (B,): what `relative_probability` returns. beta: the exponent β, a scalar; 0 gives
    all windows the same weight, 1 corrects fully.

    Source: Schaul et al. 2016, section 3.4.
    """
    weight = relative_prob**-beta
    return weight / weight.max()
