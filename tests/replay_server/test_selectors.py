from __future__ import annotations

import numpy as np
import pytest

from dreamfleet.core.selectors import (
    EmphasizeRecent,
    Mixture,
    Prioritized,
    Recency,
    ReturnDeviation,
    Selector,
    Uniform,
)
from dreamfleet.core.types import Consumer, Space, TableSpec
from dreamfleet.replay_server.table import Table
from tests.replay_server.model import COLUMNS, Episodes, Model, chi_square_bound, spec

SELECTORS: dict[str, Selector] = {
    "uniform": Uniform(),
    "prioritized": Prioritized(0.6),
    "recency": Recency(20),
    "emphasize recent": EmphasizeRecent(eta=0.9995, floor=10, cycle=1, anneal=10**9),
    "mixture": Mixture(((0.5, Uniform()), (0.25, Prioritized()), (0.25, Recency(10)))),
}


def wrapped(selector: Selector, ends: float, window: int = 3) -> tuple[Table, Model]:
    """Returns a full table of 64 rows, with random episodes and priorities, and a model of it.

    ends: the probability that a row ends an episode. window: rows per window.
    """
    table_spec = spec(64, a=Consumer(1, window, selector))
    table, model, episodes = Table("real", table_spec, 0), Model(table_spec), Episodes()
    rng = np.random.default_rng(0)
    for _ in range(7):
        chunk = episodes.chunk([0, 1], rng.random((2, 7)) < ends)
        table.add(chunk, np.arange(2))
        model.add(chunk, [0, 1])
    keys = np.arange(40, 90)
    priorities = rng.exponential(size=keys.size)
    table.update(keys, {"priority": priorities})
    model.update(keys, {"priority": priorities})
    return table, model


# With 9 in 10 rows `last`, rejection sampling fails, and a list of starts is sampled.
@pytest.mark.parametrize("ends", [0.1, 0.9])
@pytest.mark.parametrize("name", SELECTORS)
def test_draws_are_as_frequent_as_their_reported_probabilities(name: str, ends: float) -> None:
    table, model = wrapped(SELECTORS[name], ends)
    expected = model.probability("a")
    n = 15_000
    seen = dict.fromkeys(expected, 0)
    for _ in range(n):
        sample = table.sample("a")
        assert sample is not None
        assert sample.prob[0] == pytest.approx(expected[int(sample.keys[0])], rel=1e-9)
        seen[int(sample.keys[0])] += 1
    assert sum(expected.values()) == pytest.approx(1)
    often = [key for key, p in expected.items() if p * n >= 5]
    statistic = sum((seen[key] - expected[key] * n) ** 2 / (expected[key] * n) for key in often)
    assert len(often) > 2 and statistic < chi_square_bound(len(often) - 1)
    assert not any(seen[key] for key, p in expected.items() if p == 0)


def test_recency_stays_exact_after_many_half_lives() -> None:
    table_spec = spec(32, a=Consumer(8, 1, Recency(0.5)))
    table, model, episodes = Table("real", table_spec, 0), Model(table_spec), Episodes()
    for _ in range(100):
        chunk = episodes.chunk([0], np.zeros(16))
        table.add(chunk, np.array([0]))
        model.add(chunk, [0])
    sample = table.sample("a")
    assert sample is not None
    expected = model.probability("a")
    for key, prob in zip(sample.keys.tolist(), sample.prob, strict=True):
        assert prob == pytest.approx(expected[key], rel=1e-9)


def test_recency_draws_the_only_start_however_old() -> None:
    table, episodes = Table("real", spec(64, a=Consumer(4, 1, Recency(0.02))), 0), Episodes()
    table.add(episodes.chunk([0], [False]), np.array([0]))
    table.add(episodes.chunk([1], np.ones(30)), np.array([1]))  # no starts
    table.add(episodes.chunk([2], [False]), np.array([2]))
    table.add(episodes.chunk([2], [True], reset=True), np.array([2]))  # truncates
    sample = table.sample("a")
    assert sample is not None
    assert sample.keys.tolist() == [0] * 4 and sample.prob.tolist() == [1.0] * 4


