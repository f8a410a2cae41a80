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
def test_the_total_is_the_sum_of_the_weights_after_any_writes(size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    tree, leaves = SumTree(size), np.zeros(size)
    for _ in range(20):
        slots = rng.integers(size, size=rng.integers(1, min(2 * size, 300)))
        if rng.random() < 0.3:  # consecutive, as a chunk writes them
            slots = np.arange(slots[0], min(slots[0] + 100, size))
        weights = rng.random(slots.size) * (rng.random(slots.size) < 0.7)
        tree.write(slots, weights)
        for slot, value in zip(slots.tolist(), weights.tolist(), strict=True):
            leaves[slot] = value
        np.testing.assert_array_equal(tree.weights[:size], leaves)
        assert tree.total == pytest.approx(leaves.sum(), abs=1e-12)
    rebuilt = SumTree(size)
    rebuilt.replace(np.arange(size), leaves)
    assert rebuilt.total == tree.total  # to the last bit


@pytest.mark.parametrize("size", [37, TOP + 37])
def test_draws_are_in_proportion_to_the_weights(size: int) -> None:
    rng = np.random.default_rng(0)
    slots = rng.permutation(size)[:37]
    weights = np.zeros(size)
    weights[slots] = rng.random(37) * (np.arange(37) % 5 > 0)
    tree = SumTree(size)
    tree.write(slots, weights[slots])
    n = 10_000
    # Batches of one: the strata of a larger batch would make the counts better than random.
    counts = np.bincount(np.concatenate([tree.sample(1, rng) for _ in range(n)]), minlength=size)
    expected = weights / weights.sum() * n
    assert not counts[weights == 0].any()
    drawn = weights > 0
    statistic = ((counts - expected)[drawn] ** 2 / expected[drawn]).sum()
    assert statistic < chi_square_bound(drawn.sum() - 1)


def test_a_large_batch_is_stratified() -> None:
    tree = SumTree(10)
    tree.write(np.arange(10), np.arange(10.0))
    counts = np.bincount(tree.sample(45_000, np.random.default_rng(0)), minlength=10)
    np.testing.assert_allclose(counts, np.arange(10) * 1000, atol=2)


def test_any_slice_of_a_batch_is_a_fair_sample() -> None:
    tree = SumTree(64)
    tree.write(np.arange(64), 1.0)
    rng = np.random.default_rng(0)
    mean = np.mean([tree.sample(16, rng)[:4].mean() for _ in range(2_000)])
    assert mean == pytest.approx(31.5, abs=1.5)


class Highest(np.random.Generator):
    """A random generator whose `random` always returns the largest number below 1."""

    def random(self, *args: Any, **kwargs: Any) -> Any:
        return np.full(args[0], np.nextafter(1, 0))


@pytest.mark.parametrize("n", [1, 3, 7, 49])
def test_rounding_at_the_right_edge_never_draws_a_slot_of_weight_0(n: int) -> None:
    rng = Highest(np.random.SFC64(0))
    for size in (*range(3, 40), TOP + 1, TOP + 18, TOP + 100):
        tree = SumTree(size)
        tree.write(np.arange(size - 1), 1 / np.arange(3.0, size + 2))
        assert tree.sample(n, rng).max() == size - 2


@pytest.mark.parametrize("size", [100, TOP + 100])
def test_weights_of_very_different_size_never_draw_a_slot_of_weight_0(size: int) -> None:
    rng = np.random.default_rng(0)
    tree = SumTree(size)
    weights = 10.0 ** rng.uniform(-30, 30, size)
    weights[rng.random(size) < 0.5] = 0
    tree.write(np.arange(size), weights)
    assert (weights[tree.sample(20_000, rng)] > 0).all()
    tree.write(np.arange(size), np.where(np.arange(size) == 70, 1e-30, 0.0))
    assert (tree.sample(100, rng) == 70).all()


def test_a_million_updates_add_up_no_rounding_errors() -> None:
    rng = np.random.default_rng(0)
    tree = SumTree(TOP * 4)
    for _ in range(1_000):
        tree.write(rng.integers(TOP * 4, size=1_000), 10.0 ** rng.uniform(-6, 6, 1_000))
    fresh = SumTree(TOP * 4)
    fresh.replace(np.arange(TOP * 4), tree.weights)
    assert tree.total == fresh.total


def test_rounding_among_siblings_never_draws_a_slot_of_weight_0() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        weights = rng.random(FAN_OUT)
        weights[[0, -1]] = 0.0
        tree = SumTree(TOP + 100)
        tree.write(np.arange(FAN_OUT), weights)
        assert weights[tree.sample(3, Highest(np.random.SFC64(0)))].all()
