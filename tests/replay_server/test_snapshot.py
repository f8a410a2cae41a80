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
    b=Consumer(2, 2, ReturnDeviation()),
)


@pytest.fixture(autouse=True, scope="module")
def small_pieces():
    """Of one or two rows, so that much happens between them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(snapshot, "PIECE_BYTES", 64)
        yield


def stir(table: Table, episodes: Episodes, rng: np.random.Generator) -> None:
    """Something that changes the table."""
    streams = np.arange(rng.integers(1, 4))
    last = rng.random((streams.size, rng.integers(1, 6))) < 0.2
    chunk = episodes.chunk(streams.tolist(), last, reset=bool(rng.random() < 0.4))
    assert table.add(chunk, streams)
    for consumer in OF.consumers:
        if (sample := table.sample(consumer)) is not None:
            table.update(sample.keys, rng.random(sample.keys.size))


@given(st.integers(0, 2**32 - 1), st.integers(0, 20), st.floats(0, 1))
@settings(max_examples=50, deadline=None)
def test_a_snapshot_is_the_state_at_its_beginning(seed: int, before: int, busy: float) -> None:
    rng = np.random.default_rng(seed)
    table, episodes = Table("real", OF, seed), Episodes()
    for _ in range(before):
        stir(table, episodes, rng)
    expected = copy.deepcopy(table.snapshot().state())
    early = table.snapshot()
    late, meanwhile = None, None
    while early.copy_piece():
        if rng.random() < busy:
            stir(table, episodes, rng)
        if late is None and rng.random() < 0.1:
            late, meanwhile = table.snapshot(), table.snapshot().state()
    np.testing.assert_equal(early.state(), expected)
    if late is not None:
        stir(table, episodes, rng)
        np.testing.assert_equal(late.state(), meanwhile)


def test_a_table_restored_from_a_snapshot_continues_from_its_beginning() -> None:
    rng = np.random.default_rng(0)
    table, episodes = Table("real", OF, 0), Episodes()
    for _ in range(20):
        stir(table, episodes, rng)
    saved = table.snapshot()
    twin, written, dice = Table("real", OF, 1), copy.deepcopy(episodes), copy.deepcopy(rng)
    twin.restore(table.snapshot().state())
    for _ in range(20):
        stir(table, episodes, rng)
    heir = Table("real", OF, 2)
    heir.restore(saved.state())
    for _ in range(20):
        heirs, its = copy.deepcopy((written, dice))
        stir(twin, written, dice)
        stir(heir, heirs, its)
    np.testing.assert_equal(heir.snapshot().state(), twin.snapshot().state())


def test_a_snapshot_survives_a_restore_of_its_table() -> None:
    rng = np.random.default_rng(0)
    table, episodes = Table("real", OF, 0), Episodes()
    empty = table.snapshot().state()
    for _ in range(20):
        stir(table, episodes, rng)
    expected, saved = table.snapshot().state(), table.snapshot()
    table.restore(empty)
    stir(table, Episodes(), rng)
    np.testing.assert_equal(saved.state(), expected)
