"""Discrete and continuous actions: their encoding, policy distribution and critic.

A critic is a pair of networks; the lower of their two values counts (clipped double Q-learning,
Fujimoto et al. 2018). A critic is called with latents (B, T, L), the actions taken, and a policy at
the latents. B is the number of windows, T their rows, L the size of a latent. The critic returns

- `q_taken` (2, B, T): the values of the actions taken, from both networks, for the critic's loss;
- `q_candidates` (B, T, C): for each of C candidate actions of the policy, the lower of the two
  networks' values. For discrete actions the candidates are all actions. For continuous actions the
  only candidate is the policy's sample. No gradient of `q_candidates` reaches the critic's
  parameters.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamfleet.agents.blocks.distributions import Categorical, TanhNormal
from dreamfleet.agents.blocks.nets import Ensemble
from dreamfleet.core.types import Space


class DiscreteActions:
    """Describes actions that are integers (i64) from 0 to `size` - 1."""

    policy = Categorical

    def __init__(self, space: Space) -> None:
        self.size = self.policy_outputs = space.n

    def encode(self, action: Tensor) -> Tensor:
        """Encodes each action as a one-hot vector of floats, along a new last axis."""
        return F.one_hot(action, self.size).float()

    def critic(self, latent: int, hidden: int) -> DiscreteCritic:
        """Returns a new critic for latents of size `latent`.

        hidden: units in each hidden layer of the critic.
        """
        return DiscreteCritic((latent, hidden, hidden, self.size))


class ContinuousActions:
    """Describes actions that are vectors (f32) of `size` numbers in [-1, 1]."""

    policy = TanhNormal

    def __init__(self, space: Space) -> None:
        (self.size,) = space.shape
        self.policy_outputs = 2 * self.size

    def encode(self, action: Tensor) -> Tensor:
        """Returns the actions unchanged: a continuous action is its own encoding."""
        return action

    def critic(self, latent: int, hidden: int) -> ContinuousCritic:
        """Returns a new critic for latents of size `latent`.

        hidden: units in each hidden layer of the critic.
        """
        return ContinuousCritic((latent + self.size, hidden, hidden, 1))


def action_kind(space: Space) -> DiscreteActions | ContinuousActions:
    """Returns a DiscreteActions or a ContinuousActions, according to the action space."""
    return DiscreteActions(space) if space.discrete else ContinuousActions(space)


class DiscreteCritic(nn.Module):
    """A pair of critic networks that map a latent to the values of all discrete actions."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.net = Ensemble(2, sizes, zero_last=True)

    def forward(self, z: Tensor, action: Tensor, policy: Categorical) -> tuple[Tensor, Tensor]:
        """Returns the values of the actions taken and of all A actions.

        z: latents (B, T, L), for B windows of T rows. action: the actions taken (B, T). The first
        result, `q_taken` (2, B, T), holds the values from both networks. The second, `q_candidates`
        (B, T, A), holds the lower of the two values of each action, without gradients to the
        critic's parameters.
        """
        q = evaluate_both(self.net, z)  # (2, B, T, A)
        q_taken = q.gather(-1, action.expand(2, -1, -1).unsqueeze(-1)).squeeze(-1)
        return q_taken, q.detach().min(0).values


class ContinuousCritic(nn.Module):
    """A pair of critic networks that map a latent and an action to the action's value."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.net = Ensemble(2, sizes, zero_last=True)

    def forward(self, z: Tensor, action: Tensor, policy: TanhNormal) -> tuple[Tensor, Tensor]:
        """Returns the values of the actions taken and of the actions that the policy samples.

        z: latents (B, T, L), for B windows of T rows. action: the actions taken (B, T, A). The
        first result, `q_taken` (2, B, T), holds the values from both networks. The second,
        `q_candidates` (B, T, 1), holds the lower of the two values of the policy's sample, without
        gradients to the critic's parameters.
        """
        q_taken = evaluate_both(self.net, torch.cat([z, action], -1)).squeeze(-1)
        frozen = {name: value.detach() for name, value in self.net.named_parameters()}
        q_sample = evaluate_both(self.net, torch.cat([z, policy.sampled[0]], -1), frozen)
        return q_taken, q_sample.min(0).values


def evaluate_both(net: Ensemble, x: Tensor, parameters: dict[str, Tensor] | None = None) -> Tensor:
    """Returns the outputs (2, B, T, out) of a pair of networks at inputs (B, T, in).

    Both networks read the same inputs: B windows of T rows, with `in` numbers per row. parameters:
    used in place of the networks' own parameters.
    """
    flat = x.flatten(0, 1).expand(2, -1, -1)
    out = net(flat) if parameters is None else torch.func.functional_call(net, parameters, flat)
    return out.unflatten(1, x.shape[:2])
