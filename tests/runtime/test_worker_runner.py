"""Tests that a worker's time is measured, and that its exceptions become faults."""

from __future__ import annotations

import time

import pytest

from dreamfleet.core.errors import EnvironmentFault, Gone
from dreamfleet.runtime.blueprint import Progress
from dreamfleet.runtime.worker_runner import WorkerRunner


class Scripted:
    """A worker whose steps follow a script, one entry for each step.

    The entry None is a step with work. A text is a step in which the worker waits, with the text as
    the reason. An exception is raised.
    """

    def __init__(self, *script):
        self._script = list(script)
        self.waiting_for = ""
        self.closed = False
        self.updates = 0

    def step(self) -> bool:
        entry = self._script.pop(0)
        if isinstance(entry, Exception):
            raise entry
        self.waiting_for = entry or ""
        self.updates += entry is None
        time.sleep(0.01)
        return entry is None

    def drain(self):
        return [{"kind": "step"}]

    def close(self):
        self.closed = True
        raise OSError("a broken worker cannot close")


def runner_of(*script) -> WorkerRunner:
    return WorkerRunner("learner", lambda progress: Scripted(*script), Progress())


def test_a_report_separates_busy_time_and_waiting_time_by_role():
    runner = runner_of(None, "replay: rows", "replay: rows, dreamer: a dream")
    assert [runner.step() for _ in range(3)] == [True, False, False]
    assert runner.waiting_for == "replay + dreamer"
    runner.add_wait(5.0)
    report = runner.report()
    assert report.env == {}  # no actor
    assert report.worker == "learner"
    assert report.events == [{"kind": "step"}]
    assert report.busy_s == pytest.approx(0.01, abs=0.02)
    assert report.waits_s["replay"] == pytest.approx(0.01, abs=0.02)
    assert report.waits_s["replay + dreamer"] == pytest.approx(5.01, abs=0.02)
    assert (report.updates, report.published, report.versions, report.chunks) == (1, 0, {}, 0)
    assert report.fault is None


def test_a_report_covers_the_time_since_the_previous_report():
    runner = runner_of("replay: rows", None)
    runner.step()
    runner.report()
    runner.step()
    report = runner.report()
    assert report.waits_s == {}
    assert report.busy_s > 0


def test_an_environment_fault_has_no_traceback():
    runner = runner_of(EnvironmentFault("Env-v0[0] returned a reward of nan after action 1"))
    assert not runner.step()
    fault = runner.report().fault
    assert (fault.error, fault.text) == ("Env-v0[0] returned a reward of nan after action 1", "")
    assert fault.environment


def test_an_exception_becomes_a_fault_with_its_traceback_as_text():
    error = OSError("gone")
    runner = runner_of(error)
    assert not runner.step()
    assert runner.broken
    fault = runner.report().fault
    assert fault.error.endswith(str(error))
    assert "\n" not in fault.error
    assert fault.text.startswith("Traceback (most recent call last):")
    assert fault.text.rstrip().endswith(fault.error)
    assert not fault.environment


def test_an_exception_of_the_constructor_is_a_fault():
    def build(progress):
        raise RuntimeError("no such display")

    runner = WorkerRunner("actor-0", build, Progress())
    assert not runner.step()
    report = runner.report()
    assert report.fault.error == "RuntimeError: no such display"
    assert report.events == []
    runner.add_wait(1.0)  # as when the other workers of the process wait


def test_a_restart_closes_the_broken_worker_and_builds_a_new_one():
    built = []

    def build(progress):
        built.append((Scripted(*([OSError()] if progress.starts == 0 else [None])), progress))
        return built[-1][0]

    runner = WorkerRunner("actor-0", build, Progress())
    runner.step()
    runner.restart(Progress(starts=1))
    assert not runner.broken
    assert built[0][0].closed
    assert runner.step()
    assert [progress.starts for _, progress in built] == [0, 1]


def test_the_interrupt_of_a_person_is_raised():
    class Interrupted(Scripted):
        def step(self):
            raise KeyboardInterrupt

    runner = WorkerRunner("actor-0", lambda progress: Interrupted(), Progress())
    with pytest.raises(KeyboardInterrupt):
        runner.step()
    assert not runner.broken


@pytest.mark.parametrize("raised", [SystemExit(), KeyboardInterrupt(), GeneratorExit()])
def test_any_exception_is_a_fault_unless_a_person_interrupted(raised):
    class Raising(Scripted):
        def step(self):
            raise raised

    runner = WorkerRunner(
        "actor-0", lambda progress: Raising(), Progress(), interrupted=lambda: False
    )
    assert not runner.step()
    assert runner.broken
    assert type(raised).__name__ in runner.report().fault.error


def test_a_fault_says_whether_another_process_failed():
    assert fault_of(Gone("a process that this one needs died")).peer_failed
    assert not fault_of(OSError("gone")).peer_failed


def fault_of(error: Exception):
    runner = runner_of(error)
    runner.step()
    return runner.report().fault
