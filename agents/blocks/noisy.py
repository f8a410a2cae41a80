"""Linear layers whose weights carry learned noise: exploration that fades where it does not pay."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class NoisyLinear(nn.Module):
    """(B, in) → (B, out), weights μ + σ · ε with ε of rank one, drawn anew for every call.

    Without a generator there is no noise. `per_row` gives every row noise of its own, as acting in
    many environments wants it; else the rows share one draw, which is the cheaper.

    Source: Fortunato et al. 2018, equations 10 and 11; `sigma` is their σ0.
    """

    def __init__(self, fan_in: int, fan_out: int, sigma: float) -> None:
        super().__init__()
        bound = 1 / math.sqrt(fan_in)
        self.weight = nn.Parameter(torch.empty(fan_out, fan_in).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(fan_out).uniform_(-bound, bound))
        self.weight_sigma = nn.Parameter(torch.full((fan_out, fan_in), sigma * bound))
        self.bias_sigma = nn.Parameter(torch.full((fan_out,), sigma * bound))

    def forward(
        self, x: Tensor, noise: torch.Generator | None = None, per_row: bool = False
    ) -> Tensor:
        if noise is None:
            return F.linear(x, self.weight, self.bias)
        fan_out, fan_in = self.weight.shape
        rows = x.shape[0] if per_row else 1
        drawn = torch.randn(rows, fan_in + fan_out, generator=noise, device=x.device)
        entering, leaving = (drawn.sign() * drawn.abs().sqrt()).split((fan_in, fan_out), -1)
        if per_row:
            noisy = F.linear(x * entering, self.weight_sigma, self.bias_sigma)
            return F.linear(x, self.weight, self.bias) + noisy * leaving
        weight = self.weight + self.weight_sigma * (leaving.mT * entering)
        return F.linear(x, weight, self.bias + self.bias_sigma * leaving[0])
