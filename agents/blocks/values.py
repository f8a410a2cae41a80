"""What a network says about a return: its mean, its distribution over atoms, or its quantiles.

Each kind turns Z numbers an action into a mean, and compares those of the action taken with the
target: reward + discount · what follows. Rewards are in the unit values are kept in.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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


CACHED_PAIRS = 250_000  # numbers that stay in a core's cache


def quantile_huber(quantiles: Tensor, target: Tensor) -> Tensor:
    """Sum over quantiles of the mean loss against every target (Dabney et al. 2018, eq. 10; κ = 1).

    quantiles: (…, B, Z), target: (B, Z') → (…, B). The gradient is written down instead of
    recorded: all pairs are many numbers, and autograd would walk back over each step that led to
    them.
    """
    count = quantiles.shape[-1]
    tau = ((torch.arange(count, device=quantiles.device) + 0.5) / count).unsqueeze(-1)
    with torch.no_grad():
        error = target.unsqueeze(-2) - quantiles.unsqueeze(-1)  # (B, Z, Z')
        slope = error.clamp(-1, 1)  # of Huber's loss
        weighted = torch.where(error < 0, 1 - tau, tau) * slope
        loss = (weighted * (error - 0.5 * slope)).mean(-1).sum(-1)
        gradient = -weighted.mean(-1)
    return loss + (gradient * (quantiles - quantiles.detach())).sum(-1)


def quantile_slopes(quantiles: Tensor, target: Tensor) -> Tensor:
    """The gradient of `quantile_huber`, without the loss: (K, B, Z), (B, Z') → (K, B, Z).

    The weight of a pair is tau, and 1 - 2 tau more below the quantile; so two sums over the targets
    are enough. They are made for as many of the B as fit into a cache: all pairs at once are
    megabytes, and to fetch those costs several times what is done with them.
    """
    count = quantiles.shape[-1]
    tau = (torch.arange(count, device=quantiles.device) + 0.5) / count
    with torch.no_grad():
        size = max(1, CACHED_PAIRS * target.shape[0] // (quantiles.numel() * target.shape[-1]))
        slopes = []
        for some, aims in zip(quantiles.split(size, -2), target.split(size, -2), strict=True):
            error = (aims.unsqueeze(-2) - some.unsqueeze(-1)).clamp_(-1, 1)  # (K, b, Z, Z')
            slope = tau * error.mean(-1)
            slopes.append(slope + (1 - 2 * tau) * error.clamp_(max=0).mean(-1))
        return -torch.cat(slopes, -2)


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
