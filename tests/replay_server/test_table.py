from __future__ import annotations

import dataclasses
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamfleet.core.errors import UserError
from dreamfleet.core.selectors import (
    EmphasizeRecent,
    Mixture,
    Prioritized,
    Recency,
    ReturnDeviation,
    Selector,
    Uniform,
)
from dreamfleet.core.types import Array, Batch, Consumer, Sample, Space, TableSpec
from dreamfleet.replay_server.table import Table
from tests.replay_server.model import COLUMNS, Episodes, Model, filled, spec

CONSUMERS = {
    "single": Consumer(3, 1, Uniform()),
    "prioritized": Consumer(4, 2, Prioritized(0.7)),
    "sharp": Consumer(2, 1, Prioritized(2.0)),
    "recent": Consumer(2, 4, Recency(3.5)),
    "instant": Consumer(2, 1, Recency(0.02)),
    "emphasis": Consumer(2, 3, EmphasizeRecent(0.9, floor=4, cycle=3, anneal=20)),
    "stack": Consumer(3, 1, context=3),
    "history": Consumer(2, 3, Prioritized(), context=2, columns=("reward", "obs")),
    "latents": Consumer(3, 2, context=1, first_columns=("deter", "stoch")),
    "resets": Consumer(2, 3, columns=("reward",), first_columns=("stoch", "first")),
    "mixture": Consumer(
        5,
        2,
        Mixture(((0.5, Uniform()), (0.3, Prioritized()), (0.2, EmphasizeRecent(0.95, 3, 5, 9)))),
    ),
}


def starts(table: Table, consumer: str) -> list[int]:
    state = table.snapshot().state()
    oldest = state["inserted"] - len(state["previous"])
    return (oldest + np.flatnonzero(state["consumers"][consumer]["starts"])).tolist()


def same(a: Sample | None, b: Sample | None) -> bool:
    assert a is not None and b is not None
    return (
        a.size == b.size
        and np.array_equal(a.keys, b.keys)
        and np.array_equal(a.prob, b.prob)
        and all(np.array_equal(a.data[name], b.data[name]) for name in a.data)
    )


def check_draw(sample: Sample, model: Model, consumer: str, draws: int) -> None:
    spec = model.spec.consumers[consumer]
    probability = model.probability(consumer, draws)
    assert sample.size == len(probability)
    assert sample.keys.shape == sample.prob.shape == (spec.batch,)
    assert (sample.prob > 0).all()
    whole = spec.columns or [name for name in COLUMNS if name not in spec.first_columns]
    assert list(sample.data) == [*whole, *spec.first_columns]
    for b, key in enumerate(sample.keys.tolist()):
        assert sample.prob[b] == pytest.approx(probability[key], rel=1e-9)
        window = model.context(key, spec.context) + (model.window(key, spec.window) or [])
        for t, row in enumerate(window):
            for name in whole:
                np.testing.assert_array_equal(sample.data[name][b, t], model.rows[row][name])
        for name in spec.first_columns:
            assert sample.data[name].shape == (spec.batch, *COLUMNS[name].shape)
            np.testing.assert_array_equal(sample.data[name][b], model.rows[window[0]][name])


def rewrite(
    table: Table, model: Model, drawn: list[tuple[str, Array]], rng: np.random.Generator
) -> None:
    """Rewrites rows of two samples that were drawn at any time so far, with random values.

    Some of the values are not finite, and some of the samples have two windows that overlap. drawn:
    the consumer and the keys of each sample.
    """
    for i in rng.integers(len(drawn), size=2 if drawn else 0):
        consumer, keys = drawn[i]
        spec = model.spec.consumers[consumer]
        lengths = rng.integers(1, spec.context + spec.window + 1, size=2)
        deter = rng.normal(size=(len(keys), lengths[0], 2)).astype(np.float16)
        deter[rng.random(deter.shape) < 0.02] = rng.choice([np.nan, np.inf])
        stoch = rng.integers(0, 256, (len(keys), lengths[1], 3), np.uint8)
        rows = {"deter": deter, "stoch": stoch, "priority": rng.exponential(size=len(keys))}
        some = rng.permutation(list(rows))[: rng.integers(1, 4)].tolist()
        rows = {name: rows[name] for name in some}
        table.update(keys, rows, consumer)
        model.update(keys, rows, consumer)


