"""Encodes actions, discrete or continuous; has a policy distribution and a critic for each kind.

A critic is a pair of networks; the lower of their two values is used (clipped double Q-learning,
Fujimoto et al. 2018). Its inputs, for B windows of T rows, are the latents (B, T, L), the actions
taken, and the policy's distributions at the latents. The critic returns

- `q_taken` (2, B, T): the values of the actions taken, from both networks.
- `q_candidates` (B, T, C): for each of C candidate actions, the lower of the two values. The
  candidates are all discrete actions, or one sampled continuous action. No gradient of
  `q_candidates` reaches the critic's parameters.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamfleet.agents.blocks.distributions import Categorical, TanhNormal
from dreamfleet.agents.blocks.nets import Ensemble
from dreamfleet.core.types import Space


class DiscreteActions:
    """Encodes actions that are integers from 0 to `size` - 1 (int64), and makes their critic."""

    policy = Categorical

    def __init__(self, space: Space) -> None:
        self.size = self.policy_outputs = space.n

    def encode(self, action: Tensor) -> Tensor:
        """Encodes each action as a one-hot vector of floats, along a new last axis."""
        return F.one_hot(action, self.size).float()

    def critic(self, latent: int, hidden: int) -> DiscreteCritic:
        """Returns a new critic (two value networks) that reads latents of `latent` numbers.

        hidden: units in each hidden layer of the critic.
        """
        return DiscreteCritic((latent, hidden, hidden, self.size))


class ContinuousActions:
    """Encodes actions that are vectors of `size` numbers in [-1, 1], and makes their critic."""

    policy = TanhNormal

    def __init__(self, space: Space) -> None:
        (self.size,) = space.shape
        self.policy_outputs = 2 * self.size

    def encode(self, action: Tensor) -> Tensor:
        """Returns the actions unchanged: a continuous action is its own encoding."""
        return action

    def critic(self, latent: int, hidden: int) -> ContinuousCritic:
        """Returns a new critic (two value networks) that reads latents of `latent` numbers.

        hidden: units in each hidden layer of the critic.
        """
        return ContinuousCritic((latent + self.size, hidden, hidden, 1))


class FactoredActions:
    """Encodes factored actions: k whole numbers, of which number i is less than choices[i].

    `size` is the sum of all choices: the length of an encoded action.
    """

    def __init__(self, space: Space) -> None:
        self.size = sum(space.choices)
        # Where the one-hot vector of each factor begins, by device. An agent encodes on one device,
        # so that only the first call copies these numbers to the device.
        self._starts: dict[torch.device, Tensor] = {}
        self._first = [0, *itertools.accumulate(space.choices[:-1])]

    def encode(self, action: Tensor) -> Tensor:
        """Encodes each action (…, k) as k concatenated one-hot vectors of floats (…, size)."""
        device = action.device
        if device not in self._starts:
            self._starts[device] = torch.tensor(self._first, device=device)
        one_hot = torch.zeros(*action.shape[:-1], self.size, device=device)
        return one_hot.scatter_(-1, action + self._starts[device], 1.0)


def action_kind(space: Space) -> DiscreteActions | ContinuousActions:
    """Returns DiscreteActions or ContinuousActions, whichever fits the action space."""
    return DiscreteActions(space) if space.discrete else ContinuousActions(space)


class DiscreteCritic(nn.Module):
    """A pair of networks that map the latent of an observation to the values of all actions."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.net = Ensemble(2, sizes, zero_last=True)

    def forward(self, z: Tensor, action: Tensor, policy: Categorical) -> tuple[Tensor, Tensor]:
        """Returns the values of the actions taken, and the values of all A actions.

        z: latents (encoded observations) (B, T, L), for B windows of T rows. action: (B, T).
        policy: not used.

        `q_taken` (2, B, T) holds the values from both networks. `q_candidates` (B, T, A) holds the
        lower of the two values of each action. No gradient of `q_candidates` reaches the critic's
        parameters.
        """
        q = evaluate_both(self.net, z)  # (2, B, T, A)
        q_taken = q.gather(-1, action.expand(2, -1, -1).unsqueeze(-1)).squeeze(-1)
        return q_taken, q.detach().min(0).values


class ContinuousCritic(nn.Module):
    """A pair of networks that map the latent of an observation and an action to a value."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.net = Ensemble(2, sizes, zero_last=True)

    def forward(self, z: Tensor, action: Tensor, policy: TanhNormal) -> tuple[Tensor, Tensor]:
        """Returns the values of the actions taken, and the values of actions sampled from `policy`.

        z: latents (encoded observations) (B, T, L), for B windows of T rows. action: (B, T, A).

        `q_taken` (2, B, T) holds the values from both networks. `q_candidates` (B, T, 1) holds the
        lower of the two values of the sampled action. No gradient of `q_candidates` reaches the
        critic's parameters.
        """
        q_taken = evaluate_both(self.net, torch.cat([z, action], -1)).squeeze(-1)
        frozen = {name: value.detach() for name, value in self.net.named_parameters()}
        q_sample = evaluate_both(self.net, torch.cat([z, policy.sampled[0]], -1), frozen)
        return q_taken, q_sample.min(0).values


def evaluate_both(net: Ensemble, x: Tensor, parameters: dict[str, Tensor] | None = None) -> Tensor:
    """Returns the outputs (2, B, T, out) of an ensemble of two networks at inputs (B, T, in).

    parameters: if given, used instead of the networks' own parameters.
    """
    flat = x.flatten(0, 1).expand(2, -1, -1)
    out = net(flat) if parameters is None else torch.func.functional_call(net, parameters, flat)
    return out.unflatten(1, x.shape[:2])
