"""Running statistics that bring observations and rewards to unit scale.

Faulty numbers must not spoil them: sensors and simulators now and then return 1e20. A number of
more than `OUTLIER` times its typical size is an outlier and does not enter them; the typical size
is the 95th percentile of the sizes that are not 0. Of other numbers an observation enters them no
further than `REACH` deviations from the mean, so 1 / REACH² of all rows, 2 %, may hold anything.
Means and squares are of 64 bits: in 32 bits squares overflow beyond 1e19, and the mean of time
stamps of 1.7e9 cannot follow them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dreamfleet.core.types import Space

REACH = 7.0  # deviations that an observation may lie off the mean in the statistics
CLIP = 10.0  # deviations that a normalised observation may lie off the mean
FAR = 1000.0  # deviations that an observation may lie off the mean where nothing clips it
OUTLIER = 3000.0  # typical sizes; the reward of MountainCarContinuous' goal is 1,100 of them
SORTED = 256  # rows of a batch, at most, that the typical size is found among
SORT_EVERY = 10  # updates, after the first hundred
COUNTS_AS = 10.0  # root mean squares that an outlying reward counts as when it is learned from


class RewardScale(nn.Module):
    """The root mean square of the real rows' rewards, outliers left out."""

    reward_rms: Tensor
    typical_reward: Tensor
    updates: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("reward_rms", torch.ones((), dtype=torch.float64))
        # Most rewards that are not 0 are smaller; 0: no such reward was seen yet.
        self.register_buffer("typical_reward", torch.zeros((), dtype=torch.float64))
        self.register_buffer("updates", torch.zeros(()))
        self._taken: int | None = None  # `updates`, counted here so that no update waits for it

    @property
    def rate(self) -> Tensor:
        """The plain average of the first thousand batches, a moving one from then on."""
        return 1 / self.updates.clamp(min=1, max=1000)

    @torch.no_grad()
    def scale(self, reward: Tensor) -> None:
        """Take in a batch of rewards."""
        self.updates += 1
        rate, size = self.rate.double(), reward.flatten().double().abs()
        if not torch.compiler.is_compiling():  # its value would be a constant of what is compiled
            self._taken = int(self.updates) if self._taken is None else self._taken + 1
        if self.sorts:
            follow_typical(self.typical_reward, size, rate)
        inside = size <= self._limit
        square = (size.square() * inside).sum() / inside.sum().clamp(min=1)
        rms = self.reward_rms.square().lerp(square, rate).sqrt()
        self.reward_rms.copy_(rms.clamp(min=1e-3))

    @property
    def sorts(self) -> bool:
        """Whether this update looks for the typical size, which takes longer than all the rest."""
        taken = self._taken or 0
        return torch.compiler.is_compiling() or taken <= 100 or taken % SORT_EVERY == 0

    def clip_outliers(self, reward: Tensor) -> Tensor:
        """Rewards (…) to learn from: an outlier counts as ten times the root mean square."""
        cut = reward.sign() * (COUNTS_AS * self.reward_rms).float()
        return torch.where(reward.abs() > self._limit, cut, reward)

    def largest_return(self, returns: Tensor, reward: Tensor, gamma: float) -> Tensor:
        """The size of the largest of some discounted returns and plausible rewards, ().

        A return beyond what typical rewards add up to holds an outlier, and is left out.
        """
        most = self.typical_reward / (1 - gamma) if gamma < 1 else torch.inf
        most = torch.where(self.typical_reward > 0, most, torch.inf)
        size = returns.abs()
        inside = torch.where(size <= most, size, 0.0)
        return torch.maximum(inside.max(), self.clip_outliers(reward).abs().max())

    @property
    def _limit(self) -> Tensor:
        return limit(self.typical_reward)


