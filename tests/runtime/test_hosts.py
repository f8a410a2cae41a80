"""Tests the objects in a cluster's processes: a replay with many callers, and worker processes."""

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
from dreamfleet.runtime.hosts import (
    RETRY_S,
    AddReply,
    ReplayHost,
    SampleRequest,
    WorkerHost,
    groups_to_pull,
)
from dreamfleet.runtime.packed import Packed
from tests.fakes import FakeAgent, FakeConfig, FakeReplay, sample
from tests.runtime.runs import FAKE, config

ROOT = Path(__file__).parents[2]


def rows(n: int = 12, first: bool = True) -> dict[str, np.ndarray]:
    """Returns a chunk of n rows of one environment, each column of shape (1, n, …).

    first: whether an episode begins at the first row.
    """
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


def add(replay: ReplayHost, *args, **kwargs) -> AddReply:
    return replay.add("real", Packed.of(rows(*args, **kwargs)), STREAM)


@pytest.fixture
def replay() -> ReplayHost:
    return ReplayHost(FakeAgent().tables, seed=0)


def test_a_sample_without_rows_waits_for_wait_s_and_returns_none(replay):
    began = time.monotonic()
    assert replay.sample("real", "policy", wait_s=0.0) is None
    assert time.monotonic() - began < 0.1
    assert replay.sample("real", "policy", wait_s=0.3) is None
    assert 0.3 <= time.monotonic() - began < 2.0


def test_a_waiting_sample_is_served_when_rows_arrive(replay):
    got = []
    waiting = [
        threading.Thread(target=lambda: got.append(replay.sample("real", "policy", 30.0)))
        for _ in range(2)
    ]
    for thread in waiting:
        thread.start()
    time.sleep(0.05)
    assert got == []
    assert add(replay, 8 + 4).accepted  # earns one sample
    time.sleep(0.1)
    assert [sample.unpack().data["obs"].shape for sample in got] == [(4, 2, 2)]
    assert add(replay, 4, first=False).accepted
    for thread in waiting:
        thread.join(5.0)
    assert len(got) == 2


def test_a_refused_add_returns_at_once_with_a_retry_delay(replay):
    assert add(replay, 40).accepted  # (40 - 8) / 4 samples are due; the slack is 4
    began = time.monotonic()
    refused = add(replay, first=False)
    assert time.monotonic() - began < 0.1
    assert not refused.accepted and refused.credit == 0
    assert RETRY_S[0] <= refused.retry_s <= RETRY_S[1]
    for consumer in ("world", "start", "policy"):
        assert not add(replay, first=False).accepted
        for _ in range(4):
            assert replay.sample("real", consumer, 0.0) is not None
    assert add(replay, first=False).accepted
    assert replay.stats()["env_steps"] == 52


