"""Noisy linear layers: exploration by noise in the weights, whose size is learned."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class NoisyLinear(nn.Module):
    """A linear layer (B, in) → (B, out) with weights μ + σ · ε, where the noise ε has rank one.

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
        """Returns the outputs (B, out).

        noise: standard normal numbers (R, `noise_size`), drawn by the caller. R = 1 uses the same ε
        for the whole batch, which is faster. R = B uses one ε per row, for acting in many
        environments. None means no noise.
        """
        if noise is None:
            return F.linear(x, self.weight, self.bias)
        fan_out, fan_in = self.weight.shape
        scaled = noise.sign() * noise.abs().sqrt()
        input_noise, output_noise = scaled.split((fan_in, fan_out), -1)
        if len(noise) > 1:
            noisy = F.linear(x * input_noise, self.weight_sigma, self.bias_sigma)
            return F.linear(x, self.weight, self.bias) + noisy * output_noise
        weight = torch.addcmul(self.weight, self.weight_sigma, output_noise.mT * input_noise)
        return F.linear(x, weight, torch.addcmul(self.bias, self.bias_sigma, output_noise[0]))

    @property
    def noise_size(self) -> int:
        """The number of standard normal numbers for one ε: in + out."""
        return sum(self.weight.shape)
