"""Tests the check of an agent's actions."""

from __future__ import annotations

import re

import numpy as np
import pytest

from dreamfleet.core.errors import Diverged
from dreamfleet.core.finite import check_actions
from dreamfleet.core.types import Space

DISCRETE, CONTINUOUS = Space((), "int64", n=3), Space((2,), "float32")
FACTORED = Space((3,), "int64", choices=(3, 2, 4))


@pytest.mark.parametrize(
    ("space", "action"),
    [
        (DISCRETE, np.array([0, 2])),
        (CONTINUOUS, np.zeros((4, 2), np.float32)),
        (FACTORED, np.array([[0, 0, 0], [2, 1, 3]])),
    ],
)
def test_actions_within_the_space_are_accepted(space, action):
    check_actions(action, {}, space)


@pytest.mark.parametrize(
    ("space", "action", "message"),
    [
        (DISCRETE, np.array([0, 3]), "whole numbers from 0 to 2, (N,); found 3"),
        (DISCRETE, np.array([-1, 0]), "found -1"),
        (CONTINUOUS, np.zeros((4, 3), np.float32), "floats (N, 2); found float32 (4, 3)"),
        (CONTINUOUS, np.full((4, 2), np.nan, np.float32), "'action' is not finite"),
        (FACTORED, np.array([[0, 2, 0]]), "(N, 3) from 0, less than (3, 2, 4); found 2"),
        (FACTORED, np.array([[0, 0, -1]]), "found -1"),
        (FACTORED, np.array([[0, 0]]), "found int64 (1, 2)"),
        (FACTORED, np.zeros((1, 3), np.float32), "found float32 (1, 3)"),
    ],
)
def test_an_action_outside_the_space_is_named(space, action, message):
    with pytest.raises(Diverged, match=re.escape(message)):
        check_actions(action, {}, space)
