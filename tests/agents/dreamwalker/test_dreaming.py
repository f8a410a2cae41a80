from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from dreamfleet.agents.blocks.arrays import to_tensors
from tests.agents.dreamwalker.system import CONTEXT, HORIZON, Swing, build_agent, policy_windows


def test_dreams_are_as_long_as_the_held_out_error_allows(trained_agent):
    starts = Swing().windows(10, 1)
    for growth, trusted in ((0.01, HORIZON), (0.14, 2), (1.0, 0)):
        agent = copy.deepcopy(trained_agent)
        agent.slow_world.held_out_error.copy_((growth * torch.arange(1, HORIZON + 1)) ** 2)
        dreams = agent.dream(starts)
        assert {value.shape[:2] for value in dreams.values()} == {(10, HORIZON + 1)}
        assert not dreams["weight"][:, trusted:].any()
        assert dreams["last"][:, trusted:].all()
        assert (dreams["weight"].sum() > 0) == (trusted > 0)
    assert trained_agent.trusted_steps().sum() == HORIZON


def test_no_dream_is_trusted_before_dream_after_steps(trained_agent):
    agent = copy.deepcopy(trained_agent)
    agent.config = build_agent(dream_after=100).config
    starts = Swing().windows(10, 1)
    assert agent.dream(starts)["weight"].sum() == 0
    agent.normaliser.updates.fill_(100)
    assert agent.dream(starts)["weight"].sum() > 0


def test_dreams_begin_with_real_rows_and_stay_in_the_real_range(trained_agent):
    starts = Swing().windows(10, 1)
    dreams = trained_agent.dream(starts)
    np.testing.assert_array_equal(dreams["obs"][:, 0], starts.data["obs"][:, -1])
    world = trained_agent.slow_world
    assert ((dreams["obs"] >= world.low) & (dreams["obs"] <= world.high)).all()
    assert (dreams["weight"][:, -1] == 0).all()
    assert dreams["last"][:, -1].all()
    assert (dreams["version"] == world.normaliser.updates).all()


def test_dreams_do_not_depend_on_the_cache_of_keys_and_values(trained_agent):
    """Compares dreams with the results of a loop without a cache of attention keys and values.

    In the loop the transformer reads all tokens again at each step.
    """
    agent, starts = copy.deepcopy(trained_agent), Swing().windows(10, 1)
    rng_state = agent.dream_rng.get_state()
    dreams = agent.dream(starts)
    agent.dream_rng.set_state(rng_state)
    world, rows = agent.slow_world, to_tensors(starts.data, "cpu")
    past = {key: rows[key][:, :CONTEXT] for key in ("obs", "action", "reward", "first")}
    obs, reward, first = rows["obs"][:, -1], rows["reward"][:, -1], rows["first"][:, -1]
    with torch.no_grad():
        for step in range(HORIZON):
            action = agent.policy_at(obs, agent.dream_rng).sampled[0]
            now = {"obs": obs, "action": action, "reward": reward, "first": first}
            past = {key: torch.cat([past[key], now[key][:, None]], 1) for key in past}
            x = world.normaliser(past["obs"])
            tokens = world.tokens(x, past["action"], past["reward"], past["first"])
            embedding = world.transformer(tokens)[0][:, -1]
            dreamed = world.dream_step(embedding, obs, agent.dream_rng)
            obs, reward, first = dreamed.obs, dreamed.reward, torch.zeros_like(first)
            torch.testing.assert_close(dreams["obs"][:, step + 1], obs, atol=1e-5, rtol=0)
            torch.testing.assert_close(dreams["reward"][:, step + 1], reward, atol=1e-5, rtol=0)
            torch.testing.assert_close(dreams["action"][:, step], action, atol=1e-5, rtol=0)


def test_fewer_steps_are_trusted_outside_of_the_data(trained_agent):
    inside, outside = (Swing().windows(60, 1) for _ in range(2))
    outside.data["obs"] = outside.data["obs"] * 4
    weight = [trained_agent.dream(starts)["weight"].sum() for starts in (inside, outside)]
    assert weight[1] < 0.5 * weight[0]


