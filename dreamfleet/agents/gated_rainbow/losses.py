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
    """Returns the loss, the absolute TD error |δ| and the value of B n-step transitions, (B,) each.

    The target is rewards + discount · value of the next action. The online network selects the next
    action, and the target network evaluates it.

    - head: the kind of values, with its loss.
    - taken (B, Z): Z outputs of the online network for each action taken.
    - online_next, target_next (B, A, Z): outputs of the two networks for the history from which the
      return bootstraps, for all A actions, without gradients.
    - rewards (B,): discounted sums of rewards.
    - discount (B,): factors of the next value.

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

    gate: (B, F), the gate values of F features in a batch of B histories. Only the mean over the
    batch is penalised; seed project 000 penalises each value. So a gate that differs between
    histories costs nothing, and a gate that is always open or always closed is penalised.
    """
    return (gate.mean(0) - 0.5).square().mean()
