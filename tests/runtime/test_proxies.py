"""Tests the replay and weight-store proxies, with fake connections and a fake clock."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamfleet.core.errors import EnvironmentFault
from dreamfleet.core.types import ChunkId, Sample
from dreamfleet.runtime import proxies
from dreamfleet.runtime.hosts import RETRY_S, AddReply
from dreamfleet.runtime.packed import Packed, PackedSample, PackedWeights
from dreamfleet.runtime.proxies import (
    MAX_MERGED,
    PREFETCH,
    PULL_EVERY_S,
    ReplayProxy,
    Unreachable,
    WeightsProxy,
)
from tests.fakes import FakeAgent, FakeClock, FakeConnection
from tests.runtime.test_hosts import STREAM, rows

STEPS = 4  # of a chunk


class Setup:
    """A proxy of a replay, with fake connections to the replay's shards and a fake clock."""

    def __init__(self, shards: int = 1) -> None:
        self.clock = FakeClock()
        self.connections = [FakeConnection(self.clock) for _ in range(shards)]
        self.connection = self.connections[0]
        self.proxy = ReplayProxy(self.connections, FakeAgent().tables, 0)

    def add(self, n: int, actor: int = 0, restarts: int = 0) -> bool:
        """Offers chunk number n of an actor to the proxy. Returns whether the proxy accepted it.

        The rewards of chunk n are n * STEPS, n * STEPS + 1, …, by which a chunk is recognised.
        """
        chunk = rows(STEPS, first=n == 0)
        chunk["reward"] += n * STEPS + np.arange(STEPS)
        return self.proxy.add("real", chunk, STREAM, ChunkId(actor, restarts, n))

    def open(self, credit: int) -> None:
        """Adds chunk 0; the replay accepts it and grants a credit.

        credit: the agent steps that the proxy may send before the next answer.
        """
        assert not self.add(0)
        self.connection.answer(AddReply(True, credit, 0.0))
        assert self.add(0)

    def sent(self, shard: int = 0) -> list[list[int]]:
        """Returns the chunk numbers that each `add` call to a shard contained, in order.

        Calls that repeat a chunk are included.
        """
        adds = [call for call in self.connections[shard].calls if call.method == "add"]
        counts = [call.args[1].views()["reward"][0].astype(int).tolist() for call in adds]
        assert all(later == before + 1 for count in counts for before, later in pairwise(count))
        return [[first // STEPS for first in count[::STEPS]] for count in counts]


@pytest.fixture
def setup(monkeypatch) -> Setup:
    setup = Setup()
    monkeypatch.setattr(proxies, "time", setup.clock)
    return setup


ACCEPTED = AddReply(True, 0, 0.0)


# ------------------------------------------------------------------------------------- adding


def test_without_credit_each_chunk_waits_for_the_answer_to_the_previous(setup):
    assert not setup.add(0)
    assert not setup.add(0)
    assert setup.sent() == [[0]]
    setup.connection.answer(ACCEPTED)
    assert setup.add(0)
    assert not setup.add(1)
    assert setup.sent() == [[0], [1]]


def test_within_the_credit_chunks_are_accepted_before_the_answer(setup):
    setup.open(credit=3 * STEPS)
    assert [setup.add(n) for n in (1, 2, 3, 4)] == [True, True, True, False]
    assert setup.sent() == [[0], [1]]
    setup.connection.answer(AddReply(True, 3 * STEPS, 0.0))
    assert setup.add(4)  # 2 and 3 are in flight, which leaves credit for one
    assert not setup.add(5)
    assert setup.sent() == [[0], [1], [2, 3]]


def test_waiting_chunks_are_merged_up_to_a_limit(setup):
    setup.open(credit=1000)
    assert all(setup.add(n) for n in range(1, MAX_MERGED + 2))
    assert not setup.add(MAX_MERGED + 2)
    setup.connection.answer(AddReply(True, 1000, 0.0))
    assert setup.add(MAX_MERGED + 2)
    merged = list(range(2, MAX_MERGED + 2))
    assert setup.sent() == [[0], [1], merged]
    assert setup.connection.calls[-1].args[-1] == ChunkId(0, 0, merged[-1])


def test_chunks_of_two_starts_of_an_actor_are_not_merged(setup):
    setup.open(credit=1000)
    assert setup.add(1)
    assert not setup.add(0, restarts=1)
    setup.connection.answer(AddReply(True, 1000, 0.0))
    assert setup.add(0, restarts=1)
    assert setup.sent() == [[0], [1], [0]]


def test_a_refused_chunk_is_sent_again_after_the_retry_delay(setup):
    assert not setup.add(0)
    setup.connection.answer(AddReply(False, 0, 0.2))
    assert not setup.add(0)
    setup.clock.sleep(0.19)
    assert not setup.add(0)
    assert setup.sent() == [[0]]
    setup.proxy.wait(10.0)
    assert setup.clock.now == pytest.approx(0.2)
    assert not setup.add(0)
    assert setup.sent() == [[0], [0]]
    setup.connection.answer(ACCEPTED)
    assert setup.add(0)


def test_chunks_after_a_refused_chunk_wait_for_it(setup):
    setup.open(credit=1000)
    assert setup.add(1) and setup.add(2)
    setup.connection.answer(AddReply(False, 0, 0.1))
    assert not setup.add(3)
    setup.clock.sleep(0.1)
    assert not setup.add(3)
    setup.connection.answer(AddReply(True, 1000, 0.0))
    assert setup.add(3)
    assert setup.sent() == [[0], [1], [1], [2]]
    setup.connection.answer(ACCEPTED)
    setup.proxy.flush()
    assert setup.sent() == [[0], [1], [1], [2], [3]]


def test_a_chunk_without_an_answer_is_sent_again(setup):
    setup.open(credit=1000)
    assert setup.add(1) and setup.add(2)
    setup.connection.answer(Unreachable())
    assert not setup.proxy.flush()
    setup.proxy.wait(10.0)
    assert setup.clock.now == pytest.approx(RETRY_S[1])
    assert not setup.proxy.flush()
    assert setup.sent() == [[0], [1], [1]]
    assert (
        setup.connection.calls[-1].args[-1]
        == setup.connection.calls[-2].args[-1]
        == ChunkId(0, 0, 1)
    )


def test_a_batch_without_a_chunk_id_is_not_sent_again(setup):
    assert not setup.proxy.add("dream", {"n": np.array(0)})
    setup.connection.answer(Unreachable())
    with pytest.raises(Unreachable):
        setup.proxy.add("dream", {"n": np.array(0)})


def test_an_error_is_raised_once_and_drops_the_waiting_chunks(setup):
    setup.open(credit=1000)
    assert setup.add(1) and setup.add(2)
    setup.connection.answer(EnvironmentFault("NaN"))
    with pytest.raises(EnvironmentFault, match="NaN"):
        setup.add(3)
    assert setup.proxy.flush()
    assert not setup.add(0, restarts=1)  # there is no credit left
    assert setup.sent() == [[0], [1], [0]]


def test_flush_sends_waiting_chunks_and_tells_when_all_have_arrived(setup):
    setup.open(credit=1000)
    assert setup.proxy.flush()
    assert setup.add(1) and setup.add(2) and setup.add(3)
    assert not setup.proxy.flush()
    setup.connection.answer(ACCEPTED, after=0.3)
    setup.proxy.wait(10.0)
    assert setup.clock.now == pytest.approx(0.3)
    assert not setup.proxy.flush()
    assert setup.sent() == [[0], [1], [2, 3]]
    setup.connection.answer(ACCEPTED, after=0.2)
    setup.proxy.wait(10.0)
    assert setup.clock.now == pytest.approx(0.5)
    assert setup.proxy.flush()


OUTCOMES = st.sampled_from(["accepted", "refused", "call lost", "answer lost"])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(OUTCOMES, st.integers(0, 8), st.floats(0.001, 0.3)), max_size=60))
def test_chunks_arrive_in_order_and_once(script):
    """The replay answers by a random script: accepted, refused, call lost, or answer lost."""
    setup, chunks, arrived = Setup(), 30, []
    outcomes, answered, tries = iter(script), 0, 0

    def reply_to_the_last() -> None:
        """Answers the newest call as the script says. After the script's end, accepts everything.

        A chunk that arrives a second time is not stored again.
        """
        nonlocal answered
        if len(setup.connection.calls) == answered:
            return
        answered += 1
        assert len(setup.connection.calls) == answered, "two chunks are in flight"
        outcome, chunks_of_credit, after = next(outcomes, ("accepted", 2, 0.01))
        chunk_numbers, chunk_id = setup.sent()[-1], setup.connection.calls[-1].args[-1]
        if outcome in ("accepted", "answer lost") and chunk_id.sequence not in arrived:
            arrived.extend(chunk_numbers)
        reply = AddReply(outcome == "accepted", chunks_of_credit * STEPS, 0.05)
        setup.connection.answer(Unreachable() if "lost" in outcome else reply, after=after)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proxies, "time", setup.clock)
        for n in range(chunks):
            while not setup.add(n):
                reply_to_the_last()
                setup.proxy.wait(1.0)
                tries += 1
        while not setup.proxy.flush():
            reply_to_the_last()
            setup.proxy.wait(1.0)
            tries += 1
    assert arrived == list(range(chunks))
    assert tries < 10 * (chunks + len(script))  # it waits instead of polling


