from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from dreamfleet.agents.blocks.arrays import to_tensors
from tests.agents.dreamwalker.system import CONTEXT, HORIZON, Swing, build, steps


def test_dreams_go_as_far_as_the_held_out_error_lets_them(swinging):
    starts = Swing().windows(10, 1)
    for growth, believed in ((0.01, HORIZON), (0.14, 2), (1.0, 0)):
        agent = copy.deepcopy(swinging)
        agent.slow_world.error.copy_((growth * torch.arange(1, HORIZON + 1)) ** 2)
        dreams = agent.dream(starts)
        assert dreams["obs"].shape[:2] == (10, max(believed, 1) + 1)
        assert dreams["weight"].sum() <= 10 * believed
        assert (dreams["weight"].sum() > 0) == (believed > 0)
    assert swinging.trusted_steps().sum() == HORIZON


def test_dreams_wait_for_their_time(swinging):
    agent = copy.deepcopy(swinging)
    agent.config = build(dream_after=100).config
    starts = Swing().windows(10, 1)
    assert agent.dream(starts)["weight"].sum() == 0
    agent.normaliser.updates.fill_(100)
    assert agent.dream(starts)["weight"].sum() > 0


def test_dreams_begin_with_real_rows_and_stay_where_observations_were(swinging):
    starts = Swing().windows(10, 1)
    dreams = swinging.dream(starts)
    np.testing.assert_array_equal(dreams["obs"][:, 0], starts.data["obs"][:, -1])
    world = swinging.slow_world
    assert ((dreams["obs"] >= world.low) & (dreams["obs"] <= world.high)).all()
    assert (dreams["weight"][:, -1] == 0).all()
    assert dreams["last"][:, -1].all()
    assert (dreams["version"] == world.normaliser.updates).all()


def test_a_dream_is_what_reading_everything_anew_would_make_of_it(swinging):
    """Step by step through the whole of what was seen, without what the transformer remembers."""
    agent, starts = copy.deepcopy(swinging), Swing().windows(10, 1)
    noise = agent.dream_rng.get_state()
    dreams = agent.dream(starts)
    agent.dream_rng.set_state(noise)
    world, rows = agent.slow_world, to_tensors(starts.data, "cpu")
    seen = {key: rows[key][:, :CONTEXT] for key in ("obs", "action", "reward", "first")}
    obs, reward, first = rows["obs"][:, -1], rows["reward"][:, -1], rows["first"][:, -1]
    with torch.no_grad():
        for step in range(HORIZON):
            action = agent.policy_at(obs, agent.dream_rng).sampled[0]
            now = {"obs": obs, "action": action, "reward": reward, "first": first}
            seen = {key: torch.cat([seen[key], now[key][:, None]], 1) for key in seen}
            x = world.normaliser(seen["obs"])
            tokens = world.tokens(x, seen["action"], seen["reward"], seen["first"])
            read = world.transformer(tokens)[0][:, -1]
            imagined = world.imagine(read, obs, agent.dream_rng)
            obs, reward, first = imagined.obs, imagined.reward, torch.zeros_like(first)
            torch.testing.assert_close(dreams["obs"][:, step + 1], obs, atol=1e-5, rtol=0)
            torch.testing.assert_close(dreams["reward"][:, step + 1], reward, atol=1e-5, rtol=0)
            torch.testing.assert_close(dreams["action"][:, step], action, atol=1e-5, rtol=0)


def test_heads_disagree_where_the_data_never_was(swinging):
    inside, outside = (Swing().windows(60, 1) for _ in range(2))
    outside.data["obs"] = outside.data["obs"] * 4
    weight = [swinging.dream(starts)["weight"].sum() for starts in (inside, outside)]
    assert weight[1] < 0.5 * weight[0]


