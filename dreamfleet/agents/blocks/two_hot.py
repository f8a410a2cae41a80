"""Distributions over fixed bins that predict a number of any size: symexp two-hot and HL-Gauss.

A network's outputs are the logits (…, Z) of Z bins. All computations are in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LARGEST = 20.0  # the outer bins lie at ± symexp(20), 4.85e8 [DreamerV3]
LARGEST_NUMBER = math.expm1(LARGEST)


def symlog(x: Tensor) -> Tensor:
    """Returns sign(x) · log(1 + |x|), which compresses large numbers."""
    return x.sign() * x.abs().log1p()


def symexp(x: Tensor) -> Tensor:
    """Returns sign(x) · (exp(|x|) - 1), the inverse of `symlog`."""
    return x.sign() * x.abs().expm1()


class Float32Module(nn.Module):
    """A module whose buffers stay in float32 when the networks around it change to 16 bits."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        return super()._apply(lambda buffer: buffer.to(fn(buffer).device), recurse)


class TwoHot(Float32Module):
    """Predicts a number as the mean of a distribution over bins at symexp(-20) … symexp(20).

    The target of a number is a distribution over the two bins next to it, with the number as its
    mean. Source: DreamerV3.
    """

    bins: Tensor

    def __init__(self, size: int) -> None:
        """Makes a distribution of `size` bins, an odd number, so that one bin is at 0."""
        super().__init__()
        half = symexp(torch.linspace(-LARGEST, 0, (size + 1) // 2))
        self.register_buffer("bins", torch.cat([half, -half[:-1].flip(0)]), persistent=False)

    def mean(self, logits: Tensor) -> Tensor:
        """Returns the means (…) of distributions with logits (…, Z).

        Bins of opposite sign are added first, so that equal logits give exactly 0.
        """
        weighted = F.softmax(logits.float(), -1) * self.bins
        middle = weighted.shape[-1] // 2
        return (weighted[..., :middle].flip(-1) + weighted[..., middle + 1 :]).sum(-1)

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Returns the cross-entropy (…) of logits (…, Z) with two-hot targets of numbers (…)."""
        bins = self.bins
        target = target.clamp(bins[0], bins[-1])
        above = torch.searchsorted(bins, target.contiguous()).clamp(1, len(bins) - 1)
        low, high = bins[above - 1], bins[above]
        share = ((target - low) / (high - low)).unsqueeze(-1)
        log_probs = F.log_softmax(logits.float(), -1)
        above = above.unsqueeze(-1)
        both = torch.lerp(log_probs.gather(-1, above - 1), log_probs.gather(-1, above), share)
        return -both.squeeze(-1)


class HLGauss(Float32Module):
    """Predicts a number by a histogram over its symlog; targets are Gaussians around the number.

    The standard deviation of the Gaussian is 0.75 bins. Source: Farebrother et al. 2024.
    """

    centres: Tensor
    edges: Tensor

    def __init__(self, size: int) -> None:
        """Makes a histogram of `size` bins."""
        super().__init__()
        width = 2 * LARGEST / (size - 1)
        centres = torch.linspace(-LARGEST, LARGEST, size)
        edges = torch.linspace(-LARGEST - width / 2, LARGEST + width / 2, size + 1)
        self.deviation = 0.75 * width
        self.register_buffer("centres", centres, persistent=False)
        self.register_buffer("edges", edges, persistent=False)

    def mean(self, logits: Tensor) -> Tensor:
        """Returns symexp of the histogram's mean, (…), for logits (…, Z)."""
        weighted = F.softmax(logits.float(), -1) * self.centres
        middle = weighted.shape[-1] // 2
        return symexp((weighted[..., :middle].flip(-1) + weighted[..., middle + 1 :]).sum(-1))

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Returns the cross-entropy (…) of logits (…, Z) with the Gaussians of numbers (…)."""
        centre = symlog(target).clamp(-LARGEST, LARGEST).unsqueeze(-1)
        below = torch.special.ndtr((self.edges - centre) / self.deviation)
        probs = (below[..., 1:] - below[..., :-1]) / (below[..., -1:] - below[..., :1])
        return -(probs * F.log_softmax(logits.float(), -1)).sum(-1)


NumberHead = TwoHot | HLGauss
NUMBER_HEADS: dict[str, type[NumberHead]] = {"two-hot": TwoHot, "hl-gauss": HLGauss}
