"""Tests that a signal or a fault ends `launch.py` and leaves no process behind."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.runs import outcome, state_in

ROOT = Path(__file__).parents[2]
LOCAL = ("--local",)
CLUSTER = ("--no-dashboard", "--num-actors", "2")
both = pytest.mark.parametrize("place", [LOCAL, CLUSTER], ids=["local", "cluster"])


class Launched:
    """A run started with `launch.py` in a process session of its own.

    Signals can therefore be sent to all its processes, as a terminal does at Ctrl-C.
    """

    def __init__(self, path: Path, *args: str) -> None:
        self.path, self.log = path, path.with_suffix(".log")
        command = [sys.executable, "-m", "tests.runtime.starter"]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*command, *args], cwd=ROOT, stdout=log, stderr=log, start_new_session=True
            )

    @property
    def output(self) -> str:
        return self.log.read_text()

    def until(self, text: str, seconds: float = 60.0) -> None:
        """Waits until the run has printed `text`. Fails if the run ends first or takes too long.

        seconds: the longest wait.
        """
        deadline = time.monotonic() + seconds
        while text not in self.output:
            assert self.process.poll() is None, self.output
            assert time.monotonic() < deadline, self.output
            time.sleep(0.05)

    def all_processes(self) -> set[int]:
        """Returns the ids of all living processes of the run."""
        found = set()
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    after_name = (entry / "stat").read_text().rpartition(")")[2].split()
                    if int(after_name[3]) == self.process.pid and after_name[0] != "Z":
                        found.add(int(entry.name))
        return found

    def processes_of(self, title: str) -> list[int]:
        """Returns the ids of the run's processes whose title contains a text.

        title: the text. The arguments of a process do not belong to its title.
        """
        lines = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in self.all_processes()}
        found = [pid for pid, line in lines.items() if title in line.decode().split("\0")[0]]
        assert found, lines
        return found

    def listening(self) -> list[Any]:
        """Returns the IP addresses on which processes of the run listen for TCP connections."""
        own = set()
        for pid in self.all_processes():
            for link in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    own.add(str(link.readlink()))
        found = []
        for table in ("tcp", "tcp6"):
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                local, state, inode = (line.split()[i] for i in (1, 3, 9))
                if state == "0A" and f"socket:[{inode}]" in own:
                    host = local.split(":")[0]
                    words = [bytes.fromhex(host[i : i + 8])[::-1] for i in range(0, len(host), 8)]
                    found.append(ipaddress.ip_address(b"".join(words)))
        return found

    def ctrl_c(self) -> None:
        os.killpg(self.process.pid, signal.SIGINT)

    def code(self, seconds: float = 60.0) -> int:
        return self.process.wait(seconds)

    def assert_gone(self) -> None:
        deadline = time.monotonic() + 5.0
        while self.all_processes() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert self.all_processes() == set()


@pytest.fixture
def launched(tmp_path) -> Iterator:
    """Yields a function that starts a run of the fake agent. Kills all its processes at the end."""
    runs: list[Launched] = []

    def start(
        *args: str, env: str = "dreamfleet.envs.probe:Count-v0", name: str = "run"
    ) -> Launched:
        path = tmp_path / name
        new = () if "--resume" in args else ("--run-dir", str(path))
        given = ("--agent", "fake", "--env", env, *new, "--set", "train.chunk=4")
        runs.append(Launched(path, *given, *args))
        return runs[-1]

    yield start
    for run in runs:
        for pid in run.all_processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.mark.ray
@both
def test_ctrl_c_saves_the_run_and_it_can_be_resumed(launched, place):
    run = launched(*place, "--steps", "1000000", "--set", "agent.capacity=200000")
    run.until("first gradient step")
    if place == CLUSTER:
        assert len(run.all_processes()) > 3
    run.ctrl_c()
    assert run.code() == 130, run.output
    run.assert_gone()
    assert "Traceback" not in run.output
    saved = state_in(run.path)["session"]
    assert saved["env_steps"] > 0
    assert saved["updates"]["learner"] >= 0

    more = saved["env_steps"] + 50
    again = launched(*LOCAL, "--resume", str(run.path), "--steps", str(more))
    assert again.code() == 0, again.output
    assert outcome(run.path, 0, "").state["session"]["env_steps"] >= more


@pytest.mark.ray
def test_sigterm_saves_the_run_and_exits_143(launched):
    run = launched(*LOCAL, "--steps", "1000000", "--set", "agent.capacity=200000")
    run.until("first gradient step")
    run.process.terminate()
    assert run.code() == 143, run.output
    assert "Traceback" not in run.output
    assert state_in(run.path)["session"]["env_steps"] > 0


@pytest.mark.ray
def test_ctrl_c_while_ray_starts_ends_at_once_without_processes_left(launched):
    run = launched("--steps", "1000000")
    while len(run.all_processes()) < 4:
        time.sleep(0.02)
    time.sleep(0.5)
    run.ctrl_c()
    assert run.code(3.0) == 130, run.output
    run.assert_gone()
    assert "Traceback" not in run.output
    assert "left while Ray was starting" in run.output


@pytest.mark.ray
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_ends_the_run_while_an_environment_hangs(launched, number):
    run = launched(*LOCAL, "--steps", "1000", env="tests.runtime.broken:Unstoppable-v0")
    run.until("first gradient step")
    time.sleep(1.0)
    run.process.send_signal(number)
    assert run.code(4.0) == 128 + number, run.output
    assert (
        "actor-0: a call of its environment tests.runtime.broken:Unstoppable-v0 has not"
        in run.output
    )
    assert run.output.rstrip().endswith(f"Go on: --resume {run.path}")
    assert state_in(run.path)["session"]["env_steps"] > 150


@pytest.mark.ray
def test_a_local_run_is_saved_and_ends_when_its_environment_hangs(launched):
    timeout = ("--set", "train.env_timeout_s=1")
    run = launched(*LOCAL, *timeout, "--steps", "1000", env="tests.runtime.broken:Unstoppable-v0")
    assert run.code() == 1, run.output
    assert run.output.rstrip().splitlines()[-1] == (
        "actor-0: a call of its environment tests.runtime.broken:Unstoppable-v0 took longer than "
        f"1 s (train.env_timeout_s). Go on: --resume {run.path}"
    )
    assert "Traceback" not in run.output
    assert state_in(run.path)["session"]["env_steps"] > 150


@pytest.mark.ray
@pytest.mark.parametrize(
    ("process", "named"),
    [
        ("ray::ReplayHost", "replay broke: its process died"),
        ("raylet/raylet", "Ray broke: its process raylet died"),
        *(
            pytest.param(process, named, marks=pytest.mark.costly)
            for process, named in (
                ("ray::LocalWeights", "the weight store broke: its process died"),
                ("ray::WorkerHost", "(learner|dreamer-0) broke: its process died"),
                ("gcs/gcs_server", "Ray broke: its process gcs_server died"),
            )
        ),
    ],
)
def test_the_last_line_names_the_dead_process_and_how_to_go_on(launched, process, named):
    run = launched(*CLUSTER, "--steps", "1000000", "--set", "train.checkpoint_every=50")
    run.until("saved")
    for pid in run.processes_of(process):
        os.kill(pid, signal.SIGKILL)
    assert run.code() == 1, run.output
    last = run.output.rstrip().splitlines()[-1]
    assert re.match(named, last), run.output
    assert last.endswith(f"Go on: --resume {run.path}")
    assert "Traceback" not in run.output
    run.assert_gone()


@pytest.mark.ray
@pytest.mark.costly
def test_ctrl_c_ends_the_run_while_the_replay_does_not_answer(launched):
    run = launched(*CLUSTER, "--steps", "1000000")
    run.until("first gradient step")
    for pid in run.processes_of("ray::ReplayHost"):
        os.kill(pid, signal.SIGSTOP)
    run.until("waiting for replay")
    run.ctrl_c()
    run.until("SIGINT: saving, then leaving", 1.5)
    assert run.code(30.0) == 130, run.output
    assert "not saved: replay broke: no answer in 10 s" in run.output
    run.assert_gone()


@pytest.mark.ray
def test_all_ports_of_a_run_are_bound_to_the_loopback_address(launched):
    run = launched("--num-actors", "1", "--steps", "1000000")
    run.until("first gradient step")
    found = run.listening()
    assert len(found) > 5
    assert all((getattr(at, "ipv4_mapped", None) or at).is_loopback for at in found), found


@pytest.mark.ray
@both
def test_the_second_signal_ends_the_run_at_once(launched, place):
    """The run waits for a policy update that takes a minute when the second signal comes."""
    run = launched(*place, "--set", "agent.learn_s=60")
    run.until("first gradient step")  # the first world update
    time.sleep(1.0)
    run.process.terminate()
    if place == CLUSTER:
        run.until("SIGTERM: saving, then leaving")
    time.sleep(0.5)
    run.process.terminate()
    assert run.code(20.0) == 143, run.output
    assert "left at once, nothing saved" in run.output
    run.assert_gone()
    assert "Traceback" not in run.output


@pytest.mark.ray
def test_an_environment_that_never_works_is_refused_in_one_line(launched):
    run = launched(*LOCAL, env="dreamfleet.envs.probe:FaultyReset-v0")
    assert run.code() == 2, run.output
    first, error = run.output.splitlines()
    assert first.startswith("starting ") and error.startswith("error: ")
    assert "RuntimeError: the probe never starts" in run.output
