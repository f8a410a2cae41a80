"""Dreamwalker and the TQC of sb3-contrib race with the same networks, on the same rows."""

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
    episodes,
    peer,
    race,
    training,
)
from benchmarks.updates.speed import measure, without
from dreamfleet.agents.dreamwalker.agent import Dreamwalker
from dreamfleet.envs.vector import GymVector

SMALL = replace(EQUAL, capacity=2048, batch=32)


@pytest.fixture(scope="module")
def spec():
    env = GymVector(ENV, 1, seed=0)
    env.close()
    return env.spec


@pytest.fixture(scope="module")
def theirs(spec):
    pytest.importorskip("sb3_contrib")
    return peer(SMALL, episodes(spec, SMALL.capacity))


def test_every_side_that_is_installed_is_measured():
    racing = without(race(SMALL), OURS[1:])  # to compile takes minutes
    found = measure(racing, rounds=2, seconds=0.01)
    assert set(found["rates"]) | set(found["skipped"]) == {OURS[0], DEFAULTS, TQC}
    assert all(len(rates) == 2 and min(rates) > 0 for rates in found["rates"].values())


def test_rows_are_whole_episodes_and_steps_enough(spec):
    rows = episodes(spec, SMALL.capacity)
    assert (~rows["last"]).sum() >= SMALL.capacity
    assert rows["obs"].shape == (STREAMS, rows["last"].shape[1], 24)
    np.testing.assert_array_equal(np.flatnonzero(rows["first"][0]) % EPISODE, 0)
    np.testing.assert_array_equal(rows["first"][:, 1:], rows["last"][:, :-1])


def test_the_networks_are_equal(spec, theirs):
    ours = Dreamwalker(SMALL, spec, 0, "cpu")
    assert numbers(ours.critics) == numbers(theirs.critic)
    assert numbers(ours.target) == numbers(theirs.critic_target)
    assert numbers(ours.actor) == numbers(theirs.actor) + 1  # the temperature is the actor's


def numbers(net):
    return sum(parameter.numel() for parameter in net.parameters())


def test_the_peer_draws_the_steps_of_the_rows(spec, theirs):
    rows = episodes(spec, SMALL.capacity)
    drawn = theirs.replay_buffer.sample(64)
    assert drawn.observations.shape == (64, 24) and drawn.actions.shape == (64, 4)
    for k in range(64):
        (i,), (t,) = np.nonzero((rows["obs"] == drawn.observations[k].numpy()).all(-1))
        np.testing.assert_array_equal(drawn.next_observations[k], rows["obs"][i, t + 1])
        np.testing.assert_array_equal(drawn.actions[k], rows["action"][i, t])
        assert drawn.rewards[k] == rows["reward"][i, t + 1]
        assert bool(drawn.dones[k]) == rows["terminal"][i, t + 1]


def test_the_work_of_the_peer_is_its_training(theirs):
    before = [parameter.detach().clone() for parameter in theirs.critic.parameters()]
    updates = theirs._n_updates
    training(theirs, SMALL.batch)(3)
    assert theirs._n_updates == updates + 3
    moved = zip(before, theirs.critic.parameters(), strict=True)
    assert all((was != now).any() for was, now in moved)
