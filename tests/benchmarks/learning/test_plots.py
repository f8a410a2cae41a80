"""Tests the plots of learning curves."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.learning.curves import TASKS, read_methods
from benchmarks.learning.plots import COLOURS, README_METHODS, colours_of, over_seeds
from benchmarks.processes import RESULTS
from tests.benchmarks.learning.test_curves import curve


def test_every_recorded_method_has_a_colour_of_its_own():
    recorded = {path.parent.name for path in RESULTS.glob("*/*/seed-*.jsonl")}
    assert recorded <= set(COLOURS)
    assert len(set(COLOURS.values())) == len(COLOURS)


def test_unknown_methods_get_other_colours():
    found = colours_of(["dreamer-lite", "new", "newer"])
    assert found["dreamer-lite"] == COLOURS["dreamer-lite"]
    assert len(set(found.values())) == 3 and found["new"] not in COLOURS.values()


def test_seeds_with_different_evaluation_steps_are_interpolated_at_common_steps():
    first, second = curve(0.0, 10.0, 20.0), curve(0.0, 20.0)
    second = replace(second, steps=np.array([600, 1500]))
    steps, minutes, returns = over_seeds([first, second])
    assert steps.tolist() == [600, 1000, 1500]
    np.testing.assert_allclose(returns, [[2.0, 10.0, 20.0], [0.0, 20.0 * 4 / 9, 20.0]])
    np.testing.assert_allclose(minutes, [(1.08 + 0.9) / 2, (1.8 + 1.3) / 2, (2.7 + 1.8) / 2])


@pytest.mark.parametrize("env", README_METHODS)
def test_the_methods_of_the_readme_picture_are_recorded_with_several_seeds(env):
    methods = read_methods(RESULTS / env, TASKS[env].ours)
    assert all(len(methods[name]) >= 3 for name in README_METHODS[env])
