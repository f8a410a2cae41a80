"""The kinds of actions and their policies: discrete, continuous, and several choices at once."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from dreamfleet.agents.blocks.actions import FactoredActions
from dreamfleet.agents.blocks.distributions import Categorical
from dreamfleet.core.types import Space

RANDOM_SHARE = 0.1  # of the discrete actions that a plan tries


class Policy(Protocol):
    """A batch of distributions over actions."""

    @property
    def sampled(self) -> tuple[Tensor, Tensor]:
        """Returns one sampled action per distribution, and its log-probability."""
        ...

    @property
    def mode(self) -> Tensor:
        """Returns the most probable action of each distribution."""
        ...

    def log_prob(self, action: Tensor) -> Tensor:
        """Returns the log-probabilities of actions."""
        ...

    def entropy(self) -> Tensor:
        """Returns the entropy of each distribution, in nats."""
        ...


class ActionKind(Protocol):
    """Encodes actions for networks, and makes policies from the outputs of the actor."""

    size: int  # A, of an encoded action
    policy_outputs: int  # outputs of the actor
    policy_scale: float  # factor of the initial weights of these outputs [DreamerV3]

    def policy(self, outputs: Tensor, rng: torch.Generator | None) -> Policy:
        """Returns distributions over actions, from outputs of the actor. `rng` draws samples."""
        ...

    def encode(self, action: Tensor) -> Tensor:
        """Returns encoded actions (…, A)."""
        ...

    def inside(self, action: Tensor) -> Tensor:
        """Returns sampled actions as the environment takes them."""
        ...

    def decode(self, mean: Tensor) -> Tensor:
        """Returns the actions that are nearest to mean encoded actions (…, A)."""
        ...

    def near(self, mean: Tensor, deviation: Tensor, rng: torch.Generator) -> Tensor:
        """Draws encoded actions (…, A) around mean encoded actions, for plans."""
        ...


class BoundedNormal:
    """A Gaussian whose mean lies in (-1, 1) and whose standard deviation lies in (0.1, 1).

    Samples may lie outside [-1, 1]; the environment then takes the nearest action inside. Source:
    DreamerV3.
    """

    LEAST_STD, LARGEST_STD = 0.1, 1.0

    def __init__(self, outputs: Tensor, rng: torch.Generator | None) -> None:
        """Makes Gaussians from the outputs (…, 2A) of the actor: means, then deviations."""
        mean, std = outputs.float().chunk(2, -1)
        self.mean = torch.tanh(mean)
        self.std = self.LEAST_STD + (self.LARGEST_STD - self.LEAST_STD) * torch.sigmoid(std + 2)
        self._rng = rng

    @cached_property
    def sampled(self) -> tuple[Tensor, Tensor]:
        """Returns one sample (…, A) per distribution, and its log-density."""
        noise = torch.empty_like(self.mean).normal_(generator=self._rng)
        action = self.mean + self.std * noise
        return action, self.log_prob(action)

    @property
    def mode(self) -> Tensor:
        """Returns the mean of each distribution, (…, A)."""
        return self.mean

    def log_prob(self, action: Tensor) -> Tensor:
        """Returns the log-densities (…) of actions (…, A)."""
        z = (action - self.mean) / self.std
        return -(0.5 * z.square() + self.std.log() + 0.5 * math.log(2 * math.pi)).sum(-1)

    def entropy(self) -> Tensor:
        """Returns the entropy (…) of each distribution, in nats."""
        return (self.std.log() + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)


class OneChoice:
    """Encodes discrete actions as one-hot vectors."""

    policy_scale = 0.01

    def __init__(self, space: Space) -> None:
        self.size = self.policy_outputs = space.n

    def encode(self, action: Tensor) -> Tensor:
        """Returns one-hot vectors (…, A) for actions (…)."""
        one_hot = torch.zeros(*action.shape, self.size, device=action.device)
        return one_hot.scatter_(-1, action.unsqueeze(-1), 1.0)

    def policy(self, outputs: Tensor, rng: torch.Generator | None) -> Categorical:
        """Returns categorical distributions with logits (…, A)."""
        return Categorical(outputs.float(), rng)

    def inside(self, action: Tensor) -> Tensor:
        """Returns `action`: every sample is one of the choices."""
        return action

    def decode(self, mean: Tensor) -> Tensor:
        """Returns the most probable actions; mean (…, A): the probabilities of all actions."""
        return mean.argmax(-1)

    def near(self, mean: Tensor, deviation: Tensor, rng: torch.Generator) -> Tensor:
        """Draws one-hot actions (…, A) with the probabilities `mean`, and a tenth at random.

        deviation: not used.
        """
        noise = torch.empty_like(mean).exponential_(generator=rng)
        probs = torch.lerp(mean, torch.full_like(mean, 1 / self.size), RANDOM_SHARE)
        return self.encode((probs / noise).argmax(-1))


class SeveralChoices(FactoredActions):
    """Encodes k choices at once as k concatenated one-hot vectors."""

    policy_scale = 0.01

    def __init__(self, space: Space) -> None:
        super().__init__(space)
        self.policy_outputs = self.size
        self.choices = list(space.choices)

    def policy(self, outputs: Tensor, rng: torch.Generator | None) -> SeveralCategoricals:
        """Returns k independent categorical distributions with logits (…, A)."""
        return SeveralCategoricals(
            [Categorical(part, rng) for part in outputs.float().split(self.choices, -1)]
        )

    def inside(self, action: Tensor) -> Tensor:
        """Returns `action`: every sample is one of the choices."""
        return action

    def decode(self, mean: Tensor) -> Tensor:
        """Returns the most probable choices (…, k); mean (…, A): the probabilities of all."""
        return torch.stack([part.argmax(-1) for part in mean.split(self.choices, -1)], -1)

    def near(self, mean: Tensor, deviation: Tensor, rng: torch.Generator) -> Tensor:
        """Draws choices with the probabilities `mean`, and a tenth at random.

        deviation: not used.
        """
        uniform = torch.cat([mean.new_full((n,), 1 / n) for n in self.choices]).expand_as(mean)
        noise = torch.empty_like(mean).exponential_(generator=rng)
        return self.encode(self.decode(torch.lerp(mean, uniform, RANDOM_SHARE) / noise))


class SeveralCategoricals:
    """Independent categorical distributions over k choices."""

    def __init__(self, parts: list[Categorical]) -> None:
        self.parts = parts

    @property
    def sampled(self) -> tuple[Tensor, Tensor]:
        """Returns one sample (…, k) per distribution, and its log-probability (…)."""
        action = torch.stack([part.sampled[0] for part in self.parts], -1)
        return action, self.log_prob(action)

    @property
    def mode(self) -> Tensor:
        """Returns the most probable choices (…, k)."""
        return torch.stack([part.mode for part in self.parts], -1)

    def log_prob(self, action: Tensor) -> Tensor:
        """Returns the summed log-probabilities (…) of choices (…, k)."""
        pairs = zip(self.parts, action.unbind(-1), strict=True)
        return torch.stack([part.log_prob(choice) for part, choice in pairs]).sum(0)

    def entropy(self) -> Tensor:
        """Returns the summed entropies (…), in nats."""
        return torch.stack([part.entropy() for part in self.parts]).sum(0)


class BoundedActions:
    """Encodes continuous actions: vectors of `size` numbers in [-1, 1]."""

    policy_scale = 1.0
    LEAST_DEVIATION = 0.05  # of the candidates of a plan

    def __init__(self, space: Space) -> None:
        (self.size,) = space.shape
        self.policy_outputs = 2 * self.size

    def policy(self, outputs: Tensor, rng: torch.Generator | None) -> BoundedNormal:
        """Returns Gaussians, from outputs (…, 2A): means, then deviations."""
        return BoundedNormal(outputs, rng)

    def encode(self, action: Tensor) -> Tensor:
        """Returns the actions, with numbers outside [-1, 1] moved to the nearest bound."""
        return action.clamp(-1, 1)

    inside = encode

    def decode(self, mean: Tensor) -> Tensor:
        """Returns `mean`: a continuous action is its own encoding."""
        return mean

    def near(self, mean: Tensor, deviation: Tensor, rng: torch.Generator) -> Tensor:
        """Draws actions (…, A) from Gaussians, moved to the nearest bound of [-1, 1]."""
        noise = torch.empty_like(mean).normal_(generator=rng)
        return (mean + deviation.clamp(min=self.LEAST_DEVIATION) * noise).clamp(-1, 1)


def action_kind(space: Space) -> ActionKind:
    """Returns how actions of a space are encoded, and the policies over them."""
    if space.choices:
        return SeveralChoices(space)
    return OneChoice(space) if space.discrete else BoundedActions(space)
