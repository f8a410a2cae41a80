"""Tests the rewards of the probe environments."""

import numpy as np
import pytest

from dreamfleet.envs.vector import GymVector


def one_step(name, action):
    env = GymVector(f"dreamfleet.envs.probe:{name}-v0", 64, seed=0)
    rows = env.reset()
    return rows["obs"][:, 0], env.step(action(rows["obs"][:, 0]))


@pytest.mark.parametrize(
    ("name", "action", "reward"),
    [
        ("Constant", lambda seen: np.zeros(64, int), lambda seen: np.ones(64)),
        ("ObsReward", lambda seen: np.zeros(64, int), lambda seen: seen),
        ("ActionReward", lambda seen: np.arange(64) % 2, lambda seen: np.tile([-1.0, 1.0], 32)),
        ("ObsActionReward", lambda seen: (seen > 0).astype(int), lambda seen: np.ones(64)),
        ("Continuous", lambda seen: np.zeros((64, 1), np.float32), lambda seen: -np.ones(64)),
    ],
)
def test_one_step_probes_end_at_once_and_pay_the_documented_reward(name, action, reward):
    seen, rows = one_step(name, action)
    np.testing.assert_array_equal(rows["reward"], reward(seen))
    assert rows["terminal"].all()
    if "Obs" in name or name == "Continuous":
        assert set(seen) == {-1.0, 1.0}


def test_the_delayed_probe_pays_on_its_second_step():
    env = GymVector("dreamfleet.envs.probe:Delayed-v0", 1, seed=0)
    rows = [env.reset(), *(env.step(np.zeros(1, int)) for _ in range(2))]
    assert [row["obs"].item() for row in rows] == [0, 1, 1]
    assert [row["reward"].item() for row in rows] == [0, 0, 1]
    assert [row["terminal"].item() for row in rows] == [False, False, True]