# ----------------------------------------------------------------------------------- sampling


def packed_sample(key: int) -> PackedSample:
    data = Packed.of({"obs": np.full((4, 2, 2), key, np.float32)})
    return PackedSample(
        data, Sample({}, np.full(4, key), np.full(4, 0.25), size=4, priority_mass=1.0)
    )


def test_prefetched_samples_are_returned_in_order(setup):
    def take() -> int | None:
        sample = setup.proxy.sample("real", "policy")
        return None if sample is None else int(sample.keys[0])

    assert take() is None
    assert len(setup.connection.calls) == PREFETCH == 2
    setup.connection.answer(packed_sample(1), of=1)
    assert take() is None
    setup.connection.answer(packed_sample(0), of=0)
    assert [take(), take(), take()] == [0, 1, None]
    requests = [call.args[-1] for call in setup.connection.calls]
    assert [(request.number, request.received) for request in requests] == [
        (0, 0),
        (1, 0),
        (2, 1),
        (3, 2),
    ]
    assert len({request.client for request in requests}) == 1


def test_a_request_without_rows_in_time_is_sent_again_with_its_number(setup):
    assert setup.proxy.sample("real", "policy") is None
    setup.connection.answer(None, of=0)
    assert setup.proxy.sample("real", "policy") is None
    assert [call.args[-1].number for call in setup.connection.calls] == [0, 1, 0]
    setup.connection.answer(packed_sample(7))
    assert setup.proxy.sample("real", "policy").keys[0] == 7