def test_dreams_end_at_a_predicted_termination(trained_agent):
    agent = copy.deepcopy(trained_agent)
    with torch.no_grad():
        agent.slow_world.outcome.linear[-1].bias[1] = 50.0  # termination is certain
    dreams = agent.dream(Swing().windows(10, 1))
    trusted = dreams["weight"][:, 0] > 0
    assert trusted.any()
    assert dreams["terminal"][trusted, 1].all()
    assert dreams["last"][:, 1].all()
    assert not dreams["weight"][:, 1:].any()


def test_dreamed_observations_have_the_mean_and_deviation_of_real_ones(trained_agent):
    """Compares dreamed and real observations at each step, for the same policy and starts."""
    system = Swing()
    starts = system.windows(500, 1)
    dreamed = trained_agent.dream(starts)["obs"].numpy()
    x = starts.data["obs"][:, -1]
    observations = [x]
    for _ in range(HORIZON):
        action = (
            trained_agent.policy_at(torch.tensor(x), trained_agent.act_rng)
            .sampled[0]
            .detach()
            .numpy()
        )
        x = (x @ system.A.T + action * system.b).astype(np.float32)
        observations.append(x)
    real = np.stack(observations, 1)
    assert real.shape == dreamed.shape
    assert np.abs(real.mean(0) - dreamed.mean(0)).max() < 0.1 * real.std()
    np.testing.assert_allclose(dreamed.std(0), real.std(0), rtol=0.15)


# ------------------------------------------------------------------------ dreams in updates


def test_untrusted_dreams_do_not_change_an_update(trained_agent):
    real, dreams = policy_windows(30), trained_agent.dream(Swing().windows(10, 1))
    dreams["weight"] = torch.zeros_like(dreams["weight"])
    feedback = []
    for given in (None, dreams):
        agent = build_agent(prioritized=True)
        with torch.no_grad():  # deterministic actions: dreamed rows change the order of draws
            agent.actor.net.output_weight[:, :, 1:] = 0
            agent.actor.net.output_bias[:, :, 1:] = -100
            agent.actor.log_temperature.fill_(-20)
        feedback.append(agent.learn_policy(real, given))
    assert float(feedback[1].metrics["dream/share"]) == 0
    assert float(feedback[1].metrics["dream/optimism"]) == 0
    for name in ("loss/policy", "grad_norm/critic"):
        without, beside = (float(each.metrics[name]) for each in feedback)
        assert without == pytest.approx(beside, rel=0.02)
    priorities = [each.rows["priority"] for each in feedback]
    np.testing.assert_allclose(*priorities, rtol=0.05, atol=0.01)


def test_trusted_dreams_have_the_configured_share_of_an_update(trained_agent):
    dreams = trained_agent.dream(Swing().windows(60, 1))
    assert dreams["weight"].sum() > 10
    agent = build_agent()
    agent.slow_world.normaliser.updates.fill_(257)
    metrics = agent.learn_policy(policy_windows(30), dreams).metrics
    assert float(metrics["dream/share"]) == pytest.approx(0.25)
    assert float(metrics["dream/age"]) == 7


def test_optimism_is_in_the_unit_of_rewards(trained_agent):
    """If 3 is added to each dreamed reward, the metric `dream/optimism` rises by 3."""
    dreams = trained_agent.dream(Swing().windows(60, 1))
    optimism = []
    for bonus in (0, 3):
        agent = build_agent(reward_scale=0.5)
        with_bonus = {**dreams, "reward": dreams["reward"] + bonus}
        metrics = agent.learn_policy(policy_windows(30), with_bonus).metrics
        optimism.append(float(metrics["dream/optimism"]))
    assert optimism[1] - optimism[0] == pytest.approx(3, rel=1e-3)


def test_a_dream_keeps_the_version_of_the_model_that_made_it(trained_agent):
    agent = copy.deepcopy(trained_agent)
    dreams = agent.dream(Swing().windows(10, 1))
    version = float(agent.slow_world.normaliser.updates)
    agent.learn_world(Swing().windows(60, HORIZON + 1))
    assert float(agent.slow_world.normaliser.updates) > version
    assert (dreams["version"] == version).all()


def test_without_dreams_the_world_model_does_not_learn():
    with_dreams, without = build_agent().tables, build_agent(dream_share=0.0).tables
    assert with_dreams["real"].consumers.keys() == {"policy", "world", "start"}
    assert without.keys() == {"real"}
    assert without["real"].consumers.keys() == {"policy"}
    assert without["real"].consumers["policy"].batch == 40
    assert with_dreams["real"].consumers["policy"].batch == 30
