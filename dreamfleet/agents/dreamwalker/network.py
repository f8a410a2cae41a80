"""Defines the networks and the losses of Dreamwalker."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dreamfleet.agents.blocks.dense import Dense
from dreamfleet.agents.blocks.quantiles import quantile_huber, smallest
from dreamfleet.agents.dreamwalker.config import Config


class Actor(nn.Module):
    """Maps normalised observations (B, O) to parameters of the policy (B, 2A).

    The parameters are a mean and a log standard deviation per number of the action. The module also
    holds the logarithm of the temperature α, the weight of the entropy.
    """

    def __init__(self, config: Config, inputs: int, outputs: int) -> None:
        super().__init__()
        self.net = Dense(1, inputs, config.actor_hidden, outputs, dense=config.dense)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(config.initial_temperature)))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).squeeze(0)


def critics(config: Config, inputs: int) -> Dense:
    """Returns K critic networks that map observation and action to Z quantiles of the return.

    They map (B, inputs) to (K, B, Z), for B windows. inputs: the size of an observation plus the
    size of an action.
    """
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
    """Pools the quantiles of all K critics and drops the K · `drop` largest (TQC).

    quantiles: (K, B, Z). The result has shape (B, K · (Z - drop)).

    Source: Kuznetsov et al. 2020, section 3.
    """
    members, _, size = quantiles.shape
    return smallest(quantiles.transpose(0, 1).flatten(1), members * (size - drop))


def critic_loss(quantiles: Tensor, target: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    """Returns the quantile Huber loss, a weighted mean over windows, critics and quantiles.

    - quantiles (K, B, Z): Z quantiles of K critics for B windows.
    - target (B, Z'): Z' target values per window.
    - weight (B,): the weight of each window in the sum over windows.
    - counts (B,): how much each window adds to the divisor of the weighted sum. A real window with
      an outlier adds 0.
    """
    loss = quantile_huber(quantiles, target) * weight
    assert loss.shape == quantiles.shape[:2]
    return loss.sum() / counts.sum() / quantiles[:, 0].numel()


def actor_loss(value: Tensor, log_prob: Tensor, temperature: Tensor) -> Tensor:
    """Returns the policy loss (B,) of SAC: temperature · log_prob - value.

    value (B,): the critics' values of B reparameterised actions. log_prob: (B,). temperature: the
    weight of the entropy.

    Source: Haarnoja et al. 2018, equation 7.
    """
    loss = temperature * log_prob - value
    assert loss.shape == value.shape == log_prob.shape
    return loss


def temperature_loss(log_temperature: Tensor, log_prob: Tensor, target_entropy: float) -> Tensor:
    """Returns the loss (B,) of the temperature, given the log-probabilities of B sampled actions.

    Source: Haarnoja et al. 2018, equation 18, for the logarithm of the temperature.
    """
    return -log_temperature * (log_prob.detach() + target_entropy)


def optimism(real_error: Tensor, dreamed_error: Tensor, weight: Tensor) -> Tensor:
    """Returns the mean TD error of dreamed windows minus the mean TD error of real windows.

    A TD error is target minus predicted value. real_error: (R,). dreamed_error: (D,). weight (D,):
    the weights of the dreamed windows in their mean.
    """
    return weight @ (dreamed_error - real_error.mean()) / weight.sum().clamp(min=1)