def test_batches_of_a_queue_are_requested_one_at_a_time(setup):
    assert setup.proxy.sample("dream", "policy") is None
    assert len(setup.connection.calls) == 1
    setup.connection.answer(Packed.of({"n": np.array(3)}))
    assert setup.proxy.sample("dream", "policy")["n"] == 3


def test_an_error_of_an_update_is_raised_by_the_next_update(setup):
    setup.proxy.update("real", np.arange(4), {"priority": np.ones(4)})
    setup.connection.answer(KeyError("no table"))
    with pytest.raises(KeyError):
        setup.proxy.update("real", np.arange(4), {"priority": np.ones(4)})


def test_new_values_travel_in_one_buffer(setup):
    rows = {"priority": np.ones(4), "latent": np.arange(24, dtype=np.float16).reshape(4, 2, 3)}
    setup.proxy.update("real", np.arange(4), rows, "world")
    [call] = setup.connection.calls
    table, keys, packed, consumer = call.args
    assert (call.method, table, keys.tolist(), consumer) == (
        "update",
        "real",
        [0, 1, 2, 3],
        "world",
    )
    assert packed.memory.dtype == np.uint8
    np.testing.assert_equal(packed.views(), rows)


# ------------------------------------------------------------------------------------ waiting


def test_a_wait_ends_when_a_missing_answer_comes(setup):
    assert setup.proxy.sample("dream", "policy") is None
    setup.connection.answer(Packed.of({"n": np.array(3)}), after=0.5)
    setup.proxy.wait(10.0)
    assert setup.clock.now == pytest.approx(0.5)


