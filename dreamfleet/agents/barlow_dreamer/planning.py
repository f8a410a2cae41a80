"""Plans actions in the world model by MPPI: compares many sequences of actions in dreams.

The candidates of the first round are dreams of the policy. Each further round draws candidates
around the mean of the candidates so far, weighted by their returns. A return is the sum of the
discounted predicted rewards of a candidate, and the critic's value of its last state.

Source: Williams et al. 2017; TD-MPC2 (Hansen et al. 2024) for the policy's proposals.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dreamfleet.agents.barlow_dreamer.behaviour import Behaviour
from dreamfleet.agents.barlow_dreamer.config import Config
from dreamfleet.agents.barlow_dreamer.policies import ActionKind
from dreamfleet.agents.barlow_dreamer.world import WorldModel
from dreamfleet.agents.blocks.rssm import RSSMState

TEMPERATURE = 0.5  # of the weights of candidates, in standard deviations of their returns


@torch.no_grad()
def plan(
    config: Config,
    world: WorldModel,
    behaviour: Behaviour,
    actions: ActionKind,
    state: RSSMState,
    rng: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Returns mean and deviation (n, A) of the encoded first action of plans for n states.

    For discrete actions the mean has the probabilities of the actions.

    state (n, …): the present states. rng: draws candidates and dreamed states.
    """
    n, candidates = len(state.deter), config.plan_candidates
    many = RSSMState(*(part.repeat_interleave(candidates, 0) for part in state))  # (n · K, …)

    def policy(now: RSSMState, step: int) -> Tensor:
        drawn = actions.policy(behaviour.actor(now.features), rng).sampled[0]
        return actions.encode(drawn)

    def returns(choose: Callable[[RSSMState, int], Tensor]) -> tuple[Tensor, Tensor]:
        """Returns the returns (n, K) of candidates, and their encoded actions (n, K, H, A)."""
        now, reached = many, torch.ones(n * candidates, device=many.deter.device)
        total, taken = torch.zeros_like(reached), []
        for step in range(config.plan_horizon):
            action = choose(now, step)
            taken.append(action)
            noise = torch.empty(
                n * candidates, config.sizes.groups, config.sizes.classes, device=reached.device
            ).exponential_(generator=rng)
            now = world.rssm.imagine(now, action.to(now.deter.dtype), noise)
            features = now.features
            total += reached * world.rewards(features)
            reached = reached * config.gamma * world.continues(features)
        total += reached * behaviour.critic.mean(features)
        return total.unflatten(0, (n, -1)), torch.stack(taken, 1).unflatten(0, (n, -1))

    all_returns, all_actions = returns(policy)
    for _ in range(config.plan_rounds - 1):
        mean, deviation = weighted(all_returns, all_actions)

        def near(now: RSSMState, step: int, m: Tensor = mean, d: Tensor = deviation) -> Tensor:
            about = m[:, step].repeat_interleave(candidates, 0)
            return actions.near(about, d[:, step].repeat_interleave(candidates, 0), rng)

        more_returns, more_actions = returns(near)
        all_returns = torch.cat([all_returns, more_returns], 1)
        all_actions = torch.cat([all_actions, more_actions], 1)
    mean, deviation = weighted(all_returns, all_actions)
    return mean[:, 0], deviation[:, 0]


def weighted(returns: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
    """Returns mean and standard deviation (n, H, A) of candidates, weighted by their returns.

    returns (n, K); action (n, K, H, A). The weight is softmax(return / temperature), with a
    temperature in standard deviations of the returns.
    """
    unit = TEMPERATURE * returns.std(1, correction=0, keepdim=True).clamp(min=1e-6)
    weight = torch.softmax(returns / unit, 1)[..., None, None]
    mean = (weight * action).sum(1)
    return mean, (weight * (action - mean.unsqueeze(1)).square()).sum(1).sqrt()
