from __future__ import annotations

import time

import pytest

from dreamfleet.core.errors import EnvironmentFault, Gone
from dreamfleet.runtime.blueprint import Progress
from dreamfleet.runtime.turns import Turns


class Scripted:
    """A worker that does what it is told: moves, waits for somebody, or raises."""

    def __init__(self, *script):
        self._script = list(script)
        self.waiting_for = ""
        self.closed = False
        self.updates = 0

    def step(self) -> bool:
        what = self._script.pop(0)
        if isinstance(what, Exception):
            raise what
        self.waiting_for = what or ""
        self.updates += what is None
        time.sleep(0.01)
        return what is None

    def drain(self):
        return [{"kind": "step"}]

    def close(self):
        self.closed = True
        raise OSError("what broke cannot close")


def turns(*script) -> Turns:
    return Turns("learner", lambda progress: Scripted(*script), Progress())


def test_time_is_told_apart_by_what_it_went_into():
    it = turns(None, "replay: rows", "replay: rows, dreamer: a dream")
    assert [it.step() for _ in range(3)] == [True, False, False]
    assert it.waiting_for == "replay + dreamer"
    it.waited(5.0)
    report = it.report()
    assert report.env == {}  # no actor
    assert report.worker == "learner"
    assert report.events == [{"kind": "step"}]
    assert report.busy_s == pytest.approx(0.01, abs=0.02)
    assert report.waits_s["replay"] == pytest.approx(0.01, abs=0.02)
    assert report.waits_s["replay + dreamer"] == pytest.approx(5.01, abs=0.02)
    assert (report.updates, report.published, report.versions, report.chunks) == (1, 0, {}, 0)
    assert report.fault is None


def test_a_report_tells_only_what_happened_since_the_last():
    it = turns("replay: rows", None)
    it.step()
    it.report()
    it.step()
    report = it.report()
    assert report.waits_s == {}
    assert report.busy_s > 0


def test_the_fault_of_an_environment_is_its_own_line():
    it = turns(EnvironmentFault("Env-v0[0] returned a reward of nan after action 1"))
    assert not it.step()
    fault = it.report().fault
    assert (fault.error, fault.text) == ("Env-v0[0] returned a reward of nan after action 1", "")
    assert fault.environment


def test_an_exception_becomes_a_fault_in_words():
    error = OSError("gone")
    it = turns(error)
    assert not it.step()
    assert it.broken
    fault = it.report().fault
    assert fault.error.endswith(str(error))
    assert "\n" not in fault.error
    assert fault.text.startswith("Traceback (most recent call last):")
    assert fault.text.rstrip().endswith(fault.error)
    assert not fault.environment


def test_a_worker_that_cannot_be_built_is_broken_too():
    def build(progress):
        raise RuntimeError("no such display")

    it = Turns("actor-0", build, Progress())
    assert not it.step()
    report = it.report()
    assert report.fault.error == "RuntimeError: no such display"
    assert report.events == []
    it.waited(1.0)  # the others of its process go on waiting


def test_a_restart_closes_what_broke_and_builds_anew():
    built = []

    def build(progress):
        built.append((Scripted(*([OSError()] if progress.starts == 0 else [None])), progress))
        return built[-1][0]

    it = Turns("actor-0", build, Progress())
    it.step()
    it.restart(Progress(starts=1))
    assert not it.broken
    assert built[0][0].closed
    assert it.step()
    assert [progress.starts for _, progress in built] == [0, 1]


def test_an_interrupt_is_no_fault():
    class Interrupted(Scripted):
        def step(self):
            raise KeyboardInterrupt

    it = Turns("actor-0", lambda progress: Interrupted(), Progress())
    with pytest.raises(KeyboardInterrupt):
        it.step()
    assert not it.broken


@pytest.mark.parametrize("raised", [SystemExit(), KeyboardInterrupt(), GeneratorExit()])
def test_whatever_a_worker_raises_while_nobody_interrupts_is_a_fault(raised):
    class Raising(Scripted):
        def step(self):
            raise raised

    it = Turns("actor-0", lambda progress: Raising(), Progress(), interrupted=lambda: False)
    assert not it.step()
    assert it.broken
    assert type(raised).__name__ in it.report().fault.error


def test_a_process_that_did_not_answer_is_told_from_other_faults():
    assert faulted(Gone("a process that this one needs died")).lost
    assert not faulted(OSError("gone")).lost


def faulted(error: Exception):
    it = turns(error)
    it.step()
    return it.report().fault
