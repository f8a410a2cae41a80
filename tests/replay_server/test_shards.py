"""Compares a replay of several shards (processes) with one table that has all their rows."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from dreamfleet.core.config import RunConfig, TrainConfig
from dreamfleet.core.errors import UserError
from dreamfleet.core.selectors import (
    EmphasizeRecent,
    Mixture,
    Prioritized,
    Recency,
    Selector,
    Uniform,
)
from dreamfleet.core.types import Array, ChunkId, Consumer, QueueSpec, Sample, TableSpec
from dreamfleet.replay_server.server import ReplayServer
from dreamfleet.replay_server.shards import (
    NearShard,
    ShardedReplay,
    join_states,
    last_steps,
    merged_stats,
    shard_tables,
    split_state,
)
from tests.replay_server.model import Episodes, chi_square_bound, spec

UNIFORM = Uniform()
ACTORS = 4  # each has one stream, of its own length


def tables(
    selector: Selector = UNIFORM, batch: int = 16, **consumer: float
) -> dict[str, TableSpec | QueueSpec]:
    one = Consumer(batch, 2, selector, **consumer)
    return {"real": spec(600, 4.0, x=one), "dream": QueueSpec(2)}


def sharded(
    tables: dict[str, TableSpec | QueueSpec], shards: int = 3, ahead: int = 0
) -> tuple[ShardedReplay, list[NearShard]]:
    near = [NearShard(shard_tables(tables, shards), seed) for seed in range(shards)]
    return ShardedReplay(near, tables, 7, ahead), near


def fill(replay: ShardedReplay | ReplayServer, chunks: int = 8) -> None:
    """Adds `chunks` chunks for each actor. Actor i adds 4 (i + 1) rows at a time.

    Episodes have 4 rows.
    """
    episodes = Episodes()
    for sequence in range(chunks):
        for actor in range(ACTORS):
            last = np.zeros((1, 4 * (actor + 1)), bool)
            last[:, 3::4] = True
            chunk = episodes.chunk([actor], last)
            assert replay.add("real", chunk, np.array([actor]), ChunkId(actor, 0, sequence))


def draw(replay: ShardedReplay | ReplayServer) -> Sample:
    sample = replay.sample("real", "x")
    assert isinstance(sample, Sample)
    return sample


def rows_of(sample: Sample) -> list[tuple[int, int]]:
    """Returns the first row of each window, as its stream and its number in the stream."""
    return [(int(n), int(t)) for n, t in sample.data["obs"][:, 0]]


def prioritize(replay: ShardedReplay | ReplayServer) -> None:
    """Samples until each start has been drawn, and sets its priority to a function of its row.

    A start is a row at which a window may begin.
    """
    seen: set[tuple[int, int]] = set()
    size = 1
    while len(seen) < size:
        sample = draw(replay)
        rows, size = rows_of(sample), sample.size
        replay.update(
            "real", sample.keys, {"priority": np.array([1.0 + s**2 + t % 5 for s, t in rows])}
        )
        seen.update(rows)


def frequencies_agree(replay: ShardedReplay, expected: dict[tuple[int, int], float]) -> None:
    """Asserts by a χ² test that windows are drawn with the expected probabilities.

    expected: the probability of each start (row at which a window may begin).
    """
    drawn: Counter[tuple[int, int]] = Counter()
    for _ in range(1500):
        drawn.update(rows_of(draw(replay)))
    n = drawn.total()
    assert drawn.keys() <= expected.keys()
    statistic = sum((drawn[row] - n * p) ** 2 / (n * p) for row, p in expected.items())
    assert statistic < chi_square_bound(len(expected) - 1)


def probabilities(replay: ShardedReplay | ReplayServer) -> dict[tuple[int, int], float]:
    """Returns the probability that samples report for each start, by the row of the start.

    A start is a row at which a window may begin.
    """
    found: dict[tuple[int, int], float] = {}
    for _ in range(20_000):
        sample = draw(replay)
        found |= dict(zip(rows_of(sample), sample.prob.tolist(), strict=True))
        if len(found) == sample.size:
            return found
    raise AssertionError(f"only {len(found)} starts were ever drawn")


@pytest.mark.parametrize("selector", [Uniform(), Prioritized(), Prioritized(0.6)])
@pytest.mark.parametrize("shards", [1, 2, 3])
def test_sharded_draws_are_those_of_one_table(selector: Selector, shards: int) -> None:
    one = ReplayServer(tables(selector), 0)
    many, _ = sharded(tables(selector), shards)
    for replay in (one, many):
        fill(replay)
        prioritize(replay)
        draw(replay)  # its successor is divided by these priorities
    expected = probabilities(one)
    assert sum(expected.values()) == pytest.approx(1)
    ours = probabilities(many)
    assert ours.keys() == expected.keys()
    for row, prob in expected.items():
        assert ours[row] == pytest.approx(prob, rel=1e-9)
    assert draw(many).size == draw(one).size == len(expected)
    frequencies_agree(many, expected)


def test_recent_rows_are_drawn_from_all_shards_as_from_one_table() -> None:
    """This holds only if all actors are equally fast.

    A row's age is counted in rows of its shard. The shards' ages are comparable only if they grow
    at equal rates.
    """
    near = [NearShard(shard_tables(tables(Recency(40.0)), 2), seed) for seed in range(2)]
    many = ShardedReplay(near, tables(Recency(40.0)), 7)
    one, episodes = ReplayServer(tables(Recency(40.0)), 0), Episodes()
    for sequence in range(40):
        for actor in range(2):
            chunk = episodes.chunk([actor], np.zeros((1, 2), bool))
            for replay in (one, many):
                replay.add("real", chunk, np.array([actor]), ChunkId(actor, 0, sequence))
    ours, theirs = probabilities(many), probabilities(one)
    # In a shard the chunks of one actor are adjacent, in one table they alternate: 2 rows apart.
    for row in ours.keys() & theirs.keys():
        assert ours[row] == pytest.approx(theirs[row], rel=0.08)


def test_a_batch_is_shuffled_over_the_shards() -> None:
    many, _ = sharded(tables())
    fill(many)
    first_half: Counter[int] = Counter()
    for _ in range(300):
        first_half.update(stream for stream, _ in rows_of(draw(many))[:8])
    starts = {stream: stream + 1 for stream in range(ACTORS)}  # in proportion
    for stream, weight in starts.items():
        assert first_half[stream] / first_half.total() == pytest.approx(weight / 10, abs=0.05)


def masses(shards: list[NearShard]) -> list[float]:
    """Returns the present priority mass (sum of sampling weights) of each shard."""
    return [shard._tables["real"]._views["x"].selector.priority_mass() for shard in shards]


def test_probabilities_are_exact_although_reported_masses_are_old() -> None:
    """Shards are sampled in proportion to the priority masses (sums of weights) they last reported.

    The probabilities in a sample are computed from these same masses, so that they are exact.
    """
    many, near = sharded(tables(Prioritized()), 2)
    fill(many)
    draw(many)
    sample = draw(many)
    many.update("real", sample.keys, {"priority": np.full(16, 50.0)})  # not reported yet
    now = masses(near)
    before = many._priority_mass["real", "x"].copy()
    assert not np.allclose(before / before.sum(), np.array(now) / sum(now))
    total, n = 0.0, 4000
    for _ in range(n // 16):
        many._priority_mass["real", "x"] = before.copy()
        total += float((1 / draw(many).prob).sum())
    assert total / n == pytest.approx(draw(many).size, rel=0.1)  # E[1 / p] = number of starts


def test_priorities_find_their_shard() -> None:
    many, near = sharded(tables(Prioritized()), 3)
    fill(many)
    draw(many)
    sample = draw(many)
    before = sum(masses(near))
    many.update("real", sample.keys, {"priority": np.zeros(16)})
    starts = len(set(sample.keys.tolist()))
    assert before - sum(masses(near)) == pytest.approx(starts, rel=1e-3)
    assert many.stats()["real/stale_updates"] == 0


def test_the_first_columns_of_all_shards_are_those_of_the_first_rows() -> None:
    one = Consumer(16, 2, context=1, first_columns=("deter", "stoch"))
    many, _ = sharded({"real": spec(600, 4.0, x=one)})
    fill(many)
    draw(many)
    sample = draw(many)
    assert len({stream for stream, _ in rows_of(sample)}) == ACTORS
    np.testing.assert_array_equal(sample.data["deter"], sample.data["obs"][:, 0])
    assert sample.data["stoch"].shape == (16, 3)


@pytest.mark.parametrize("shards", [1, 3])
def test_new_values_find_the_rows_of_their_windows(shards: int) -> None:
    many, near = sharded(tables(), shards)
    fill(many)
    draw(many)
    sample = draw(many)
    new = (-1 - sample.data["obs"]).astype(np.float16)  # the first component is below 0
    many.update("real", sample.keys, {"deter": new, "priority": np.ones(16)}, "x")
    written = set()
    for shard in near:
        columns = shard.state()["real"]["columns"]
        rewritten = columns["deter"][:, 0] < 0
        expected = np.where(rewritten[:, None], -1 - columns["obs"], columns["obs"])
        np.testing.assert_array_equal(columns["deter"], expected)
        written |= {tuple(row) for row in columns["obs"][rewritten].tolist()}
    assert written == {tuple(row) for row in sample.data["obs"].reshape(-1, 2).tolist()}
    with pytest.raises(ValueError, match=r"\(16,\) keys cannot take new values of 'deter'"):
        many.update("real", sample.keys, {"deter": new[:15]}, "x")


@pytest.mark.parametrize("shards", [1, 2, 4])
@pytest.mark.parametrize("rate", [0.25, 1.0, 3.0])
def test_shards_keep_the_sampling_ratio_of_one_table(shards: int, rate: float) -> None:
    specs = tables(samples_per_step=rate, min_steps=16)
    many, _ = sharded(specs, shards)
    episodes, rng = Episodes(), np.random.default_rng(3)
    sequence: Counter[int] = Counter()
    taken = 0
    held: dict[int, tuple[Array, int]] = {}
    for _ in range(3000):
        if rng.random() < 0.5:
            taken += many.sample("real", "x") is not None
            continue
        actor = int(rng.choice(ACTORS, p=[0.4, 0.3, 0.2, 0.1]))
        if actor not in held:
            held[actor] = episodes.chunk([actor], np.zeros((1, 4), bool)), sequence[actor]
            sequence[actor] += 1
        chunk, number = held[actor]
        if many.add("real", chunk, np.array([actor]), ChunkId(actor, 0, number)):
            del held[actor]
    stats = many.stats()
    steps = int(stats["env_steps"])
    assert steps > 200 and stats["real/duplicates"] == 0
    owed = (steps - 16) * rate - taken
    # Each shard may be behind by the slack and by what a chunk earns, divided by the shards.
    assert -1e-6 <= owed <= 4 + 4 * rate * shards + shards
    assert stats["real/samples_x"] in (taken, taken + 1) or shards > 1
    assert stats["real/ratio_x"] == pytest.approx(taken / (steps - 16), rel=0.1)


def test_samples_requested_ahead_are_returned_in_order() -> None:
    many, near = sharded(tables(samples_per_step=0.25, min_steps=0), 2, ahead=2)
    assert many.sample("real", "x") is None
    fill(many, chunks=1)
    got = sum(many.sample("real", "x") is not None for _ in range(100))
    assert got == min(shard.stats()["real/samples_x"] for shard in near)


def test_queues_are_in_the_first_shard_and_keep_their_order() -> None:
    many, near = sharded(tables(), 3)
    batches = [{"latent": object()} for _ in range(3)]
    assert [many.add("dream", batch) for batch in batches] == [True, True, False]
    assert many.sample("dream", "policy") is batches[0]
    assert many.sample("dream", "policy") is batches[1]
    assert many.sample("dream", "policy") is None
    assert [shard.stats()["dream/inserted"] for shard in near] == [2, 0, 0]


def test_counters_of_shards_add_up() -> None:
    many, _ = sharded(tables(samples_per_step=0.25, min_steps=0), 2)
    fill(many, chunks=1)
    for _ in range(5):
        assert many.sample("real", "x") is not None
    stats = many.stats()
    assert stats["env_steps"] == 3 * (1 + 2 + 3 + 4)
    assert stats["real/inserted"] == stats["real/stored"] == 40
    assert stats["real/samples_x"] == 5
    assert stats["real/ratio_x"] == pytest.approx(5 / 30)
    assert merged_stats([stats]) == pytest.approx(stats)


def test_capacity_and_consumers_are_divided_among_shards() -> None:
    mixed = Mixture(((0.5, Recency(100.0)), (0.5, EmphasizeRecent(floor=30))))
    one = Consumer(16, 2, mixed, samples_per_step=0.5, min_steps=100)
    part = shard_tables({"real": spec(600, 2.0, x=one), "dream": QueueSpec(2)}, 4)
    real = part["real"]
    assert isinstance(real, TableSpec) and part["dream"] == QueueSpec(2)
    assert (real.capacity, real.slack) == (150, 2.0)
    thin = Mixture(((0.5, Recency(25.0)), (0.5, EmphasizeRecent(floor=8))))
    assert real.consumers["x"] == Consumer(4, 2, thin, samples_per_step=2.0, min_steps=25)


def test_a_checkpoint_holds_all_shards() -> None:
    many, near = sharded(tables(Prioritized()), 3)
    fill(many)
    prioritize(many)
    state = join_states([shard.state() for shard in near])
    again, restored_episodes = sharded(tables(Prioritized()), 3)
    for restored, part in zip(restored_episodes, split_state(state, 3), strict=True):
        restored.restore(part)
    assert again.stats() == many.stats()
    assert join_states([near[0].state()]).keys() == {"real", "dream"}
    with pytest.raises(UserError, match=r"3 shards, here are 1; .* train.replay_shards=3"):
        split_state(state, 1)


def test_more_shards_than_actors_are_refused() -> None:
    RunConfig(num_actors=2, train=TrainConfig(replay_shards=2))
    with pytest.raises(UserError, match=r"replay_shards must be at most --num-actors \(2\)"):
        RunConfig(num_actors=2, train=TrainConfig(replay_shards=3))


def test_the_last_steps_of_all_shards_add_up_to_the_steps_of_the_run() -> None:
    assert last_steps(10, [None]) == [10]
    assert last_steps(10, [None, None, None]) == [3, 3, 4]
    states = [{"real": {"limiter": {"steps": steps}}} for steps in (7, 4)]
    assert last_steps(20, states) == [11, 9]
    assert sum(last_steps(20, states)) == 20
    assert last_steps(11, states) == [7, 4]
