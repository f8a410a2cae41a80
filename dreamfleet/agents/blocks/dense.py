"""An ensemble of fully connected networks, computed together; all layers may read the input.

Hidden layers that also read the network's input are the idea of D2RL (Sinha et al. 2020). Each
weight is named after the values that it multiplies:

- `input_weights` multiply the network's input; there is one matrix per hidden layer. The last row
  of each matrix is the bias.
- `hidden_weights` multiply the output of the previous hidden layer.
- `output_weight` multiplies the output of the last hidden layer.
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

VECTOR = 16  # numbers that a processor multiplies in one instruction


class Dense(nn.Module):
    """Maps inputs (B, in) to the outputs (K, B, out) of K independent networks with ReLU.

    - hidden: numbers of units of the hidden layers.
    - dense: whether every hidden layer also reads the network's input (D2RL, Sinha et al. 2020).
    - norm: "layer" is LayerNorm before the activation, "batch" is batch renormalisation after the
      activation.
    - dropout: probability that dropout sets a hidden unit to 0.
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
        self.members, self.dense, self.norm, self.keep_prob = members, dense, norm, 1 - dropout

        def uniform(rows: int, columns: int, fan_in: int) -> Tensor:
            bound = 1 / math.sqrt(fan_in)
            return torch.empty(members, rows, columns).uniform_(-bound, bound)

        def padding(units: int) -> int:
            """Returns the number of extra units that make a layer's size a multiple of `VECTOR`.

            The weights of extra units are 0 and stay 0. With LayerNorm there are no extra units.
            """
            return 0 if norm == "layer" else -units % VECTOR

        input_sizes = [inputs, *(inputs * dense for _ in hidden[1:])]  # of each hidden layer
        fans_in = [
            inputs,
            *(size + before for size, before in zip(input_sizes[1:], hidden, strict=False)),
        ]
        self.input_weights = nn.ParameterList(
            F.pad(uniform(size + 1, units, fan_in), (0, padding(units)))
            for size, units, fan_in in zip(input_sizes, hidden, fans_in, strict=True)
        )
        self.hidden_weights = nn.ParameterList(
            F.pad(uniform(before, units, fan_in), (0, padding(units), 0, padding(before)))
            for (before, units), fan_in in zip(pairwise(hidden), fans_in[1:], strict=True)
        )
        output_weight = uniform(hidden[-1], outputs, hidden[-1])
        self.output_weight = nn.Parameter(F.pad(output_weight, (0, 0, 0, padding(hidden[-1]))))
        self.output_bias = nn.Parameter(uniform(1, outputs, hidden[-1]))
        norms = hidden if norm == "batch" else []
        self.renorm = nn.ModuleList(BatchRenorm(members, units + padding(units)) for units in norms)

    def forward(
        self,
        x: Tensor,
        *,
        frozen: bool = False,
        mean: bool = False,
        rng: torch.Generator | None = None,
    ) -> Tensor:
        """Returns the outputs (K, B, out) of K networks at B inputs `x`, (B, in).

        - frozen: if true, gradients reach the inputs but not the weights, and batch renormalisation
          uses its running statistics without updating them.
        - mean: if true, returns only the mean of each network's outputs, (K, B, 1).
        - rng: the generator that draws the dropout masks. If None, there is no dropout.
        """
        weights = [
            *self.input_weights,
            *self.hidden_weights,
            self.output_weight,
            self.output_bias,
        ]
        if frozen:
            weights = [weight.detach() for weight in weights]
        *weights, output_weight, output_bias = weights
        if mean:
            output_weight = output_weight.mean(-1, keepdim=True)
            output_bias = output_bias.mean(-1, keepdim=True)
        input_weights = weights[: len(self.input_weights)]
        hidden_weights = weights[len(self.input_weights) :]
        one = x.new_ones(len(x), 1)
        x, one = (v.expand(self.members, -1, -1) for v in (torch.cat([x, one], -1), one))
        h = self._activate(torch.bmm(x, input_weights[0]), 0, frozen, rng)
        for layer, (input_weight, hidden_weight) in enumerate(
            zip(input_weights[1:], hidden_weights, strict=True), 1
        ):
            from_input = torch.bmm(x if self.dense else one, input_weight)
            h = self._activate(from_input.baddbmm_(h, hidden_weight), layer, frozen, rng)
        return torch.baddbmm(output_bias, h, output_weight)

    def _activate(self, h: Tensor, layer: int, frozen: bool, rng: torch.Generator | None) -> Tensor:
        if self.keep_prob < 1 and rng is not None:
            h = h * torch.empty_like(h).bernoulli_(self.keep_prob, generator=rng) / self.keep_prob
        if self.norm == "layer":
            size = h.shape[-1:]  # PyTorch takes half as long when it is given weights
            h = F.layer_norm(h, size, h.new_ones(size), h.new_zeros(size))
        h = F.relu(h, inplace=True)
        return self.renorm[layer](h, frozen) if self.norm == "batch" else h


class BatchRenorm(nn.Module):
    """Batch renormalisation of hidden units (K, B, F): K networks, B inputs, F units.

    `MAX_SCALE` and `MAX_SHIFT` bound the correction towards the running statistics. During the
    first `WARMUP` batches there is no correction.

    Source: Ioffe 2017, with the constants of CrossQ (Bhatt et al. 2024).
    """

    RATE, EPSILON, WARMUP = 0.01, 1e-3, 100_000
    MAX_SCALE, MAX_SHIFT = 3.0, 5.0  # r_max and d_max of Ioffe 2017

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

    def forward(self, x: Tensor, frozen: bool) -> Tensor:
        """Returns the hidden units `x`, (K, B, F), normalised by batch renormalisation.

        frozen: if true, normalises with the running statistics alone and does not update them. No
        gradient then reaches the learned gain and offset.
        """
        running_std = (self.variance + self.EPSILON).sqrt()
        if frozen:
            return (x - self.mean) / running_std * self.gain.detach() + self.offset.detach()
        variance, mean = torch.var_mean(x, 1, correction=0, keepdim=True)
        std = (variance + self.EPSILON).sqrt()
        with torch.no_grad():
            corrected = self.batches >= self.WARMUP
            scale = (std / running_std).clamp(1 / self.MAX_SCALE, self.MAX_SCALE)
            shift = ((mean - self.mean) / running_std).clamp(-self.MAX_SHIFT, self.MAX_SHIFT)
            scale, shift = torch.where(corrected, scale, 1.0), torch.where(corrected, shift, 0.0)
            self._update_average(self.mean, mean)
            self._update_average(self.variance, variance)
            self.batches += 1
        return ((x - mean) / std * scale + shift) * self.gain + self.offset

    def _update_average(self, average: Tensor, value: Tensor) -> None:
        """Moves a running average towards `value`, in place; ignores values that are not finite."""
        average.lerp_(torch.where(value.isfinite(), value, average), self.RATE)
