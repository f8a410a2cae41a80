"""Returns over windows. One recursion serves n-step, TD(λ) and Retrace(λ)."""

from __future__ import annotations

import torch
from torch import Tensor


def retrace(
    reward: Tensor, discount: Tensor, value: Tensor, q_taken: Tensor, trace: Tensor
) -> Tensor:
    """Targets of Q(s_t, a_t) for t = 0 … T-2 from windows of T rows. All (B, T) → (B, T-1).

        G_t = r_{t+1} + d_{t+1} · (V_{t+1} + c_{t+1} · (G_{t+1} - Q_{t+1})),  G_{T-1} = Q_{T-1}

    `reward` arrived with its row; `discount` d is γ · continue of the row; `value` V and `q_taken`
    Q are the policy's value there and that of the action taken. The `trace` c says how far to
    believe what follows: λ · min(1, π/μ) gives Retrace(λ), which on the policy's own data is the
    λ-return; 1, with V for Q, gives the n-step return; 0 bootstraps from V at once. So a trace of
    0 on the last row of an episode keeps returns inside it and bootstraps truncations.

    Source: Munos et al. 2016, equation 4.
    """
    assert reward.shape == discount.shape == value.shape == q_taken.shape == trace.shape
    correction = torch.zeros_like(value[:, 0])
    returns = []
    for t in range(reward.shape[1] - 1, 0, -1):
        target = reward[:, t] + discount[:, t] * (value[:, t] + correction)
        correction = trace[:, t - 1] * (target - q_taken[:, t - 1])
        returns.append(target)
    return torch.stack(returns[::-1], 1)


def n_step(
    reward: Tensor, last: Tensor, terminal: Tensor, gamma: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The n-step return from the first row of windows of n + 1 rows; all (B, n + 1).

    → the discounted rewards (B,), the row to bootstrap from (B,) i64, and by how much to discount
    the value there (B,): γ^m after m steps, nothing where the return stopped. The sum goes on to
    row n or to the first `last` row, whichever comes first, so truncation bootstraps early.
    """
    n = reward.shape[1] - 1
    power = gamma ** torch.arange(n + 1, device=reward.device)
    reached = (~last[:, :-1]).cumprod(1)  # (B, n) of the rows 1 … n, as the first is no end
    steps = reached.sum(1)
    rewards = (reached * reward[:, 1:]) @ power[:-1]
    stopped = terminal.gather(1, steps.unsqueeze(1)).squeeze(1)
    assert rewards.shape == steps.shape == stopped.shape
    return rewards, steps, power[steps] * (~stopped)
