"""What a network says about a return: its mean, its distribution over atoms, or its quantiles.

Each kind turns Z numbers an action into a mean, and compares those of the action taken with the
target: reward + discount · what follows. Rewards are in the unit values are kept in.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamfleet.agents.blocks.quantiles import quantile_huber


class Expected(nn.Module):
    """The mean of the return; Z = 1, Huber's loss."""

    scales = True  # outputs are in the unit of returns

    def __init__(self) -> None:
        super().__init__()
        self.size = 1

    def mean(self, out: Tensor) -> Tensor:
        """(…, 1) → (…)."""
        return out.squeeze(-1)

    def loss(self, taken: Tensor, following: Tensor, reward: Tensor, discount: Tensor) -> Tensor:
        """taken, following: (B, 1), reward, discount: (B,) → (B,)."""
        target = reward + discount * following.squeeze(-1)
        return F.huber_loss(taken.squeeze(-1), target, reduction="none")


class Quantiles(nn.Module):
    """Z quantiles of the return, at the middles of Z equal shares (Dabney et al. 2018)."""

    scales = True

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def mean(self, out: Tensor) -> Tensor:
        """(…, Z) → (…)."""
        return out.mean(-1)

    def loss(self, taken: Tensor, following: Tensor, reward: Tensor, discount: Tensor) -> Tensor:
        """taken, following: (B, Z), reward, discount: (B,) → (B,)."""
        return quantile_huber(taken, reward.unsqueeze(-1) + discount.unsqueeze(-1) * following)


class Categorical51(nn.Module):
    """Logits of Z atoms, evenly spread over [low, high] (Bellemare et al. 2017)."""

    scales = False
    support: Tensor

    def __init__(self, size: int, low: float, high: float) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("support", torch.linspace(low, high, size), persistent=False)

    def mean(self, out: Tensor) -> Tensor:
        """(…, Z) → (…)."""
        return F.softmax(out, -1) @ self.support

    def loss(self, taken: Tensor, following: Tensor, reward: Tensor, discount: Tensor) -> Tensor:
        """taken, following: (B, Z), reward, discount: (B,) → the KL divergence (B,)."""
        target = project(F.softmax(following, -1), reward, discount, self.support)
        return (torch.xlogy(target, target) - target * F.log_softmax(taken, -1)).sum(-1)


Values = Expected | Quantiles | Categorical51


def project(prob: Tensor, reward: Tensor, discount: Tensor, support: Tensor) -> Tensor:
    """The distribution of reward + discount · atom, shared out between the nearest atoms.

    prob: (B, Z), reward, discount: (B,), support: (Z,), evenly spaced → (B, Z). What falls outside
    goes to the ends.

    Source: Bellemare et al. 2017, algorithm 1.
    """
    low, high, last = support[0], support[-1], support.shape[0] - 1
    moved = reward.unsqueeze(-1) + discount.unsqueeze(-1) * support  # (B, Z)
    place = ((moved - low) / (high - low) * last).clamp(0, last)
    below = place.floor()
    share = place - below  # of the atom above
    below = below.long()
    above = (below + 1).clamp(max=last)
    out = torch.zeros_like(prob).scatter_add_(-1, below, prob * (1 - share))
    return out.scatter_add_(-1, above, prob * share)
