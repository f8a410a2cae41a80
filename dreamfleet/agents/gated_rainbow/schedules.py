"""Quantities of Gated Rainbow that change during training: learning rate, ε, α and β."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dreamfleet.agents.gated_rainbow.config import Config


class Schedules(nn.Module):
    """Computes ε, α and β from the number of updates, and the learning rate from returns.

    ε is the probability of a random action, α the priority exponent, β the exponent of importance
    weights. The learning rate is halved after `lr_patience` updates in a row without a new best
    mean return of the last 100 episodes.
    """

    MIN_EPISODES = 10

    updates: Tensor
    mean_return: Tensor
    best_return: Tensor
    updates_since_best: Tensor
    lr_factor: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("updates", torch.zeros(()))
        self.register_buffer("mean_return", torch.zeros(()))
        self.register_buffer("best_return", torch.full((), -torch.inf))
        self.register_buffer("updates_since_best", torch.zeros(()))
        self.register_buffer("lr_factor", torch.ones(()))

    @torch.no_grad()
    def count_update(self, episode_stats: Tensor) -> None:
        """Counts one update, and halves the learning rate if the mean return has stopped rising.

        episode_stats (2,): the number of episodes so far, and the mean return of the last 100.
        """
        self.updates += 1
        episodes, mean_return = episode_stats
        self.mean_return.copy_(mean_return)
        enough = episodes >= self.MIN_EPISODES
        better = enough & (mean_return > self.best_return)
        self.updates_since_best.copy_(torch.where(better | ~enough, 0, self.updates_since_best + 1))
        self.best_return.copy_(torch.where(better, mean_return, self.best_return))
        stalled = self.updates_since_best > 0
        halve = stalled & (self.updates_since_best % self.config.lr_patience == 0)
        self.lr_factor.mul_(torch.where(halve, 0.5, 1.0))

    @property
    def lr(self) -> Tensor:
        """Returns the current learning rate, a scalar tensor."""
        return (self.config.lr_critic * self.lr_factor).clamp(min=self.config.lr_critic_min)

    @property
    def steps(self) -> Tensor:
        """Returns the number of agent steps since the first policy update, a scalar tensor."""
        return self.updates / self.config.policy_updates_per_step

    @property
    def epsilon(self) -> Tensor:
        """Returns ε, the current probability of a random action, a scalar tensor."""
        halvings = self.steps / self.config.epsilon_half_life
        return (0.5**halvings).clamp(min=self.config.epsilon_min)

    @property
    def alpha(self) -> Tensor:
        """Returns the priority exponent α, a scalar tensor: it rises to a peak, then falls."""
        start, peak, end = self.config.alpha
        rise, fall = self.config.alpha_steps
        rising = (self.steps / rise).clamp(0, 1)
        falling = ((self.steps - rise) / fall).clamp(0, 1)
        return start + (peak - start) * rising + (end - peak) * falling

    @property
    def beta(self) -> Tensor:
        """Returns the exponent β of the importance weights, a scalar tensor: it rises to 1."""
        return self.config.beta + (1 - self.config.beta) * (
            self.steps / self.config.beta_steps
        ).clamp(max=1)
