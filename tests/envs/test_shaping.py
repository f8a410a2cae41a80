from __future__ import annotations

import numpy as np
import pytest

from dreamfleet.core.errors import UserError
from dreamfleet.envs import registry
from dreamfleet.envs.vector import GymVector

COUNT = "dreamfleet.envs.probe:Count-v0"  # pays 1, 2, 3, 4, 5


def test_no_reward_is_below_the_floor_and_the_return_is_told_without_it():
    env = registry.make(COUNT, reward_floor=3.5)
    for _ in range(2):
        _, info = env.reset(seed=0)
        assert info["unshaped_return"] == 0
        steps = [env.step(0) for _ in range(5)]
        assert [reward for _, reward, *_ in steps] == [3.5, 3.5, 3.5, 4, 5]
        assert [step[-1]["unshaped_return"] for step in steps] == [1, 3, 6, 10, 15]


def test_rows_are_shaped_and_what_is_told_of_episodes_is_not():
    env = GymVector(COUNT, 2, seed=0, options={"reward_floor": 3.5})
    rows, told = [env.reset()], [env.info["return"].tolist()]
    for _ in range(7):
        rows.append(env.step(np.zeros(2, np.int64)))
        told.append(env.info["return"].tolist())
    assert [row["reward"][0] for row in rows] == [0, 3.5, 3.5, 3.5, 4, 5, 0, 3.5]
    assert told == [[value] * 2 for value in (0, 1, 3, 6, 10, 15, 0, 1)]


def test_without_a_floor_nothing_is_told():
    env = GymVector(COUNT, 2, seed=0)
    env.reset()
    assert env.info == {}


def test_an_environment_stepped_as_a_batch_refuses_it():
    with pytest.raises(UserError, match=r"NumberGame-v1.* takes no reward_floor"):
        registry.make("NumberGame-v1", reward_floor=0.0)
