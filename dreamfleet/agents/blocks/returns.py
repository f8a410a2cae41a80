"""Computes returns of windows of rows: Retrace(λ) returns, λ-returns and n-step returns.

The reward of row t of a window is the reward for the action of row t - 1.
"""

from __future__ import annotations

import torch
from torch import Tensor


def retrace(
    reward: Tensor, discount: Tensor, value: Tensor, q_taken: Tensor, trace_coefficient: Tensor
) -> Tensor:
    """Returns the Retrace targets (B, T-1) of the action values of all rows but the last.

    For B windows of T rows, the target of Q(s_t, a_t) is G_t, for t = 0 … T-2, with

        G_t = r_{t+1} + d_{t+1} · (V_{t+1} + c_{t+1} · (G_{t+1} - Q_{t+1})),  G_{T-1} = Q_{T-1}

    All arguments are (B, T):

    - `reward`: r.
    - `discount`: d, which is γ times the probability that the episode continues at the row.
    - `value`: V, the policy's value of the row's state.
    - `q_taken`: Q, the value of the action taken at the row.
    - `trace_coefficient`: c. With c = λ · min(1, π/μ) the target is Retrace(λ). On the last row of
      an episode, c must be 0.

    Source: Munos et al. 2016, equation 4.
    """
    shape = reward.shape
    assert discount.shape == value.shape == q_taken.shape == trace_coefficient.shape == shape
    # G_t = known_{t+1} + share_{t+1} · G_{t+1}: all but one operation a row is done at once.
    share = discount * trace_coefficient
    known = reward + discount * value - share * q_taken
    target, returns = q_taken[:, -1], []
    for t in range(shape[1] - 1, 0, -1):
        target = torch.addcmul(known[:, t], share[:, t], target)
        returns.append(target)
    return torch.stack(returns[::-1], 1)


def n_step(
    reward: Tensor, last: Tensor, terminal: Tensor, gamma: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the three parts of the n-step return from the first row of each of B windows.

    reward, last, terminal: columns (B, n + 1). gamma: the discount factor. The return ends at row
    n, or earlier at the last row of an episode. The parts have shape (B,) each:

    - the sum of discounted rewards up to the row at which the return ends;
    - the index (int64) of this row in its window; the return bootstraps from the value there;
    - the discount of this value: γ^m after m steps, or 0 if the row is `terminal`.
    """
    n = reward.shape[1] - 1
    power = gamma ** torch.arange(n + 1, device=reward.device)
    reached = (~last[:, :-1]).cumprod(1)  # (B, n), of the rows 1 … n; row 0 is never `last`
    steps = reached.sum(1)
    rewards = (reached * reward[:, 1:]) @ power[:-1]
    stopped = terminal.gather(1, steps.unsqueeze(1)).squeeze(1)
    assert rewards.shape == steps.shape == stopped.shape
    return rewards, steps, power[steps] * (~stopped)
