"""Returns over windows of rows: Retrace(λ), which includes the λ-return, and the n-step return.

The reward of a row is the one that arrived with its observation, for the action of the row before.
"""

from __future__ import annotations

import torch
from torch import Tensor


def retrace(
    reward: Tensor, discount: Tensor, value: Tensor, q_taken: Tensor, trace_coefficient: Tensor
) -> Tensor:
    """Returns the Retrace targets of Q(s_t, a_t), t = 0 … T-2, of windows of T rows: (B, T-1).

        G_t = r_{t+1} + d_{t+1} · (V_{t+1} + c_{t+1} · (G_{t+1} - Q_{t+1})),  G_{T-1} = Q_{T-1}

    All arguments are (B, T). `reward` is r. `discount` d is γ times the probability that the
    episode continues at the row. `value` V is the policy's value of the row's state. `q_taken` Q is
    the value of the action taken there.

    `trace_coefficient` c says how much of the return beyond the row is used. c = λ · min(1, π/μ)
    gives Retrace(λ), which is the λ-return if the policy itself took the actions. c = 1, with V in
    the place of Q, gives the n-step return. c = 0 bootstraps from V. So c = 0 on the last row of an
    episode keeps returns inside the episode; after a truncation they bootstrap.

    Source: Munos et al. 2016, equation 4.
    """
    shape = reward.shape
    assert discount.shape == value.shape == q_taken.shape == trace_coefficient.shape == shape
    correction = torch.zeros_like(value[:, 0])
    returns = []
    for t in range(shape[1] - 1, 0, -1):
        target = reward[:, t] + discount[:, t] * (value[:, t] + correction)
        correction = trace_coefficient[:, t - 1] * (target - q_taken[:, t - 1])
        returns.append(target)
    return torch.stack(returns[::-1], 1)


def n_step(
    reward: Tensor, last: Tensor, terminal: Tensor, gamma: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the parts of the n-step return from the first row of windows of n + 1 rows.

    All arguments are (B, n + 1). The parts are:

    - the sum of discounted rewards (B,), up to row n or to the first `last` row;
    - the index of this final row (B,), i64, from which the return bootstraps;
    - the discount (B,) of the value there: γ^m after m steps, or 0 if the row is `terminal`.
    """
    n = reward.shape[1] - 1
    power = gamma ** torch.arange(n + 1, device=reward.device)
    reached = (~last[:, :-1]).cumprod(1)  # (B, n), of the rows 1 … n; row 0 is never `last`
    steps = reached.sum(1)
    rewards = (reached * reward[:, 1:]) @ power[:-1]
    stopped = terminal.gather(1, steps.unsqueeze(1)).squeeze(1)
    assert rewards.shape == steps.shape == stopped.shape
    return rewards, steps, power[steps] * (~stopped)
