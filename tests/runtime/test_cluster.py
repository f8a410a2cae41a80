from __future__ import annotations

import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from dreamfleet import agents
from dreamfleet.core.config import RunConfig
from dreamfleet.core.errors import EnvironmentFault, UserError, WorkerFailed
from dreamfleet.core.types import ChunkId
from dreamfleet.learner.weight_store import LocalWeights
from dreamfleet.runtime.cluster import RayCluster, start, wanted_mode
from dreamfleet.runtime.processes import shares, start_replay
from dreamfleet.runtime.proxies import ASK_EVERY_S, ReplayProxy, WeightsProxy
from tests.fakes import FakeAgent
from tests.runtime.runs import FAKE, config, state_in, streams, train
from tests.runtime.test_hosts import STREAM, rows

# ------------------------------------------------------------------------------------- shares


def asked(config: RunConfig, found: dict[str, float]) -> float:
    """CPUs that all processes of a run ask for together."""
    share = shares(config, found)
    trainers = share["learner"] + config.num_dreamers * share["dreamer"]
    replays = config.train.replay_shards * share["replay"]
    return config.num_actors * share["actor"] + trainers + replays + share["evaluator"]


@pytest.mark.parametrize("num_actors", [1, 16, 256, 1024])
@pytest.mark.parametrize("num_dreamers", [0, 1, 8])
@pytest.mark.parametrize("cpus", [0.0, 1.0, 2.0, 3.5, 64.0, 5000.0])
def test_all_processes_fit_into_what_there_is(num_actors, num_dreamers, cpus):
    given = RunConfig(num_actors=num_actors, num_dreamers=num_dreamers)
    found = {"CPU": cpus} if cpus else {}  # Ray leaves out what is used up
    assert asked(given, found) <= cpus + 1e-9


def test_a_process_takes_a_whole_cpu_where_there_are_enough():
    share = shares(RunConfig(num_actors=16), {"CPU": 64.0})
    assert (share["actor"], share["learner"], share["dreamer"]) == (1.0, 1.0, 1.0)


def test_sixteen_actors_share_two_cpus_in_equal_parts():
    share = shares(RunConfig(num_actors=16), {"CPU": 2.0})
    assert share["actor"] == share["learner"] == pytest.approx(2 / 19, abs=1e-3)


@pytest.mark.parametrize(
    ("device", "gpus", "where", "each"),
    [
        ("auto", 0.0, "cpu", 0.0),
        ("auto", 1.0, "cuda", 0.5),
        ("auto", 8.0, "cuda", 1.0),
        ("cpu", 1.0, "cpu", 0.5),
        ("cuda", 2.0, "cuda", 1.0),
    ],
)
def test_learners_share_the_gpus(device, gpus, where, each):
    share = shares(RunConfig(device=device, num_dreamers=1), {"CPU": 8.0, "GPU": gpus})
    assert (share["device"], share["gpu"]) == (where, each)


def test_cuda_is_refused_where_the_cluster_has_none():
    with pytest.raises(UserError, match="no machine of this cluster has a GPU"):
        shares(RunConfig(device="cuda"), {"CPU": 8.0})


# ------------------------------------------------------------------------------------ proxies


@pytest.fixture
def proxy(ray_here):
    line = start_replay(RayCluster(RunConfig()), FakeAgent().tables, 0, consuming=1)
    yield ReplayProxy([line], FakeAgent().tables, 0)
    line.stop()


