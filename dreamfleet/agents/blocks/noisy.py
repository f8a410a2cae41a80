"""Linear layers whose weights carry learned noise: exploration that fades where it does not pay."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class NoisyLinear(nn.Module):
    """(B, in) → (B, out), weights μ + σ · ε with ε of rank one.

    `noise` (R, in + out), standard normal, is drawn anew by whoever calls. R = 1 is one ε for all
    rows, which is the cheaper; R = B gives each row its own, as acting in many environments wants.
    None is no noise.

    Source: Fortunato et al. 2018, equations 10 and 11; `sigma` is their σ0.
    """

    def __init__(self, fan_in: int, fan_out: int, sigma: float) -> None:
        super().__init__()
        bound = 1 / math.sqrt(fan_in)
        self.weight = nn.Parameter(torch.empty(fan_out, fan_in).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(fan_out).uniform_(-bound, bound))
        self.weight_sigma = nn.Parameter(torch.full((fan_out, fan_in), sigma * bound))
        self.bias_sigma = nn.Parameter(torch.full((fan_out,), sigma * bound))

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        if noise is None:
            return F.linear(x, self.weight, self.bias)
        fan_out, fan_in = self.weight.shape
        squashed = noise.sign() * noise.abs().sqrt()
        entering, leaving = squashed.split((fan_in, fan_out), -1)
        if len(noise) > 1:
            noisy = F.linear(x * entering, self.weight_sigma, self.bias_sigma)
            return F.linear(x, self.weight, self.bias) + noisy * leaving
        weight = torch.addcmul(self.weight, self.weight_sigma, leaving.mT * entering)
        return F.linear(x, weight, torch.addcmul(self.bias, self.bias_sigma, leaving[0]))

    @property
    def noises(self) -> int:
        """Standard normal numbers a draw takes."""
        return sum(self.weight.shape)