def test_dreams_end_where_the_model_says_so(swinging):
    agent = copy.deepcopy(swinging)
    with torch.no_grad():
        agent.slow_world.outcome.linear[-1].bias[1] = 50.0  # the end is certain
    dreams = agent.dream(Swing().windows(10, 1))
    believed = dreams["weight"][:, 0] > 0
    assert believed.any()
    assert dreams["terminal"][believed, 1].all()
    assert dreams["last"][:, 1].all()
    assert not dreams["weight"][:, 1:].any()


def test_dreamed_states_are_like_those_the_policy_lives_through(swinging):
    """Played by the same policy from the same starts, as distributions over steps."""
    system = Swing()
    starts = system.windows(500, 1)
    dreamed = swinging.dream(starts)["obs"].numpy()
    x = starts.data["obs"][:, -1]
    lived = [x]
    for _ in range(HORIZON):
        action = swinging.policy_at(torch.tensor(x), swinging.act_rng).sampled[0].detach().numpy()
        x = (x @ system.A.T + action * system.b).astype(np.float32)
        lived.append(x)
    real = np.stack(lived, 1)
    assert real.shape == dreamed.shape
    assert np.abs(real.mean(0) - dreamed.mean(0)).max() < 0.1 * real.std()
    np.testing.assert_allclose(dreamed.std(0), real.std(0), rtol=0.15)


# --------------------------------------------------------------------------- in an update


def test_dreams_nobody_believes_leave_an_update_to_the_real_rows(swinging):
    real, dreams = steps(30), swinging.dream(Swing().windows(10, 1))
    dreams["weight"] = torch.zeros_like(dreams["weight"])
    found = []
    for beside in (None, dreams):
        agent = build(prioritized=True)
        with torch.no_grad():  # nothing random, so that dreamed rows change no draw of others
            agent.actor.net.leave[:, :, 1:] = 0
            agent.actor.net.leave_bias[:, :, 1:] = -100
            agent.actor.log_temperature.fill_(-20)
        found.append(agent.learn_policy(real, beside))
    assert float(found[1].metrics["dream/share"]) == 0
    assert float(found[1].metrics["dream/optimism"]) == 0
    for name in ("loss/policy", "grad_norm/critic"):
        one, other = (float(each.metrics[name]) for each in found)
        assert one == pytest.approx(other, rel=0.02)
    np.testing.assert_allclose(found[0].priorities, found[1].priorities, rtol=0.05, atol=0.01)


def test_believed_dreams_are_their_share_of_the_update(swinging):
    dreams = swinging.dream(Swing().windows(60, 1))
    assert dreams["weight"].sum() > 10
    agent = build()
    agent.slow_world.normaliser.updates.fill_(257)
    metrics = agent.learn_policy(steps(30), dreams).metrics
    assert float(metrics["dream/share"]) == pytest.approx(0.25)
    assert float(metrics["dream/age"]) == 7


def test_what_dreams_promise_more_than_real_rows_is_told(swinging):
    dreams = swinging.dream(Swing().windows(60, 1))
    told = []
    for bonus in (0, 3):
        agent = build(reward_scale=0.5)
        richer = {**dreams, "reward": dreams["reward"] + bonus}
        told.append(float(agent.learn_policy(steps(30), richer).metrics["dream/optimism"]))
    assert told[1] - told[0] == pytest.approx(3, rel=1e-3)


def test_a_dream_keeps_the_version_it_was_made_with(swinging):
    agent = copy.deepcopy(swinging)
    dreams = agent.dream(Swing().windows(10, 1))
    version = float(agent.slow_world.normaliser.updates)
    agent.learn_world(Swing().windows(60, HORIZON + 1))
    assert float(agent.slow_world.normaliser.updates) > version
    assert (dreams["version"] == version).all()


def test_without_dreams_there_is_no_world():
    with_dreams, without = build().tables, build(dream_share=0.0).tables
    assert with_dreams["real"].consumers.keys() == {"policy", "world", "start"}
    assert without.keys() == {"real"}
    assert without["real"].consumers.keys() == {"policy"}
    assert without["real"].consumers["policy"].batch == 40
    assert with_dreams["real"].consumers["policy"].batch == 30
