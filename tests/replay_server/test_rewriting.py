"""Tests new priorities of sampled windows, and new values of columns of their rows."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from dreamfleet.core.selectors import Prioritized
from dreamfleet.core.types import Batch, Consumer
from dreamfleet.replay_server.rewriting import check_new_values
from tests.replay_server.model import COLUMNS, filled, spec

# ------------------------------------------------------------------------------------ priorities


def test_stale_and_invalid_priorities_are_ignored_and_counted() -> None:
    table, episodes = filled(spec(16, a=Consumer(4, 1, Prioritized())), rows=4)
    sample = table.sample("a")
    assert sample is not None
    table.update(np.array([6, 7]), {"priority": np.array([np.nan, -1.0])})
    assert table.stats()["invalid_priorities"] == 2
    table.add(episodes.chunk([0, 1], np.zeros((2, 8), bool)), np.arange(2))
    before = table.snapshot().state()
    table.update(sample.keys, {"priority": np.full(4, 100.0)})
    assert table.stats()["stale_updates"] == 4
    np.testing.assert_equal(table.snapshot().state()["consumers"], before["consumers"])


def test_new_rows_get_the_largest_priority_so_far() -> None:
    table, episodes = filled(spec(16, a=Consumer(2, 1, Prioritized(0.5))), rows=4)
    table.update(np.array([0]), {"priority": np.array([9.0], np.float32)})
    table.update(np.array([0]), {"priority": np.array([0.0])})
    table.add(episodes.chunk([0], [False]), np.array([0]))
    weights = table.snapshot().state()["consumers"]["a"]["selector"]["weights"]
    assert weights[-1] == 3.0 and weights[0] == pytest.approx(1e-3)


def test_keys_and_priorities_must_have_the_same_shape() -> None:
    table, _ = filled(spec(16, a=Consumer(2)))
    with pytest.raises(ValueError, match="keys"):
        table.update(np.array([1, 2]), {"priority": np.array([1.0])})


# -------------------------------------------------------------------------------- new values


def test_new_values_reach_the_rows_of_a_window_that_wraps_around_the_ring() -> None:
    table, episodes = filled(spec(16, a=Consumer(1, 4, context=2)), rows=12, streams=1)
    table.add(episodes.chunk([0], np.zeros((1, 8), bool)), np.array([0]))  # rows 16 … in slots 0 …
    values = np.arange(12, dtype=np.float16).reshape(1, 6, 2)
    table.update(np.array([14]), {"deter": values, "stoch": np.ones((1, 2, 3), np.uint8)}, "a")
    saved = table.snapshot().state()["columns"]  # of rows 4 … 19
    np.testing.assert_array_equal(saved["deter"][8:14], values[0])
    assert saved["stoch"][:, 0].tolist() == [*range(4, 16), 1, 1, 18, 19]
    np.testing.assert_array_equal(saved["deter"][[7, 14], 1], [11, 18])


def test_of_windows_that_overlap_the_last_one_in_the_batch_counts() -> None:
    table, _ = filled(spec(16, a=Consumer(1, 3)), rows=8, streams=1)
    keys, values = np.array([2, 3, 2]), np.zeros((3, 3, 2), np.float16)
    values[:] = np.array([1, 2, 3])[:, None, None]
    table.update(keys, {"deter": values}, "a")
    assert table.snapshot().state()["columns"]["deter"][2:6, 0].tolist() == [3, 3, 3, 2]


def test_a_row_that_is_repeated_as_context_gets_the_value_of_its_own_place() -> None:
    table, _ = filled(spec(16, a=Consumer(1, 2, context=3)), rows=8, streams=1)
    values = np.arange(5, dtype=np.float16)[None, :, None].repeat(2, axis=2)
    table.update(np.array([0]), {"deter": values}, "a")  # rows 0, 0, 0, 0, 1
    assert table.snapshot().state()["columns"]["deter"][:2, 0].tolist() == [3, 4]


DETER = np.zeros((2, 3, 2), np.float16)


@pytest.mark.parametrize(
    ("rows", "consumer", "message"),
    [
        ({"detr": DETER}, "a", "'detr': there is no column 'detr'; the nearest is 'deter'"),
        ({"deter": DETER[:1]}, "a", r"\(2,\) keys cannot take .* of shape \(1, 3, 2\)"),
        ({"deter": np.zeros((2, 4, 2), np.float16)}, "a", r"\(2, 1 … 3, 2\), found \(2, 4, 2\)"),
        ({"deter": DETER[:, 0]}, "a", r"must have shape \(2, 1 … 3, 2\), found \(2, 2\)"),
        ({"deter": DETER.astype(np.float32)}, "a", "must be float16, found float32"),
        ({"deter": DETER}, "", "of windows of consumer ''; the table has: a"),
        ({"reward": np.zeros((2, 3), np.float32)}, "a", "'reward': it holds what happened"),
        ({"priority": np.zeros((2, 1))}, "a", r"\(2,\) keys cannot take .* of shape \(2, 1\)"),
    ],
)
def test_new_values_that_do_not_fit_the_table_are_errors(
    rows: Batch, consumer: str, message: str
) -> None:
    table, _ = filled(spec(16, a=Consumer(1, 2, context=1)))
    before = table.snapshot().state()
    with pytest.raises(ValueError, match=message):
        table.update(np.array([20, 21]), {"stoch": np.ones((2, 1, 3), np.uint8)} | rows, consumer)
    np.testing.assert_equal(table.snapshot().state(), before)


def test_parts_of_an_observation_cannot_be_rewritten() -> None:
    parts = {**COLUMNS, "obs.camera": COLUMNS["deter"], "observed": COLUMNS["deter"]}
    table = dataclasses.replace(spec(16, a=Consumer(1, 3)), columns=parts)
    check_new_values({"observed": DETER}, np.array([0, 1]), table, "a")
    with pytest.raises(ValueError, match=r"column 'obs\.camera': it holds what happened"):
        check_new_values({"obs.camera": DETER}, np.array([0, 1]), table, "a")


def test_a_window_with_a_new_value_that_is_not_finite_keeps_its_old_values() -> None:
    table, _ = filled(spec(16, a=Consumer(2, 3)), rows=8, streams=1)
    before = table.snapshot().state()["columns"]
    deter = DETER.copy()
    deter[1, 2, 0] = np.inf
    rows = {"deter": deter, "stoch": np.full((2, 3, 3), 99, np.uint8)}
    table.update(np.array([0, 3]), rows, "a")
    after = table.snapshot().state()["columns"]
    assert table.stats()["invalid_updates"] == 1
    assert after["stoch"][:3].min() == 99 and not after["deter"][:3].any()
    for name in ("deter", "stoch"):
        np.testing.assert_array_equal(after[name][3:], before[name][3:])


def test_new_values_for_no_windows_change_nothing() -> None:
    table, _ = filled(spec(16, a=Consumer(2, 3)), rows=8, streams=1)
    before = table.snapshot().state()
    table.update(np.empty(0, np.int64), {"deter": DETER[:0], "priority": np.empty(0)}, "a")
    np.testing.assert_equal(table.snapshot().state(), before)


def test_windows_that_were_drawn_before_an_update_may_be_gathered_after_it() -> None:
    table, _ = filled(spec(16, a=Consumer(2, 3)), rows=8, streams=1)
    draw = table.draw("a")
    assert draw is not None
    table.update(draw.sample.keys, {"deter": DETER - 1}, "a")
    data = table.gather(draw)
    assert table.intact(draw) and table.stats()["samples_a"] == 1
    np.testing.assert_array_equal(data["deter"], DETER - 1)
    assert (data["obs"] >= 0).all()
