from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.blocks.training import to_tensors
from agents.dreamwalker.world import inside
from core.types import Consumer, Sample
from replay_server.table import Table
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
        means, _ = world.heads(read.flatten(0, 1).expand(world.members, -1, -1))
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
        clean.world.measure(clean.slow_world, each, each["action"])
        measured.append(clean.world.error)
    assert (measured[1] > measured[0] + 1).all()


def test_the_held_out_error_is_that_of_an_open_loop_read_anew_at_each_step(swinging):
    """Without what the transformer remembers: every step reads all tokens so far again."""
    agent, sample = copy.deepcopy(swinging), Swing(edge=0.7).windows(60, HORIZON + 1)
    rows = to_tensors(sample.data, "cpu")
    agent.world.seen.zero_()
    agent.world.measure(agent.slow_world, rows, rows["action"])
    world = agent.slow_world
    real = world.normaliser(rows["obs"])
    errors: list[list[float]] = [[] for _ in range(HORIZON)]
    for b in np.flatnonzero(sample.data["held_out"][:, 0]):
        x, reward = real[b, : CONTEXT + 1].clone(), rows["reward"][b, : CONTEXT + 1].clone()
        for step in range(HORIZON):
            at = CONTEXT + step
            if rows["last"][b, CONTEXT : at + 1].any():
                break
            first = rows["first"][b, : at + 1]
            with torch.no_grad():
                code = rows["action"][b, : at + 1]
                tokens = world.tokens(x[None], code[None], reward[None], first[None])
                read = world.transformer(tokens)[0][:, -1]
                means, _ = world.heads(read.expand(world.members, -1, -1))
                change = means.mean(0) * world.change_rms
                paid = world.outcomes(read, change)[0] * world.normaliser.reward_rms
            x, reward = torch.cat([x, x[-1:] + change]), torch.cat([reward, paid])
            errors[step].append(float((x[-1] - real[b, at + 1]).square().mean()))
    np.testing.assert_allclose(agent.world.error, [np.mean(step) for step in errors], rtol=1e-3)


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
    assert (agent.world.change.weight[-1] != 0).any()  # it began at zero
    starts = {key: value[:, : context + 1] for key, value in sample.data.items()}
    assert agent.dream(Sample(starts, sample.keys, sample.prob, sample.size))["obs"].shape[1] == 2
