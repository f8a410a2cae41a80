from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from dreamfleet.agents.barlow_dreamer.config import Config
from dreamfleet.agents.barlow_dreamer.planning import plan, weighted
from dreamfleet.agents.barlow_dreamer.policies import action_kind
from dreamfleet.agents.blocks.arrays import to_array
from dreamfleet.agents.blocks.rssm import RSSMState
from dreamfleet.core.types import Space
from tests.agents.barlow_dreamer.system import CONTINUOUS, VECTOR, build_agent, draw_rows

PLACES, ACTIONS, HORIZON, GAMMA = 6, 3, 4, 0.8


class Maze:
    """A deterministic world of a few places, with the methods of world model and behaviour.

    Its tables are random: the next place, the reward of arriving there, the probability that the
    episode continues there, and the critic's value. The policy is uniform.
    """

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.next = torch.from_numpy(rng.integers(PLACES, size=(PLACES, ACTIONS)))
        self.reward = torch.from_numpy(rng.normal(size=PLACES)).float()
        self.cont = torch.from_numpy(rng.choice([0.0, 0.5, 1.0, 1.0, 1.0], PLACES)).float()
        self.value = torch.from_numpy(2 * rng.normal(size=PLACES)).float()
        self.rssm = SimpleNamespace(imagine=self.imagine)
        self.critic = SimpleNamespace(mean=lambda features: self.value[self.place(features)])

    def place(self, features: Tensor) -> Tensor:
        return features[:, -1].long()

    def imagine(self, state: RSSMState, action: Tensor, noise: Tensor) -> RSSMState:
        place = self.next[state.deter[:, 0].long(), action.argmax(-1)]
        return RSSMState(place.float().unsqueeze(1), state.stoch)

    def rewards(self, features: Tensor) -> Tensor:
        return self.reward[self.place(features)]

    def continues(self, features: Tensor) -> Tensor:
        return self.cont[self.place(features)]

    def actor(self, features: Tensor) -> Tensor:
        return torch.zeros(len(features), ACTIONS)

    def plan(self, seed: int = 0, **options: float) -> Tensor:
        """Returns the mean (PLACES, ACTIONS) of the first action of plans from every place."""
        config = Config(
            gamma=GAMMA,
            **{"plan_horizon": HORIZON, "plan_candidates": 100, "plan_rounds": 6, **options},
        )
        kind, rng = action_kind(Space((), "int64", ACTIONS)), torch.Generator().manual_seed(seed)
        places = torch.arange(PLACES).float().unsqueeze(1)
        state = RSSMState(places, torch.zeros(PLACES, 2, 2))
        return plan(config, self, self, kind, state, rng)[0]  # type: ignore[arg-type]

    def returns(self) -> np.ndarray:
        """Returns the returns (PLACES, ACTIONS, …) of all sequences, by their first action."""
        found = np.zeros((PLACES, *[ACTIONS] * HORIZON))
        for start in range(PLACES):
            for sequence in itertools.product(range(ACTIONS), repeat=HORIZON):
                place, total, reached = start, 0.0, 1.0
                for action in sequence:
                    place = int(self.next[place, action])
                    total += reached * self.reward[place].item()
                    reached *= GAMMA * self.cont[place].item()
                found[(start, *sequence)] = total + reached * self.value[place].item()
        return found.reshape(PLACES, ACTIONS, -1)


@pytest.mark.parametrize("seed", range(5))
def test_plans_begin_with_the_best_of_all_sequences(seed):
    """Found by trying all sequences, with rewards, discounts, ends and the critic's value."""
    maze = Maze(seed)
    returns, mean = maze.returns(), maze.plan()
    best = returns.max(-1)
    torch.testing.assert_close(mean.sum(-1), torch.ones(PLACES))
    lost = best.max(1) - best[np.arange(PLACES), mean.argmax(-1)]
    deviation = returns.std((1, 2))
    assert (best.max(1) - best.min(1) > deviation).any()
    assert (lost <= 0.5 * deviation).all()  # by as little, sequences are worth the same


@pytest.mark.parametrize("reward, best", [(1.0, 1), (0.2, 2)])
def test_the_reward_that_arrives_with_an_end_counts_in_full_and_nothing_after_it(reward, best):
    """Place 1 ends the episode; place 2 gives 0.1 in each of four steps: 0.295 in all."""
    maze = Maze(0)
    maze.next = torch.tensor([[0, 1, 2]] + [[1, 1, 1]] + [[2, 2, 2]] + [[0, 0, 0]] * 3)
    maze.reward = torch.tensor([0, reward, 0.1, 0, 0, 0])
    maze.cont = torch.tensor([1.0, 0, 1, 1, 1, 1])
    maze.value = torch.zeros(PLACES)
    assert maze.plan()[0].argmax() == best
    returns = maze.returns()[0].reshape(ACTIONS, -1)
    assert returns[1].max() == pytest.approx(reward)
    assert returns[2].max() == pytest.approx(0.1 * (1 + 0.8 + 0.8**2 + 0.8**3))


