from __future__ import annotations

import pytest
import torch
from torch.distributions import Categorical, Normal

from dreamfleet.agents.barlow_dreamer.policies import BoundedActions, BoundedNormal, action_kind
from dreamfleet.agents.blocks.rssm import RSSM, RSSMState
from dreamfleet.core.types import Space
from tests.agents.barlow_dreamer.system import CONTINUOUS, VECTOR, build_agent

DISCRETE, BOX = VECTOR.action, Space((2,), "float32")


def make_rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def outputs(*shape: int) -> torch.Tensor:
    return 3 * torch.randn(*shape, generator=make_rng())


# ---------------------------------------------------------------------------- bounded normal


def test_log_density_and_entropy_are_those_of_independent_gaussians():
    policy = BoundedNormal(outputs(5, 7, 4), make_rng())
    mean, std = outputs(5, 7, 4).split(2, -1)
    oracle = Normal(mean.tanh(), 0.9 * torch.sigmoid(std + 2) + 0.1)
    action = outputs(5, 7, 2)
    torch.testing.assert_close(policy.log_prob(action), oracle.log_prob(action).sum(-1))
    torch.testing.assert_close(policy.entropy(), oracle.entropy().sum(-1))
    torch.testing.assert_close(policy.mode, oracle.mean)


def test_deviations_lie_between_a_tenth_and_one():
    extreme = torch.tensor([[0.0, -1e4], [0.0, 1e4]])
    torch.testing.assert_close(BoundedNormal(extreme, None).std, torch.tensor([[0.1], [1.0]]))


def test_samples_have_the_mean_and_the_deviation_and_their_log_density():
    n = 50_000
    policy = BoundedNormal(outputs(4).expand(n, -1), make_rng(1))
    action, log_prob = policy.sampled
    assert ((action.mean(0) - policy.mean[0]) / policy.std[0] * n**0.5).abs().max() < 4
    torch.testing.assert_close(action.std(0), policy.std[0], rtol=0.02, atol=0)
    torch.testing.assert_close(log_prob, policy.log_prob(action))
    assert policy.sampled[0] is action  # one sample, however often it is read
    assert action.abs().max() > 1  # samples may leave the bounds …
    assert BoundedActions(BOX).inside(action).abs().max() == 1  # … and actions may not


# ------------------------------------------------------------------------------- action kinds


def test_continuous_actions_are_moved_to_the_nearest_bound():
    action = torch.tensor([[0.3, -0.2], [1.7, -4.0]])
    assert action_kind(BOX).encode(action).tolist() == [
        pytest.approx([0.3, -0.2]),
        [1.0, -1.0],
    ]


def test_discrete_actions_are_one_hot():
    kind = action_kind(DISCRETE)
    action = torch.tensor([[3, 0], [1, 2]])
    encoded = kind.encode(action)
    assert encoded.shape == (2, 2, kind.size)
    assert torch.equal(kind.decode(encoded), action)
    assert torch.equal(kind.inside(action), action)
    assert torch.equal(encoded.sum(-1), torch.ones(2, 2))


def test_several_choices_are_independent_categoricals():
    kind = action_kind(Space((2,), "int64", choices=(3, 2)))
    logits, action = outputs(400, 5), torch.tensor([[2, 1], [0, 0]]).repeat(200, 1)
    policy = kind.policy(logits, make_rng())
    parts = [
        Categorical(probs=0.99 * part.softmax(-1) + 0.01 / part.shape[-1])
        for part in logits.split([3, 2], -1)
    ]
    expected = sum(part.log_prob(action[:, i]) for i, part in enumerate(parts))
    torch.testing.assert_close(policy.log_prob(action), expected)
    torch.testing.assert_close(policy.entropy(), sum(part.entropy() for part in parts))
    best = torch.stack([part.probs.argmax(-1) for part in parts], -1)
    assert torch.equal(policy.mode, best)
    sample, log_prob = policy.sampled
    torch.testing.assert_close(log_prob, policy.log_prob(sample))
    assert sample.shape == (400, 2) and sample.max(0).values.tolist() == [2, 1]
    assert torch.equal(kind.decode(kind.encode(sample)), sample)
    assert kind.encode(action)[0].tolist() == [0, 0, 1, 0, 1]
    mean = kind.encode(action).repeat(50, 1)
    drawn = kind.near(mean, torch.zeros(20_000, 5), make_rng())
    kept = torch.stack(
        [
            (a * b).sum(-1)
            for a, b in zip(*(x.split([3, 2], -1) for x in (drawn, mean)), strict=True)
        ]
    )
    expected = torch.tensor([0.9 + 0.1 / 3, 0.9 + 0.1 / 2])  # a tenth is at random
    torch.testing.assert_close(kept.mean(1), expected, rtol=0, atol=0.01)


def test_nine_tenths_of_discrete_candidates_have_the_frequencies_of_the_mean():
    kind, n = action_kind(DISCRETE), 40_000
    mean = torch.tensor([0.5, 0.3, 0.2, 0.0])
    drawn = kind.near(mean.expand(n, -1), torch.zeros(n, 4), make_rng())
    assert set(drawn.flatten().tolist()) == {0.0, 1.0}
    mean = 0.9 * mean + 0.1 / 4  # a tenth is at random
    error = (drawn.mean(0) - mean) / (mean * (1 - mean) / n).sqrt()
    assert error.abs().max() < 4


def test_candidates_of_continuous_actions_lie_around_the_mean_within_the_bounds():
    kind, n = action_kind(BOX), 40_000
    mean, deviation = torch.tensor([0.2, 0.9]).expand(n, 2), torch.tensor([0.2, 0.0]).expand(n, 2)
    drawn = kind.near(mean, deviation, make_rng())
    assert drawn.abs().max() <= 1
    torch.testing.assert_close(drawn[:, 0].mean(), torch.tensor(0.2), rtol=0, atol=0.005)
    torch.testing.assert_close(drawn[:, 0].std(), torch.tensor(0.2), rtol=0.03, atol=0)
    assert drawn[:, 1].std() > 0.03  # a plan never stops to explore


def test_the_recurrence_sees_no_action_beyond_one():
    torch.manual_seed(0)
    rssm = RSSM(16, 8, 2, 4, action=2, embed=4)
    state, noise = rssm.initial(2), torch.ones(2, 2, 4)
    state = RSSMState(state.deter + 0.3, state.stoch)
    large = rssm.imagine(state, torch.tensor([[5.0, -0.5], [-9.0, 0.2]]), noise)
    inside = rssm.imagine(state, torch.tensor([[1.0, -0.5], [-1.0, 0.2]]), noise)
    assert torch.equal(large.deter, inside.deter)


@pytest.mark.parametrize("spec", [VECTOR, CONTINUOUS], ids=["discrete", "continuous"])
def test_greedy_actions_are_the_mode_and_explored_ones_are_samples(spec):
    agent = build_agent(spec)
    n = 300
    rows = {"obs": torch.ones(n, *spec.obs.shape), "first": torch.zeros(n, dtype=torch.bool)}
    (greedy, state, _), (explored, _, _) = (
        agent.respond(rows, agent.initial_state(n), explore) for explore in (False, True)
    )
    mode = agent.actions.policy(agent.actor(RSSMState(*state[:2]).features), None).mode
    assert torch.equal(greedy, agent.actions.inside(mode))
    assert len(explored.unique(dim=0)) > 1
    assert greedy.dtype == explored.dtype
    if not spec.action.discrete:
        assert explored.abs().max() <= 1
