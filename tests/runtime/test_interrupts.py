"""Tests that signals end a run in order, and that killing reaches all descendant processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from dreamfleet import agents
from dreamfleet.runtime.interrupts import Interrupts, adopt_orphans, descendants, kill_descendants
from tests.envs import own
from tests.runtime import runs


@pytest.fixture
def interrupts():
    interrupts = Interrupts()
    interrupts.open()
    yield interrupts
    interrupts.close()


def test_the_first_signal_is_recorded_and_the_second_raises_keyboardinterrupt(interrupts):
    os.kill(os.getpid(), signal.SIGTERM)
    assert (interrupts.name, interrupts.exit_code, interrupts.twice) == ("SIGTERM", 143, False)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    assert interrupts.twice
    os.kill(os.getpid(), signal.SIGINT)  # a third signal raises nothing
    assert interrupts.exit_code == 143


BLOCKED = """
import os, signal, subprocess, sys, time
from dreamfleet.runtime.display import Display
from dreamfleet.runtime.interrupts import Interrupts

with Display():  # has a thread of its own, as during the start of Ray
    interrupts, number = Interrupts(), int(sys.argv[1])
    interrupts.open()
    interrupts.block()
    assert not interrupts.wait(0.5)
    script = "import signal; print(signal.getsignal(signal.SIGINT) is signal.SIG_IGN)"
    assert subprocess.check_output([sys.executable, "-c", script], text=True) == "True\\n"
    os.kill(os.getpid(), number)
    time.sleep(0.2)  # another thread that took the signal would have thrown it away by now
    began = time.monotonic()
    assert interrupts.wait(5.0)
    assert time.monotonic() - began < 1.0
    assert interrupts.number == number
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_blocked_signal_ends_a_wait_and_does_not_reach_new_processes(number):
    run = [sys.executable, "-c", BLOCKED, str(int(number))]  # pytest may have other threads
    subprocess.run(run, check=True, cwd=Path(__file__).parents[2], timeout=30)


def test_closing_restores_the_previous_handlers():
    before = signal.getsignal(signal.SIGINT)
    interrupts = Interrupts()
    interrupts.open()
    interrupts.block()
    interrupts.close()
    assert signal.getsignal(signal.SIGINT) is before
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_outside_the_main_thread_signal_handlers_stay_as_they_are():
    before, found = signal.getsignal(signal.SIGINT), []

    def listen() -> None:
        interrupts = Interrupts()
        interrupts.open()
        interrupts.block()
        found.append(interrupts.wait(0.01))
        interrupts.listen()
        interrupts.close()

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert found == [False]
    assert signal.getsignal(signal.SIGINT) is before


def test_all_descendants_are_killed():
    nested = "import subprocess, time; subprocess.Popen(['sleep', '60']); time.sleep(60)"
    script = (
        "import subprocess, sys, time\n"
        "from dreamfleet.runtime.interrupts import descendants, kill_descendants\n"
        f"subprocess.Popen([sys.executable, '-c', {nested!r}])\n"
        "while len(descendants()) < 2: time.sleep(0.01)\n"
        "pids = descendants(); kill_descendants(()); time.sleep(0.2); print(*pids)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 2, done.stderr
    deadline = time.monotonic() + 5.0
    while any(running(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(running(pid) for pid in pids)


def running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_ctrl_c_works_although_the_environment_replaced_the_handler(tmp_path, monkeypatch):
    monkeypatch.setitem(agents.REGISTRY, "fake", runs.FAKE)

    def obs(env, t):
        if t == 0:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        elif t == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return np.zeros(2)

    name = own.register("TakesSignals-v0", obs=obs)
    run = runs.train("local", runs.config(tmp_path / "run", env=name))
    assert run.code == 128 + signal.SIGINT


def test_orphaned_grandchildren_are_found_and_killed():
    """Ray's workers become orphans in this way when Ray's process `raylet` dies."""
    code = (
        "import subprocess, sys, time\n"
        "sleep = [sys.executable, '-c', 'import time; time.sleep(60)']\n"
        "print(subprocess.Popen(sleep).pid, flush=True)\n"
        "time.sleep(60)"
    )
    others = descendants()
    adopt_orphans(True)
    try:
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as child:
            grandchild = int(child.stdout.readline())
            child.kill()
            child.wait()
            assert grandchild in descendants()
            kill_descendants(others)
            assert os.waitpid(grandchild, 0)[1] == signal.SIGKILL
    finally:
        adopt_orphans(False)