def test_a_prefetched_sample_does_not_end_a_wait_for_something_else(setup):
    """A learner that waits for a dream is not woken by the arrival of a sample of real rows."""
    assert setup.proxy.sample("real", "policy") is None
    setup.connection.answer(packed_sample(0), of=0)
    setup.connection.answer(packed_sample(1), of=1, after=0.1)
    assert setup.proxy.sample("real", "policy").keys[0] == 0
    assert setup.proxy.sample("dream", "policy") is None
    setup.connection.answer(Packed.of({"n": np.array(3)}), after=0.5)
    setup.proxy.wait(10.0)
    assert setup.clock.now == pytest.approx(0.5)


def test_an_answer_missed_before_the_previous_wait_does_not_end_this_one(setup):
    assert setup.proxy.sample("real", "policy") is None
    setup.proxy.wait(0.1)
    setup.connection.answer(packed_sample(0), of=0, after=0.1)
    assert setup.proxy.sample("dream", "policy") is None
    setup.proxy.wait(0.4)
    assert setup.clock.now == pytest.approx(0.5)


def test_without_credit_the_answer_to_the_chunk_in_flight_ends_a_wait(setup):
    setup.open(credit=STEPS)
    assert [setup.add(1), setup.add(2)] == [True, False]
    setup.connection.answer(ACCEPTED, after=0.3)
    setup.proxy.wait(10.0)
    assert setup.clock.now == pytest.approx(0.3)


def test_a_wait_without_missing_answers_takes_all_its_seconds(setup):
    setup.proxy.wait(0.2)
    assert setup.clock.now == pytest.approx(0.2)


# ------------------------------------------------------------------------- shards and weights


def test_an_answer_of_any_shard_ends_a_wait(monkeypatch):
    setup = Setup(shards=2)
    monkeypatch.setattr(proxies, "time", setup.clock)
    assert not setup.add(0, actor=0)
    assert not setup.add(0, actor=1)
    assert (setup.sent(0), setup.sent(1)) == ([[0]], [[0]])
    setup.connections[1].answer(ACCEPTED, after=0.4)
    setup.proxy.wait(10.0)
    assert setup.clock.now == pytest.approx(0.4)
    assert setup.add(0, actor=1)
    assert not setup.add(0, actor=0)


def test_flush_sends_retries_to_every_shard(monkeypatch):
    setup = Setup(shards=2)
    monkeypatch.setattr(proxies, "time", setup.clock)
    setup.add(0, actor=0)
    setup.add(0, actor=1)
    setup.connections[1].answer(AddReply(False, 0, 0.1))
    setup.proxy.flush()
    setup.clock.sleep(0.1)
    assert not setup.proxy.flush()
    assert setup.sent(1) == [[0], [0]]


def test_weights_are_requested_a_few_times_a_second_at_most(setup):
    class Answering(FakeConnection):
        def call(self, method, *args):
            call = super().call(method, *args)
            packed = PackedWeights.of({"w": np.ones(2)}, "float32")
            self.answer((3, packed) if method == "latest" else 3)
            return call

    connection = Answering(setup.clock)
    weights = WeightsProxy(connection)
    assert weights.publish("policy", {}) == 3
    assert weights.latest("policy", 2)[0] == 3
    assert weights.latest("policy", 2) is None
    assert weights.latest("setup", 2) is not None  # each group has its own interval
    setup.clock.sleep(PULL_EVERY_S)
    assert weights.latest("policy", 2) is not None
    assert [call.method for call in connection.calls] == ["publish", "latest", "latest", "latest"]


def test_a_version_that_nobody_could_read_is_not_wanted(setup, monkeypatch):
    monkeypatch.setattr(proxies, "time", setup.clock)
    connection = setup.connections[0]
    weights = WeightsProxy(connection)
    assert weights.wanted("policy")
    connection.get = lambda call: 1
    weights.publish("policy", {"w": np.ones(2)})
    assert not weights.wanted("policy")
    assert weights.wanted("world")
    setup.clock.sleep(PULL_EVERY_S)
    assert weights.wanted("policy")
