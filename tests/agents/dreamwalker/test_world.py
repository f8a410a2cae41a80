from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamfleet.agents.blocks.arrays import to_tensors
from dreamfleet.agents.blocks.device import make_rng
from dreamfleet.agents.dreamwalker.world import inside
from dreamfleet.core.types import Consumer, Sample
from dreamfleet.replay_server.table import Table
from tests.agents.dreamwalker.system import CONTEXT, HORIZON, Swing, build
from tests.replay_server.model import Episodes, spec


def test_it_learns_a_linear_system(swinging):
    """On fresh windows, each step with its reward; compared with the guess of no change."""
    rows = to_tensors(Swing().windows(60, HORIZON + 1).data, "cpu")
    world = swinging.slow_world
    x = world.normaliser(rows["obs"])
    with torch.no_grad():
        tokens = world.tokens(x, rows["action"], rows["reward"], rows["first"])
        read, _ = world.transformer(tokens[:, :-1])
        means = world.heads(read.flatten(0, 1).expand(world.members, -1, -1))
        change = means.mean(0).unflatten(0, read.shape[:2]) * world.change_rms
        reward, end = world.outcomes(read, change)
    real = x.diff(dim=1)
    wrong = (change - real)[:, CONTEXT:].square().mean().sqrt()
    assert wrong < 0.15 * real.square().mean().sqrt()
    paid = rows["reward"][:, 1:]
    off = (reward * world.normaliser.reward_rms - paid)[:, CONTEXT:].square().mean().sqrt()
    assert off < 0.15 * paid.std()
    assert torch.sigmoid(end).max() < 0.1  # it has no end


def test_held_out_windows_are_measured_and_never_learned():
    agent, sample = build(), Swing().windows(60, HORIZON + 1)
    other = copy.deepcopy(sample)
    other.data["obs"][other.data["held_out"][:, 0], CONTEXT + 1 :] += 5
    rows = [to_tensors(each.data, "cpu") for each in (sample, other)]
    learned = [agent.world.loss(each, each["action"])[0] for each in rows]
    torch.testing.assert_close(learned[0], learned[1])
    measured = []
    for each in rows:
        clean = build()
        clean.world.update_statistics(each)
        clean.world.update_held_out_error(clean.world, each, each["action"], clean.dream_rng)
        measured.append(clean.world.error)
    assert (measured[1] > measured[0] + 1).all()


def test_the_held_out_error_is_that_of_dreams_whose_every_step_is_read_anew(swinging):
    """Without what the transformer remembers: every step reads all tokens so far again."""
    agent, sample = copy.deepcopy(swinging), Swing(edge=0.7).windows(60, HORIZON + 1)
    rows, noise = to_tensors(sample.data, "cpu"), copy.deepcopy(agent.dream_rng.get_state())
    agent.world.seen.zero_()
    agent.world.update_held_out_error(agent.slow_world, rows, rows["action"], agent.dream_rng)
    agent.dream_rng.set_state(noise)
    world = agent.slow_world
    obs, reward = rows["obs"][:, : CONTEXT + 1], rows["reward"][:, : CONTEXT + 1]
    for at in range(CONTEXT + 1, CONTEXT + 1 + HORIZON):
        with torch.no_grad():
            x, told = world.normaliser(obs), (rows["action"][:, :at], reward, rows["first"][:, :at])
            read = world.transformer(world.tokens(x, *told))[0][:, -1]
            step = world.imagine(read, obs[:, -1], agent.dream_rng)
        obs = torch.cat([obs, step.obs[:, None]], 1)
        reward = torch.cat([reward, step.reward[:, None]], 1)
    wrong = (world.normaliser(obs) - world.normaliser(rows["obs"])).square().mean(-1)
    last, held_out = sample.data["last"], sample.data["held_out"][:, 0]
    for step in range(HORIZON):
        going_on = held_out & ~last[:, CONTEXT : CONTEXT + 1 + step].any(1)
        expected = wrong[torch.as_tensor(going_on), CONTEXT + 1 + step].mean()
        assert agent.world.error[step] == pytest.approx(float(expected), rel=1e-3)


def test_flags_stay_flags_and_nothing_else_is_drawn():
    """A number that has two values in real rows is as often high as its mean says."""
    world = build().world
    rows = to_tensors(Swing().windows(60, HORIZON + 1).data, "cpu")
    rows["obs"][..., 1] = torch.where(rows["obs"][..., 1] > 0, 3.0, -1.0)
    world.update_statistics(rows)
    assert world.two_valued.tolist() == [False, True]
    obs = torch.tensor([[0.1, 0.0]]).expand(4000, 2)  # the second: a quarter of the way up
    read = torch.zeros(len(obs), world.embed.out_features)
    with torch.no_grad():
        step = world.imagine(read, obs, make_rng(0, "cpu"))  # untrained: no change
    numbers, flags = step.obs.unbind(-1)
    assert (numbers == numbers[0]).all()
    assert set(flags.tolist()) == {-1.0, 3.0}
    assert (flags == 3).float().mean() == pytest.approx(0.25, abs=0.03)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.booleans(), min_size=30, max_size=60), st.integers(0, 4), st.integers(2, 5))
def test_no_step_that_is_learned_crosses_an_episode(ends, context, window):
    """Random episodes through a replay: every step taken for one is one, and none is missed."""
    of = spec(256, a=Consumer(20, window, context=context))
    table, episodes = Table("real", of, 0), Episodes()
    table.add(episodes.chunk([0], [*ends[:-1], False]), np.array([0]))
    episode = np.cumsum([0, *ends[:-1]])
    sample = table.sample("a")
    if sample is None:
        return
    assert isinstance(sample, Sample)
    first, last = (torch.tensor(sample.data[name]) for name in ("first", "last"))
    found = inside(first, last, context)
    places = sample.data["obs"][..., 1].astype(int)  # how manieth row each is
    own = episode[places] == episode[places[:, context : context + 1]]
    expected = own[:, 1:] & own[:, :-1] & (np.diff(places, axis=1) == 1)
    np.testing.assert_array_equal(found.numpy().astype(bool), expected)


@pytest.mark.parametrize("context", [0, 2])
def test_any_context_will_do(context):
    agent = build(context=context)
    world = agent.tables["real"].consumers["world"]
    assert (world.context, world.window) == (context, HORIZON + 1)
    sample = Swing().windows(60, HORIZON + 1)
    sample.data = {key: value[:, CONTEXT - context :] for key, value in sample.data.items()}
    agent.learn_world(sample)
    assert (agent.world.heads.weight[-1] != 0).any()  # it began at zero
    starts = {key: value[:, : context + 1] for key, value in sample.data.items()}
    assert agent.dream(Sample(starts, sample.keys, sample.prob, sample.size))["obs"].shape[1] == 2
