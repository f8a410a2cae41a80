"""One observation or many, as an agent sees them."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest

from dreamfleet.envs.codec import Codec
from tests.envs import own

ROOM = gym.spaces.Dict(
    {"cell": gym.spaces.Discrete(3), "speed": gym.spaces.Box(-1, 1, (2,), np.float32)}
)


def room() -> Codec:
    return Codec(own.register("Room-v0", observes=ROOM), {})


def test_a_batch_has_one_more_axis_in_each_part():
    one, batched = room().encode({"cell": 2, "speed": np.array([0.5, -0.5], np.float32)})
    assert not batched
    np.testing.assert_array_equal(one, [[0, 0, 1, 0.5, -0.5]])
    many = {"cell": np.array([2, 0]), "speed": np.array([[0.5, -0.5], [0, 1]], np.float32)}
    both, batched = room().encode(many)
    assert batched
    np.testing.assert_array_equal(both, [[0, 0, 1, 0.5, -0.5], [1, 0, 0, 0, 1]])


@pytest.mark.parametrize(("cells", "speeds"), [(2, 3), (3, 2)])
def test_parts_with_different_numbers_of_observations_are_refused(cells, speeds):
    seen = {"cell": np.zeros(cells, int), "speed": np.zeros((speeds, 2), np.float32)}
    with pytest.raises(ValueError, match="different numbers of observations"):
        room().encode(seen)
