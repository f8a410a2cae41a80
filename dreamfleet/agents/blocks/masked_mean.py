"""Computes the mean of those entries of a tensor that a mask selects."""

from __future__ import annotations

from torch import Tensor


def masked_mean(value: Tensor, mask: Tensor) -> Tensor:
    """Returns the mean of `value` weighted by `mask`, as a scalar tensor.

    Both arguments have the same shape. If the mask is 0 everywhere, the result is 0.
    """
    return (value * mask).sum() / mask.sum().clamp(min=1e-6)
