"""Noisy linear layers: exploration by random noise in the weights, with a learned scale."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class NoisyLinear(nn.Module):
    """A linear layer with weights μ + σ · ε: learned mean μ and scale σ, and factorised noise ε.

    Maps (B, in) to (B, out). sigma: each scale σ starts at sigma / √in.

    Source: Fortunato et al. 2018, equations 10 and 11.
    """

    def __init__(self, fan_in: int, fan_out: int, sigma: float) -> None:
        super().__init__()
        bound = 1 / math.sqrt(fan_in)
        self.weight = nn.Parameter(torch.empty(fan_out, fan_in).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(fan_out).uniform_(-bound, bound))
        self.weight_sigma = nn.Parameter(torch.full((fan_out, fan_in), sigma * bound))
        self.bias_sigma = nn.Parameter(torch.full((fan_out,), sigma * bound))

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """Returns the outputs (B, out) of a noisy linear layer for B inputs `x`, (B, in).

        noise: standard normal numbers (R, `noise_size`); None means no noise. R = 1 gives the whole
        batch the same noisy weights. R = B gives each input its own.
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
        """Returns the number of standard normal numbers in the noise of one layer: in + out."""
        return sum(self.weight.shape)
