from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

from dreamfleet.agents.blocks.arrays import to_tensors
from dreamfleet.agents.blocks.distributions import TanhNormal
from dreamfleet.agents.blocks.quantiles import quantile_huber
from dreamfleet.agents.dreamwalker.config import PRIORITY_OFFSET, Config
from dreamfleet.agents.dreamwalker.network import (
    actor_loss,
    critic_loss,
    temperature_loss,
    truncate,
)
from dreamfleet.core.errors import UserError
from dreamfleet.core.selectors import EmphasizeRecent, Mixture, Prioritized, Uniform
from dreamfleet.core.types import Consumer, Sample
from dreamfleet.replay_server.table import Table
from tests.agents.dreamwalker.system import build_agent, policy_windows
from tests.replay_server.model import Episodes, spec
from tests.runs import train

# ----------------------------------------------------------------------------------- losses


@pytest.mark.parametrize("drop", [0, 2])
def test_truncate_drops_the_largest_quantiles_of_all_critics(drop):
    rng = np.random.default_rng(0)
    quantiles = rng.normal(size=(3, 4, 5))
    found = truncate(torch.tensor(quantiles), drop).sort(-1).values
    for b in range(4):
        expected = sorted(quantiles[:, b].ravel())[: 3 * (5 - drop)]
        np.testing.assert_allclose(found[b], expected)


def test_the_critic_loss_is_the_weighted_mean_over_all_quantiles():
    quantiles, target, weight = torch.randn(3, 20, 5), 2 * torch.randn(20, 12), torch.rand(20)
    counts = torch.ones(20)
    weight[:4], counts[:4], counts[4:8] = 0, 0, 0.25
    losses = quantile_huber(quantiles, target) / 5  # (K, B), means over quantiles
    expected = (losses.mean(0) * weight).sum() / 13
    torch.testing.assert_close(critic_loss(quantiles, target, weight, counts), expected)


def test_targets_bootstrap_at_truncation_and_not_at_termination():
    """Compares the critics' quantiles and targets with the results of a plain loop over windows."""
    agent = build_agent(gamma=0.9, initial_temperature=0.5)
    with torch.no_grad():
        for net, seed in ((agent.critics, 1), (agent.target, 2)):
            for parameter in net.parameters():
                parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(seed))
    rows = to_tensors(policy_windows(30).data, "cpu")
    terminal, last = rows["terminal"][:, 1], rows["last"][:, 1]
    assert terminal.any()
    assert (last & ~terminal).any()
    obs, next_obs = rows["obs"].unbind(1)
    reward, discount = rows["reward"][:, 1], 0.9 * ~terminal
    taken = torch.cat([obs, rows["action"][:, 0]], -1)
    noise = torch.randn(30, 1)
    quantiles, target = agent.quantiles_and_targets(taken, next_obs, reward, discount, noise)
    action, log_prob = TanhNormal(agent.actor(next_obs), noise=noise).sampled
    for b in range(30):
        following = torch.cat([next_obs[b], action[b]])[None].detach()
        truncated = agent.target(following).flatten().sort().values[: 3 * 4]
        expected = reward[b] + (0 if terminal[b] else 0.9) * (truncated - 0.5 * log_prob[b])
        torch.testing.assert_close(target[b].sort().values, expected.detach(), atol=1e-5, rtol=0)
        torch.testing.assert_close(quantiles[:, b], agent.critics(taken[b : b + 1])[:, 0])


def test_the_losses_of_actor_and_temperature_match_the_paper():
    value, log_prob = torch.tensor([1.0, 2.0]), torch.tensor([0.5, -1.0])
    np.testing.assert_allclose(actor_loss(value, log_prob, torch.tensor(0.2)), [-0.9, -2.2])
    log_temperature = torch.zeros((), requires_grad=True)
    for entropy, sign in ((-3.0, -1), (-1.0, 1)):  # below the target of -2, and above it
        loss = temperature_loss(log_temperature, torch.tensor([-entropy]), -2.0).sum()
        (gradient,) = torch.autograd.grad(loss, log_temperature)
        assert math.copysign(1, gradient) == sign


def test_the_loss_of_the_actor_has_no_gradient_for_the_critics():
    agent = build_agent(dream_share=0.0)
    loss, _ = agent.actor_update_loss(torch.randn(40, 2), torch.ones(40), torch.randn(40, 1))
    nets = (agent.actor, agent.critics)
    actor, critics = (
        torch.autograd.grad(loss, list(net.parameters()), retain_graph=True, allow_unused=True)
        for net in nets
    )
    assert all(gradient is not None and gradient.any() for gradient in actor)
    assert all(gradient is None for gradient in critics)


