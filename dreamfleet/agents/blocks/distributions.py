"""Policy distributions for discrete and for continuous actions.

The property `sampled` is one sample, drawn when the property is first read. A shape (…, A) means A
numbers along the last axis, after any number of other axes. A is the number of discrete actions, or
the size of a continuous action.
"""

from __future__ import annotations

import math
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor


def draw(prob: Tensor, rng: torch.Generator | None) -> Tensor:
    """Draws True with each probability in `prob`; returns bools of the same shape.

    rng: None returns the more probable value instead.
    """
    if rng is None:
        return prob > 0.5
    return torch.rand(prob.shape, generator=rng, device=prob.device) < prob


class Categorical:
    """A categorical distribution over discrete actions: 99 % softmax and 1 % uniform.

    The uniform part keeps every log-probability finite. DreamerV3 also mixes in 1 %.
    """

    UNIFORM = 0.01  # share of the uniform distribution

    def __init__(self, logits: Tensor, rng: torch.Generator | None) -> None:
        """Makes a categorical distribution from unnormalised log-probabilities.

        logits: shape (…, A), for A actions. rng: the generator that draws the sample.
        """
        self.probs = (1 - self.UNIFORM) * F.softmax(logits, -1) + self.UNIFORM / logits.shape[-1]
        self.log_probs = self.probs.log()
        self._rng = rng

    @cached_property
    def sampled(self) -> tuple[Tensor, Tensor]:
        """Returns one sampled action (int64) per distribution, and its log-probability."""
        # The largest p / e, with exponential numbers e, is that of action a with probability p_a.
        # `torch.multinomial` computes the same, but may wait for the device.
        exponential = torch.empty_like(self.probs).exponential_(generator=self._rng)
        action = (self.probs.detach() / exponential).argmax(-1)
        return action, self.log_prob(action)

    @property
    def mode(self) -> Tensor:
        """Returns the most probable action (int64) of each distribution."""
        return self.probs.argmax(-1)

    def log_prob(self, action: Tensor) -> Tensor:
        """Returns the log-probabilities of actions, in the shape of `action`."""
        return self.log_probs.gather(-1, action.unsqueeze(-1)).squeeze(-1)

    def entropy(self) -> Tensor:
        """Returns the entropy of each distribution, in nats."""
        return -(self.probs * self.log_probs).sum(-1)

    def mean_value(self, q: Tensor) -> Tensor:
        """Returns the mean of the action values `q`, weighted by the policy's probabilities.

        q: the values of all A actions, shape (…, A). The result has shape (…).
        """
        return (self.probs * q).sum(-1)

    def policy_loss(self, q: Tensor, entropy_weight: float) -> Tensor:
        """Returns the loss of a discrete policy, one number for each state.

        q: the values of all A actions, shape (…, A). The loss is the cross-entropy of the policy
        with the target softmax(q / entropy_weight).
        """
        target = F.softmax(q / entropy_weight, -1)
        return -(target * self.log_probs).sum(-1)


class TanhNormal:
    """A Gaussian squashed by tanh: a distribution over continuous actions, each number in (-1, 1).

    Source: Haarnoja et al. 2018, appendix C.
    """

    MAX_MEAN = 5.0  # means lie within ± this (Hafner et al. 2020); its tanh is 0.9999
    LOG_STD = (-5.0, 1.0)  # range of log standard deviations
    # Samples before the tanh are clipped to ± this: float32 cannot invert the tanh further out.
    MAX_RAW = 7.0

    def __init__(
        self, stats: Tensor, rng: torch.Generator | None = None, *, noise: Tensor | None = None
    ) -> None:
        """Makes a Gaussian squashed by tanh from the outputs of a policy network.

        stats: the outputs (…, 2A): A means, then A log standard deviations. rng: the generator that
        draws the sample. noise: standard normal numbers (…, A), from which the sample is computed
        instead. Sampling needs `rng` or `noise`.
        """
        mean, log_std = stats.chunk(2, -1)
        self.mean = self.MAX_MEAN * torch.tanh(mean / self.MAX_MEAN)
        low, high = self.LOG_STD
        self.log_std = low + (high - low) * torch.sigmoid(log_std + 1)  # of a std of 0.5 at first
        self.std = self.log_std.exp()
        self._rng, self._noise = rng, noise

    @cached_property
    def sampled(self) -> tuple[Tensor, Tensor]:
        """Returns one reparameterised sample per distribution, (…, A), and its log-density."""
        noise = self._noise
        if noise is None:
            noise = torch.randn(self.mean.shape, generator=self._rng, device=self.mean.device)
        raw = (self.mean + self.std * noise).clamp(-self.MAX_RAW, self.MAX_RAW)
        return torch.tanh(raw), self._log_prob(raw)

    @property
    def mode(self) -> Tensor:
        """Returns the greedy action of each distribution: the tanh of the mean."""
        return torch.tanh(self.mean)

    def log_prob(self, action: Tensor) -> Tensor:
        """Returns the log-probability density of each action; the actions have shape (…, A)."""
        largest = math.tanh(self.MAX_RAW)
        return self._log_prob(torch.atanh(action.clamp(-largest, largest)))

    def entropy(self) -> Tensor:
        """Returns an estimate of each distribution's entropy in nats, from one sample."""
        return -self.sampled[1]

    def mean_value(self, q: Tensor) -> Tensor:
        """Returns a one-sample estimate of the policy's mean value, one number for each state.

        q: the value of the sampled action, shape (…, 1); the estimate is `q` without its last axis.
        """
        return q.squeeze(-1)

    def policy_loss(self, q: Tensor, entropy_weight: float) -> Tensor:
        """Returns the loss of a continuous policy, one number for each state.

        Minimising the loss maximises value + entropy_weight · entropy. q: the value of the sampled
        action, shape (…, 1).
        """
        return -(q.squeeze(-1) + entropy_weight * self.entropy())

    def _log_prob(self, raw: Tensor) -> Tensor:
        """Returns the log-density of the action tanh(raw): log N(raw) - log |d tanh / d raw|.

        raw: the sample of the Gaussian N, before the tanh.
        """
        constant = 0.5 * math.log(2 * math.pi) + 2 * math.log(2)
        gaussian = 0.5 * ((raw - self.mean) / self.std).square() + self.log_std
        return -(gaussian - 2 * (raw + F.softplus(-2 * raw)) + constant).sum(-1)


Policy = Categorical | TanhNormal
