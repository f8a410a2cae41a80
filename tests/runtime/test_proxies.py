"""The proxies against a line that answers when it is told to, in a time that the test makes."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamfleet.core.errors import EnvironmentFault
from dreamfleet.core.types import ChunkId, Sample
from dreamfleet.runtime import proxies
from dreamfleet.runtime.hosts import AGAIN_S, Receipt
from dreamfleet.runtime.packed import Drawn, Packed
from dreamfleet.runtime.proxies import (
    AHEAD,
    ASK_EVERY_S,
    TOGETHER,
    ReplayProxy,
    Unreachable,
    WeightsProxy,
)
from tests.fakes import FakeAgent, FakeClock, FakeLine
from tests.runtime.test_hosts import STREAM, rows

STEPS = 4  # of a chunk


class World:
    """A replay's proxy, and the lines it speaks through, one a shard."""

    def __init__(self, shards: int = 1) -> None:
        self.clock = FakeClock()
        self.lines = [FakeLine(self.clock) for _ in range(shards)]
        self.line = self.lines[0]
        self.proxy = ReplayProxy(self.lines, FakeAgent().tables, 0)

    def add(self, n: int, actor: int = 0, restarts: int = 0) -> bool:
        """Offer the chunk that counts from n * STEPS."""
        chunk = rows(STEPS, first=n == 0)
        chunk["reward"] += n * STEPS + np.arange(STEPS)
        return self.proxy.add("real", chunk, STREAM, ChunkId(actor, restarts, n))

    def open(self, credit: int) -> None:
        """Have the first chunk taken, which earns credit."""
        assert not self.add(0)
        self.line.answer(Receipt(True, credit, 0.0))
        assert self.add(0)

    def sent(self, shard: int = 0) -> list[list[int]]:
        """The chunks in each parcel that was sent, repeats included."""
        adds = [call for call in self.lines[shard].calls if call.method == "add"]
        counts = [call.args[1].batch()["reward"][0].astype(int).tolist() for call in adds]
        assert all(later == before + 1 for count in counts for before, later in pairwise(count))
        return [[first // STEPS for first in count[::STEPS]] for count in counts]


@pytest.fixture
def world(monkeypatch) -> World:
    world = World()
    monkeypatch.setattr(proxies, "time", world.clock)
    return world


TAKEN = Receipt(True, 0, 0.0)


# ------------------------------------------------------------------------------------- adding


def test_without_credit_the_caller_awaits_each_answer(world):
    assert not world.add(0)
    assert not world.add(0)
    assert world.sent() == [[0]]
    world.line.answer(TAKEN)
    assert world.add(0)
    assert not world.add(1)
    assert world.sent() == [[0], [1]]


def test_within_the_credit_the_caller_goes_on(world):
    world.open(credit=3 * STEPS)
    assert [world.add(n) for n in (1, 2, 3, 4)] == [True, True, True, False]
    assert world.sent() == [[0], [1]]
    world.line.answer(Receipt(True, 3 * STEPS, 0.0))
    assert world.add(4)  # 2 and 3 are under way, which leaves room for one
    assert not world.add(5)
    assert world.sent() == [[0], [1], [2, 3]]


def test_what_piles_up_travels_as_one_up_to_a_limit(world):
    world.open(credit=1000)
    assert all(world.add(n) for n in range(1, TOGETHER + 2))
    assert not world.add(TOGETHER + 2)
    world.line.answer(Receipt(True, 1000, 0.0))
    assert world.add(TOGETHER + 2)
    parcel = list(range(2, TOGETHER + 2))
    assert world.sent() == [[0], [1], parcel]
    assert world.line.calls[-1].args[-1] == ChunkId(0, 0, parcel[-1])


def test_chunks_of_two_starts_of_an_actor_do_not_travel_together(world):
    world.open(credit=1000)
    assert world.add(1)
    assert not world.add(0, restarts=1)
    world.line.answer(Receipt(True, 1000, 0.0))
    assert world.add(0, restarts=1)
    assert world.sent() == [[0], [1], [0]]


def test_what_was_refused_is_offered_again_when_it_is_due_and_not_before(world):
    assert not world.add(0)
    world.line.answer(Receipt(False, 0, 0.2))
    assert not world.add(0)
    world.clock.sleep(0.19)
    assert not world.add(0)
    assert world.sent() == [[0]]
    world.proxy.wait(10.0)
    assert world.clock.now == pytest.approx(0.2)
    assert not world.add(0)
    assert world.sent() == [[0], [0]]
    world.line.answer(TAKEN)
    assert world.add(0)


def test_what_follows_a_chunk_that_is_refused_stays_behind_it(world):
    world.open(credit=1000)
    assert world.add(1) and world.add(2)
    world.line.answer(Receipt(False, 0, 0.1))
    assert not world.add(3)
    world.clock.sleep(0.1)
    assert not world.add(3)
    world.line.answer(Receipt(True, 1000, 0.0))
    assert world.add(3)
    assert world.sent() == [[0], [1], [1], [2]]
    world.line.answer(TAKEN)
    world.proxy.flush()
    assert world.sent() == [[0], [1], [1], [2], [3]]


def test_when_no_answer_came_the_same_is_offered_again(world):
    world.open(credit=1000)
    assert world.add(1) and world.add(2)
    world.line.answer(Unreachable())
    assert not world.proxy.flush()
    world.proxy.wait(10.0)
    assert world.clock.now == pytest.approx(AGAIN_S[1])
    assert not world.proxy.flush()
    assert world.sent() == [[0], [1], [1]]
    assert world.line.calls[-1].args[-1] == world.line.calls[-2].args[-1] == ChunkId(0, 0, 1)


def test_without_an_origin_nothing_is_offered_twice(world):
    assert not world.proxy.add("dream", {"n": np.array(0)})
    world.line.answer(Unreachable())
    with pytest.raises(Unreachable):
        world.proxy.add("dream", {"n": np.array(0)})


def test_an_error_surfaces_once_and_drops_what_followed(world):
    world.open(credit=1000)
    assert world.add(1) and world.add(2)
    world.line.answer(EnvironmentFault("NaN"))
    with pytest.raises(EnvironmentFault, match="NaN"):
        world.add(3)
    assert world.proxy.flush()
    assert not world.add(0, restarts=1)  # which has to earn its credit again
    assert world.sent() == [[0], [1], [0]]


def test_flush_sends_on_what_piled_up_and_says_when_all_has_arrived(world):
    world.open(credit=1000)
    assert world.proxy.flush()
    assert world.add(1) and world.add(2) and world.add(3)
    assert not world.proxy.flush()
    world.line.answer(TAKEN, after=0.3)
    world.proxy.wait(10.0)
    assert world.clock.now == pytest.approx(0.3)
    assert not world.proxy.flush()
    assert world.sent() == [[0], [1], [2, 3]]
    world.line.answer(TAKEN, after=0.2)
    world.proxy.wait(10.0)
    assert world.clock.now == pytest.approx(0.5)
    assert world.proxy.flush()


OUTCOMES = st.sampled_from(["taken", "refused", "lost before", "lost after"])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(OUTCOMES, st.integers(0, 8), st.floats(0.001, 0.3)), max_size=60))
def test_chunks_arrive_in_order_and_once(script):
    """Whatever the replay answers, and when: taken, refused, or never heard or answered."""
    world, chunks, arrived = World(), 30, []
    outcomes, answered, asked = iter(script), 0, 0

    def reply_to_the_last() -> None:
        """As a replay that knows an chunk_id again, and is well in the end."""
        nonlocal answered
        if len(world.line.calls) == answered:
            return
        answered += 1
        assert len(world.line.calls) == answered, "two parcels are under way"
        outcome, chunks_of_credit, after = next(outcomes, ("taken", 2, 0.01))
        parcel, chunk_id = world.sent()[-1], world.line.calls[-1].args[-1]
        if outcome in ("taken", "lost after") and chunk_id.sequence not in arrived:
            arrived.extend(parcel)
        reply = Receipt(outcome == "taken", chunks_of_credit * STEPS, 0.05)
        world.line.answer(Unreachable() if "lost" in outcome else reply, after=after)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proxies, "time", world.clock)
        for n in range(chunks):
            while not world.add(n):
                reply_to_the_last()
                world.proxy.wait(1.0)
                asked += 1
        while not world.proxy.flush():
            reply_to_the_last()
            world.proxy.wait(1.0)
            asked += 1
    assert arrived == list(range(chunks))
    assert asked < 10 * (chunks + len(script))  # it waits, and does not spin


