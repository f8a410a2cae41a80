from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from dreamfleet import agents
from dreamfleet.runtime.interrupts import Interrupts, adopt_orphans, descendants, kill_descendants
from tests.envs import own
from tests.runtime import runs


@pytest.fixture
def interrupts():
    it = Interrupts()
    it.open()
    yield it
    it.close()


def test_the_first_signal_is_noted_and_the_second_raises(interrupts):
    os.kill(os.getpid(), signal.SIGTERM)
    assert (interrupts.name, interrupts.exit_code, interrupts.at_once) == ("SIGTERM", 143, False)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    assert interrupts.at_once
    os.kill(os.getpid(), signal.SIGINT)  # a third one does not disturb the leaving
    assert interrupts.exit_code == 143


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_a_hold_is_heard_and_processes_do_not_get_it(interrupts, number):
    interrupts.hold()
    assert not interrupts.heard(0.01)
    script = "import signal; print(signal.getsignal(signal.SIGINT) is signal.SIG_IGN)"
    child = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert child.stdout == "True\n"
    os.kill(os.getpid(), number)
    began = time.monotonic()
    assert interrupts.heard(5.0)
    assert time.monotonic() - began < 1.0
    assert interrupts.number == number


def test_handlers_come_back():
    before = signal.getsignal(signal.SIGINT)
    it = Interrupts()
    it.open()
    it.hold()
    it.close()
    assert signal.getsignal(signal.SIGINT) is before
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_another_thread_than_the_main_one_leaves_signals_alone():
    before, found = signal.getsignal(signal.SIGINT), []

    def listen() -> None:
        it = Interrupts()
        it.open()
        it.hold()
        found.append(it.heard(0.01))
        it.listen()
        it.close()

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


def test_an_environment_that_takes_the_signals_does_not_keep_them(tmp_path, monkeypatch):
    monkeypatch.setitem(agents.REGISTRY, "fake", runs.FAKE)

    def obs(env, t):
        if t == 0:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        elif t == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return np.zeros(2)

    name = own.register("Takes-v0", obs=obs)
    left = runs.train("local", runs.config(tmp_path / "run", env=name))
    assert left.code == 128 + signal.SIGINT


def test_the_children_of_a_child_that_dies_are_found_and_killed():
    """As those of Ray's raylet."""
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
