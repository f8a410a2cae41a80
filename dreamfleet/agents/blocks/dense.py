"""Dense networks: several as one batched computation, whose hidden layers may all read the input.

What a layer computes is told apart by where it comes from: `read` takes the input to the layers
that see it, `carry` takes each hidden layer to the next, `leave` the last one out. A 1 stands
behind the input, so that the last row of `read` is a layer's bias.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Norm = Literal["none", "layer", "batch"]

VECTOR = 16  # numbers a processor multiplies at a time


class Dense(nn.Module):
    """K independent networks that read the same input: (B, in) → (K, B, out), ReLU in between.

    hidden: units of each hidden layer. dense: all of them read the input beside the layer before
    (D2RL, Sinha et al. 2020), not the first alone. norm: of hidden layers, `layer` before and
    `batch` (renormalised) after the activation. dropout: chance of a hidden unit to be left out.
    """

    def __init__(
        self,
        members: int,
        inputs: int,
        hidden: Sequence[int],
        outputs: int,
        *,
        dense: bool = True,
        norm: Norm = "none",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.members, self.dense, self.norm, self.keep = members, dense, norm, 1 - dropout

        def uniform(rows: int, columns: int, fan_in: int) -> Tensor:
            bound = 1 / math.sqrt(fan_in)
            return torch.empty(members, rows, columns).uniform_(-bound, bound)

        def spare(units: int) -> int:
            """Units that fill up a processor's vectors: with weights of 0 they stay 0.

            None where LayerNorm would count them.
            """
            return 0 if norm == "layer" else -units % VECTOR

        sees = [inputs, *(inputs * dense for _ in hidden[1:])]  # of the input, each hidden layer
        fans = [sees[0], *(seen + before for seen, before in zip(sees[1:], hidden, strict=False))]
        self.read = nn.ParameterList(
            F.pad(uniform(seen + 1, units, fan_in), (0, spare(units)))
            for seen, units, fan_in in zip(sees, hidden, fans, strict=True)
        )
        self.carry = nn.ParameterList(
            F.pad(uniform(before, units, fan_in), (0, spare(units), 0, spare(before)))
            for (before, units), fan_in in zip(pairwise(hidden), fans[1:], strict=True)
        )
        leave = uniform(hidden[-1], outputs, hidden[-1])
        self.leave = nn.Parameter(F.pad(leave, (0, 0, 0, spare(hidden[-1]))))
        self.leave_bias = nn.Parameter(uniform(1, outputs, hidden[-1]))
        norms = hidden if norm == "batch" else []
        self.renorm = nn.ModuleList(BatchRenorm(members, units + spare(units)) for units in norms)

    def forward(
        self,
        x: Tensor,
        *,
        held: bool = False,
        mean: bool = False,
        noise: torch.Generator | None = None,
    ) -> Tensor:
        """held: nothing here is to learn, neither by gradients nor of the batch's statistics.

        mean: the mean of the outputs alone, (K, B, 1). noise: draws what dropout leaves out; None:
        nothing.
        """
        weights = [*self.read, *self.carry, self.leave, self.leave_bias]
        if held:
            weights = [weight.detach() for weight in weights]
        *weights, leave, leave_bias = weights
        if mean:
            leave, leave_bias = leave.mean(-1, keepdim=True), leave_bias.mean(-1, keepdim=True)
        reads, carries = weights[: len(self.read)], weights[len(self.read) :]
        one = x.new_ones(len(x), 1)
        x, one = (of.expand(self.members, -1, -1) for of in (torch.cat([x, one], -1), one))
        h = self._activate(torch.bmm(x, reads[0]), 0, held, noise)
        for layer, (read, carry) in enumerate(zip(reads[1:], carries, strict=True), 1):
            seen = torch.bmm(x if self.dense else one, read)
            h = self._activate(seen.baddbmm_(h, carry), layer, held, noise)
        return torch.baddbmm(leave_bias, h, leave)

    def _activate(self, h: Tensor, layer: int, held: bool, noise: torch.Generator | None) -> Tensor:
        if self.keep < 1 and noise is not None:
            h = h * torch.empty_like(h).bernoulli_(self.keep, generator=noise) / self.keep
        if self.norm == "layer":
            size = h.shape[-1:]  # given its weights, torch takes half as long
            h = F.layer_norm(h, size, h.new_ones(size), h.new_zeros(size))
        h = F.relu(h, inplace=True)
        return self.renorm[layer](h, held) if self.norm == "batch" else h


class BatchRenorm(nn.Module):
    """Unit variance over a batch, corrected towards that over batches: (K, B, F) → the same.

    For its first `WARMUP` batches it is plain batch normalisation; from then on what it puts out
    agrees with what the running statistics give, as far as the corrections' bounds go.

    Source: Ioffe 2017; constants of CrossQ (Bhatt et al. 2024).
    """

    RATE, EPSILON, WARMUP = 0.01, 1e-3, 100_000
    SCALE, SHIFT = 3.0, 5.0  # the corrections' bounds: r_max, d_max

    mean: Tensor
    variance: Tensor
    batches: Tensor

    def __init__(self, members: int, units: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(members, 1, units))
        self.offset = nn.Parameter(torch.zeros(members, 1, units))
        self.register_buffer("mean", torch.zeros(members, 1, units))
        self.register_buffer("variance", torch.ones(members, 1, units))
        self.register_buffer("batches", torch.zeros(()))

    def forward(self, x: Tensor, held: bool) -> Tensor:
        deviation = (self.variance + self.EPSILON).sqrt()
        if held:
            return (x - self.mean) / deviation * self.gain.detach() + self.offset.detach()
        variance, mean = torch.var_mean(x, 1, correction=0, keepdim=True)
        spread = (variance + self.EPSILON).sqrt()
        with torch.no_grad():
            late = self.batches >= self.WARMUP
            scale = (spread / deviation).clamp(1 / self.SCALE, self.SCALE)
            shift = ((mean - self.mean) / deviation).clamp(-self.SHIFT, self.SHIFT)
            scale, shift = torch.where(late, scale, 1.0), torch.where(late, shift, 0.0)
            self._follow(self.mean, mean)
            self._follow(self.variance, variance)
            self.batches += 1
        return ((x - mean) / spread * scale + shift) * self.gain + self.offset

    def _follow(self, average: Tensor, found: Tensor) -> None:
        """Move a running statistic, but not by what is not finite."""
        average.lerp_(torch.where(found.isfinite(), found, average), self.RATE)
