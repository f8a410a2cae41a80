from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamfleet.agents.blocks.arrays import to_tensors
from dreamfleet.agents.blocks.device import make_rng
from dreamfleet.agents.dreamwalker.world import steps_in_episode
from dreamfleet.core.types import Consumer, Sample
from dreamfleet.replay_server.table import Table
from tests.agents.dreamwalker.system import CONTEXT, HORIZON, Swing, build_agent
from tests.replay_server.model import Episodes, spec


def test_it_learns_a_linear_system(trained_agent):
    """On new windows the one-step error is below 15 % of the error of predicting no change."""
    rows = to_tensors(Swing().windows(60, HORIZON + 1).data, "cpu")
    world = trained_agent.slow_world
    x = world.normaliser(rows["obs"])
    with torch.no_grad():
        tokens = world.tokens(x, rows["action"], rows["reward"], rows["first"])
        embedding, _ = world.transformer(tokens[:, :-1])
        changes = world.heads(embedding.flatten(0, 1).expand(world.members, -1, -1))
        change = changes.mean(0).unflatten(0, embedding.shape[:2]) * world.change_rms
        reward, terminal_logit = world.predict_outcome(embedding, change)
    real_change, real_reward = x.diff(dim=1), rows["reward"][:, 1:]
    error = (change - real_change)[:, CONTEXT:].square().mean().sqrt()
    assert error < 0.15 * real_change.square().mean().sqrt()
    reward = reward * world.normaliser.reward_rms
    reward_error = (reward - real_reward)[:, CONTEXT:].square().mean().sqrt()
    assert reward_error < 0.15 * real_reward.std()
    assert torch.sigmoid(terminal_logit).max() < 0.1  # no episode terminates


def test_held_out_windows_change_the_held_out_error_and_not_the_loss():
    agent, sample = build_agent(), Swing().windows(60, HORIZON + 1)
    other = copy.deepcopy(sample)
    other.data["obs"][other.data["held_out"][:, 0], CONTEXT + 1 :] += 5
    rows = [to_tensors(each.data, "cpu") for each in (sample, other)]
    losses = [agent.world.loss(each)[0] for each in rows]
    torch.testing.assert_close(losses[0], losses[1])
    errors = []
    for each in rows:
        untrained = build_agent()
        untrained.world.update_statistics(each)
        untrained.world.update_held_out_error(untrained.world, each, untrained.dream_rng)
        errors.append(untrained.world.held_out_error)
    assert (errors[1] > errors[0] + 1).all()


def test_the_held_out_error_is_that_of_dreams_with_the_real_actions(trained_agent):
    """Compares the held-out error with the result of a loop without a cache of keys and values.

    In the loop the transformer reads all tokens again at each step.
    """
    agent, sample = copy.deepcopy(trained_agent), Swing(edge=0.7).windows(60, HORIZON + 1)
    rows, rng_state = to_tensors(sample.data, "cpu"), agent.dream_rng.get_state()
    agent.world.held_out_windows.zero_()
    agent.world.update_held_out_error(agent.slow_world, rows, agent.dream_rng)
    agent.dream_rng.set_state(rng_state)
    world = agent.slow_world
    obs, reward = rows["obs"][:, : CONTEXT + 1], rows["reward"][:, : CONTEXT + 1]
    for t in range(CONTEXT + 1, CONTEXT + 1 + HORIZON):
        with torch.no_grad():
            x, action, first = world.normaliser(obs), rows["action"][:, :t], rows["first"][:, :t]
            embedding = world.transformer(world.tokens(x, action, reward, first))[0][:, -1]
            step = world.dream_step(embedding, obs[:, -1], agent.dream_rng)
        obs = torch.cat([obs, step.obs[:, None]], 1)
        reward = torch.cat([reward, step.reward[:, None]], 1)
    square = (world.normaliser(obs) - world.normaliser(rows["obs"])).square().mean(-1)
    last, held_out = sample.data["last"], sample.data["held_out"][:, 0]
    for step in range(HORIZON):
        mask = held_out & ~last[:, CONTEXT : CONTEXT + 1 + step].any(1)
        expected = square[torch.as_tensor(mask), CONTEXT + 1 + step].mean()
        assert agent.world.held_out_error[step] == pytest.approx(float(expected), rel=1e-3)


def test_only_two_valued_numbers_are_random_and_keep_their_two_values():
    """The mean of the drawn values equals the predicted value."""
    world = build_agent().world
    rows = to_tensors(Swing().windows(60, HORIZON + 1).data, "cpu")
    rows["obs"][..., 1] = torch.where(rows["obs"][..., 1] > 0, 3.0, -1.0)
    world.update_statistics(rows)
    assert world.two_valued.tolist() == [False, True]
    obs = torch.tensor([[0.1, 0.0]]).expand(
        4000, 2
    )  # the second is a quarter of the way from -1 to 3
    embedding = torch.zeros(len(obs), world.embed.out_features)
    with torch.no_grad():
        step = world.dream_step(embedding, obs, make_rng(0, "cpu"))  # predicts no change
    numbers, flags = step.obs.unbind(-1)
    assert (numbers == numbers[0]).all()
    assert set(flags.tolist()) == {-1.0, 3.0}
    assert (flags == 3).float().mean() == pytest.approx(0.25, abs=0.03)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.booleans(), min_size=30, max_size=60), st.integers(0, 4), st.integers(2, 5))
def test_steps_in_episode_match_the_numbers_of_episodes(ends, context, window):
    """Compares the mask of steps with episode numbers, for episodes sampled from a replay."""
    table_spec = spec(256, a=Consumer(20, window, context=context))
    table, episodes = Table("real", table_spec, 0), Episodes()
    table.add(episodes.chunk([0], [*ends[:-1], False]), np.array([0]))
    episode = np.cumsum([0, *ends[:-1]])
    sample = table.sample("a")
    if sample is None:
        return
    assert isinstance(sample, Sample)
    first, last = (torch.tensor(sample.data[name]) for name in ("first", "last"))
    found = steps_in_episode(first, last, context)
    keys = sample.data["obs"][..., 1].astype(int)  # number of each row in the stream
    same_episode = episode[keys] == episode[keys[:, context : context + 1]]
    expected = same_episode[:, 1:] & same_episode[:, :-1] & (np.diff(keys, axis=1) == 1)
    np.testing.assert_array_equal(found.numpy().astype(bool), expected)


@pytest.mark.parametrize("context", [0, 2])
def test_it_learns_and_dreams_with_any_context(context):
    agent = build_agent(context=context)
    world = agent.tables["real"].consumers["world"]
    assert (world.context, world.window) == (context, HORIZON + 1)
    sample = Swing().windows(60, HORIZON + 1)
    sample.data = {key: value[:, CONTEXT - context :] for key, value in sample.data.items()}
    agent.learn_world(sample)
    assert (agent.world.heads.weight[-1] != 0).any()  # initially 0
    starts = {key: value[:, : context + 1] for key, value in sample.data.items()}
    dreams = agent.dream(Sample(starts, sample.keys, sample.prob, sample.size))
    assert dreams["obs"].shape[1] == HORIZON + 1
