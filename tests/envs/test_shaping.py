from __future__ import annotations

import numpy as np
import pytest

from dreamfleet.core.errors import EnvironmentFault, UserError
from dreamfleet.envs import registry
from dreamfleet.envs.vector import GymVector
from tests.envs import own

COUNT = "dreamfleet.envs.probe:Count-v0"  # pays 1, 2, 3, 4, 5


def test_rewards_are_raised_to_the_floor_and_the_unshaped_return_is_kept():
    env = registry.make(COUNT, reward_floor=3.5)
    for _ in range(2):
        env.reset(seed=0)
        assert env.unshaped_return == 0
        steps = [(env.step(0)[1], env.unshaped_return) for _ in range(5)]
        assert [reward for reward, _ in steps] == [3.5, 3.5, 3.5, 4, 5]
        assert [unshaped for _, unshaped in steps] == [1, 3, 6, 10, 15]


def test_rows_have_shaped_rewards_and_episodes_have_unshaped_returns():
    env = GymVector(COUNT, 2, seed=0, options={"reward_floor": 3.5})
    rows, told = [env.reset()], [env.info["return"].tolist()]
    for _ in range(7):
        rows.append(env.step(np.zeros(2, np.int64)))
        told.append(env.info["return"].tolist())
    assert [row["reward"][0] for row in rows] == [0, 3.5, 3.5, 3.5, 4, 5, 0, 3.5]
    assert told == [[value] * 2 for value in (0, 1, 3, 6, 10, 15, 0, 1)]


def test_without_a_floor_there_is_no_unshaped_return():
    env = GymVector(COUNT, 2, seed=0)
    env.reset()
    assert env.info == {}


def test_a_batched_environment_refuses_a_floor():
    with pytest.raises(UserError, match=r"NumberGame-v1.* takes no reward_floor"):
        registry.make("NumberGame-v1", reward_floor=0.0)


def test_an_unshaped_return_in_an_environments_info_is_ignored():
    told = {"unshaped_return": 1e6}
    name = own.register("Boasts-v0", info=lambda t: told, ended=lambda t: t == 2)
    env = GymVector(name, 1, seed=0)
    env.reset()
    for _ in range(2):
        env.step(np.zeros(1, np.int64))
    assert "return" not in env.info and env.info["unshaped_return"].tolist() == [1e6]


@pytest.mark.parametrize("reward", [None, "1.0", [1, 2]])
def test_under_a_floor_a_wrong_reward_is_named(reward):
    name = own.register("Reward-v0", reward=lambda t: reward)
    env = GymVector(name, 1, seed=0, options={"reward_floor": -1.0})
    env.reset()
    with pytest.raises(EnvironmentFault, match="as its reward, which is no number"):
        env.step(np.zeros(1, np.int64))


@pytest.mark.parametrize("floor", [float("nan"), float("inf"), -float("inf"), True, "low"])
def test_a_floor_is_a_finite_number(floor):
    with pytest.raises(UserError, match=r"env\.reward_floor must be a number or null; found"):
        registry.make(COUNT, reward_floor=floor)
