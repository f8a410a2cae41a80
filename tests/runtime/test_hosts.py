from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from dreamfleet import agents
from dreamfleet.core.types import ChunkId
from dreamfleet.learner.weight_store import LocalWeights
from dreamfleet.replay_server.server import ReplayServer
from dreamfleet.runtime.blueprint import Blueprint, Progress
from dreamfleet.runtime.hosts import AGAIN_S, Reader, Receipt, ReplayHost, WorkerHost, pulled
from dreamfleet.runtime.packed import Packed
from tests.fakes import FakeAgent, FakeConfig, FakeReplay, sample
from tests.runtime.runs import FAKE, config

ROOT = Path(__file__).parents[2]


def rows(n: int = 12, first: bool = True) -> dict[str, np.ndarray]:
    """A chunk (1, n) of one episode that goes on."""
    flags = {name: np.zeros((1, n), bool) for name in ("first", "last", "terminal")}
    flags["first"][0, 0] = first
    return {
        "obs": np.zeros((1, n, 2), np.float32),
        "action": np.zeros((1, n), np.int64),
        "reward": np.zeros((1, n), np.float32),
        "version": np.zeros((1, n), np.int64),
        **flags,
    }


STREAM = np.array([0])


def add(replay: ReplayHost, *args, **kwargs) -> Receipt:
    return replay.add("real", Packed.of(rows(*args, **kwargs)), STREAM)


@pytest.fixture
def replay() -> ReplayHost:
    return ReplayHost(FakeAgent().tables, seed=0)


def test_a_refusal_takes_no_longer_than_asked(replay):
    began = time.monotonic()
    assert replay.sample("real", "policy", wait_s=0.0) is None
    assert time.monotonic() - began < 0.1
    assert replay.sample("real", "policy", wait_s=0.3) is None
    assert 0.3 <= time.monotonic() - began < 2.0


def test_who_waits_for_rows_gets_them_when_they_come(replay):
    got = []
    waiting = [
        threading.Thread(target=lambda: got.append(replay.sample("real", "policy", 30.0)))
        for _ in range(2)
    ]
    for thread in waiting:
        thread.start()
    time.sleep(0.05)
    assert got == []
    assert add(replay, 8 + 4).taken  # earns one sample
    time.sleep(0.1)
    assert [drawn.owned().data["obs"].shape for drawn in got] == [(4, 2, 2)]
    assert add(replay, 4, first=False).taken
    for thread in waiting:
        thread.join(5.0)
    assert len(got) == 2


def test_who_finds_no_room_is_told_at_once_when_to_come_again(replay):
    assert add(replay, 40).taken  # (40 - 8) / 4 samples are due, slack is 4
    began = time.monotonic()
    refused = add(replay, first=False)
    assert time.monotonic() - began < 0.1
    assert not refused.taken and refused.credit == 0
    assert AGAIN_S[0] <= refused.again_s <= AGAIN_S[1]
    for consumer in ("world", "start", "policy"):
        assert not add(replay, first=False).taken
        for _ in range(4):
            assert replay.sample("real", consumer, 0.0) is not None
    assert add(replay, first=False).taken
    assert replay.stats()["env_steps"] == 52