# ----------------------------------------------------------------------------------- sampling


def drawn(key: int) -> Drawn:
    data = Packed.of({"obs": np.full((4, 2, 2), key, np.float32)})
    return Drawn(data, Sample({}, np.full(4, key), np.full(4, 0.25), size=4, priority_mass=1.0))


def test_samples_asked_for_ahead_come_in_order(world):
    def take() -> int | None:
        sample = world.proxy.sample("real", "policy")
        return None if sample is None else int(sample.keys[0])

    assert take() is None
    assert len(world.line.calls) == AHEAD == 2
    world.line.answer(drawn(1), of=1)
    assert take() is None
    world.line.answer(drawn(0), of=0)
    assert [take(), take(), take()] == [0, 1, None]
    readers = [call.args[-1] for call in world.line.calls]
    assert [(reader.number, reader.received) for reader in readers] == [
        (0, 0),
        (1, 0),
        (2, 1),
        (3, 2),
    ]
    assert len({reader.name for reader in readers}) == 1


def test_who_got_no_rows_in_time_keeps_the_place(world):
    assert world.proxy.sample("real", "policy") is None
    world.line.answer(None, of=0)
    assert world.proxy.sample("real", "policy") is None
    assert [call.args[-1].number for call in world.line.calls] == [0, 1, 0]
    world.line.answer(drawn(7))
    assert world.proxy.sample("real", "policy").keys[0] == 7


