"""Tests runs on Ray: CPUs of processes, proxies between processes, and joining a cluster."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

from dreamfleet import agents
from dreamfleet.core.config import RunConfig
from dreamfleet.core.errors import EnvironmentFault, UserError, WorkerFailed
from dreamfleet.core.types import ChunkId, Consumer, Space
from dreamfleet.learner.weight_store import LocalWeights
from dreamfleet.runtime.cluster import RayCluster
from dreamfleet.runtime.processes import resource_shares, start_replay
from dreamfleet.runtime.proxies import PREFETCH, PULL_EVERY_S, ReplayProxy, WeightsProxy
from dreamfleet.runtime.ray_start import required_auth_mode
from tests.fakes import FakeAgent
from tests.replay_server.model import Episodes, spec
from tests.runtime.runs import FAKE, config, state_in, streams, train
from tests.runtime.test_hosts import STREAM, rows

# ------------------------------------------------------------------------- shares of the CPUs


def total_cpus(config: RunConfig, available: dict[str, float]) -> float:
    """Returns the sum of the CPUs that all processes of a run ask for."""
    share = resource_shares(config, available)
    trainers = share["learner"] + config.num_dreamers * share["dreamer"]
    replays = config.train.replay_shards * share["replay"]
    return config.num_actors * share["actor"] + trainers + replays + share["evaluator"]


@pytest.mark.parametrize("num_actors", [1, 16, 256, 1024])
@pytest.mark.parametrize("num_dreamers", [0, 1, 8])
@pytest.mark.parametrize("cpus", [0.0, 1.0, 2.0, 3.5, 64.0, 5000.0])
def test_all_processes_together_ask_for_no_more_cpus_than_there_are(num_actors, num_dreamers, cpus):
    given = RunConfig(num_actors=num_actors, num_dreamers=num_dreamers)
    available = {"CPU": cpus} if cpus else {}  # Ray omits a resource that is used up
    assert total_cpus(given, available) <= cpus + 1e-9


def test_each_process_asks_for_one_cpu_if_there_are_enough():
    share = resource_shares(RunConfig(num_actors=16), {"CPU": 64.0})
    assert (share["actor"], share["learner"], share["dreamer"]) == (1.0, 1.0, 1.0)


def test_sixteen_actors_share_two_cpus_in_equal_parts():
    share = resource_shares(RunConfig(num_actors=16), {"CPU": 2.0})
    assert share["actor"] == share["learner"] == pytest.approx(2 / 19, abs=1e-3)


@pytest.mark.parametrize(
    ("option", "gpus", "device", "each"),
    [
        ("auto", 0.0, "cpu", 0.0),
        ("auto", 1.0, "cuda", 0.5),
        ("auto", 8.0, "cuda", 1.0),
        ("cpu", 1.0, "cpu", 0.5),
        ("cuda", 2.0, "cuda", 1.0),
    ],
)
def test_learner_and_dreamers_share_the_gpus(option, gpus, device, each):
    share = resource_shares(RunConfig(device=option, num_dreamers=1), {"CPU": 8.0, "GPU": gpus})
    assert (share["device"], share["gpu"]) == (device, each)


def test_cuda_is_refused_without_a_gpu():
    with pytest.raises(UserError, match="no machine of this cluster has a GPU"):
        resource_shares(RunConfig(device="cuda"), {"CPU": 8.0})


# ------------------------------------------------------------------------------------ proxies


@pytest.fixture
def proxy(ray_here):
    handle = start_replay(RayCluster(RunConfig()), FakeAgent().tables, 0, samplers=1)
    yield ReplayProxy([handle], FakeAgent().tables, 0)
    handle.stop()


def retry(attempt, seconds: float = 20.0):
    """Calls `attempt` until its result is neither None nor False. Returns this result.

    Raises TimeoutError if that takes longer than `seconds`.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if (answer := attempt()) is not None and answer is not False:
            return answer
        time.sleep(0.005)
    raise TimeoutError


@pytest.mark.ray
def test_a_remote_replay_answers_like_a_local_replay(proxy):
    assert proxy.sample("real", "policy") is None
    assert retry(lambda: proxy.add("real", rows(), STREAM))
    assert proxy.stats()["env_steps"] == 12
    sample = retry(lambda: proxy.sample("real", "policy"))
    assert sample.data["obs"].shape == (4, 2, 2)
    assert all(column.flags.writeable for column in sample.data.values())
    proxy.update("real", sample.keys, {"priority": np.ones(4)})
    with pytest.raises(EnvironmentFault, match="unexpected reset"):
        bad = rows()
        bad["first"][0, 5] = True
        retry(
            lambda: proxy.add("real", bad, STREAM)
        )  # within the credit: the next call raises the error
        retry(lambda: proxy.add("real", rows(4, first=False), STREAM))
    assert retry(
        lambda: proxy.add("real", rows(4, first=False), STREAM)
    )  # the next chunk is accepted
    assert proxy.stats()["env_steps"] == 16
    assert proxy.stats()["real/refused_reset"] == 1