def test_any_slice_of_a_mixture_batch_is_a_fair_sample() -> None:
    newest = EmphasizeRecent(eta=1e-9, floor=10, cycle=1)
    table_spec = spec(1000, a=Consumer(8, 1, Mixture(((0.5, Uniform()), (0.5, newest)))))
    table, episodes = Table("real", table_spec, 0), Episodes()
    table.add(episodes.chunk([0], np.zeros(1000)), np.array([0]))
    samples = [table.sample("a") for _ in range(1_000)]
    keys = np.stack([sample.keys for sample in samples if sample is not None])
    shares = (keys >= 990).mean(axis=0)
    np.testing.assert_allclose(shares, 0.505, atol=0.08)


def test_emphasis_on_recent_rows_grows_within_a_cycle_and_is_annealed() -> None:
    table_spec = spec(
        1000, a=Consumer(1, 1, EmphasizeRecent(eta=0.998, floor=50, cycle=10, anneal=40))
    )
    table, episodes = Table("real", table_spec, 0), Episodes()
    table.add(episodes.chunk([0], np.zeros(1000)), np.array([0]))
    samples = [table.sample("a") for _ in range(50)]
    rows = [round(1 / sample.prob[0]) for sample in samples if sample is not None]
    for k in range(1, 11):
        eta = 0.998 + 0.002 * (k - 1) / 40
        assert rows[k - 1] == int(max(1000 * eta ** (1000 * k / 10), 50))
    assert rows[:10] == sorted(rows[:10], reverse=True)
    assert rows[40:] == [1000] * 10


def test_new_starts_get_the_priority_in_their_initial_column() -> None:
    columns = {**COLUMNS, "priority": Space((), "float32")}
    table_spec = TableSpec(16, columns, {"a": Consumer(4, 2, Prioritized(0.5, initial="priority"))})
    table, episodes = Table("real", table_spec, 0), Episodes()
    given = np.array([[4.0, -3.0, 1e30, 0.25, 9.0]], np.float32)
    assert table.add(episodes.chunk([0], np.zeros(5)) | {"priority": given}, np.array([0]))
    weights = table.snapshot().state()["consumers"]["a"]["selector"]["weights"]
    np.testing.assert_allclose(weights, [2.0, 1e-3, 1e6, 0.5, 0.0])  # clipped
    table.update(np.array([0]), {"priority": np.array([16.0])})
    assert table.snapshot().state()["consumers"]["a"]["selector"]["weights"][0] == 4.0


@pytest.mark.parametrize("half_life", [3.0, 1e9])
def test_deviation_is_from_the_weighted_mean_of_the_sums_so_far(half_life: float) -> None:
    window, rng = 3, np.random.default_rng(0)
    table_spec = spec(24, a=Consumer(5, window, ReturnDeviation(half_life)))
    table, episodes = Table("real", table_spec, 0), Episodes()
    rewards: list[float] = []
    sums = weight = np.zeros(0)
    expected: dict[int, float] = {}
    for _ in range(12):
        chunk = episodes.chunk([0], np.zeros(4))
        chunk["reward"] = rng.normal(size=(1, 4)).astype(np.float32)
        table.add(chunk, np.array([0]))
        rewards += chunk["reward"][0].tolist()
        closed = len(rewards) - window + 1 - len(sums)
        fresh = [sum(rewards[k : k + window]) for k in range(len(sums), len(sums) + closed)]
        sums = np.append(sums, fresh)
        kept = 2 ** (-closed / half_life)
        weight = np.append(weight * kept, np.full(closed, (1 - kept) / closed))
        mean = np.average(sums, weights=weight)
        deviation = np.sqrt(np.average((sums - mean) ** 2, weights=weight))
        for key in range(len(sums) - closed, len(sums)):
            expected[key] = abs(sums[key] - mean) / deviation
    sample = table.sample("a")
    assert sample is not None
    starts = range(len(rewards) - 24, len(sums))
    total = sum(expected[key] for key in starts)
    for key, prob in zip(sample.keys.tolist(), sample.prob, strict=True):
        assert prob == pytest.approx(expected[key] / total, rel=1e-6)


def test_windows_with_equal_sums_are_drawn_with_equal_probability() -> None:
    table, episodes = Table("real", spec(16, a=Consumer(4, 2, ReturnDeviation())), 0), Episodes()
    chunk = episodes.chunk([0], np.zeros(9))
    chunk["reward"][:] = 0.5
    table.add(chunk, np.array([0]))
    sample = table.sample("a")
    assert sample is not None and sample.prob.tolist() == [1 / 8] * 4
