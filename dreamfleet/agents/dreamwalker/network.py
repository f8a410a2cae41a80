"""The networks of Dreamwalker, and its losses as functions of tensors."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dreamfleet.agents.blocks.dense import Dense
from dreamfleet.agents.blocks.quantiles import quantile_huber, smallest
from dreamfleet.agents.dreamwalker.config import Config


class Actor(nn.Module):
    """Normalised observations (B, O) → parameters of the policy (B, 2A).

    The module also holds the logarithm of the temperature, which is the entropy coefficient α.
    """

    def __init__(self, config: Config, inputs: int, outputs: int) -> None:
        super().__init__()
        self.net = Dense(1, inputs, config.actor_hidden, outputs, dense=config.dense)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(config.initial_temperature)))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).squeeze(0)


def critics(config: Config, inputs: int) -> Dense:
    """Returns K critic networks: (B, O + A) → (K, B, Z), Z quantiles of the return each."""
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
    """Returns all critics' quantiles except the K · `drop` largest: (K, B, Z) → (B, K(Z - drop)).

    Source: Kuznetsov et al. 2020, section 3.
    """
    members, _, size = quantiles.shape
    return smallest(quantiles.transpose(0, 1).flatten(1), members * (size - drop))


def critic_loss(quantiles: Tensor, target: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    """Returns the quantile Huber loss (): its weighted mean over windows, critics and quantiles.

    quantiles: (K, B, Z), target: (B, Z'). weight (B,): importance weight of each window, 0 for
    windows that do not count. counts (B,): 1 for each window that counts, 0 to 1 for dreamed ones;
    the weighted sum is divided by the sum of `counts`.
    """
    loss = quantile_huber(quantiles, target) * weight
    assert loss.shape == quantiles.shape[:2]
    return loss.sum() / counts.sum() / quantiles[:, 0].numel()


def actor_loss(value: Tensor, log_prob: Tensor, temperature: Tensor) -> Tensor:
    """Returns the loss of the policy for reparameterised actions: (B,), (B,), () → (B,).

    Source: Haarnoja et al. 2018, equation 7.
    """
    loss = temperature * log_prob - value
    assert loss.shape == value.shape == log_prob.shape
    return loss


def temperature_loss(log_temperature: Tensor, log_prob: Tensor, target_entropy: float) -> Tensor:
    """Returns the loss of the temperature: (), (B,) → (B,).

    A gradient step raises the temperature where the entropy is below its target.

    Source: Haarnoja et al. 2018, equation 18, for the logarithm of the temperature.
    """
    return -log_temperature * (log_prob.detach() + target_entropy)


def optimism(real_error: Tensor, dreamed_error: Tensor, weight: Tensor) -> Tensor:
    """Returns the mean TD error of dreamed windows minus that of real windows: (R,), (D,) → ().

    TD errors are signed. weight (D,): weights of the dreamed windows.
    """
    return weight @ (dreamed_error - real_error.mean()) / weight.sum().clamp(min=1)
