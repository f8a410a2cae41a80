"""Value heads: represent the return of an action by Z network outputs, and compute the TD loss.

The TD loss compares the outputs of the action taken with the target reward + discount · (return
from the next state). Rewards and returns must be in the same unit.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamfleet.agents.blocks.quantiles import quantile_huber


class MeanHead(nn.Module):
    """Represents the return of an action by its mean, one network output; uses the Huber loss."""

    in_return_units = True  # outputs scale with returns

    def __init__(self) -> None:
        super().__init__()
        self.size = 1

    def mean(self, out: Tensor) -> Tensor:
        """Returns the mean return of each action, the network's only output per action.

        out: the network's outputs (…, 1). The result lacks the last axis.
        """
        return out.squeeze(-1)

    def loss(self, taken: Tensor, following: Tensor, reward: Tensor, discount: Tensor) -> Tensor:
        """Returns the Huber loss (B,) of the predicted mean returns for B transitions.

        taken, following: outputs for the actions taken and for the actions in the next states, (B,
        1). The target is reward + discount · following; reward and discount are (B,).
        """
        target = reward + discount * following.squeeze(-1)
        return F.huber_loss(taken.squeeze(-1), target, reduction="none")


class QuantileHead(nn.Module):
    """Represents the return of an action by Z quantiles; uses the quantile Huber loss.

    Quantile i = 0 … Z - 1 is at the probability (i + ½) / Z.

    Source: Dabney et al. 2018.
    """

    in_return_units = True

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def mean(self, out: Tensor) -> Tensor:
        """Returns the mean return of each action: the mean of its Z quantiles.

        out: the network's outputs, which are the quantiles (…, Z).
        """
        return out.mean(-1)

    def loss(self, taken: Tensor, following: Tensor, reward: Tensor, discount: Tensor) -> Tensor:
        """Returns the quantile Huber loss (B,) for B transitions.

        taken, following: quantiles for the actions taken and for the actions in the next states,
        (B, Z). The targets are reward + discount · following; reward and discount are (B,).
        """
        return quantile_huber(taken, reward.unsqueeze(-1) + discount.unsqueeze(-1) * following)


class CategoricalHead(nn.Module):
    """Represents the return of an action by a distribution over Z fixed atoms (C51).

    The atoms are possible values of the return, evenly spaced from `low` to `high`.

    Source: Bellemare et al. 2017.
    """

    in_return_units = False  # outputs are logits
    support: Tensor

    def __init__(self, size: int, low: float, high: float) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("support", torch.linspace(low, high, size), persistent=False)

    def mean(self, out: Tensor) -> Tensor:
        """Returns the mean return of each action, from the probabilities of its Z atoms.

        out: the network's outputs, which are the logits of the atoms (…, Z).
        """
        return F.softmax(out, -1) @ self.support

    def loss(self, taken: Tensor, following: Tensor, reward: Tensor, discount: Tensor) -> Tensor:
        """Returns the KL divergence of the predicted distribution from the target, (B,).

        taken, following: logits for the actions taken and for the actions in the next states, (B,
        Z). The target is projected onto the Z atoms. reward and discount are (B,).
        """
        target = project(F.softmax(following, -1), reward, discount, self.support)
        return (torch.xlogy(target, target) - target * F.log_softmax(taken, -1)).sum(-1)


ValueHead = MeanHead | QuantileHead | CategoricalHead


def project(prob: Tensor, reward: Tensor, discount: Tensor, support: Tensor) -> Tensor:
    """Projects the distribution of reward + discount · return onto fixed atoms (C51).

    support: the Z atoms, evenly spaced values of the return. prob: the probabilities of the atoms
    (B, Z). reward and discount: (B,). A value outside the support goes to the first or the last
    atom. The result has shape (B, Z).

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