def test_credit_is_a_fair_share_of_the_room():
    replay = ReplayHost(FakeAgent().tables, seed=0)
    for actor in range(2):
        chunk = Packed.of(rows(4))
        receipt = replay.add("real", chunk, np.array([actor]), ChunkId(actor, 0, 0))
    # The policy and others may owe 4 samples of 4 steps each, from step 8 on: room for 16 more.
    assert receipt == Receipt(True, 16 // 2, 0.0)
    assert replay.add("dream", Packed.of({"id": np.array(0)})).credit == 1
    assert replay.add("dream", Packed.of({"id": np.array(1)})).credit == 0
    assert not replay.add("dream", Packed.of({"id": np.array(2)})).taken


def test_who_is_refused_longest_is_told_to_come_soonest():
    replay = ReplayHost(FakeAgent().tables, seed=0)
    replay.add("real", Packed.of(rows(40)), np.array([9]), ChunkId(9, 0, 0))
    for sequence in range(1, 31):  # a pace of about a sample, that is four steps, every 20 ms
        time.sleep(0.02)
        for consumer in ("world", "start", "policy"):
            replay.sample("real", consumer, 0.0)
        replay.add("real", Packed.of(rows(4, first=False)), np.array([9]), ChunkId(9, 0, sequence))
    add(replay, 400)
    again = [
        replay.add("real", Packed.of(rows(40)), np.array([i]), ChunkId(i, 0, 0)).again_s
        for i in range(3)
    ]
    assert again == sorted(again)


def test_where_nobody_samples_the_refused_ask_ever_less_often(replay):
    add(replay, 40)
    asked, until = 0, time.monotonic() + 1.0
    while time.monotonic() < until:
        asked += 1
        time.sleep(add(replay, first=False).again_s)
    assert asked < 16


def test_many_callers_lose_nothing_and_get_nothing_twice():
    """Four actors and two dreamers against a learner, all waiting for one another."""
    replay, per_actor = ReplayHost(FakeAgent(FakeConfig(capacity=10_000)).tables, seed=0), 25
    dreams: list[int] = []
    stop = threading.Event()

    def offer(table, batch, *whose):
        while not stop.is_set():
            receipt = replay.add(table, Packed.of(batch), *whose)
            if receipt.taken:
                break
            time.sleep(receipt.again_s)

    def act(index):
        for chunk in range(per_actor):
            batch, chunk_id = rows(4, first=chunk == 0), ChunkId(index, 0, chunk)
            for _ in range(2):  # every chunk comes twice
                offer("real", batch, np.array([index]), chunk_id)

    def dream(index):
        n = 0
        while not stop.is_set():
            if replay.sample("real", "start", 0.1) is not None:
                offer("dream", {"id": np.array([index, n])})
                n += 1

    def learn():
        while not stop.is_set():
            replay.sample("real", "world", 0.0)
            if replay.sample("real", "policy", 0.1) is not None:
                batch = replay.sample("dream", "policy", 5.0)
                if batch is not None:
                    dreams.append(tuple(batch.owned()["id"].tolist()))

    threads = [threading.Thread(target=act, args=(i,)) for i in range(4)]
    others = [threading.Thread(target=dream, args=(i,)) for i in range(2)]
    others.append(threading.Thread(target=learn))
    for thread in (*threads, *others):
        thread.start()
    for thread in threads:
        thread.join(20.0)
        assert not thread.is_alive()
    stop.set()
    for thread in others:
        thread.join(10.0)
        assert not thread.is_alive()
    stats = replay.stats()
    assert stats["real/inserted"] == stats["env_steps"] == 4 * per_actor * 4
    assert stats["real/duplicates"] == 4 * per_actor
    assert len(dreams) == len(set(dreams)) == stats["dream/samples"]
    for index in range(2):
        mine = [n for i, n in dreams if i == index]
        assert mine == list(range(len(mine)))


def test_its_state_is_that_of_the_server(replay):
    add(replay)
    again = ReplayHost(FakeAgent().tables, seed=5, state=replay.state())
    assert again.stats() == replay.stats()
    plain = ReplayServer(FakeAgent().tables, seed=7)
    plain.restore(replay.state())
    np.testing.assert_array_equal(
        again.sample("real", "policy", 0.0).sample.keys, plain.sample("real", "policy").keys
    )


def test_each_reader_is_served_in_the_order_it_asked(replay):
    got = []

    def ask(name, number):
        assert replay.sample("real", "policy", 10.0, None, Reader(name, number, 0)) is not None
        got.append((name, number))

    readers = [
        threading.Thread(target=ask, args=(name, number))
        for number in (1, 0)
        for name in ("learner", "other")
    ]
    for thread in readers:
        thread.start()
        time.sleep(0.02)
    add(replay, 8)
    for _ in range(4):
        add(replay, 4, first=False)  # earns one sample
        time.sleep(0.05)
    for thread in readers:
        thread.join(5.0)
    for name in ("learner", "other"):
        assert [number for whose, number in got if whose == name] == [0, 1]


def test_samples_on_their_way_at_a_restart_may_be_drawn_again(replay):
    add(replay, 8 + 3 * 4)  # earns three samples
    for number in range(3):  # two ahead: the third is asked for when the first has been received
        reader = Reader("learner", number, received=max(0, number - 1))
        assert replay.sample("real", "policy", 0.0, None, reader) is not None
    assert replay.sample("real", "policy", 0.0) is None
    assert replay.stats()["real/samples_policy"] == 3
    for other in ("world", "start"):  # a restart takes nobody for further than the slowest
        assert replay.sample("real", other, 0.0) is not None
    heir = ReplayHost(FakeAgent().tables, seed=5, state=replay.state())
    assert heir.stats()["real/samples_policy"] == 1
    assert [heir.sample("real", "policy", 0.0) is not None for _ in range(3)] == [True, True, False]


def test_rows_overwritten_while_they_are_copied_are_drawn_anew(monkeypatch):
    """By who adds meanwhile, as no lock is held; and the sample counts once."""
    replay = ReplayHost(FakeAgent(FakeConfig(capacity=16)).tables, seed=0)
    assert add(replay, 16).taken  # earns two samples
    gather, drawn = replay._server.gather, []

    def gather_late(table, draw):
        drawn.append(draw.sample.keys)
        if len(drawn) == 1:
            assert add(replay, 16, first=False).taken  # earns four more
        return gather(table, draw)

    monkeypatch.setattr(replay._server, "gather", gather_late)
    got = replay.sample("real", "policy", 0.0)
    assert len(drawn) == 2
    assert drawn[0].max() < 16 <= got.sample.keys.min()
    assert replay.stats()["real/samples_policy"] == 1
    rest = [replay.sample("real", "policy", 0.0) is not None for _ in range(6)]
    assert sum(rest) == 5


# -------------------------------------------------------------------------------- worker hosts


class WaitingReplay(FakeReplay):
    """A replay that notes how long it was waited for, and does not let anyone wait."""

    def __init__(self, *args):
        super().__init__(*args)
        self.waits: list[float] = []

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        time.sleep(0.002)


def host(names, tmp_path, monkeypatch, replay=None, state=None, **flags):
    monkeypatch.setitem(agents.REGISTRY, "fake", FAKE)
    blueprint = Blueprint.of(config(tmp_path, **flags))
    progress = dict.fromkeys(names, Progress())
    replay = replay or WaitingReplay()
    return WorkerHost(names, blueprint, "cpu", replay, LocalWeights(), progress, state or {})


def test_the_first_turn_of_no_time_only_says_that_it_is_up(tmp_path, monkeypatch):
    (report,) = host(("actor-0",), tmp_path, monkeypatch).turn(0.0, {})
    assert report.worker == "actor-0"
    assert (report.busy_s, report.chunks, report.fault) == (0.0, 0, None)


def test_a_turn_lasts_as_long_as_it_was_given(tmp_path, monkeypatch):
    began = time.monotonic()
    (report,) = host(("actor-0",), tmp_path, monkeypatch).turn(0.3, {})
    assert 0.3 <= time.monotonic() - began < 1.0
    assert report.chunks > 0
    assert 0 < report.busy_s <= 0.4


def test_who_cannot_move_waits_for_the_replay_and_says_for_whom(tmp_path, monkeypatch):
    replay = WaitingReplay()
    reports = host(("dreamer-0", "learner"), tmp_path, monkeypatch, replay).turn(0.2, {})
    assert replay.waits
    assert max(replay.waits) <= 0.2
    waits = {report.worker: report.waits_s for report in reports}
    assert waits["dreamer-0"].keys() == {"replay + dreamer"}
    assert waits["learner"].keys() == {"replay + dreamer"}
    assert 0.1 < waits["learner"]["replay + dreamer"] < 0.4


def test_workers_of_one_process_share_an_agent(tmp_path, monkeypatch):
    replay = WaitingReplay({("real", "world"): [sample(1)], ("real", "start"): [sample(2)]})
    it = host(("dreamer-0", "learner"), tmp_path, monkeypatch, replay)
    dreamer, learner = it.turn(0.1, {})
    assert dreamer.updates == 1
    assert learner.versions == {}  # nothing to pull
    assert it.state("world") == {"count": 1}


def test_a_broken_worker_ends_the_turn_and_moves_again_when_restarted(tmp_path, monkeypatch):
    it = host(("actor-0",), tmp_path, monkeypatch, env="dreamfleet.envs.probe:FaultyNaN-v0")
    began = time.monotonic()
    (report,) = it.turn(10.0, {})
    assert time.monotonic() - began < 5.0
    assert report.fault.environment
    (report,) = it.turn(0.0, {"actor-0": Progress(starts=1)})
    assert report.fault is None
    assert repr(it) == "actor-0"


def test_it_starts_from_the_state_it_is_given(tmp_path, monkeypatch):
    state = {"world": {"count": 3}, "policy": {"count": 5}}
    it = host(("learner",), tmp_path, monkeypatch, state=state)
    assert it.state("policy") == {"count": 5}


@pytest.mark.parametrize(
    ("names", "groups"),
    [
        (("actor-0",), ("policy",)),
        (("evaluator",), ("policy",)),
        (("learner",), ("world",)),
        (("dreamer-0",), ("policy",)),
        (("dreamer-1",), ("world", "policy")),
        (("dreamer-0", "learner"), ()),
    ],
)
def test_what_others_write_is_pulled(names, groups):
    assert pulled(FakeAgent(), names) == groups


@pytest.mark.parametrize(
    "module",
    ["dreamfleet.runtime.hosts", "dreamfleet.learner.weight_store", "dreamfleet.runtime.cluster"],
)
def test_a_process_imports_no_more_than_it_needs(module):
    """The replay's and the weights' processes, and the proxies of all the others."""
    code = f"import sys, {module}; sys.exit(bool({{'torch', 'gymnasium'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
