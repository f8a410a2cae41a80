"""Value heads: how Z network outputs per action represent the return, and the TD loss for each.

The return is represented by its mean, by its quantiles, or by its distribution over fixed atoms. A
loss compares the outputs of the action taken with the target
reward + discount · (return from the next state). Rewards are given in the unit of the values.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamfleet.agents.blocks.quantiles import quantile_huber


class MeanHead(nn.Module):
    """Predicts the mean of the return: Z = 1, with Huber's loss."""

    in_return_units = True  # outputs scale with returns

    def __init__(self) -> None:
        super().__init__()
        self.size = 1

    def mean(self, out: Tensor) -> Tensor:
        """Returns the mean return (…) of outputs (…, 1)."""
        return out.squeeze(-1)

    def loss(self, taken: Tensor, following: Tensor, reward: Tensor, discount: Tensor) -> Tensor:
        """Returns the loss (B,) of outputs for the action taken (B, 1).

        following: outputs for the next state's action (B, 1). reward, discount: (B,).
        """
        target = reward + discount * following.squeeze(-1)
        return F.huber_loss(taken.squeeze(-1), target, reduction="none")


class QuantileHead(nn.Module):
    """Predicts Z quantiles of the return, at the midpoints of Z equal intervals of probability.

    Source: Dabney et al. 2018.
    """

    in_return_units = True

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def mean(self, out: Tensor) -> Tensor:
        """Returns the mean return (…) of quantiles (…, Z)."""
        return out.mean(-1)

    def loss(self, taken: Tensor, following: Tensor, reward: Tensor, discount: Tensor) -> Tensor:
        """Returns the quantile Huber loss (B,) of quantiles for the action taken (B, Z).

        following: quantiles for the next state's action (B, Z). reward, discount: (B,).
        """
        return quantile_huber(taken, reward.unsqueeze(-1) + discount.unsqueeze(-1) * following)


class CategoricalHead(nn.Module):
    """Predicts the distribution of the return over Z atoms at even distances in [low, high] (C51).

    Source: Bellemare et al. 2017.
    """

    in_return_units = False  # outputs are logits
    support: Tensor

    def __init__(self, size: int, low: float, high: float) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("support", torch.linspace(low, high, size), persistent=False)

    def mean(self, out: Tensor) -> Tensor:
        """Returns the mean return (…) of logits (…, Z)."""
        return F.softmax(out, -1) @ self.support

    def loss(self, taken: Tensor, following: Tensor, reward: Tensor, discount: Tensor) -> Tensor:
        """Returns the KL divergence (B,) of the target from logits for the action taken (B, Z).

        following: logits for the next state's action (B, Z). reward, discount: (B,).
        """
        target = project(F.softmax(following, -1), reward, discount, self.support)
        return (torch.xlogy(target, target) - target * F.log_softmax(taken, -1)).sum(-1)


ValueHead = MeanHead | QuantileHead | CategoricalHead


def project(prob: Tensor, reward: Tensor, discount: Tensor, support: Tensor) -> Tensor:
    """Returns the distribution of reward + discount · atom, projected onto the atoms: (B, Z).

    prob: probabilities (B, Z) of the atoms. support: the atoms (Z,), at even distances. reward,
    discount: (B,). A value between two atoms is split between them; a value outside the support
    goes to the first or the last atom.

    Source: Bellemare et al. 2017, algorithm 1.
    """
    low, high, last = support[0], support[-1], support.shape[0] - 1
    target = reward.unsqueeze(-1) + discount.unsqueeze(-1) * support  # (B, Z)
    position = ((target - low) / (high - low) * last).clamp(0, last)  # in atoms
    below = position.floor()
    fraction_above = position - below
    below = below.long()
    above = (below + 1).clamp(max=last)
    out = torch.zeros_like(prob).scatter_add_(-1, below, prob * (1 - fraction_above))
    return out.scatter_add_(-1, above, prob * fraction_above)