def follow_typical(typical: Tensor, size: Tensor, rate: Tensor) -> None:
    """Move `typical` (…), in place, towards the 95th percentile of the sizes (N, …) that are not 0.

    Its logarithm is averaged: a batch that happens to hold many outliers moves that little. What
    is 0 in all of the batch stays as it is. Of a large batch every k-th row is looked at, since
    sorting all would take longer than all other statistics.
    """
    size = size[:: -(-len(size) // SORTED)].movedim(0, -1).contiguous()
    ordered, zeros = size.sort().values, (size == 0).sum(-1, keepdim=True)
    n = size.shape[-1]
    place = (zeros + (0.95 * (n - zeros)).long()).clamp(max=n - 1)
    found = ordered.gather(-1, place).squeeze(-1).double().clamp(min=1e-30)
    before = torch.where(typical > 0, typical, found)
    moved = before.log().lerp(found.log(), rate).exp()
    typical.copy_(torch.where(zeros.squeeze(-1) < n, moved, typical))


def limit(typical: Tensor) -> Tensor:
    """The size beyond which a number is an outlier; infinite where no typical size is known."""
    return torch.where(typical > 0, OUTLIER * typical, torch.inf)


class Normaliser(RewardScale):
    """Running statistics of the real rows. obs (…, *O) → (…, O), zero mean and unit variance."""

    obs_mean: Tensor
    obs_var: Tensor
    typical_obs: Tensor

    def __init__(self, obs: Space) -> None:
        super().__init__()
        self.axes = len(obs.shape)
        size = math.prod(obs.shape)
        self.register_buffer("obs_mean", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("obs_var", torch.ones(size, dtype=torch.float64))
        self.register_buffer("typical_obs", torch.zeros(size, dtype=torch.float64))

    @torch.no_grad()
    def update(self, obs: Tensor, reward: Tensor) -> None:
        """Take in a batch of rows."""
        self.scale(reward)
        flat, rate = self.flatten(obs).flatten(0, -2), self.rate.double()
        if self.sorts:
            follow_typical(self.typical_obs, flat.abs(), rate)
        x = self.replace_outliers(flat)
        if torch.compiler.is_compiling() or self._taken == 1:
            self._begin(x.double())
        # What is mostly 0 may be a flag, which is no outlier for being many deviations off.
        mostly_0 = self.obs_mean.abs() < self.typical_obs / 10
        flag = torch.where(mostly_0, self.typical_obs, 0.0)
        reach = torch.maximum(REACH * self._deviation, flag)
        offset = (x - self.obs_mean).clamp(-reach, reach)
        moved = rate * offset.mean(0)
        self.obs_mean += moved
        self.obs_var.lerp_((offset - moved).square().mean(0), rate)

    def _begin(self, x: Tensor) -> None:
        """Start from what most of the first batch (N, O) say, from where reach is measured."""
        first = self.updates == 1
        quantiles = torch.tensor([0.025, 0.975], dtype=x.dtype, device=x.device)
        low, high = torch.quantile(x, quantiles, 0)
        self.obs_mean.copy_(torch.where(first, x.clamp(low, high).mean(0), self.obs_mean))
        spread = ((high - low) / 4).square()  # of a normal distribution
        self.obs_var.copy_(torch.where(first, spread, self.obs_var))

    def forward(self, obs: Tensor) -> Tensor:
        return self.standardised(obs).clamp(-CLIP, CLIP)

    def standardised(self, obs: Tensor) -> Tensor:
        """Observations (…, *O) in deviations from the mean, up to `FAR` (…, O)."""
        x = (self.flatten(obs).double() - self.obs_mean) / self._deviation
        return x.clamp(-FAR, FAR).float()

    def replace_outliers(self, flat: Tensor) -> Tensor:
        """Flat observations (…, O) with the mean in the place of outliers."""
        return torch.where(flat.abs() > limit(self.typical_obs), self.obs_mean.float(), flat)

    def inliers(self, obs: Tensor) -> Tensor:
        """Whether no number of observations (…, *O) is an outlier, 1. or 0. (…)."""
        inside = self.flatten(obs).abs() <= limit(self.typical_obs)
        return inside.all(-1).float()

    @property
    def deviation(self) -> Tensor:
        """Standard deviations of the observation (O,)."""
        return self._deviation.float()

    @property
    def _deviation(self) -> Tensor:
        return (self.obs_var + 1e-6).sqrt()

    def flatten(self, obs: Tensor) -> Tensor:
        return obs.flatten(obs.dim() - self.axes).float()


class FrameNormaliser(RewardScale):
    """Frames (…, H, W, C) of bytes → (…, C, H, W) within [0, 1]; only rewards have statistics."""

    MOST = 255

    def update(self, obs: Tensor, reward: Tensor) -> None:
        """Take in a batch of rows."""
        self.scale(reward)

    def forward(self, obs: Tensor) -> Tensor:
        return obs.movedim(-1, -3).float() / self.MOST

    def inliers(self, obs: Tensor) -> Tensor:
        """Any byte is what a pixel can be: 1. (…)."""
        return torch.ones(obs.shape[:-3], device=obs.device)

    def denormalise(self, x: Tensor) -> Tensor:
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
    def update(self, returns: Tensor, weight: Tensor) -> Tensor:
        """Take in returns, each as far as its weight goes → the range, never nearly zero.

        returns and weight: of the same shape. Where nothing counts, nothing is taken in.
        """
        ordered, order = returns.flatten().sort()
        mass = weight.flatten()[order].cumsum(0)
        bounds = mass[-1] * returns.new_tensor([0.05, 0.95])
        low, high = ordered[torch.searchsorted(mass, bounds).clamp(max=len(mass) - 1)]
        rate = torch.where(self.value == 0, 1.0, self.rate)  # the first is taken as it is
        moved = self.value.lerp(high - low, rate)
        self.value.copy_(torch.where(moved.isfinite() & (mass[-1] > 0), moved, self.value))
        return self.value.clamp(min=1e-3)
