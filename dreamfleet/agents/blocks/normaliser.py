"""Running statistics that scale observations and rewards, robust to faulty numbers.

- An outlier is left out of the statistics. An outlier is a number whose absolute value exceeds
  `OUTLIER_FACTOR` times the 95th percentile of the absolute values that are not 0.
- Any other component of an observation is clipped to `STATISTICS_CLIP` standard deviations from the
  mean before it enters the statistics.

Means and variances are float64.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dreamfleet.core.types import Space

STATISTICS_CLIP = 7.0  # standard deviations, for observations that enter the statistics
CLIP = 10.0  # standard deviations, for the normalised observations that networks read
STANDARDISED_CLIP = 1000.0  # standard deviations, for `standardised` observations
OUTLIER_FACTOR = 3000.0  # the reward at the goal of MountainCarContinuous has a factor of 1,100
OUTLIER_REWARD = 10.0  # what an outlying reward is clipped to, in root mean square rewards
SORTED_ROWS = 256  # rows of a batch, at most, from which the percentile is computed
SORT_EVERY = 10  # updates between two computations of the percentile, after the first 100


class RewardScale(nn.Module):
    """Keeps the running root mean square of the environment's rewards, without outliers.

    An outlier is a reward whose absolute value exceeds `OUTLIER_FACTOR` times the 95th percentile
    of the absolute rewards that are not 0.
    """

    reward_rms: Tensor
    reward_p95: Tensor
    updates: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("reward_rms", torch.ones((), dtype=torch.float64))
        # 95th percentile of the absolute rewards that are not 0; 0 before the first such reward.
        self.register_buffer("reward_p95", torch.zeros((), dtype=torch.float64))
        self.register_buffer("updates", torch.zeros(()))
        # `updates` as an int, unless all updates run the same operations.
        self._update_count: int | None = None

    @property
    def rate(self) -> Tensor:
        """Returns the update rate of running averages: 1 / number of updates, at least 0.001."""
        return 1 / self.updates.clamp(min=1, max=1000)

    @torch.no_grad()
    def update_reward(self, reward: Tensor) -> None:
        """Updates the running root mean square of rewards with a batch of rewards of any shape."""
        self.updates += 1
        rate, size = self.rate.double(), reward.flatten().double().abs()
        if not self.same_operations:
            self._update_count = (
                int(self.updates) if self._update_count is None else self._update_count + 1
            )
        if self.percentile_due:
            update_percentile(self.reward_p95, size, rate)
        inlier = size <= self._outlier_bound
        square = (size.square() * inlier).sum() / inlier.sum().clamp(min=1)
        rms = self.reward_rms.square().lerp(square, rate).sqrt()
        self.reward_rms.copy_(rms.clamp(min=1e-3))

    @property
    def same_operations(self) -> bool:
        """Returns whether all updates must run the same operations, whatever their number is.

        A compiler and a CUDA graph record the operations of one update, and run them in all later
        updates.
        """
        return torch.compiler.is_compiling() or self.updates.is_cuda

    @property
    def percentile_due(self) -> bool:
        """Returns whether this update also updates the 95th percentiles of absolute values.

        Percentiles are the slowest part of an update of the statistics on a CPU. So after the first
        100 updates they are updated only in every `SORT_EVERY`-th update, unless all updates must
        run the same operations.
        """
        count = self._update_count or 0
        return self.same_operations or count <= 100 or count % SORT_EVERY == 0

    def clip_outliers(self, reward: Tensor) -> Tensor:
        """Returns rewards; outliers are clipped to ± `OUTLIER_REWARD` times the RMS of rewards.

        An outlier is a reward whose absolute value exceeds `OUTLIER_FACTOR` times the 95th
        percentile of absolute rewards.
        """
        clipped = reward.sign() * (OUTLIER_REWARD * self.reward_rms).float()
        return torch.where(reward.abs() > self._outlier_bound, clipped, reward)

    def largest_return(self, returns: Tensor, reward: Tensor, gamma: float) -> Tensor:
        """Returns the largest absolute value among discounted returns and single rewards.

        Rewards that are outliers are clipped. A return whose absolute value exceeds p / (1 - gamma)
        is left out, where p is the 95th percentile of absolute rewards.
        """
        bound = self.reward_p95 / (1 - gamma) if gamma < 1 else torch.inf
        bound = torch.where(self.reward_p95 > 0, bound, torch.inf)
        size = returns.abs()
        inliers = torch.where(size <= bound, size, 0.0)
        return torch.maximum(inliers.max(), self.clip_outliers(reward).abs().max())

    @property
    def _outlier_bound(self) -> Tensor:
        return outlier_bound(self.reward_p95)


def update_percentile(average: Tensor, size: Tensor, rate: Tensor) -> None:
    """Moves a running 95th percentile of absolute values towards the percentile of a new batch.

    average: the running percentile of each component; updated in place. size: the new batch of
    absolute values, (N, …), where … are the axes of `average`. rate: the weight of the new batch,
    from 0 to 1.

    Zeros are left out. A component whose values are all 0 keeps its average.
    """
    size = size[:: -(-len(size) // SORTED_ROWS)].movedim(0, -1).contiguous()
    ordered, zeros = size.sort().values, (size == 0).sum(-1, keepdim=True)
    n = size.shape[-1]
    position = (zeros + (0.95 * (n - zeros)).long()).clamp(max=n - 1)
    percentile = ordered.gather(-1, position).squeeze(-1).double().clamp(min=1e-30)
    before = torch.where(average > 0, average, percentile)
    moved = before.log().lerp(percentile.log(), rate).exp()
    average.copy_(torch.where(zeros.squeeze(-1) < n, moved, average))


def outlier_bound(percentile: Tensor) -> Tensor:
    """Returns the absolute value above which a number is an outlier, per component.

    percentile: the 95th percentile of the absolute values of each component. The bound is infinite
    where the percentile is 0.
    """
    return torch.where(percentile > 0, OUTLIER_FACTOR * percentile, torch.inf)


class Normaliser(RewardScale):
    """Normalises observations to mean 0 and variance 1, and clips them.

    Maps (…, *O) to (…, O): the axes of one observation *O are merged into one axis of O numbers.
    """

    obs_mean: Tensor
    obs_var: Tensor
    obs_p95: Tensor

    def __init__(self, obs: Space) -> None:
        super().__init__()
        self.axes = len(obs.shape)
        size = math.prod(obs.shape)
        self.register_buffer("obs_mean", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("obs_var", torch.ones(size, dtype=torch.float64))
        self.register_buffer("obs_p95", torch.zeros(size, dtype=torch.float64))

    @torch.no_grad()
    def update(self, obs: Tensor, reward: Tensor) -> None:
        """Updates the running statistics of observations and rewards with a batch of real rows."""
        self.update_reward(reward)
        flat, rate = self.flatten(obs).flatten(0, -2), self.rate.double()
        if self.percentile_due:
            update_percentile(self.obs_p95, flat.abs(), rate)
        x = self.replace_outliers(flat)
        if self.same_operations or self._update_count == 1:
            self._initialise(x.double())
        # A component that is mostly 0 may be a flag. A flag that is set must not be clipped, though
        # it may lie many standard deviations from the mean.
        mostly_zero = self.obs_mean.abs() < self.obs_p95 / 10
        flag = torch.where(mostly_zero, self.obs_p95, 0.0)
        bound = torch.maximum(STATISTICS_CLIP * self._deviation, flag)
        offset = (x - self.obs_mean).clamp(-bound, bound)
        moved = rate * offset.mean(0)
        self.obs_mean += moved
        self.obs_var.lerp_((offset - moved).square().mean(0), rate)

    def _initialise(self, x: Tensor) -> None:
        """Sets the mean and variance of observations from the first batch `x`, shape (N, O).

        Only the central 95 % of each component's values are used. Later calls of this function
        change nothing.
        """
        first = self.updates == 1
        quantiles = torch.linspace(0.025, 0.975, 2, dtype=x.dtype, device=x.device)
        low, high = torch.quantile(x, quantiles, 0)
        self.obs_mean.copy_(torch.where(first, x.clamp(low, high).mean(0), self.obs_mean))
        variance = ((high - low) / 4).square()  # of a normal distribution
        self.obs_var.copy_(torch.where(first, variance, self.obs_var))

    def forward(self, obs: Tensor) -> Tensor:
        return self.standardised(obs).clamp(-CLIP, CLIP)

    def standardised(self, obs: Tensor) -> Tensor:
        """Returns flattened observations, in standard deviations from their running mean.

        Flattened: all axes of one observation become one axis. The values are clipped to
        ±`STANDARDISED_CLIP`.
        """
        x = (self.flatten(obs).double() - self.obs_mean) / self._deviation
        return x.clamp(-STANDARDISED_CLIP, STANDARDISED_CLIP).float()

    def denormalise(self, x: Tensor) -> Tensor:
        """Converts normalised observations (…, O) back to the units of the environment."""
        return (x.double() * self._deviation + self.obs_mean).float()

    def replace_outliers(self, flat: Tensor) -> Tensor:
        """Returns observations with each outlier replaced by the running mean of its component.

        flat: observations (…, O). An outlier is a number whose absolute value exceeds
        `OUTLIER_FACTOR` times the 95th percentile of the absolute values of the same component.
        """
        return torch.where(flat.abs() > outlier_bound(self.obs_p95), self.obs_mean.float(), flat)

    def inliers(self, obs: Tensor) -> Tensor:
        """Returns 1.0 for each observation without an outlier, and 0.0 for each other observation.

        The result has the batch axes of `obs`. An outlier is a number whose absolute value exceeds
        `OUTLIER_FACTOR` times the 95th percentile of the absolute values of the same component.
        """
        inlier = self.flatten(obs).abs() <= outlier_bound(self.obs_p95)
        return inlier.all(-1).float()

    @property
    def deviation(self) -> Tensor:
        """Returns the running standard deviation of each of the O components of an observation."""
        return self._deviation.float()

    @property
    def _deviation(self) -> Tensor:
        return (self.obs_var + 1e-6).sqrt()

    def flatten(self, obs: Tensor) -> Tensor:
        """Returns observations as float32, with all axes of an observation merged into one."""
        return obs.flatten(obs.dim() - self.axes).float()


class FrameNormaliser(RewardScale):
    """Scales image observations of bytes to [0, 1], and moves the channels before rows and columns.

    Maps (…, H, W, C) to (…, C, H, W). Running statistics are kept of rewards only.
    """

    MAX_BYTE = 255

    def update(self, obs: Tensor, reward: Tensor) -> None:
        """Updates the running statistics of rewards; `obs` is not used, as frames need none."""
        self.update_reward(reward)

    def forward(self, obs: Tensor) -> Tensor:
        return obs.movedim(-1, -3).float() / self.MAX_BYTE

    def inliers(self, obs: Tensor) -> Tensor:
        """Returns 1.0 for every frame: a frame of bytes has no outlier."""
        return torch.ones(obs.shape[:-3], device=obs.device)

    def denormalise(self, x: Tensor) -> Tensor:
        """Converts frames `x`, scaled to [0, 1], back to byte values.

        Maps (…, C, H, W) to (…, H, W, C). The results are floats rounded to whole numbers; values
        may be below 0 or above 255.
        """
        return (x * self.MAX_BYTE).round().movedim(-3, -1)


class ReturnRange(nn.Module):
    """A moving average of the distance between the 5th and the 95th percentile of returns.

    Source: DreamerV3 (Hafner et al. 2023, section 4).
    """

    value: Tensor

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.register_buffer("value", torch.zeros(()))

    @torch.no_grad()
    def update(self, returns: Tensor, weight: Tensor) -> Tensor:
        """Updates the running distance between the 5th and 95th percentiles of returns.

        weight: the weights of the returns, of the same shape. Returns the new distance, a scalar of
        at least 1e-3. If all weights are 0, or if the returns are not finite, the distance stays
        the same.
        """
        ordered, order = returns.flatten().sort()
        cumulative = weight.flatten()[order].cumsum(0)
        bounds = cumulative[-1] * torch.linspace(0.05, 0.95, 2, device=returns.device)
        low, high = ordered[torch.searchsorted(cumulative, bounds).clamp(max=len(cumulative) - 1)]
        rate = torch.where(self.value == 0, 1.0, self.rate)
        moved = self.value.lerp(high - low, rate)
        self.value.copy_(torch.where(moved.isfinite() & (cumulative[-1] > 0), moved, self.value))
        return self.value.clamp(min=1e-3)
