"""Policy distributions for discrete and for continuous actions.

A distribution is made from the outputs of a policy network, with any leading axes. Its `sampled` is
one sample, drawn when it is first read; later reads return the same sample.
"""

from __future__ import annotations

import math
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor


class Categorical:
    """A categorical distribution over A discrete actions, mixed with 1 % of the uniform one.

    The mixture keeps every log-probability finite (DreamerV3 mixes 1 % as well).
    """

    UNIFORM = 0.01  # share of the uniform distribution

    def __init__(self, logits: Tensor, rng: torch.Generator) -> None:
        """logits: (…, A). rng: draws the sample."""
        self.probs = (1 - self.UNIFORM) * F.softmax(logits, -1) + self.UNIFORM / logits.shape[-1]
        self.log_probs = self.probs.log()
        self._rng = rng

    @cached_property
    def sampled(self) -> tuple[Tensor, Tensor]:
        """One sample, i64 (…), and its log-probability (…)."""
        flat = torch.multinomial(self.probs.flatten(0, -2), 1, generator=self._rng)
        action = flat.view(self.probs.shape[:-1])
        return action, self.log_prob(action)

    @property
    def mode(self) -> Tensor:
        """The most probable action, i64 (…)."""
        return self.probs.argmax(-1)

    def log_prob(self, action: Tensor) -> Tensor:
        """Returns the log-probability (…) of actions (…)."""
        return self.log_probs.gather(-1, action.unsqueeze(-1)).squeeze(-1)

    def entropy(self) -> Tensor:
        """Returns the entropy (…) in nats."""
        return -(self.probs * self.log_probs).sum(-1)

    def mean_value(self, q: Tensor) -> Tensor:
        """Returns the mean (…) over the policy of the values q (…, A) of all actions."""
        return (self.probs * q).sum(-1)

    def policy_loss(self, q: Tensor, entropy_weight: float) -> Tensor:
        """Returns a loss (…) whose minimum maximises mean_value(q) + entropy_weight · entropy.

        q: values (…, A) of all actions. The maximum is at softmax(q / entropy_weight), so the loss
        is the cross-entropy with this target. Its gradient is the difference between policy and
        target. The policy gradient, in contrast, vanishes once a policy is sure of a wrong action.
        """
        target = F.softmax(q / entropy_weight, -1)
        return -(target * self.log_probs).sum(-1)


class TanhNormal:
    """A Gaussian squashed by tanh: a distribution over actions in (-1, 1)^A.

    Source: Haarnoja et al. 2018, appendix C.
    """

    MAX_MEAN = 5.0  # means lie within ± this (Hafner et al. 2020); its tanh is 0.9999
    LOG_STD = (-5.0, 1.0)  # range of log standard deviations
    # Samples before the tanh are clipped to ± this: float32 cannot invert the tanh further out.
    MAX_RAW = 7.0

    def __init__(
        self, stats: Tensor, rng: torch.Generator | None = None, *, noise: Tensor | None = None
    ) -> None:
        """stats: raw means, then raw log standard deviations (…, 2A).

        The sample needs either `rng` or `noise`, standard normal numbers (…, A).
        """
        mean, log_std = stats.chunk(2, -1)
        self.mean = self.MAX_MEAN * torch.tanh(mean / self.MAX_MEAN)
        low, high = self.LOG_STD
        self.log_std = low + (high - low) * torch.sigmoid(log_std + 1)  # of a std of 0.5 at first
        self.std = self.log_std.exp()
        self._rng, self._noise = rng, noise

    @cached_property
    def sampled(self) -> tuple[Tensor, Tensor]:
        """One reparameterised sample, f32 (…, A), and its log-probability (…)."""
        noise = self._noise
        if noise is None:
            noise = torch.randn(self.mean.shape, generator=self._rng, device=self.mean.device)
        raw = (self.mean + self.std * noise).clamp(-self.MAX_RAW, self.MAX_RAW)
        return torch.tanh(raw), self._log_prob(raw)

    @property
    def mode(self) -> Tensor:
        """The tanh of the mean (…, A), the greedy action."""
        return torch.tanh(self.mean)

    def log_prob(self, action: Tensor) -> Tensor:
        """Returns the log-probability density (…) of actions (…, A)."""
        largest = math.tanh(self.MAX_RAW)
        return self._log_prob(torch.atanh(action.clamp(-largest, largest)))

    def entropy(self) -> Tensor:
        """Returns an estimate (…) of the entropy in nats, from the one sample."""
        return -self.sampled[1]

    def mean_value(self, q: Tensor) -> Tensor:
        """Returns an estimate (…) of the policy's mean value: the value q (…, 1) of the sample."""
        return q.squeeze(-1)

    def policy_loss(self, q: Tensor, entropy_weight: float) -> Tensor:
        """Returns a loss (…) that maximises the sample's value q (…, 1) + entropy_weight · entropy.

        The gradient reaches the policy through the reparameterised sample.
        """
        return -(q.squeeze(-1) + entropy_weight * self.entropy())

    def _log_prob(self, raw: Tensor) -> Tensor:
        """Returns the log-density of the action tanh(raw): log N(raw) - log |d tanh / d raw|.

        log |d tanh / d raw| is 2 (log 2 - raw - softplus(-2 raw)). The constants of both terms are
        added in one step.
        """
        constant = 0.5 * math.log(2 * math.pi) + 2 * math.log(2)
        gaussian = 0.5 * ((raw - self.mean) / self.std).square() + self.log_std
        return -(gaussian - 2 * (raw + F.softplus(-2 * raw)) + constant).sum(-1)


Policy = Categorical | TanhNormal
