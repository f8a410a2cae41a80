from __future__ import annotations

import numpy as np
import pytest

from dreamfleet.core.errors import EnvironmentFault, UserError
from dreamfleet.core.selectors import (
    EmphasizeRecent,
    Mixture,
    Prioritized,
    Recency,
    ReturnDeviation,
    Uniform,
)
from dreamfleet.core.types import Array, Batch, Consumer, TableSpec
from dreamfleet.replay_server.table import Table
from tests.replay_server.model import Episodes, filled, spec


def spoil(chunk: Batch, **columns: Array) -> Batch:
    return chunk | columns


def nan_at(chunk: Batch) -> Batch:
    obs = chunk["obs"].copy()
    obs[1, 2, 0] = np.nan
    return spoil(chunk, obs=obs)


def flag_at(chunk: Batch, name: str, n: int, t: int, value: bool) -> Batch:
    flags = chunk[name].copy()
    flags[n, t] = value
    return spoil(chunk, **{name: flags})


BAD = {
    "missing column": (
        "columns",
        lambda c: {k: v for k, v in c.items() if k != "reward"},
        "reward",
    ),
    "unknown column": ("columns", lambda c: spoil(c, value=c["reward"]), "value"),
    "wrong shape": ("shape", lambda c: spoil(c, obs=c["obs"][..., :1]), r"obs .* \(2, 4, 1\)"),
    "no time axis": ("shape", lambda c: {k: v[:, 0] for k, v in c.items()}, "shape"),
    "empty": ("shape", lambda c: {k: v[:, :0] for k, v in c.items()}, "empty"),
    "wrong dtype": ("dtype", lambda c: spoil(c, reward=c["reward"].astype(float)), "float64"),
    "nan": ("nan", nan_at, "obs of stream 1 .* row 2"),
    "infinite": ("nan", lambda c: spoil(c, reward=c["reward"] + np.float32(np.inf)), "reward"),
    "reset after no end": ("reset", lambda c: flag_at(c, "first", 0, 2, True), "unexpected reset"),
    "end without reset": ("reset", lambda c: flag_at(c, "last", 1, 1, True), "missing .* stream 1"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_refused_chunk_leaves_the_table_untouched(case: str) -> None:
    reason, spoiled, line = BAD[case]
    table_spec = spec(48, a=Consumer(4, 3), b=Consumer(4, 1, Prioritized()))
    table, episodes = filled(table_spec)
    good = episodes.chunk([0, 1], np.zeros((2, 4), bool))
    before, counted = table.snapshot().state(), table.stats()
    with pytest.raises(EnvironmentFault, match=line):
        table.add(spoiled(good), np.arange(2))
    after = table.snapshot().state()
    assert after["counters"].pop(f"refused_{reason}") == 1
    before["counters"].pop(f"refused_{reason}")
    np.testing.assert_equal(after, before)
    assert table.stats() == counted | {f"refused_{reason}": 1}
    assert table.add(good, np.arange(2))


@pytest.mark.parametrize(
    "streams", [np.array([0, 0]), np.array([0, -1]), np.array([0]), np.array([0.0, 1.0])]
)
def test_streams_are_distinct_ids(streams: Array) -> None:
    table, episodes = filled(spec(48, a=Consumer(4)))
    with pytest.raises(EnvironmentFault, match="streams must"):
        table.add(episodes.chunk([0, 1], np.zeros((2, 4), bool)), streams)
    assert table.stats()["refused_streams"] == 1


def test_a_stream_begins_with_a_reset() -> None:
    table, episodes = Table("real", spec(8, a=Consumer(1)), 0), Episodes()
    chunk = flag_at(episodes.chunk([3], [False, False]), "first", 0, 0, False)
    with pytest.raises(EnvironmentFault, match=r"missing reset in row 0 .* stream 3"):
        table.add(chunk, np.array([3]))
    episodes = Episodes()
    table.add(episodes.chunk([3], [False, True]), np.array([3]))
    chunk = flag_at(episodes.chunk([3], [False]), "first", 0, 0, False)
    with pytest.raises(EnvironmentFault, match="missing reset"):
        table.add(chunk, np.array([3]))
    assert table.stats()["refused_reset"] == 2


def test_a_chunk_larger_than_the_table_raises_a_user_error() -> None:
    table, episodes = Table("real", spec(8, a=Consumer(1)), 0), Episodes()
    with pytest.raises(UserError, match=r"9 rows .* capacity of 8"):
        table.add(episodes.chunk([0], np.zeros(9)), np.array([0]))


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        (spec(0), "capacity must be at least 1"),
        (spec(8, 0.5, a=Consumer(1)), "slack must be at least 1"),
        (spec(8, a=Consumer(0)), "batch and window"),
        (spec(8, a=Consumer(3, 3)), "capacity to store 9 or more, found 8"),
        (spec(8, a=Consumer(3, 1, context=2)), "3 windows of 3 rows: .* 9 or more, found 8"),
        (spec(8, a=Consumer(1, context=-1)), "context at least 0"),
        (spec(8, a=Consumer(1, min_steps=9)), "min_steps 9"),
        (spec(8, a=Consumer(1, columns=("rewards",))), "'rewards'; the nearest is 'reward'"),
        (spec(8, a=Consumer(1, columns=("obs", "obs"))), "each column must be named once"),
        (spec(8, a=Consumer(1, first_columns=("dete",))), "'dete'; the nearest is 'deter'"),
        (
            spec(8, a=Consumer(1, columns=("obs", "deter"), first_columns=("deter",))),
            "each column must be named once",
        ),
        (spec(8, a=Consumer(1, selector=Prioritized(initial="rewrd"))), "nearest is 'reward'"),
        (spec(8, a=Consumer(1, selector=Prioritized(initial="obs"))), "'obs' must be a float"),
        (spec(8, a=Consumer(1, selector=ReturnDeviation(0))), "half-life"),
        (spec(8, a=Consumer(1, samples_per_step=0.0)), "samples_per_step must be more than 0"),
        (spec(8, a=Consumer(1, selector=Prioritized(-1))), "exponent"),
        (spec(8, a=Consumer(1, selector=Recency(0))), "half-life"),
        (spec(8, a=Consumer(1, selector=EmphasizeRecent(eta=1.1))), "eta"),
        (spec(8, a=Consumer(1, selector=Mixture(((0.5, Uniform()),)))), "sum to 1"),
        (spec(8, a=Consumer(1, selector=Mixture(((1.0, Recency(-1)),)))), "half-life"),
        (TableSpec(8, {}, {}), "bool column 'first'"),
        (
            spec(8, a=Consumer(1, shares="worl"), world=Consumer(1)),
            "'a': there is no other consumer 'worl' to share; the nearest is 'world'",
        ),
        (spec(8, a=Consumer(1, shares="a")), "no other consumer 'a' to share; .* 'none'"),
        (
            spec(8, a=Consumer(1, shares="b"), b=Consumer(1, shares="c"), c=Consumer(1)),
            "'a': 'b' shares 'c': share that consumer instead",
        ),
    ],
)
def test_a_table_that_could_not_be_sampled_is_refused(wrong: TableSpec, line: str) -> None:
    with pytest.raises(UserError, match=line):
        Table("real", wrong, 0)
