"""What a policy says at some rows, and one draw from it: discrete or continuous actions."""

from __future__ import annotations

import math
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor


class Categorical:
    """Discrete choices. stats: logits (…, A) → actions i64 (…).

    A little of the uniform distribution is mixed in, so that no log-probability is infinite
    (DreamerV3 mixes 1 %).
    """

    UNIFORM = 0.01

    def __init__(self, stats: Tensor, generator: torch.Generator) -> None:
        self.probs = (1 - self.UNIFORM) * F.softmax(stats, -1) + self.UNIFORM / stats.shape[-1]
        self.log_probs = self.probs.log()
        self._generator = generator

    @cached_property
    def sampled(self) -> tuple[Tensor, Tensor]:
        """One sample (…) and its log-probability (…)."""
        flat = torch.multinomial(self.probs.flatten(0, -2), 1, generator=self._generator)
        action = flat.view(self.probs.shape[:-1])
        return action, self.log_prob(action)

    @property
    def mode(self) -> Tensor:
        return self.probs.argmax(-1)

    def log_prob(self, action: Tensor) -> Tensor:
        return self.log_probs.gather(-1, action.unsqueeze(-1)).squeeze(-1)

    def entropy(self) -> Tensor:
        """In nats (…)."""
        return -(self.probs * self.log_probs).sum(-1)

    def expect(self, options: Tensor) -> Tensor:
        """The mean over the policy of the values (…, A) of its actions → (…)."""
        return (self.probs * options).sum(-1)

    def policy_loss(self, options: Tensor, entropy: float) -> Tensor:
        """Loss (…) whose minimum maximises the mean of `options` (…, A) + `entropy` · entropy.

        That maximum is softmax(options / entropy), so the policy is fitted to it: the gradient
        is the difference of the two, which does not vanish as a policy's own does once it is sure
        of a wrong action.
        """
        best = F.softmax(options / entropy, -1)
        return -(best * self.log_probs).sum(-1)


class TanhNormal:
    """A Gaussian squashed into (-1, 1). stats: means and spreads (…, 2A) → actions f32 (…, A).

    Source: Haarnoja et al. 2018, appendix C.
    """

    MEAN = 5.0  # means lie within ± this (Hafner et al. 2020); the tanh of it is 0.9999
    LOG_STD = (-5.0, 1.0)  # the range a raw spread is squashed into
    EDGE = 7.0  # draws lie within ± this: of a tanh further out, 32 bits do not tell its argument

    def __init__(self, stats: Tensor, noise: torch.Generator | Tensor) -> None:
        """noise: what draws, or standard normal numbers (…, A) that were drawn already."""
        mean, raw = stats.chunk(2, -1)
        self.mean = self.MEAN * torch.tanh(mean / self.MEAN)
        low, high = self.LOG_STD
        self.log_std = low + (high - low) * torch.sigmoid(raw + 1)  # starts at a std of 0.5
        self.std = self.log_std.exp()
        self._noise = noise

    @cached_property
    def sampled(self) -> tuple[Tensor, Tensor]:
        """One reparameterised sample (…, A) and its log-probability (…)."""
        noise = self._noise
        if isinstance(noise, torch.Generator):
            noise = torch.randn(self.mean.shape, generator=noise, device=self.mean.device)
        raw = (self.mean + self.std * noise).clamp(-self.EDGE, self.EDGE)
        return torch.tanh(raw), self._log_prob(raw)

    @property
    def mode(self) -> Tensor:
        return torch.tanh(self.mean)

    def log_prob(self, action: Tensor) -> Tensor:
        edge = math.tanh(self.EDGE)
        return self._log_prob(torch.atanh(action.clamp(-edge, edge)))

    def entropy(self) -> Tensor:
        """In nats (…), estimated by the draw."""
        return -self.sampled[1]

    def expect(self, options: Tensor) -> Tensor:
        """The mean over the policy, estimated by the value (…, 1) of the draw → (…)."""
        return options.squeeze(-1)

    def policy_loss(self, options: Tensor, entropy: float) -> Tensor:
        """Loss (…) whose minimum maximises the draw's value (…, 1) + `entropy` · entropy."""
        return -(options.squeeze(-1) + entropy * self.entropy())

    def _log_prob(self, raw: Tensor) -> Tensor:
        """Of the action tanh(raw): that of the Gaussian, less log |d tanh / d raw|.

        The latter is 2 (log 2 - raw - softplus(-2 raw)); what is constant is added once.
        """
        constant = 0.5 * math.log(2 * math.pi) + 2 * math.log(2)
        gaussian = 0.5 * ((raw - self.mean) / self.std).square() + self.log_std
        return -(gaussian - 2 * (raw + F.softplus(-2 * raw)) + constant).sum(-1)


Policy = Categorical | TanhNormal
