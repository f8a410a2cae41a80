"""The losses of Gated Rainbow: the double Q-learning loss and the regulariser of the gate."""

from __future__ import annotations

import torch
from torch import Tensor

from dreamfleet.agents.blocks.value_heads import ValueHead


def double_q_loss(
    head: ValueHead,
    taken: Tensor,
    online_next: Tensor,
    target_next: Tensor,
    rewards: Tensor,
    discount: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the loss, absolute TD error |δ| and predicted value of B transitions, (B,) each.

    The target is rewards + discount · value of the next action. The online network selects the next
    action, and the target network evaluates it.

    - taken (B, Z): outputs of the online network for the actions taken.
    - online_next, target_next (B, A, Z): outputs of the two networks for all A actions, for the
      history from which the return bootstraps; without gradients.
    - rewards (B,): discounted sums of rewards of up to n steps.
    - discount (B,): the factors that multiply the value of the next action.

    Source: van Hasselt et al. 2016, with n-step returns as in Hessel et al. 2018.
    """
    index = torch.arange(len(rewards), device=rewards.device)
    best = head.mean(online_next).argmax(-1)
    following = target_next[index, best]  # (B, Z)
    value = head.mean(taken.detach())
    td_error = (rewards + discount * head.mean(following) - value).abs()
    loss = head.loss(taken, following, rewards, discount)
    assert loss.shape == td_error.shape == value.shape == rewards.shape
    return loss, td_error, value


def gate_regulariser(gate: Tensor) -> Tensor:
    """Returns a penalty, a scalar, on the distance of each feature's mean gate value from 0.5.

    gate: (B, F), the gate values of F features in a batch of B histories. A gate that is always
    open or always closed is penalised. A gate that differs between histories costs nothing.
    """
    return (gate.mean(0) - 0.5).square().mean()