def test_plans_are_better_than_the_uniform_policy_that_proposes_them():
    gains = []
    for seed in range(10):
        maze = Maze(seed)
        best = maze.returns().max(-1)
        chosen = best[np.arange(PLACES), maze.plan(seed=1).argmax(-1)]
        gains.append((chosen - best.mean(1)).mean())
    assert min(gains) >= 0
    assert np.mean(gains) > 0.3


def test_more_rounds_concentrate_on_the_best_action():
    maze = Maze(0)
    sure = [maze.plan(plan_rounds=rounds).max(-1).values.mean().item() for rounds in (1, 3, 6)]
    assert sure[0] < sure[1] < sure[2]


@pytest.mark.parametrize("rounds", [1, 3])
def test_one_candidate_is_a_plan_too(rounds):
    mean = Maze(0).plan(plan_candidates=1, plan_rounds=rounds)
    assert mean.isfinite().all()
    torch.testing.assert_close(mean.sum(-1), torch.ones(PLACES))


def test_candidates_are_weighted_by_their_returns_in_units_of_their_deviation():
    returns = torch.tensor([[1.0, 2.0, 4.0], [100.0, 200.0, 400.0]])
    action = torch.randn(2, 3, 5, 2, generator=torch.Generator().manual_seed(0))
    mean, deviation = weighted(returns, action)
    for n in range(2):
        x = returns[n].numpy()
        weight = np.exp((x - x.max()) / (0.5 * x.std()))
        weight /= weight.sum()
        expected = np.einsum("k,kha->ha", weight, action[n].numpy())
        np.testing.assert_allclose(mean[n], expected, rtol=1e-4, atol=1e-6)
        spread = np.einsum("k,kha->ha", weight, (action[n].numpy() - expected) ** 2) ** 0.5
        np.testing.assert_allclose(deviation[n], spread, rtol=1e-4, atol=1e-6)


def test_equal_returns_weigh_all_candidates_alike():
    action = torch.randn(1, 4, 2, 3, generator=torch.Generator().manual_seed(0))
    mean, _ = weighted(torch.full((1, 4), 7.0), action)
    torch.testing.assert_close(mean, action.mean(1))


def test_plans_of_continuous_actions_come_near_the_best():
    """The reward is higher, the nearer the action is to a target, which depends on the state."""
    target = torch.tensor([[0.7, -0.3], [-0.9, 0.1], [0.0, 0.0]])

    def imagine(state: RSSMState, action: Tensor, noise: Tensor) -> RSSMState:
        found = target[state.deter[:, 0].long()]
        loss = (action - found).square().sum(-1, keepdim=True)
        return RSSMState(torch.cat([state.deter[:, :1], state.deter[:, 1:] - loss], 1), state.stoch)

    last = lambda features: features[:, -1]  # noqa: E731
    world = SimpleNamespace(
        rssm=SimpleNamespace(imagine=imagine),
        rewards=last,
        continues=lambda features: torch.ones(len(features)),
        actor=lambda features: torch.zeros(len(features), 4),
        critic=SimpleNamespace(mean=last),
    )
    config = Config(plan_horizon=2, plan_candidates=200, plan_rounds=6)
    state = RSSMState(
        torch.cat([torch.arange(3.0).unsqueeze(1), torch.zeros(3, 1)], 1), torch.zeros(3, 2, 2)
    )
    rng = torch.Generator().manual_seed(0)
    mean, _ = plan(config, world, world, action_kind(CONTINUOUS.action), state, rng)  # type: ignore[arg-type]
    assert (mean - target).abs().max() < 0.25


@pytest.mark.parametrize("spec", [VECTOR, CONTINUOUS], ids=["discrete", "continuous"])
def test_greedy_plans_are_the_same_every_time_and_explored_ones_are_not(spec):
    agent = build_agent(spec, plan=True, plan_candidates=8, plan_horizon=3)
    rows = {name: to_array(value[:, 0]) for name, value in draw_rows(agent).items() if name in SEEN}
    rows["first"][:] = True
    rows = {name: np.repeat(value, 10, 0) for name, value in rows.items()}
    state = agent.initial_state(40)
    greedy = [agent.act(rows, state, explore=False)[0] for _ in range(2)]
    explored = [agent.act(rows, state, explore=True)[0] for _ in range(2)]
    assert np.array_equal(*greedy)
    assert not np.array_equal(*explored)
    for action in greedy + explored:
        assert action.shape == (40, *spec.action.shape)
        assert action.dtype == spec.action.dtype
        if not spec.action.discrete:
            assert np.abs(action).max() <= 1


SEEN = ("obs", "first", "reward")