def insist(attempt, seconds: float = 20.0):
    """Try until there is an answer, as a worker does."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if (answer := attempt()) is not None and answer is not False:
            return answer
        time.sleep(0.005)
    raise TimeoutError


@pytest.mark.slow
def test_a_remote_replay_answers_as_a_near_one(proxy):
    assert proxy.sample("real", "policy") is None
    assert insist(lambda: proxy.add("real", rows(), STREAM))
    assert proxy.stats()["env_steps"] == 12
    sample = insist(lambda: proxy.sample("real", "policy"))
    assert sample.data["obs"].shape == (4, 2, 2)
    assert all(column.flags.writeable for column in sample.data.values())
    proxy.update("real", sample.keys, np.ones(4))
    with pytest.raises(EnvironmentFault, match="unexpected reset"):
        bad = rows()
        bad["first"][0, 5] = True
        insist(lambda: proxy.add("real", bad, STREAM))  # within the credit: told by the next one
        insist(lambda: proxy.add("real", rows(4, first=False), STREAM))
    assert insist(lambda: proxy.add("real", rows(4, first=False), STREAM))  # and goes on after
    assert proxy.stats()["env_steps"] == 16
    assert proxy.stats()["real/refused_reset"] == 1


@pytest.mark.slow
def test_a_batch_that_must_wait_is_taken_once(proxy):
    assert insist(lambda: proxy.add("dream", {"n": np.array(0)}))
    assert proxy.add("dream", {"n": np.array(1)})  # within the credit: not awaited
    asked, until = 0, time.monotonic() + 1.0
    while time.monotonic() < until:
        assert not proxy.add("dream", {"n": np.array(2)})
        proxy.wait(0.2)
        asked += 1
    assert asked < 40  # the refusal says when to ask again
    got = [int(insist(lambda: proxy.sample("dream", "policy"))["n"]) for _ in range(2)]
    assert insist(lambda: proxy.add("dream", {"n": np.array(2)}))
    got.append(int(insist(lambda: proxy.sample("dream", "policy"))["n"]))
    assert got == [0, 1, 2]


@pytest.mark.slow
def test_chunks_that_pile_up_travel_together_and_are_waited_for(proxy):
    def add(n: int) -> bool:
        return proxy.add("real", rows(4, first=n == 0), STREAM, ChunkId(0, 0, n))

    insist(lambda: add(0))  # from here on there is room for 20 steps
    assert all(add(n) for n in (1, 2, 3))  # so nobody awaits these
    began = time.monotonic()
    while not proxy.flush():
        proxy.wait(10.0)
    assert time.monotonic() - began < 5.0
    stats = proxy.stats()
    assert (stats["env_steps"], stats["real/duplicates"]) == (16, 0)


@pytest.mark.slow
def test_what_came_and_is_not_wanted_yet_does_not_end_a_wait(proxy):
    """The learner has its real rows and waits for a dream: rows asked ahead must not wake it."""
    insist(lambda: proxy.add("real", rows(40), STREAM))
    insist(lambda: proxy.sample("real", "policy"))  # and the next one is asked for
    time.sleep(0.3)
    assert proxy.sample("dream", "policy") is None
    began = time.monotonic()
    proxy.wait(0.5)
    assert time.monotonic() - began > 0.4


@pytest.mark.slow
def test_a_wait_ends_when_what_it_is_for_comes(proxy):
    assert proxy.sample("dream", "policy") is None
    insist(lambda: proxy.add("dream", {"n": np.array(0)}))
    began = time.monotonic()
    proxy.wait(10.0)
    assert proxy.sample("dream", "policy") is not None
    assert time.monotonic() - began < 5.0


@pytest.mark.slow
def test_weights_are_looked_for_a_few_times_a_second(ray_here):
    line = start(LocalWeights)
    proxy = WeightsProxy(line)
    assert proxy.latest("policy", 0) is None
    assert proxy.publish("policy", {"w": np.ones(2)}) == 1
    assert proxy.latest("policy", 0) is None  # asked a moment ago
    time.sleep(ASK_EVERY_S)
    version, weights = proxy.latest("policy", 0)
    assert version == 1
    np.testing.assert_array_equal(weights["w"], np.ones(2))
    time.sleep(ASK_EVERY_S)
    assert proxy.latest("policy", 1) is None
    line.stop()


@pytest.mark.slow
def test_a_dead_replay_ends_the_run_and_is_named(tmp_path, ray_here, monkeypatch):
    from dreamfleet.runtime import fleet

    monkeypatch.setitem(agents.REGISTRY, "fake", FAKE)
    stage = fleet.Fleet._stage

    def kill_then_stage(it):
        if it._session.learning:
            it._replays[0].stop()
        stage(it)

    monkeypatch.setattr(fleet.Fleet, "_stage", kill_then_stage)
    with pytest.raises(WorkerFailed, match=r"^replay broke: its process died"):
        train("cluster", config(tmp_path, steps=10_000))


# ------------------------------------------------------------------------------------ address


@pytest.mark.slow
def test_a_cluster_that_runs_is_joined_and_left_as_it_was(tmp_path):
    """In a process of its own, as this one has joined another Ray."""
    command = [sys.executable, "-m", "tests.runtime.joining", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr[-3000:]
    left = "exit code 0, nodes 1, actors ['theirs'], processes ['ray::Theirs']"
    assert done.stdout.splitlines()[-1] == left
    rows = streams(state_in(tmp_path / "run"))
    assert sum(len(stream["reward"]) for stream in rows) >= 100


@pytest.mark.slow
def test_what_answers_and_is_no_ray_is_told_from_it(monkeypatch):
    from dreamfleet.runtime import cluster

    monkeypatch.setattr(cluster, "HEALTH_S", 3.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(UserError, match=f"--address {address}: no Ray cluster is well there"):
            wanted_mode(address, address)


@pytest.mark.parametrize(
    ("asks", "token", "mode"),
    [(False, "", "disabled"), (False, "~/.ray/auth_token", "disabled"), (True, "here", "token")],
)
def test_a_cluster_is_joined_in_the_mode_it_wants(monkeypatch, asks, token, mode):
    head(monkeypatch, asks, token, right=True)
    assert wanted_mode("auto", "127.0.0.1:6399") == mode


@pytest.mark.parametrize(
    ("token", "why"), [("", "none was found here"), ("RAY_AUTH_TOKEN", "of RAY_AUTH_TOKEN is an")]
)
def test_a_token_that_is_missing_or_wrong_is_one_line(monkeypatch, token, why):
    head(monkeypatch, asks=True, token=token, right=False)
    with pytest.raises(UserError, match=why) as refused:
        wanted_mode("there:6399", "there:6399")
    assert "ray get-auth-token" in str(refused.value)
    assert "\n" not in str(refused.value)


def head(monkeypatch, asks: bool, token: str, right: bool) -> None:
    """A cluster that asks for a token or not, and what of a token there is here."""
    from dreamfleet.runtime import cluster

    def health(target: str, mode: str) -> list[str]:
        shown = mode == "token" and right
        return ["RPC error: InvalidAuthToken", "help"] if asks and not shown else []

    monkeypatch.setattr(cluster, "_health", health)
    monkeypatch.setattr(cluster.preflight, "token_source", lambda: token)


def test_a_ray_that_does_not_start_is_one_line(monkeypatch, tmp_path):
    from dreamfleet.runtime import cluster

    def slow(**about: object) -> None:
        raise Exception("The current node timed out during startup.\nIt is overloaded.")

    monkeypatch.setattr(cluster, "_init", slow)
    with pytest.raises(WorkerFailed, match="Ray did not start here: The current") as failed:
        cluster._join(config(tmp_path), tmp_path, "", tmp_path)
    assert "\n" not in str(failed.value)
