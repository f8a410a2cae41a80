"""Discrete and continuous actions: their encoding, policy distribution and critic.

A critic is a pair of networks, of which the lower value counts (Fujimoto et al. 2018). A critic is
called with latents z (B, T, L), the actions taken, and a policy at these latents. It returns

- `q_taken` (2, B, T): the value of each action taken, from both networks, for the critic's loss;
- `q_candidates` (B, T, C): the lower value of each of C candidate actions of the policy. For
  discrete actions the candidates are all actions; for continuous actions the only candidate is the
  policy's sample. `q_candidates` carries no gradient to the critic's parameters.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamfleet.agents.blocks.distributions import Categorical, TanhNormal
from dreamfleet.agents.blocks.nets import Ensemble
from dreamfleet.core.types import Space


class DiscreteActions:
    """Actions that are one of `size` choices, i64."""

    policy = Categorical

    def __init__(self, space: Space) -> None:
        self.size = self.policy_outputs = space.n

    def encode(self, action: Tensor) -> Tensor:
        """Returns actions i64 (…) as one-hot vectors f32 (…, A)."""
        return F.one_hot(action, self.size).float()

    def critic(self, latent: int, hidden: int) -> DiscreteCritic:
        """Returns a new critic for latents of this size."""
        return DiscreteCritic((latent, hidden, hidden, self.size))


class ContinuousActions:
    """Actions that are vectors in [-1, 1]^`size`, f32."""

    policy = TanhNormal

    def __init__(self, space: Space) -> None:
        (self.size,) = space.shape
        self.policy_outputs = 2 * self.size

    def encode(self, action: Tensor) -> Tensor:
        """Returns the actions f32 (…, A) as they are."""
        return action

    def critic(self, latent: int, hidden: int) -> ContinuousCritic:
        """Returns a new critic for latents of this size."""
        return ContinuousCritic((latent + self.size, hidden, hidden, 1))


def action_kind(space: Space) -> DiscreteActions | ContinuousActions:
    """Returns the description of an action space, by its kind."""
    return DiscreteActions(space) if space.discrete else ContinuousActions(space)


class DiscreteCritic(nn.Module):
    """Maps latents to the values of all actions."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.net = Ensemble(2, sizes, zero_last=True)

    def forward(self, z: Tensor, action: Tensor, policy: Categorical) -> tuple[Tensor, Tensor]:
        """Returns `q_taken` (2, B, T) and `q_candidates` (B, T, A); see the module."""
        q = evaluate_both(self.net, z)  # (2, B, T, A)
        q_taken = q.gather(-1, action.expand(2, -1, -1).unsqueeze(-1)).squeeze(-1)
        return q_taken, q.detach().min(0).values


class ContinuousCritic(nn.Module):
    """Maps a latent and an action to the value of the action."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.net = Ensemble(2, sizes, zero_last=True)

    def forward(self, z: Tensor, action: Tensor, policy: TanhNormal) -> tuple[Tensor, Tensor]:
        """Returns `q_taken` (2, B, T) and `q_candidates` (B, T, 1); see the module."""
        q_taken = evaluate_both(self.net, torch.cat([z, action], -1)).squeeze(-1)
        frozen = {name: value.detach() for name, value in self.net.named_parameters()}
        q_sample = evaluate_both(self.net, torch.cat([z, policy.sampled[0]], -1), frozen)
        return q_taken, q_sample.min(0).values


def evaluate_both(net: Ensemble, x: Tensor, parameters: dict[str, Tensor] | None = None) -> Tensor:
    """Returns the outputs (2, B, T, out) of a pair of networks at the same inputs (B, T, in).

    parameters: used in place of the networks' own.
    """
    flat = x.flatten(0, 1).expand(2, -1, -1)
    out = net(flat) if parameters is None else torch.func.functional_call(net, parameters, flat)
    return out.unflatten(1, x.shape[:2])
