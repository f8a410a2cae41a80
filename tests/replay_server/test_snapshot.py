from __future__ import annotations

import copy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamfleet.core.selectors import Mixture, Prioritized, Recency, ReturnDeviation
from dreamfleet.core.types import Consumer
from dreamfleet.replay_server import snapshot
from dreamfleet.replay_server.table import Table
from tests.replay_server.model import Episodes, spec

OF = spec(
    40,
    a=Consumer(2, 3, Mixture(((0.5, Prioritized()), (0.5, Recency(9)))), context=2),
    b=Consumer(2, 3, ReturnDeviation()),
)


@pytest.fixture(autouse=True, scope="module")
def small_pieces():
    """Makes snapshots copy one or two rows at a time, so that tables change during the copy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(snapshot, "PIECE_BYTES", 64)
        yield


def change(table: Table, episodes: Episodes, rng: np.random.Generator) -> None:
    """Changes the table: adds random rows, samples, and updates priorities and other values."""
    streams = np.arange(rng.integers(1, 4))
    last = rng.random((streams.size, rng.integers(1, 6))) < 0.2
    chunk = episodes.chunk(streams.tolist(), last, reset=bool(rng.random() < 0.4))
    assert table.add(chunk, streams)
    for consumer in OF.consumers:
        if (sample := table.sample(consumer)) is not None:
            rows = {"priority": rng.random(sample.keys.size)}
            if rng.random() < 0.5:
                rows["deter"] = rng.random((sample.keys.size, 3, 2)).astype(np.float16)
                rows["stoch"] = rng.integers(0, 256, (sample.keys.size, 2, 3), np.uint8)
            table.update(sample.keys, rows, consumer)


@given(st.integers(0, 2**32 - 1), st.integers(0, 20), st.floats(0, 1))
@settings(max_examples=50, deadline=None)
def test_a_snapshot_is_the_state_at_its_creation(seed: int, before: int, busy: float) -> None:
    rng = np.random.default_rng(seed)
    table, episodes = Table("real", OF, seed), Episodes()
    for _ in range(before):
        change(table, episodes, rng)
    expected = copy.deepcopy(table.snapshot().state())
    early = table.snapshot()
    late, meanwhile = None, None
    while early.copy_piece():
        if rng.random() < busy:
            change(table, episodes, rng)
        if late is None and rng.random() < 0.1:
            late, meanwhile = table.snapshot(), table.snapshot().state()
    np.testing.assert_equal(early.state(), expected)
    if late is not None:
        change(table, episodes, rng)
        np.testing.assert_equal(late.state(), meanwhile)


def test_a_table_restored_from_a_snapshot_continues_from_its_creation() -> None:
    rng = np.random.default_rng(0)
    table, episodes = Table("real", OF, 0), Episodes()
    for _ in range(20):
        change(table, episodes, rng)
    saved = table.snapshot()
    same_state, written, dice = Table("real", OF, 1), copy.deepcopy(episodes), copy.deepcopy(rng)
    same_state.restore(table.snapshot().state())
    for _ in range(20):
        change(table, episodes, rng)
    restored = Table("real", OF, 2)
    restored.restore(saved.state())
    for _ in range(20):
        restored_episodes, its = copy.deepcopy((written, dice))
        change(same_state, written, dice)
        change(restored, restored_episodes, its)
    np.testing.assert_equal(restored.snapshot().state(), same_state.snapshot().state())


def test_a_snapshot_survives_a_restore_of_its_table() -> None:
    rng = np.random.default_rng(0)
    table, episodes = Table("real", OF, 0), Episodes()
    empty = table.snapshot().state()
    for _ in range(20):
        change(table, episodes, rng)
    expected, saved = table.snapshot().state(), table.snapshot()
    table.restore(empty)
    change(table, Episodes(), rng)
    np.testing.assert_equal(saved.state(), expected)
