from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import agents
from learner.weight_store import LocalWeights
from replay_server.server import ReplayServer
from runtime.blueprint import Blueprint, Progress
from runtime.hosts import ReplayHost, WorkerHost, pulled
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
    waiting = threading.Thread(target=lambda: got.append(replay.sample("real", "policy", 30.0)))
    waiting.start()
    time.sleep(0.05)
    assert got == []
    assert replay.add("real", rows(), STREAM, 0.0)
    waiting.join(5.0)
    assert got[0].data["obs"].shape == (4, 2, 2)


def test_who_waits_for_room_is_let_in_when_there_is_some(replay):
    assert replay.add("real", rows(40), STREAM, 0.0)  # (40 - 8) / 4 samples are due, slack is 4
    assert not replay.add("real", rows(first=False), STREAM, 0.0)
    got = []
    waiting = threading.Thread(
        target=lambda: got.append(replay.add("real", rows(first=False), STREAM, 30.0))
    )
    waiting.start()
    for consumer in ("world", "start", "policy"):
        assert waiting.is_alive()
        for _ in range(4):
            assert replay.sample("real", consumer, 0.0) is not None
    waiting.join(5.0)
    assert got == [True]
    assert replay.stats()["env_steps"] == 52


def test_many_callers_lose_nothing_and_get_nothing_twice():
    """Four actors and two dreamers against a learner, all waiting for one another."""
    replay, per_actor = ReplayHost(FakeAgent(FakeConfig(capacity=10_000)).tables, seed=0), 25
    dreams: list[int] = []
    stop = threading.Event()

    def act(index):
        for chunk in range(per_actor):
            while not replay.add("real", rows(4, first=chunk == 0), np.array([index]), 1.0):
                pass

    def dream(index):
        n = 0
        while not stop.is_set():
            if replay.sample("real", "start", 0.1) is not None:
                while not replay.add("dream", {"id": (index, n)}, None, 0.1) and not stop.is_set():
                    pass
                n += 1

    def learn():
        while not stop.is_set():
            replay.sample("real", "world", 0.0)
            if replay.sample("real", "policy", 0.1) is not None:
                batch = replay.sample("dream", "policy", 5.0)
                dreams.append(batch["id"])

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
    assert len(dreams) == len(set(dreams)) == stats["dream/samples"]
    for index in range(2):
        mine = [n for i, n in dreams if i == index]
        assert mine == list(range(len(mine)))


def test_its_state_is_that_of_the_server(replay):
    replay.add("real", rows(), STREAM, 0.0)
    again = ReplayHost(FakeAgent().tables, seed=5, state=replay.state())
    assert again.stats() == replay.stats()
    plain = ReplayServer(FakeAgent().tables, seed=7)
    plain.restore(replay.state())
    np.testing.assert_array_equal(
        again.sample("real", "policy", 0.0).keys, plain.sample("real", "policy").keys
    )


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
    it = host(("actor-0",), tmp_path, monkeypatch, env="envs.probe:FaultyNaN-v0")
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


@pytest.mark.parametrize("module", ["runtime.hosts", "learner.weight_store", "runtime.cluster"])
def test_a_process_imports_no_more_than_it_needs(module):
    """The replay's and the weights' processes, and the proxies of all the others."""
    code = f"import sys, {module}; sys.exit(bool({{'torch', 'gymnasium'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