@pytest.mark.ray
def test_new_values_of_several_megabytes_reach_the_rows_of_a_remote_replay(ray_here):
    table = spec(1200, world=Consumer(16, 64, context=1, columns=("obs", "deter")))
    table = replace(table, columns={**table.columns, "deter": Space((2048,), "float16")})
    handle, episodes = start_replay(RayCluster(RunConfig()), {"real": table}, 0, 1), Episodes()
    proxy = ReplayProxy([handle], {"real": table}, 0)

    def add(n: int) -> None:
        chunk = episodes.chunk([0], np.zeros((1, n), bool))
        chunk["deter"] = np.zeros((1, n, 2048), np.float16)
        assert retry(lambda: proxy.add("real", chunk, STREAM))
        assert retry(proxy.flush)

    def draw():
        return retry(lambda: proxy.sample("real", "world"))

    add(1200)
    sample = draw()
    new = np.repeat(sample.data["obs"][..., 1:], 2048, axis=2).astype(np.float16) + 1
    assert new.nbytes > 4e6
    proxy.update("real", sample.keys, {"deter": new, "priority": np.ones(16)}, "world")
    proxy.update("real", np.array([-1]), {"priority": np.ones(1)})  # waits for the first update
    for _ in range(PREFETCH):  # drawn before the update
        draw()
    sample = draw()
    deter, row = sample.data["deter"], sample.data["obs"][..., 1]
    written = deter[..., 0] != 0
    assert written.mean() > 0.3
    np.testing.assert_array_equal(deter, np.where(written, row + 1, 0)[..., None].repeat(2048, 2))
    add(1000)  # overwrites most rows
    kept = int((sample.keys >= 1000 + 1).sum())
    proxy.update("real", sample.keys, {"deter": new}, "world")
    assert kept < 16 and retry(lambda: proxy.stats()["real/stale_updates"] == 1 + 16 - kept)
    handle.stop()


@pytest.mark.ray
def test_a_batch_that_waits_for_room_is_added_once(proxy):
    assert retry(lambda: proxy.add("dream", {"n": np.array(0)}))
    assert proxy.add("dream", {"n": np.array(1)})  # within the credit: accepted before the answer
    tries, until = 0, time.monotonic() + 1.0
    while time.monotonic() < until:
        assert not proxy.add("dream", {"n": np.array(2)})
        proxy.wait(0.2)
        tries += 1
    assert tries < 40  # a refusal has a retry delay
    got = [int(retry(lambda: proxy.sample("dream", "policy"))["n"]) for _ in range(2)]
    assert retry(lambda: proxy.add("dream", {"n": np.array(2)}))
    got.append(int(retry(lambda: proxy.sample("dream", "policy"))["n"]))
    assert got == [0, 1, 2]


@pytest.mark.ray
def test_waiting_chunks_are_sent_together_and_flush_waits_for_them(proxy):
    def add(n: int) -> bool:
        return proxy.add("real", rows(4, first=n == 0), STREAM, ChunkId(0, 0, n))

    retry(lambda: add(0))  # the answer gives credit for 20 steps
    assert all(add(n) for n in (1, 2, 3))  # so these are accepted before an answer
    began = time.monotonic()
    while not proxy.flush():
        proxy.wait(10.0)
    assert time.monotonic() - began < 5.0
    stats = proxy.stats()
    assert (stats["env_steps"], stats["real/duplicates"]) == (16, 0)


@pytest.mark.ray
def test_a_prefetched_sample_does_not_end_a_wait_for_something_else(proxy):
    """A learner that waits for a dream is not woken by the arrival of a sample of real rows."""
    retry(lambda: proxy.add("real", rows(40), STREAM))
    retry(lambda: proxy.sample("real", "policy"))  # and requests the next sample
    time.sleep(0.3)
    assert proxy.sample("dream", "policy") is None
    began = time.monotonic()
    proxy.wait(0.5)
    assert time.monotonic() - began > 0.4


@pytest.mark.ray
def test_a_wait_ends_when_the_missing_answer_comes(proxy):
    assert proxy.sample("dream", "policy") is None
    retry(lambda: proxy.add("dream", {"n": np.array(0)}))
    began = time.monotonic()
    proxy.wait(10.0)
    assert proxy.sample("dream", "policy") is not None
    assert time.monotonic() - began < 5.0


