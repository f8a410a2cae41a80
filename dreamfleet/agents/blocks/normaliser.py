"""Running statistics that bring observations and rewards to unit scale."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dreamfleet.core.types import Space


class RewardScale(nn.Module):
    """The root mean square of the real rows' rewards."""

    reward_rms: Tensor
    updates: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("reward_rms", torch.ones(()))
        self.register_buffer("updates", torch.zeros(()))

    @property
    def rate(self) -> Tensor:
        """The plain average of the first thousand batches, a moving one from then on."""
        return 1 / self.updates.clamp(min=1, max=1000)

    @torch.no_grad()
    def scale(self, reward: Tensor) -> None:
        """Take in a batch of rewards."""
        self.updates += 1
        rms = self.reward_rms.square().lerp(reward.square().mean(), self.rate).sqrt()
        self.reward_rms.copy_(rms.clamp(min=1e-3))


class Normaliser(RewardScale):
    """Running statistics of the real rows. obs (…, *O) → (…, O), zero mean and unit variance."""

    obs_mean: Tensor
    obs_var: Tensor

    def __init__(self, obs: Space) -> None:
        super().__init__()
        self.axes = len(obs.shape)
        size = math.prod(obs.shape)
        self.register_buffer("obs_mean", torch.zeros(size))
        self.register_buffer("obs_var", torch.ones(size))

    @torch.no_grad()
    def update(self, obs: Tensor, reward: Tensor) -> None:
        """Take in a batch of rows."""
        self.scale(reward)
        x, rate = self.flat(obs).flatten(0, -2), self.rate
        self.obs_mean.lerp_(x.mean(0), rate)
        self.obs_var.lerp_((x - self.obs_mean).square().mean(0), rate)

    def forward(self, obs: Tensor) -> Tensor:
        return ((self.flat(obs) - self.obs_mean) / self.deviation).clamp(-10, 10)

    @property
    def deviation(self) -> Tensor:
        """Standard deviations of the observation (O,)."""
        return (self.obs_var + 1e-6).sqrt()

    def flat(self, obs: Tensor) -> Tensor:
        return obs.flatten(obs.dim() - self.axes).float()


class Pixels(RewardScale):
    """Frames (…, H, W, C) of bytes → (…, C, H, W) within [0, 1]; only rewards have statistics."""

    MOST = 255

    def update(self, obs: Tensor, reward: Tensor) -> None:
        """Take in a batch of rows."""
        self.scale(reward)

    def forward(self, obs: Tensor) -> Tensor:
        return obs.movedim(-1, -3).float() / self.MOST

    def back(self, x: Tensor) -> Tensor:
        """(…, C, H, W) → whole numbers (…, H, W, C), as floats and possibly out of range."""
        return (x * self.MOST).round().movedim(-3, -1)


class ReturnRange(nn.Module):
    """A moving average of the 5th to 95th percentile of returns (Hafner et al. 2023, section 4).

    Divided by it, one entropy weight fits rewards of every size.
    """

    value: Tensor

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.register_buffer("value", torch.zeros(()))

    @torch.no_grad()
    def update(self, returns: Tensor) -> Tensor:
        """Take in returns of any shape → the range, never nearly zero."""
        low, high = torch.quantile(returns, returns.new_tensor([0.05, 0.95]))
        rate = torch.where(self.value == 0, 1.0, self.rate)  # the first is taken as it is
        self.value.lerp_(high - low, rate)
        return self.value.clamp(min=1e-3)
