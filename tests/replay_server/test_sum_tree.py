from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamfleet.replay_server.sum_tree import FAN_OUT, TOP, SumTree
from tests.replay_server.model import chi_square_bound

# Trees of one level, of two, and of three.
SIZES = st.integers(1, 70) | st.integers(TOP - 2, TOP + 40) | st.just(TOP * FAN_OUT + 1)


@given(SIZES, st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_root_is_the_sum_of_leaves_whatever_was_written(size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    tree, leaves = SumTree(size), np.zeros(size)
    for _ in range(20):
        slots = rng.integers(size, size=rng.integers(1, min(2 * size, 300)))
        if rng.random() < 0.3:  # neighbours, as a chunk writes them
            slots = np.arange(slots[0], min(slots[0] + 100, size))
        mass = rng.random(slots.size) * (rng.random(slots.size) < 0.7)
        tree.write(slots, mass)
        for slot, value in zip(slots.tolist(), mass.tolist(), strict=True):
            leaves[slot] = value
        np.testing.assert_array_equal(tree.masses[:size], leaves)
        assert tree.total == pytest.approx(leaves.sum(), abs=1e-12)
    rebuilt = SumTree(size)
    rebuilt.replace(np.arange(size), leaves)
    assert rebuilt.total == tree.total  # not a bit of drift


@pytest.mark.parametrize("size", [37, TOP + 37])
def test_draws_follow_the_masses(size: int) -> None:
    rng = np.random.default_rng(0)
    slots = rng.permutation(size)[:37]
    mass = np.zeros(size)
    mass[slots] = rng.random(37) * (np.arange(37) % 5 > 0)
    tree = SumTree(size)
    tree.write(slots, mass[slots])
    n = 10_000
    # Batches of one: the strata of a larger batch would make the counts better than random.
    counts = np.bincount(np.concatenate([tree.sample(1, rng) for _ in range(n)]), minlength=size)
    expected = mass / mass.sum() * n
    assert not counts[mass == 0].any()
    drawn = mass > 0
    statistic = ((counts - expected)[drawn] ** 2 / expected[drawn]).sum()
    assert statistic < chi_square_bound(drawn.sum() - 1)


def test_a_large_batch_is_stratified() -> None:
    tree = SumTree(10)
    tree.write(np.arange(10), np.arange(10.0))
    counts = np.bincount(tree.sample(45_000, np.random.default_rng(0)), minlength=10)
    np.testing.assert_allclose(counts, np.arange(10) * 1000, atol=2)


def test_any_part_of_a_batch_is_a_fair_draw() -> None:
    tree = SumTree(64)
    tree.write(np.arange(64), 1.0)
    rng = np.random.default_rng(0)
    mean = np.mean([tree.sample(16, rng)[:4].mean() for _ in range(2_000)])
    assert mean == pytest.approx(31.5, abs=1.5)


class Highest(np.random.Generator):
    """Draws the largest number below 1, every time."""

    def random(self, *args: Any, **kwargs: Any) -> Any:
        return np.full(args[0], np.nextafter(1, 0))


@pytest.mark.parametrize("n", [1, 3, 7, 49])
def test_rounding_at_the_right_edge_never_draws_an_empty_slot(n: int) -> None:
    rng = Highest(np.random.SFC64(0))
    for size in (*range(3, 40), TOP + 1, TOP + 18, TOP + 100):
        tree = SumTree(size)
        tree.write(np.arange(size - 1), 1 / np.arange(3.0, size + 2))
        assert tree.sample(n, rng).max() == size - 2


@pytest.mark.parametrize("size", [100, TOP + 100])
def test_masses_of_very_different_size_never_draw_an_empty_slot(size: int) -> None:
    rng = np.random.default_rng(0)
    tree = SumTree(size)
    mass = 10.0 ** rng.uniform(-30, 30, size)
    mass[rng.random(size) < 0.5] = 0
    tree.write(np.arange(size), mass)
    assert (mass[tree.sample(20_000, rng)] > 0).all()
    tree.write(np.arange(size), np.where(np.arange(size) == 70, 1e-30, 0.0))
    assert (tree.sample(100, rng) == 70).all()


def test_a_million_updates_leave_no_drift() -> None:
    rng = np.random.default_rng(0)
    tree = SumTree(TOP * 4)
    for _ in range(1_000):
        tree.write(rng.integers(TOP * 4, size=1_000), 10.0 ** rng.uniform(-6, 6, 1_000))
    fresh = SumTree(TOP * 4)
    fresh.replace(np.arange(TOP * 4), tree.masses)
    assert tree.total == fresh.total


def test_rounding_within_a_family_never_draws_an_empty_slot() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        mass = rng.random(FAN_OUT) * (np.arange(FAN_OUT) % (FAN_OUT - 1) > 0)  # not first nor last
        tree = SumTree(TOP + 100)
        tree.write(np.arange(FAN_OUT), mass)
        assert mass[tree.sample(3, Highest(np.random.SFC64(0)))].all()