@pytest.mark.ray
def test_weights_are_requested_a_few_times_a_second_at_most(ray_here):
    handle = RayCluster(RunConfig()).start(LocalWeights)
    proxy = WeightsProxy(handle)
    assert proxy.latest("policy", 0) is None
    assert proxy.publish("policy", {"w": np.ones(2)}) == 1
    assert proxy.latest("policy", 0) is None  # the last request was a moment ago
    time.sleep(PULL_EVERY_S)
    version, weights = proxy.latest("policy", 0)
    assert version == 1
    np.testing.assert_array_equal(weights["w"], np.ones(2))
    time.sleep(PULL_EVERY_S)
    assert proxy.latest("policy", 1) is None
    handle.stop()


@pytest.mark.ray
def test_a_dead_replay_ends_the_run_with_a_message_that_names_it(tmp_path, ray_here, monkeypatch):
    from dreamfleet.runtime import fleet

    monkeypatch.setitem(agents.REGISTRY, "fake", FAKE)
    start_more = fleet.Fleet._start_more

    def kill_the_replay(self):
        if self._session.learning:
            self._replays[0].stop()
        start_more(self)

    monkeypatch.setattr(fleet.Fleet, "_start_more", kill_the_replay)
    with pytest.raises(WorkerFailed, match=r"^replay broke: its process died"):
        train("cluster", config(tmp_path, steps=10_000))


# ------------------------------------------------------------------------------------ address


@pytest.mark.ray
def test_a_run_on_a_joined_cluster_leaves_the_cluster_as_it_was(tmp_path):
    """Runs in a new process, because this process may have joined another Ray already."""
    command = [sys.executable, "-m", "tests.runtime.joining", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr[-3000:]
    left = "exit code 0, nodes 1, actors ['theirs'], processes ['ray::Theirs']"
    assert done.stdout.splitlines()[-1] == left
    rows = streams(state_in(tmp_path / "run"))
    assert sum(len(stream["reward"]) for stream in rows) >= 100


@pytest.mark.ray
def test_a_server_that_is_not_ray_is_refused(monkeypatch):
    from dreamfleet.runtime import ray_start

    monkeypatch.setattr(ray_start, "HEALTH_S", 3.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(UserError, match=f"--address {address}: no healthy Ray cluster"):
            required_auth_mode(address, address)


@pytest.mark.parametrize(
    ("required", "token", "mode"),
    [(False, "", "disabled"), (False, "~/.ray/auth_token", "disabled"), (True, "here", "token")],
)
def test_a_cluster_is_joined_in_the_mode_that_it_requires(monkeypatch, required, token, mode):
    fake_cluster(monkeypatch, required, token, right=True)
    assert required_auth_mode("auto", "127.0.0.1:6399") == mode


@pytest.mark.parametrize(
    ("token", "why"),
    [("", "there is none here"), ("RAY_AUTH_TOKEN", "of RAY_AUTH_TOKEN is a different one")],
)
def test_the_message_about_a_missing_or_wrong_token_is_one_line(monkeypatch, token, why):
    fake_cluster(monkeypatch, required=True, token=token, right=False)
    with pytest.raises(UserError, match=why) as refused:
        required_auth_mode("there:6399", "there:6399")
    assert "ray get-auth-token" in str(refused.value)
    assert "\n" not in str(refused.value)


def fake_cluster(monkeypatch, required: bool, token: str, right: bool) -> None:
    """Replaces the health check of a cluster and the token of this machine by fakes.

    required: whether the cluster requires a token. token: the place where this machine's token is
    found; "" for no token. right: whether this machine's token is the token of the cluster.
    """
    from dreamfleet.runtime import ray_start

    def health(target: str, mode: str) -> list[str]:
        valid = mode == "token" and right
        return ["RPC error: InvalidAuthToken", "help"] if required and not valid else []

    monkeypatch.setattr(ray_start, "_health", health)
    monkeypatch.setattr(ray_start.preflight, "token_source", lambda: token)


def test_the_message_about_a_ray_that_does_not_start_is_one_line(monkeypatch, tmp_path):
    from dreamfleet.runtime import ray_start

    def fail(**options: object) -> None:
        raise Exception("The current node timed out during startup.\nIt is overloaded.")

    monkeypatch.setattr(ray_start, "_init", fail)
    with pytest.raises(WorkerFailed, match="Ray did not start here: The current") as failed:
        ray_start.start_or_join(config(tmp_path), tmp_path, "", tmp_path)
    assert "\n" not in str(failed.value)
