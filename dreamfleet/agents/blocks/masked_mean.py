"""The mean over the entries that a mask selects."""

from __future__ import annotations

from torch import Tensor


def masked_mean(value: Tensor, mask: Tensor) -> Tensor:
    """Returns the mean of `value` weighted by `mask`, both of one shape, as a scalar tensor.

    Returns 0 where the mask is 0 everywhere.
    """
    return (value * mask).sum() / mask.sum().clamp(min=1e-6)
