"""Tests that Dreamwalker and TQC of sb3-contrib have equal networks and learn from equal rows."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.updates.dreamwalker import (
    DEFAULTS,
    ENV,
    EPISODE,
    EQUAL,
    OURS,
    STREAMS,
    TQC,
    comparison,
    random_episodes,
    tqc,
    tqc_updates,
)
from benchmarks.updates.speed import measure
from dreamfleet.agents.dreamwalker.agent import Dreamwalker
from dreamfleet.envs.vector import GymVector

SMALL = replace(EQUAL, capacity=2048, batch=32)


@pytest.fixture(scope="module")
def spec():
    env = GymVector(ENV, 1, seed=0)
    env.close()
    return env.spec


@pytest.fixture(scope="module")
def model(spec):
    pytest.importorskip("sb3_contrib")
    return tqc(SMALL, random_episodes(spec, SMALL.capacity))


def test_every_installed_learner_is_measured():
    found = measure(comparison(SMALL), rounds=2, seconds=0.01)
    assert set(found["rates"]) | set(found["skipped"]) == {OURS[0], DEFAULTS, TQC}
    assert all(len(rates) == 2 and min(rates) > 0 for rates in found["rates"].values())


def test_rows_are_complete_episodes_with_enough_steps(spec):
    rows = random_episodes(spec, SMALL.capacity)
    assert (~rows["last"]).sum() >= SMALL.capacity
    assert rows["obs"].shape == (STREAMS, rows["last"].shape[1], 24)
    np.testing.assert_array_equal(np.flatnonzero(rows["first"][0]) % EPISODE, 0)
    np.testing.assert_array_equal(rows["first"][:, 1:], rows["last"][:, :-1])


def test_the_networks_are_equal(spec, model):
    ours = Dreamwalker(SMALL, spec, 0, "cpu")
    assert nonzero(ours.critics) == numbers(model.critic)
    assert nonzero(ours.target) == numbers(model.critic_target)
    assert nonzero(ours.actor.net) == numbers(model.actor)


def numbers(net):
    return sum(parameter.numel() for parameter in net.parameters())


def nonzero(net):
    """Returns how many parameters of a network are not 0.

    Our layers are padded with zeros that are never learned. The padding must not be counted.
    """
    return sum(int(parameter.count_nonzero()) for parameter in net.parameters())


def test_tqc_samples_the_steps_of_the_rows(spec, model):
    rows = random_episodes(spec, SMALL.capacity)
    sample = model.replay_buffer.sample(64)
    assert sample.observations.shape == (64, 24) and sample.actions.shape == (64, 4)
    for k in range(64):
        (i,), (t,) = np.nonzero((rows["obs"] == sample.observations[k].numpy()).all(-1))
        np.testing.assert_array_equal(sample.next_observations[k], rows["obs"][i, t + 1])
        np.testing.assert_array_equal(sample.actions[k], rows["action"][i, t])
        assert sample.rewards[k] == rows["reward"][i, t + 1]
        assert bool(sample.dones[k]) == rows["terminal"][i, t + 1]


def test_updates_of_tqc_change_its_critics(model):
    before = [parameter.detach().clone() for parameter in model.critic.parameters()]
    updates = model._n_updates
    tqc_updates(model, SMALL.batch)(3)
    assert model._n_updates == updates + 3
    parameters = zip(before, model.critic.parameters(), strict=True)
    assert all((was != now).any() for was, now in parameters)
