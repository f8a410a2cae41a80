"""The actor and the critics, and the losses they descend."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dreamfleet.agents.blocks.dense import Dense
from dreamfleet.agents.blocks.quantiles import quantile_huber, smallest
from dreamfleet.agents.dreamwalker.config import Config


class Actor(nn.Module):
    """Normalised observations (B, O) → what a policy is made of, (B, 2A); and its temperature."""

    def __init__(self, config: Config, inputs: int, outputs: int) -> None:
        super().__init__()
        self.net = Dense(1, inputs, config.actor_hidden, outputs, dense=config.dense)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(config.initial_temperature)))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).squeeze(0)


def critics(config: Config, inputs: int) -> Dense:
    """K networks (B, O + A) → Z quantiles of the return each, (K, B, Z)."""
    return Dense(
        config.critics,
        inputs,
        config.critic_hidden,
        config.quantiles,
        dense=config.dense,
        norm=config.norm,
        dropout=config.dropout,
    )


def truncate(quantiles: Tensor, drop: int) -> Tensor:
    """Critics' quantiles but the K · `drop` largest of each return: (K, B, Z) → (B, K(Z - drop)).

    Source: Kuznetsov et al. 2020, section 3.
    """
    members, _, size = quantiles.shape
    return smallest(quantiles.transpose(0, 1).flatten(1), members * (size - drop))


def critic_loss(quantiles: Tensor, target: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    """The mean of `quantile_huber` over critics, their quantiles, and windows as far as they count.

    quantiles: (K, B, Z), target: (B, Z'), weight and counts: (B,) → scalar.
    """
    loss = quantile_huber(quantiles, target) * weight
    assert loss.shape == quantiles.shape[:2]
    return loss.sum() / counts.sum() / quantiles[:, 0].numel()


def actor_loss(value: Tensor, log_prob: Tensor, temperature: Tensor) -> Tensor:
    """Soft policy improvement by reparameterised draws: (B,), (B,), () → (B,).

    Source: Haarnoja et al. 2018, equation 7.
    """
    loss = temperature * log_prob - value
    assert loss.shape == value.shape == log_prob.shape
    return loss


def temperature_loss(log_temperature: Tensor, log_prob: Tensor, target_entropy: float) -> Tensor:
    """Its gradient raises the temperature where entropy is below its target: (), (B,) → (B,).

    Source: Haarnoja et al. 2018, equation 18, with the logarithm for the temperature itself.
    """
    return -log_temperature * (log_prob.detach() + target_entropy)
