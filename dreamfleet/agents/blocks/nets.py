"""Multilayer perceptrons (MLPs): a single one, and an ensemble in one batched computation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Ensemble(nn.Module):
    """K independent MLPs in one batched computation: maps (K, B, in) to (K, B, out).

    Each hidden layer is followed by LayerNorm and SiLU. sizes: the numbers of units, from the input
    through the hidden layers to the output. zero_last: if true, all initial outputs are 0.
    """

    def __init__(self, members: int, sizes: Sequence[int], *, zero_last: bool = False) -> None:
        super().__init__()
        self.weight = nn.ParameterList()
        self.bias = nn.ParameterList()
        for fan_in, fan_out in pairwise(sizes):
            weight = torch.empty(members, fan_in, fan_out)
            nn.init.trunc_normal_(weight, std=1 / math.sqrt(fan_in))
            self.weight.append(nn.Parameter(weight))
            self.bias.append(nn.Parameter(torch.zeros(members, 1, fan_out)))
        if zero_last:
            nn.init.zeros_(self.weight[-1])

    def forward(self, x: Tensor) -> Tensor:
        last = len(self.weight) - 1
        for layer, (weight, bias) in enumerate(zip(self.weight, self.bias, strict=True)):
            x = torch.baddbmm(bias, x, weight)
            if layer < last:
                x = F.silu(F.layer_norm(x, x.shape[-1:]))
        return x


def by_turns(windows: int, members: int) -> tuple[Tensor, Tensor]:
    """Returns an order of B windows that gives window b to member b modulo `members`, and back.

    An ensemble splits a batch into equal consecutive parts, one per member. `order` (B',) are the
    windows in the order to batch them; B' is B rounded up to a multiple of the members, and the
    last window fills the rest. `back` (B,) are the places of windows 0 … B-1 in this batch.
    """
    places = torch.arange(-(-windows // members) * members)
    order = places.view(-1, members).T.flatten()
    return order.clamp(max=windows - 1), order.argsort()[:windows]


class MLP(nn.Module):
    """A multilayer perceptron; it maps the last axis of a tensor from size `in` to size `out`.

    Each hidden layer is followed by LayerNorm and SiLU. sizes: the numbers of units, from the input
    through the hidden layers to the output. zero_last: if true, all initial outputs are 0.
    """

    def __init__(self, sizes: Sequence[int], *, zero_last: bool = False) -> None:
        super().__init__()
        layers = [nn.Linear(fan_in, fan_out) for fan_in, fan_out in pairwise(sizes)]
        if zero_last:
            nn.init.zeros_(layers[-1].weight)
            nn.init.zeros_(layers[-1].bias)
        self.linear = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        for linear in self.linear[:-1]:
            x = linear(x)
            x = F.silu(F.layer_norm(x, x.shape[-1:]))
        return self.linear[-1](x)
