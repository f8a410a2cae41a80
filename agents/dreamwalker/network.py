"""The actor and the critics, and the losses they descend."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from agents.blocks.dense import Dense
from agents.blocks.values import quantile_huber, quantile_slopes
from agents.dreamwalker.config import Config

WATCHED = 4  # windows of an update


class Actor(nn.Module):
    """Normalised observations (B, O) → what a policy is made of, (B, 2A); and its temperature."""

    def __init__(self, config: Config, inputs: int, outputs: int) -> None:
        super().__init__()
        self.net = Dense(1, inputs, config.actor_hidden, outputs, dense=config.dense)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(config.temperature)))

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
    pooled = quantiles.transpose(0, 1).flatten(1)
    if not drop:
        return pooled
    return pooled.topk(members * (size - drop), largest=False, sorted=False).values


def critic_loss(quantiles: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """What the gradient of `quantile_huber` leads down, the mean over critics and their quantiles.

    quantiles: (K, B, Z), target: (B, Z'), weight: (B,) → scalar. Its value says nothing: losses of
    all pairs take as long as the rest of an update, so that `watched_loss` measures it on a few.
    """
    slopes = quantile_slopes(quantiles, target) * weight.unsqueeze(-1)
    assert slopes.shape == quantiles.shape
    return (slopes * quantiles).sum() / (weight > 0).sum() / quantiles[:, 0].numel()


def watched_loss(quantiles: Tensor, target: Tensor) -> Tensor:
    """The mean loss of the first `WATCHED` windows: (K, B, Z), (B, Z') → scalar."""
    loss = quantile_huber(quantiles[:, :WATCHED].detach(), target[:WATCHED])
    return loss.mean() / quantiles.shape[-1]


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
