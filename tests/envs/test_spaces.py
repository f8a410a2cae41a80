"""The agent's view of a space, and the way back."""

import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete, Tuple

from dreamfleet.core.errors import UserError
from dreamfleet.core.types import Space
from dreamfleet.envs import spaces


@pytest.mark.parametrize(
    ("space", "seen"),
    [
        (Box(0, 255, (8, 8, 3), np.uint8), Space((8, 8, 3), "uint8")),
        (Box(-np.inf, np.inf, (3,), np.float64), Space((3,), "float32")),
        (Box(0, 9, (2, 2), np.int64), Space((2, 2), "float32")),
        (Box(0, 1, (), np.float32), Space((), "float32")),
    ],
)
def test_boxes_are_observed_as_pixels_or_float32(space, seen):
    assert spaces.observation("Some-v0", space) == seen


@pytest.mark.parametrize("space", [Dict(a=Discrete(2)), Tuple([Discrete(2)]), Discrete(4)])
def test_an_observation_that_is_no_box_is_named(space):
    with pytest.raises(UserError) as error:
        spaces.observation("Some-v0", space)
    assert 'env "Some-v0" observes' in str(error.value) and str(space) in str(error.value)


@pytest.mark.parametrize(
    "space",
    [MultiDiscrete([2, 3]), Box(-np.inf, 1, (2,)), Box(0, 3, (2,), np.int64), Dict(a=Discrete(2))],
)
def test_an_action_space_no_agent_can_act_in_is_named(space):
    with pytest.raises(UserError) as error:
        spaces.action("Some-v0", space)
    assert "Some-v0" in str(error.value) and str(space) in str(error.value)


def test_discrete_actions_count_from_the_start_of_the_space():
    space = Discrete(3, start=-1)
    assert spaces.action("Some-v0", space).n == 3
    assert spaces.decoder(space)(np.arange(3)).tolist() == [-1, 0, 1]


def test_unit_actions_cover_the_box_exactly_and_never_leave_it():
    low, high = np.array([[-2.0, 0.0], [1.0, -2e38]]), np.array([[2.0, 0.1], [1.0, 2e38]])
    space = Box(low.astype(np.float32), high.astype(np.float32), dtype=np.float32)
    assert spaces.action("Some-v0", space) == Space((4,), "float32")
    decode = spaces.decoder(space)
    unit = np.stack([-np.ones(4), np.zeros(4), np.ones(4), 1.5 * np.ones(4)]).astype(np.float32)
    own = decode(unit)
    assert own.shape == (4, 2, 2) and own.dtype == np.float32
    assert all(action in space for action in own)
    np.testing.assert_allclose(own[0], space.low)
    np.testing.assert_allclose(own[1], [[0.0, 0.05], [1.0, 0.0]])
    np.testing.assert_allclose(own[2], space.high)
