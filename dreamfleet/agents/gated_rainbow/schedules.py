"""The schedules: everything that moves with how far learning has come."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dreamfleet.agents.gated_rainbow.config import Config


class Schedules(nn.Module):
    """How far learning has come, and all that moves with it. Tensors, so that nobody waits.

    The learning rate is halved when `patience` updates in a row bring no better mean return of the
    last episodes played, as samples tell it. It stays while there are fewer than `ENOUGH`.
    """

    ENOUGH = 10  # episodes

    updates: Tensor
    mean_return: Tensor
    best: Tensor
    stale: Tensor
    slowdown: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("updates", torch.zeros(()))
        self.register_buffer("mean_return", torch.zeros(()))
        self.register_buffer("best", torch.full((), -torch.inf))
        self.register_buffer("stale", torch.zeros(()))  # updates since the best
        self.register_buffer("slowdown", torch.ones(()))  # of the learning rate

    @torch.no_grad()
    def learned(self, played: Tensor) -> None:
        """One update was taken. played (2,): episodes ever, the mean return of the last of them."""
        self.updates += 1
        episodes, mean_return = played
        self.mean_return.copy_(mean_return)
        enough = episodes >= self.ENOUGH
        better = enough & (mean_return > self.best)
        self.stale.copy_(torch.where(better | ~enough, 0, self.stale + 1))
        self.best.copy_(torch.where(better, mean_return, self.best))
        waited = (self.stale > 0) & (self.stale % self.config.lr_patience == 0)
        self.slowdown.mul_(torch.where(waited, 0.5, 1.0))

    @property
    def lr(self) -> Tensor:
        return (self.config.lr_critic * self.slowdown).clamp(min=self.config.lr_critic_min)

    @property
    def steps(self) -> Tensor:
        """Agent steps since the first update."""
        return self.updates / self.config.policy_updates_per_step

    @property
    def epsilon(self) -> Tensor:
        """The chance of a random action."""
        halvings = self.steps / self.config.epsilon_half_life
        return (0.5**halvings).clamp(min=self.config.epsilon_min)

    @property
    def alpha(self) -> Tensor:
        """The exponent of priorities: up, then down."""
        start, top, end = self.config.alpha
        rise, fall = self.config.alpha_steps
        rising = (self.steps / rise).clamp(0, 1)
        falling = ((self.steps - rise) / fall).clamp(0, 1)
        return start + (top - start) * rising + (end - top) * falling

    @property
    def beta(self) -> Tensor:
        """The exponent of importance weights, up to 1."""
        return self.config.beta + (1 - self.config.beta) * (
            self.steps / self.config.beta_steps
        ).clamp(max=1)
