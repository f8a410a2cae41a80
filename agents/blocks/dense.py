"""Dense networks: several as one batched computation, whose hidden layers may all read the input.

What a layer computes is told apart by where it comes from: `read` takes the input to every layer
that sees it in one product, `carry` takes each hidden layer to the next, `leave` the last one out.
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
        self.members, self.hidden, self.norm = members, list(hidden), norm
        self.keep = 1 - dropout
        self.reading = self.hidden if dense else self.hidden[:1]  # layers that see the input

        def uniform(rows: int, columns: int, fan_in: int) -> nn.Parameter:
            bound = 1 / math.sqrt(fan_in)
            return nn.Parameter(torch.empty(members, rows, columns).uniform_(-bound, bound))

        fans = [inputs, *(before + inputs * dense for before in self.hidden[:-1])]
        layers = list(zip(self.hidden, fans, strict=True))
        reading = layers[: len(self.reading)]
        read = [uniform(inputs, units, fan_in) for units, fan_in in reading]
        bias = [uniform(1, units, fan_in) for units, fan_in in layers]
        self.read = nn.Parameter(torch.cat([*read], -1).detach())
        self.bias = nn.Parameter(torch.cat([*bias], -1).detach())
        self.carry = nn.ParameterList(
            uniform(before, units, fan_in)
            for (before, units), fan_in in zip(pairwise(self.hidden), fans[1:], strict=True)
        )
        self.leave = uniform(self.hidden[-1], outputs, self.hidden[-1])
        self.leave_bias = uniform(1, outputs, self.hidden[-1])
        norms = self.hidden if norm == "batch" else []
        self.renorm = nn.ModuleList(BatchRenorm(members, units) for units in norms)

    def forward(
        self, x: Tensor, *, held: bool = False, noise: torch.Generator | None = None
    ) -> Tensor:
        """held: nothing here is to learn, neither by gradients nor of the batch's statistics.

        noise: draws what dropout leaves out; None: nothing.
        """
        own = [self.read, self.bias, *self.carry, self.leave, self.leave_bias]
        read, bias, *carry, leave, leave_bias = [p.detach() for p in own] if held else own
        biases = bias.split(self.hidden, -1)
        several = len(self.reading) > 1
        entering = torch.baddbmm(
            bias if several else biases[0], x.expand(self.members, *x.shape), read
        )
        split = entering.split(self.reading, -1) if several else [entering]
        parts = [*split, *biases[len(self.reading) :]]
        h = self._activate(parts[0], 0, held, noise)
        for layer, (part, weight) in enumerate(zip(parts[1:], carry, strict=True), 1):
            h = self._activate(torch.baddbmm(part, h, weight), layer, held, noise)
        return torch.baddbmm(leave_bias, h, leave)

    def _activate(self, h: Tensor, layer: int, held: bool, noise: torch.Generator | None) -> Tensor:
        if self.keep < 1 and noise is not None:
            h = h * torch.empty_like(h).bernoulli_(self.keep, generator=noise) / self.keep
        if self.norm == "layer":
            h = F.layer_norm(h, h.shape[-1:])
        h = F.relu(h)
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
            self.mean.lerp_(mean, self.RATE)
            self.variance.lerp_(variance, self.RATE)
            self.batches += 1
        return ((x - mean) / spread * scale + shift) * self.gain + self.offset