def test_windows_that_count_0_do_not_change_the_loss_of_the_actor():
    agent, obs, noise = build_agent(dream_share=0.0), torch.randn(40, 2), torch.randn(40, 1)
    counts = (torch.arange(40) < 10).float()
    weighted, _ = agent.actor_update_loss(obs, counts, noise)
    expected, _ = agent.actor_update_loss(obs[:10], torch.ones(10), noise[:10])
    torch.testing.assert_close(weighted, expected)


def test_reward_scale_does_not_change_reported_td_errors():
    sample, metrics = policy_windows(40), []
    for scale in (1.0, 0.1):
        agent = build_agent(dream_share=0.0, gamma=0.0, reward_scale=scale)
        with torch.no_grad():
            for parameter in agent.critics.parameters():
                parameter.zero_()
        metrics.append(agent.learn_policy(sample, None).metrics)
    assert metrics[0]["value/td_error"] == pytest.approx(float(metrics[1]["value/td_error"]))
    mean_reward = np.abs(sample.data["reward"][:, 1]).mean()
    assert float(metrics[1]["value/td_error"]) == pytest.approx(mean_reward, rel=1e-5)


def test_with_batch_normalisation_one_forward_pass_is_made_and_the_target_is_not_updated():
    agent = build_agent(norm="batch", dream_share=0.0)
    target = copy.deepcopy(agent.target.state_dict())
    for seed in range(3):
        agent.learn_policy(policy_windows(40, seed), None)
    renorm = agent.critics.renorm[0]
    assert float(renorm.batches) == 3
    for name, value in agent.target.state_dict().items():
        torch.testing.assert_close(value, target[name])


@pytest.mark.parametrize(("column", "expected"), [("last", False), ("terminal", True)])
def test_only_terminal_stops_the_return(column, expected):
    agent, rows = (
        build_agent(dream_share=0.0, norm="none"),
        to_tensors(policy_windows(40).data, "cpu"),
    )
    with torch.no_grad():
        agent.target.output_bias.fill_(5.0)  # added to the next value
    errors = []
    for value in (False, True):
        rows[column] = torch.full_like(rows[column], value)
        update = agent.critic_update_loss(rows, torch.ones(40), None, torch.zeros(40, 1))
        errors.append(update.abs_error)
        agent.normaliser = build_agent().normaliser
    assert (not torch.equal(*errors)) == expected


# ------------------------------------------------------------------------------- sampling


@pytest.mark.parametrize(
    ("options", "selector"),
    [
        ({"emphasize_recent": False}, Uniform),
        ({}, EmphasizeRecent),
        ({"emphasize_recent": False, "prioritized": True}, Prioritized),
        ({"prioritized": True}, Mixture),
    ],
)
def test_settings_choose_the_selector_of_real_windows(options, selector):
    agent = build_agent(**options)
    assert isinstance(agent.tables["real"].consumers["policy"].selector, selector)
    sample = Sample({**policy_windows(40).data}, np.arange(40), np.full(40, 0.1), 40)
    feedback = agent.learn_policy(sample, None)
    assert ("priority" in feedback.rows) == agent.config.prioritized


def test_ere_samples_from_as_many_rows_as_the_formula_of_the_paper():
    """The newest c_k = max(N · η^(1000 k / K), c_min) of N rows are sampled."""
    config = Config(
        ere_eta=0.995, ere_min_rows=60, ere_cycle=20, anneal_steps=50, policy_updates_per_step=2.0
    )
    table_spec = spec(2000, a=Consumer(50, 1, config.selector))
    table, episodes = Table("real", table_spec, 0), Episodes()
    table.add(episodes.chunk([0], np.zeros(1000)), np.array([0]))
    for update in range(130):
        sample = table.sample("a")
        assert sample is not None
        eta = 0.995 + 0.005 * min(update / 100, 1)  # 50 agent steps are 100 updates
        k = update % 20 + 1
        newest = int(max(1000 * eta ** (1000 * k / 20), 60))
        assert sample.keys.min() >= 1000 - newest
        np.testing.assert_allclose(sample.prob, 1 / newest)