def test_a_queue_is_asked_for_one_batch_at_a_time(world):
    assert world.proxy.sample("dream", "policy") is None
    assert len(world.line.calls) == 1
    world.line.answer(Packed.of({"n": np.array(3)}))
    assert world.proxy.sample("dream", "policy")["n"] == 3


def test_an_update_is_not_awaited_and_its_error_is_raised_by_the_next(world):
    world.proxy.update("real", np.arange(4), np.ones(4))
    world.line.answer(KeyError("no table"))
    with pytest.raises(KeyError):
        world.proxy.update("real", np.arange(4), np.ones(4))


# ------------------------------------------------------------------------------------ waiting


def test_a_wait_ends_as_soon_as_something_missed_has_come(world):
    assert world.proxy.sample("dream", "policy") is None
    world.line.answer(Packed.of({"n": np.array(3)}), after=0.5)
    world.proxy.wait(10.0)
    assert world.clock.now == pytest.approx(0.5)


def test_what_comes_and_was_not_looked_for_does_not_end_a_wait(world):
    """A learner has its rows and waits for a dream: rows asked for ahead must not wake it."""
    assert world.proxy.sample("real", "policy") is None
    world.line.answer(drawn(0), of=0)
    world.line.answer(drawn(1), of=1, after=0.1)
    assert world.proxy.sample("real", "policy").keys[0] == 0
    assert world.proxy.sample("dream", "policy") is None
    world.line.answer(Packed.of({"n": np.array(3)}), after=0.5)
    world.proxy.wait(10.0)
    assert world.clock.now == pytest.approx(0.5)


def test_what_was_missed_before_the_last_wait_does_not_end_this_one(world):
    assert world.proxy.sample("real", "policy") is None
    world.proxy.wait(0.1)
    world.line.answer(drawn(0), of=0, after=0.1)
    assert world.proxy.sample("dream", "policy") is None
    world.proxy.wait(0.4)
    assert world.clock.now == pytest.approx(0.5)


def test_who_is_out_of_credit_is_woken_when_the_parcel_under_way_was_taken(world):
    world.open(credit=STEPS)
    assert [world.add(1), world.add(2)] == [True, False]
    world.line.answer(TAKEN, after=0.3)
    world.proxy.wait(10.0)
    assert world.clock.now == pytest.approx(0.3)


def test_a_wait_for_nothing_takes_its_time(world):
    world.proxy.wait(0.2)
    assert world.clock.now == pytest.approx(0.2)


# ------------------------------------------------------------------------- shards and weights


def test_a_wait_hears_every_shard(monkeypatch):
    world = World(shards=2)
    monkeypatch.setattr(proxies, "time", world.clock)
    assert not world.add(0, actor=0)
    assert not world.add(0, actor=1)
    assert (world.sent(0), world.sent(1)) == ([[0]], [[0]])
    world.lines[1].answer(TAKEN, after=0.4)
    world.proxy.wait(10.0)
    assert world.clock.now == pytest.approx(0.4)
    assert world.add(0, actor=1)
    assert not world.add(0, actor=0)


def test_flush_hears_every_shard(monkeypatch):
    world = World(shards=2)
    monkeypatch.setattr(proxies, "time", world.clock)
    world.add(0, actor=0)
    world.add(0, actor=1)
    world.lines[1].answer(Receipt(False, 0, 0.1))
    world.proxy.flush()
    world.clock.sleep(0.1)
    assert not world.proxy.flush()
    assert world.sent(1) == [[0], [0]]


def test_weights_are_looked_for_a_few_times_a_second(world):
    class Answering(FakeLine):
        def call(self, method, *args):
            call = super().call(method, *args)
            self.answer((3, {"w": np.ones(2)}) if method == "latest" else 3)
            return call

    line = Answering(world.clock)
    weights = WeightsProxy(line)
    assert weights.publish("policy", {}) == 3
    assert weights.latest("policy", 2)[0] == 3
    assert weights.latest("policy", 2) is None
    assert weights.latest("world", 2) is not None  # each group has its own time
    world.clock.sleep(ASK_EVERY_S)
    assert weights.latest("policy", 2) is not None
    assert [call.method for call in line.calls] == ["publish", "latest", "latest", "latest"]
