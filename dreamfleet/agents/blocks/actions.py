"""What depends on the kind of action: how one enters a network, and who values it.

A critic is two networks, the lower value of which counts (Fujimoto et al. 2018). Called with a
policy at some latents it says two things, as (2, B, T) and (B, T, C):

- `taken`, both values of the actions that were taken, to be trained;
- `options`, the lower value of each of the C actions the policy may choose among: all of them
  where they are discrete, the one drawn from the policy where they are continuous. No gradient
  reaches the critic through these.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamfleet.agents.blocks.distributions import Categorical, TanhNormal
from dreamfleet.agents.blocks.nets import Ensemble
from dreamfleet.core.types import Space


class DiscreteActions:
    """One of n actions."""

    policy = Categorical

    def __init__(self, space: Space) -> None:
        self.size = self.policy_outputs = space.n

    def encode(self, action: Tensor) -> Tensor:
        """(…) i64 → one-hot (…, A)."""
        return F.one_hot(action, self.size).float()

    def critic(self, latent: int, hidden: int) -> DiscreteCritic:
        return DiscreteCritic((latent, hidden, hidden, self.size))


class ContinuousActions:
    """Vectors in [-1, 1]^A."""

    policy = TanhNormal

    def __init__(self, space: Space) -> None:
        (self.size,) = space.shape
        self.policy_outputs = 2 * self.size

    def encode(self, action: Tensor) -> Tensor:
        return action

    def critic(self, latent: int, hidden: int) -> ContinuousCritic:
        return ContinuousCritic((latent + self.size, hidden, hidden, 1))


def action_kind(space: Space) -> DiscreteActions | ContinuousActions:
    return DiscreteActions(space) if space.discrete else ContinuousActions(space)


class DiscreteCritic(nn.Module):
    """Latents → the value of every action."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.net = Ensemble(2, sizes, zero_last=True)

    def forward(self, z: Tensor, action: Tensor, policy: Categorical) -> tuple[Tensor, Tensor]:
        values = both(self.net, z)  # (2, B, T, A)
        taken = values.gather(-1, action.expand(2, -1, -1).unsqueeze(-1)).squeeze(-1)
        return taken, values.detach().min(0).values


class ContinuousCritic(nn.Module):
    """Latents and an action → its value."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.net = Ensemble(2, sizes, zero_last=True)

    def forward(self, z: Tensor, action: Tensor, policy: TanhNormal) -> tuple[Tensor, Tensor]:
        taken = both(self.net, torch.cat([z, action], -1)).squeeze(-1)
        held = {name: value.detach() for name, value in self.net.named_parameters()}
        drawn = both(self.net, torch.cat([z, policy.sampled[0]], -1), held)
        return taken, drawn.min(0).values


def both(net: Ensemble, x: Tensor, parameters: dict[str, Tensor] | None = None) -> Tensor:
    """Both networks at the same inputs, (B, T, in) → (2, B, T, out); with other `parameters`."""
    flat = x.flatten(0, 1).expand(2, -1, -1)
    values = net(flat) if parameters is None else torch.func.functional_call(net, parameters, flat)
    return values.unflatten(1, x.shape[:2])