def test_priorities_are_td_errors_and_importance_weights_follow_beta():
    agent = build_agent(prioritized=True, anneal_steps=100)
    sample = policy_windows(40)
    before = copy.deepcopy(agent)
    feedback = agent.learn_policy(sample, None)
    rows = to_tensors(sample.data, "cpu")
    before.normaliser.update(rows["obs"], rows["reward"])
    x = before.normaliser(rows["obs"])
    taken = torch.cat([x[:, 0], rows["action"][:, 0]], -1)
    discount = before.config.gamma * ~rows["terminal"][:, 1]
    noise = torch.randn((2, 40, 1), generator=before.policy_rng)[0]
    quantiles, target = before.quantiles_and_targets(
        taken, x[:, 1], rows["reward"][:, 1], discount, noise
    )
    error = (target.mean(-1) - quantiles.mean((0, 2))).abs().detach()
    np.testing.assert_allclose(feedback.rows["priority"], error + PRIORITY_OFFSET, rtol=1e-4)
    prob = np.array([0.5, 0.25, 0.01, 0.1])
    for updates, beta in ((0, 0.4), (50, 0.7), (300, 1.0)):
        agent.normaliser.updates.fill_(updates)
        expected = (1 / (20 * prob)) ** beta
        weight = agent.importance_weights(torch.tensor(20 * prob, dtype=torch.float32))
        np.testing.assert_allclose(weight, expected / expected.max(), rtol=1e-5)


# ------------------------------------------------------------------------ acting and settings


def test_actions_are_uniform_before_the_first_update():
    agent = build_agent()
    rows = {"obs": np.zeros((4000, 2), np.float32), "first": np.ones(4000, bool)}
    action, _, _ = agent.act(rows, agent.initial_state(4000), explore=True)
    counts, _ = np.histogram(action, bins=4, range=(-1, 1))
    assert np.abs(counts / 4000 - 0.25).max() < 0.04
    agent.normaliser.updates.fill_(1)
    action, _, _ = agent.act(rows, agent.initial_state(4000), explore=True)
    counts, _ = np.histogram(action, bins=4, range=(-1, 1))
    assert np.abs(counts / 4000 - 0.25).max() > 0.08


def test_held_out_is_drawn_at_the_start_of_an_episode_and_kept():
    agent, n = build_agent(held_out_share=0.3), 2000
    rows = {"obs": np.zeros((n, 2), np.float32), "first": np.ones(n, bool)}
    _, state, extras = agent.act(rows, agent.initial_state(n), explore=True)
    assert abs(extras["held_out"].mean() - 0.3) < 0.05
    _, _, later = agent.act({**rows, "first": np.zeros(n, bool)}, state, explore=True)
    np.testing.assert_array_equal(later["held_out"], extras["held_out"])


@pytest.mark.parametrize(
    "options",
    [
        {"norm": "layer", "dropout": 0.1},
        {"norm": "batch", "dream_share": 0.0},
        {"dense": False},
        {"critics": 1, "dropped_quantiles": 0},
        {"reward_scale": 0.1},
        {"prioritized": True},
    ],
    ids=str,
)
def test_every_variant_has_finite_metrics(options):
    agent = build_agent(**options)
    for seed in range(3):
        metrics = agent.learn_policy(policy_windows(40, seed), None).metrics
    assert all(np.isfinite(float(value)) for value in metrics.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"members": 7}, r"world_batch must be a multiple of agent.members \(7\)"),
        ({"dream_share": 1.0}, "share must be from 0 to below 1; found 1"),
        ({"initial_temperature": 0.0}, "initial_temperature must be"),
        ({"policy_updates_per_step": 0.0}, "policy_updates_per_step must be"),
        (
            {"dropped_quantiles": 25},
            r"dropped_quantiles must be below agent.quantiles \(25\); found 25",
        ),
        ({"world_heads": 5}, r"world_hidden must be a multiple of agent.world_heads \(5\)"),
        ({"held_out_share": 2.0}, "held_out_share must be from"),
    ],
)
def test_inconsistent_settings_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        Config(**options)


# ---------------------------------------------------------------------- probe environment


def test_it_learns_the_best_action_for_each_observation(tmp_path):
    hidden = {"critic_hidden": [32, 32], "actor_hidden": [32, 32], "critics": 2, "quantiles": 5}
    rates = {
        "lr_policy": 5e-3,
        "lr_critic": 5e-3,
        "slow_critic": 0.1,
        "gamma": 0.5,
        "initial_temperature": 0.1,
    }
    options = {
        **hidden,
        **rates,
        "dropped_quantiles": 0,
        "batch": 64,
        "warmup": 64,
        "dream_share": 0.0,
    }
    run = train(
        tmp_path, "dreamfleet.envs.probe:Continuous-v0", 300, options=options, agent="dreamwalker"
    )
    agent = run.agent()
    rows = {"obs": np.array([[-1.0], [1.0]], np.float32), "first": np.ones(2, bool)}
    action, _, _ = agent.act(rows, agent.initial_state(2), explore=False)
    np.testing.assert_allclose(action, [[-0.5], [0.5]], atol=0.2)