@given(
    seed=st.integers(0, 2**32 - 1),
    capacity=st.integers(12, 40),
    streams=st.integers(1, 5),
    longest=st.integers(1, 8),
    ends=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    resets=st.sampled_from([0.0, 0.3]),
)
@settings(max_examples=60, deadline=None)
def test_a_table_agrees_with_a_simple_model_of_lists(
    seed: int, capacity: int, streams: int, longest: int, ends: float, resets: float
) -> None:
    rng = np.random.default_rng(seed)
    table = Table("real", spec(capacity, 1.0, **CONSUMERS), seed)
    model, episodes = Model(spec(capacity, 1.0, **CONSUMERS)), Episodes()
    names = (rng.permutation(9)[:streams] * 1_000_003).tolist()
    draws = dict.fromkeys(CONSUMERS, 0)
    drawn: list[tuple[str, Array]] = []
    for _ in range(16):
        some = rng.permutation(names)[: rng.integers(1, streams + 1)].tolist()
        length = int(rng.integers(1, min(longest, capacity // len(some)) + 1))
        last = rng.random((len(some), length)) < ends
        chunk = episodes.chunk(some, last, reset=bool(rng.random() < resets))
        assert table.add(chunk, np.array(some))
        model.add(chunk, some)
        for consumer in CONSUMERS:
            assert starts(table, consumer) == model.starts(consumer)
            sample = table.sample(consumer)
            if sample is None:
                assert not model.starts(consumer)
                continue
            check_draw(sample, model, consumer, draws[consumer])
            draws[consumer] += 1
            drawn.append((consumer, sample.keys))
        keys = rng.integers(0, len(model.rows), 5)
        keys = keys[np.unique(keys, return_index=True)[1]]
        priorities = rng.exponential(size=keys.size) * (rng.random(keys.size) < 0.9)
        table.update(keys, {"priority": priorities})
        model.update(keys, {"priority": priorities})
        rewrite(table, model, drawn, rng)
        stats = table.stats()
        assert stats["inserted"] == len(model.rows) == stats["stored"] + stats["evicted"]
        assert stats["truncated"] == model.truncated and stats["stale_updates"] == model.stale
        assert stats["invalid_updates"] == model.invalid
        assert table.steps == model.steps


def test_windows_are_copies() -> None:
    table, _ = filled(spec(64, a=Consumer(4, 3)))
    before = table.snapshot().state()
    sample = table.sample("a")
    assert sample is not None
    for column in sample.data.values():
        column[...] = 0
    for name, column in before["columns"].items():
        np.testing.assert_array_equal(table.snapshot().state()["columns"][name], column)


def test_a_row_becomes_a_start_when_its_window_is_complete() -> None:
    table, episodes = Table("real", spec(8, a=Consumer(1, 3)), 0), Episodes()
    for row, count in enumerate([0, 0, 1, 2]):
        table.add(episodes.chunk([7], [False]), np.array([7]))
        assert table.stats()["starts_a"] == count, row
        assert (table.sample("a") is None) == (count == 0)


def test_a_reset_in_an_open_episode_truncates_it() -> None:
    table, episodes = Table("real", spec(8, a=Consumer(1, 1)), 0), Episodes()
    table.add(episodes.chunk([0], [False, False]), np.array([0]))
    table.add(episodes.chunk([0], [False, False], reset=True), np.array([0]))
    state = table.snapshot().state()
    assert state["columns"]["last"].tolist() == [False, True, False, False]
    assert not state["columns"]["terminal"].any()
    assert starts(table, "a") == [0, 2, 3]
    assert table.stats()["truncated"] == 1


def test_a_stream_continues_after_all_its_rows_were_evicted() -> None:
    table, episodes = Table("real", spec(6, a=Consumer(1, 2)), 0), Episodes()
    table.add(episodes.chunk([0], [False, False]), np.array([0]))
    table.add(episodes.chunk([1], [False] * 6), np.array([1]))
    table.add(episodes.chunk([0], [False]), np.array([0]))
    assert starts(table, "a") == [3, 4, 5, 6]
    table.add(episodes.chunk([0], [False]), np.array([0]))
    assert starts(table, "a") == [4, 5, 6, 8]


def test_truncating_an_episode_whose_rows_were_evicted_changes_no_other_row() -> None:
    table, episodes = Table("real", spec(6, a=Consumer(1, 1)), 0), Episodes()
    table.add(episodes.chunk([0], [False]), np.array([0]))
    table.add(episodes.chunk([1], [False] * 6), np.array([1]))
    table.add(episodes.chunk([2], [False] * 3), np.array([2]))
    table.add(episodes.chunk([0], [False], reset=True), np.array([0]))
    assert starts(table, "a") == [5, 6, 7, 8, 9, 10]
    assert table.stats()["truncated"] == 1


# ------------------------------------------------------------------------------------ contexts


def test_a_context_repeats_the_first_row_of_a_young_episode() -> None:
    table, episodes = Table("real", spec(16, a=Consumer(1, 2, context=3)), 0), Episodes()
    table.add(episodes.chunk([0], [False, True, False, False, False]), np.array([0]))
    seen = {}
    while len(seen) < 3:
        sample = table.sample("a")
        assert sample is not None
        seen[int(sample.keys[0])] = sample.data
    assert seen[0]["obs"][0, :, 1].tolist() == [0, 0, 0, 0, 1]
    assert seen[0]["first"][0].tolist() == [True, True, True, True, False]
    assert seen[3]["obs"][0, :, 1].tolist() == [2, 2, 2, 3, 4]


def test_a_start_is_removed_when_a_row_of_its_context_is_evicted() -> None:
    table, episodes = Table("real", spec(8, a=Consumer(1, 1, context=2)), 0), Episodes()
    table.add(episodes.chunk([0, 1], np.zeros((2, 3))), np.arange(2))
    assert starts(table, "a") == [0, 1, 2, 3, 4, 5]
    table.add(episodes.chunk([1], [False] * 3), np.array([1]))  # evicts row 0
    assert starts(table, "a") == [3, 4, 5, 6, 7, 8]
    table.add(episodes.chunk([0], [False]), np.array([0]))  # evicts row 1
    assert starts(table, "a") == [3, 4, 5, 6, 7, 8]
    table.add(episodes.chunk([0], [True]), np.array([0]))
    table.add(episodes.chunk([0], [False, False]), np.array([0]))
    assert starts(table, "a") == [7, 8, 11, 12]


# ------------------------------------------------------------------------------------- packing


def test_a_batch_is_one_piece_of_memory_with_aligned_columns() -> None:
    consumer = Consumer(3, 5, columns=("obs", "last", "action"), first_columns=("deter", "stoch"))
    table, _ = filled(spec(64, a=consumer))
    sample = table.sample("a")
    assert sample is not None
    place = [column.__array_interface__["data"][0] for column in sample.data.values()]
    assert all(at % 64 == 0 for at in place)
    assert place[1] - place[0] == 128 and place[2] - place[1] == 64  # 3 * 5 * 2 * 4 bytes, 3 * 5
    assert len({id(column.base) for column in sample.data.values()}) == 1
    assert all(column.flags.c_contiguous for column in sample.data.values())


@pytest.mark.parametrize("count", [0, 1, 70])
@pytest.mark.parametrize("selector", [Uniform(), CONSUMERS["mixture"].selector, ReturnDeviation()])
def test_another_number_of_windows_may_be_drawn(count: int, selector: Selector) -> None:
    table, _ = filled(spec(64, a=Consumer(3, 2, selector, context=1)))
    sample = table.sample("a", count)
    assert sample is not None
    assert sample.keys.shape == sample.prob.shape == (count,)
    assert sample.data["obs"].shape == (count, 3, 2)
    np.testing.assert_array_equal(sample.data["obs"][..., 1], sample.data["action"])
    draw = table.draw("a", count)
    assert draw is not None and table.intact(draw)


def test_a_draw_is_intact_until_one_of_its_rows_is_overwritten() -> None:
    table, episodes = Table("real", spec(12, a=Consumer(1, 2, context=1)), 0), Episodes()
    table.add(episodes.chunk([0], np.zeros(8)), np.array([0]))
    draw = table.draw("a")
    while draw is None or draw.sample.keys[0] != 3:
        draw = table.draw("a")
    expected, counted = table.gather(draw), table.stats()["samples_a"]
    table.add(episodes.chunk([0], np.zeros(6)), np.array([0]))
    np.testing.assert_equal(table.gather(draw), expected)
    assert table.intact(draw) and table.stats()["samples_a"] == counted
    table.add(episodes.chunk([0], np.zeros(1)), np.array([0]))  # overwrites row 2, its context
    assert not table.intact(draw) and table.stats()["samples_a"] == counted - 1


def test_a_draw_is_not_intact_after_an_episode_was_truncated() -> None:
    table, episodes = Table("real", spec(12, a=Consumer(1, 2)), 0), Episodes()
    table.add(episodes.chunk([0], np.zeros(3)), np.array([0]))
    draw = table.draw("a")
    assert draw is not None
    table.add(episodes.chunk([0], np.zeros(3), reset=True), np.array([0]))
    assert not table.intact(draw)


def test_batches_gathered_while_rows_are_added_hold_no_overwritten_rows() -> None:
    columns = {**COLUMNS, "obs": Space((64, 64), "int64")}
    table_spec = TableSpec(300, columns, {"a": Consumer(16, 4, context=2, samples_per_step=1)}, 1e9)
    table, episodes, lock = Table("real", table_spec, 0), Episodes(), threading.Lock()

    def write() -> None:
        chunk = episodes.chunk([0, 1], np.zeros((2, 10)))
        obs = chunk["action"] + 1_000_000 * np.arange(2)[:, None]
        chunk["obs"] = np.broadcast_to(obs[..., None, None], (2, 10, 64, 64))
        with lock:
            assert table.add(chunk, np.arange(2))

    for _ in range(20):
        write()
    stop = threading.Event()

    def keep_writing() -> None:
        while not stop.is_set():
            write()

    writer = threading.Thread(target=keep_writing)
    writer.start()
    whole = 0
    try:
        for _ in range(200):
            with lock:
                draw = table.draw("a")
            assert draw is not None
            data = table.gather(draw)
            with lock:
                if not table.intact(draw):
                    continue
            whole += 1
            obs = data["obs"].reshape(16, 6, -1)
            assert (obs == obs[..., :1]).all()
            assert (np.diff(obs[..., 0])[:, 2:] == 1).all()
            stream = obs[:, 0, 0] >= 1_000_000
            np.testing.assert_array_equal(obs[..., 0] - 1_000_000 * stream[:, None], data["action"])
    finally:
        stop.set()
        writer.join(10)
    assert whole and table.stats()["samples_a"] == whole


# ------------------------------------------------------------------------------ waiting, saving


def test_adding_is_refused_while_a_consumer_is_behind() -> None:
    table = Table("real", spec(64, 2.0, a=Consumer(2, 1, samples_per_step=0.5)), 0)
    episodes = Episodes()
    taken = 0
    while table.add(chunk := episodes.chunk([0], np.zeros(4)), np.array([0])):
        taken += 4
    assert table.stats()["inserted"] == taken == 8  # (8 - 1) * 0.5 > 2
    assert table.sample("a") is not None and table.sample("a") is not None
    assert table.add(chunk, np.array([0]))


def test_adding_does_not_wait_for_a_consumer_without_starts() -> None:
    table, episodes = Table("real", spec(64, a=Consumer(2, 32, samples_per_step=1)), 0), Episodes()
    for _ in range(31):
        assert table.add(episodes.chunk([0, 1], np.zeros((2, 1))), np.arange(2))
        assert table.sample("a") is None
    assert table.add(episodes.chunk([0, 1], np.zeros((2, 1))), np.arange(2))
    assert table.sample("a") is not None
    assert not table.add(episodes.chunk([0, 1], np.zeros((2, 1))), np.arange(2))


def test_draws_repeat_with_the_seed_and_differ_between_seeds() -> None:
    table_spec = spec(48, 1.0, **CONSUMERS)
    (a, _), (b, _), (c, _) = (filled(table_spec, seed=seed) for seed in (1, 1, 2))
    assert same(a.sample("mixture"), b.sample("mixture"))
    assert not same(a.sample("mixture"), c.sample("mixture"))


@pytest.mark.parametrize("rows", [12, 80])
def test_a_restored_table_continues_bit_for_bit(rows: int) -> None:
    limited = dataclasses.replace(CONSUMERS["single"], samples_per_step=0.5, min_steps=4)
    table_spec = spec(48, 1e9, **CONSUMERS, limited=limited)
    table, episodes = filled(table_spec, rows)
    for consumer in table_spec.consumers:
        sample = table.sample(consumer)
        assert sample is not None
        table.update(sample.keys, {"priority": np.linspace(0, 5, sample.keys.size)})
    state = table.snapshot().state()
    restored, _ = filled(table_spec, 20, seed=9)  # a table that has had other rows
    restored.restore(state)
    np.testing.assert_equal(restored.snapshot().state(), state)
    for step in range(12):
        assert restored.stats() == table.stats()
        for consumer in table_spec.consumers:
            ours, theirs = table.sample(consumer), restored.sample(consumer)
            assert ours is not None and same(ours, theirs)
            table.update(ours.keys, {"priority": ours.prob * step})
            restored.update(ours.keys, {"priority": ours.prob * step})
        chunk = episodes.chunk([0, 5], np.zeros((2, 3), bool), reset=step == 4)
        assert table.add(chunk, np.array([0, 5])) and restored.add(chunk, np.array([0, 5]))


def test_a_state_is_a_copy_of_the_stored_rows() -> None:
    table, episodes = filled(spec(16, 1.0, **CONSUMERS), rows=40)
    state, same_state = table.snapshot().state(), table.snapshot().state()
    assert len(state["columns"]["obs"]) == 16
    table.add(episodes.chunk([0], np.zeros(5)), np.array([0]))
    table.sample("mixture")
    np.testing.assert_equal(state, same_state)


def test_a_state_of_another_layout_is_refused() -> None:
    table, _ = filled(spec(48, a=Consumer(4, 2)))
    with pytest.raises(UserError, match="its capacity is 48 rows, here 47 rows"):
        Table("real", spec(47, a=Consumer(4, 2)), 0).restore(table.snapshot().state())
    with pytest.raises(UserError, match=r"its consumer a is windows of 2 .*, here windows of 3"):
        Table("real", spec(48, a=Consumer(4, 3)), 0).restore(table.snapshot().state())


def test_the_memory_of_a_full_table_is_known_when_it_is_empty() -> None:
    columns = {**COLUMNS, "obs": Space((84, 84), "uint8")}
    table_spec = TableSpec(1000, columns, {"a": Consumer(32, 4, Prioritized())})
    table = Table("real", table_spec, 0)
    row = 84 * 84 + 8 + 4 + 3 + 2 * 2 + 3  # obs, action, reward, flags, deter, stoch
    extra = 16 + 1 + 8  # links, flag, weight
    sums = 8 * 128  # of eight weights each, rounded up to a multiple of eight
    assert table.nbytes == table.stats()["bytes"] == 1000 * (row + extra) + sums
    assert table.nbytes <= 1.05 * 1000 * 84 * 84


@given(
    seed=st.integers(0, 2**32 - 1),
    streams=st.integers(1, 4),
    length=st.integers(1, 7),
    total=st.integers(1, 60),
    ends=st.sampled_from([0.0, 0.3, 0.9]),
)
@settings(max_examples=60, deadline=None)
def test_a_table_stores_no_agent_step_beyond_the_last(
    seed: int, streams: int, length: int, total: int, ends: float
) -> None:
    rng, names, episodes = np.random.default_rng(seed), list(range(streams)), Episodes()
    table = Table("real", spec(2_000, 1.0, a=Consumer(1, 1)), seed)
    table.last_step = total
    offered = []
    while table.steps < total:
        last = rng.random((streams, length)) < ends
        offered.append(episodes.chunk(names, last))
        assert table.add(offered[-1], np.array(names))
    assert table.steps == total
    assert not table.add(episodes.chunk(names, last), np.array(names))
    # The first steps, ordered by time, then by stream.
    rows = [
        row for chunk in offered for t in range(length) for row in zip(*at(chunk, t), strict=True)
    ]
    acted = [tuple(obs) for obs, last in rows if not last]
    assert table.stats()["steps_past_the_end"] == len(acted) - total
    columns = table.snapshot().state()["columns"]
    kept = {tuple(obs) for obs in columns["obs"][~columns["last"]].tolist()}
    assert kept == set(acted[:total])


def at(chunk: Batch, t: int) -> tuple[list[list[float]], list[bool]]:
    """Returns the observations and the `last` flags of all streams of a chunk at time t."""
    return chunk["obs"][:, t].tolist(), chunk["last"][:, t].tolist()


def test_a_resumed_table_with_a_later_last_step_stores_more_steps() -> None:
    table, episodes = Table("real", spec(64, a=Consumer(1, 1)), 0), Episodes()
    table.last_step = 5
    assert table.add(episodes.chunk([0], [False] * 4), np.array([0]))
    assert table.add(episodes.chunk([0], [False] * 4), np.array([0]))
    assert (table.steps, table.stats()["steps_past_the_end"]) == (5, 3)
    resumed = Table("real", spec(64, a=Consumer(1, 1)), 0)
    resumed.restore(table.snapshot().state())
    resumed.last_step = 7
    fresh = Episodes().chunk([1], [False] * 4)
    assert resumed.add(fresh, np.array([1]))
    assert (resumed.steps, resumed.stats()["steps_past_the_end"]) == (7, 5)