def test_credit_is_an_equal_share_of_the_room():
    replay = ReplayHost(FakeAgent().tables, seed=0)
    for actor in range(2):
        chunk = Packed.of(rows(4))
        reply = replay.add("real", chunk, np.array([actor]), ChunkId(actor, 0, 0))
    # From step 8 on consumers may lag by 4 samples of 4 steps each: room for 16 more steps.
    assert reply == AddReply(True, 16 // 2, 0.0)
    assert replay.add("dream", Packed.of({"id": np.array(0)})).credit == 1
    assert replay.add("dream", Packed.of({"id": np.array(1)})).credit == 0
    assert not replay.add("dream", Packed.of({"id": np.array(2)})).accepted


def test_the_longest_waiting_actor_has_the_shortest_retry_delay():
    replay = ReplayHost(FakeAgent().tables, seed=0)
    replay.add("real", Packed.of(rows(40)), np.array([9]), ChunkId(9, 0, 0))
    for sequence in range(1, 31):  # about one sample, for four steps, every 20 ms
        time.sleep(0.02)
        for consumer in ("world", "start", "policy"):
            replay.sample("real", consumer, 0.0)
        replay.add("real", Packed.of(rows(4, first=False)), np.array([9]), ChunkId(9, 0, sequence))
    add(replay, 400)
    delays = [
        replay.add("real", Packed.of(rows(40)), np.array([i]), ChunkId(i, 0, 0)).retry_s
        for i in range(3)
    ]
    assert delays == sorted(delays)


def test_retries_become_rare_while_nobody_samples(replay):
    add(replay, 40)
    tries, until = 0, time.monotonic() + 1.0
    while time.monotonic() < until:
        tries += 1
        time.sleep(add(replay, first=False).retry_s)
    assert tries < 16


def test_concurrent_callers_lose_no_row_and_get_no_dream_twice():
    """Four actors, two dreamers and a learner call the replay at once, each in a thread."""
    replay, per_actor = ReplayHost(FakeAgent(FakeConfig(capacity=10_000)).tables, seed=0), 25
    dreams: list[int] = []
    stop = threading.Event()

    def offer(table, batch, *ids):
        while not stop.is_set():
            reply = replay.add(table, Packed.of(batch), *ids)
            if reply.accepted:
                break
            time.sleep(reply.retry_s)

    def act(index):
        for chunk in range(per_actor):
            batch, chunk_id = rows(4, first=chunk == 0), ChunkId(index, 0, chunk)
            for _ in range(2):  # every chunk is sent twice
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
                    dreams.append(tuple(batch.unpack()["id"].tolist()))

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


def test_a_host_and_a_server_continue_from_the_same_state(replay):
    add(replay)
    again = ReplayHost(FakeAgent().tables, seed=5, state=replay.state())
    assert again.stats() == replay.stats()
    plain = ReplayServer(FakeAgent().tables, seed=7)
    plain.restore(replay.state())
    np.testing.assert_array_equal(
        again.sample("real", "policy", 0.0).sample.keys, plain.sample("real", "policy").keys
    )


def test_each_client_is_served_in_the_order_of_its_requests(replay):
    got = []

    def ask(name, number):
        assert (
            replay.sample("real", "policy", 10.0, None, SampleRequest(name, number, 0)) is not None
        )
        got.append((name, number))

    threads = [
        threading.Thread(target=ask, args=(name, number))
        for number in (1, 0)
        for name in ("learner", "other")
    ]
    for thread in threads:
        thread.start()
        time.sleep(0.02)
    add(replay, 8)
    for _ in range(4):
        add(replay, 4, first=False)  # earns one sample
        time.sleep(0.05)
    for thread in threads:
        thread.join(5.0)
    for name in ("learner", "other"):
        assert [number for client, number in got if client == name] == [0, 1]


def test_samples_in_transit_at_a_save_may_be_drawn_again_after_a_resume(replay):
    add(replay, 8 + 3 * 4)  # earns three samples
    for number in range(
        3
    ):  # two requests ahead: the third is sent once the first sample was received
        request = SampleRequest("learner", number, received=max(0, number - 1))
        assert replay.sample("real", "policy", 0.0, None, request) is not None
    assert replay.sample("real", "policy", 0.0) is None
    assert replay.stats()["real/samples_policy"] == 3
    for other in ("world", "start"):  # a resume lowers all sample counts to that of the slowest
        assert replay.sample("real", other, 0.0) is not None
    resumed = ReplayHost(FakeAgent().tables, seed=5, state=replay.state())
    assert resumed.stats()["real/samples_policy"] == 1
    assert [resumed.sample("real", "policy", 0.0) is not None for _ in range(3)] == [
        True,
        True,
        False,
    ]


def test_a_sample_whose_rows_are_overwritten_during_the_copy_is_drawn_again(monkeypatch):
    """While a sample is copied the lock is free, so new rows overwrite the sampled rows.

    The sample that is drawn again counts as one sample.
    """
    replay = ReplayHost(FakeAgent(FakeConfig(capacity=16)).tables, seed=0)
    assert add(replay, 16).accepted  # earns two samples
    gather, draws = replay._server.gather, []

    def gather_late(table, draw):
        draws.append(draw.sample.keys)
        if len(draws) == 1:
            assert add(replay, 16, first=False).accepted  # earns four more
        return gather(table, draw)

    monkeypatch.setattr(replay._server, "gather", gather_late)
    got = replay.sample("real", "policy", 0.0)
    assert len(draws) == 2
    assert draws[0].max() < 16 <= got.sample.keys.min()
    assert replay.stats()["real/samples_policy"] == 1
    rest = [replay.sample("real", "policy", 0.0) is not None for _ in range(6)]
    assert sum(rest) == 5


# -------------------------------------------------------------------------------- worker hosts


class WaitingReplay(FakeReplay):
    """A fake replay whose method `wait` records the seconds and returns after 2 ms."""

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


def test_a_turn_of_no_time_returns_an_empty_report(tmp_path, monkeypatch):
    (report,) = host(("actor-0",), tmp_path, monkeypatch).turn(0.0, {})
    assert report.worker == "actor-0"
    assert (report.busy_s, report.chunks, report.fault) == (0.0, 0, None)


def test_a_turn_lasts_as_long_as_asked(tmp_path, monkeypatch):
    began = time.monotonic()
    (report,) = host(("actor-0",), tmp_path, monkeypatch).turn(0.3, {})
    elapsed = time.monotonic() - began
    assert 0.3 <= elapsed < 1.0
    assert report.chunks > 0
    assert 0 < report.busy_s <= elapsed


def test_idle_workers_wait_for_the_replay_and_report_their_reasons(tmp_path, monkeypatch):
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
    worker_host = host(("dreamer-0", "learner"), tmp_path, monkeypatch, replay)
    dreamer, learner = worker_host.turn(0.1, {})
    assert dreamer.updates == 1
    assert learner.versions == {}  # there is nothing to pull
    assert worker_host.state("world") == {"count": 1}


def test_a_broken_worker_ends_the_turn_and_can_be_restarted(tmp_path, monkeypatch):
    worker_host = host(
        ("actor-0",), tmp_path, monkeypatch, env="dreamfleet.envs.probe:FaultyNaN-v0"
    )
    began = time.monotonic()
    (report,) = worker_host.turn(10.0, {})
    assert time.monotonic() - began < 5.0
    assert report.fault.environment
    (report,) = worker_host.turn(0.0, {"actor-0": Progress(starts=1)})
    assert report.fault is None
    assert repr(worker_host) == "actor-0"


def test_a_host_restores_the_state_that_it_is_given(tmp_path, monkeypatch):
    state = {"world": {"count": 3}, "policy": {"count": 5}}
    worker_host = host(("learner",), tmp_path, monkeypatch, state=state)
    assert worker_host.state("policy") == {"count": 5}


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
def test_a_worker_pulls_the_groups_that_others_train(names, groups):
    assert groups_to_pull(FakeAgent(), names) == groups


@pytest.mark.parametrize(
    "module",
    ["dreamfleet.runtime.hosts", "dreamfleet.learner.weight_store", "dreamfleet.runtime.cluster"],
)
def test_replay_and_weight_store_import_neither_torch_nor_gymnasium(module):
    """The driver does not import torch or gymnasium either, before it builds an agent."""
    code = f"import sys, {module}; sys.exit(bool({{'torch', 'gymnasium'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
