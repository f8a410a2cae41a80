"""Runs one worker's steps, measures their time, and reports the worker's events and faults."""

from __future__ import annotations

import contextlib
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from dreamfleet.actors.evaluator import Evaluator
from dreamfleet.core.errors import Diverged, EnvironmentFault, Gone
from dreamfleet.core.types import BestEvaluation, Event, Worker
from dreamfleet.runtime.blueprint import Progress


@dataclass(frozen=True)
class Fault:
    """The exception that broke a worker, as text, since not every exception can be pickled."""

    error: str  # the last line of the traceback
    text: str  # the whole traceback
    environment: bool = False  # an environment broke its contract: a row was refused
    peer_failed: bool = False  # another process did not answer: that process may be the cause
    final: bool = False  # a restart cannot help, and `error` is the whole message


@dataclass(frozen=True)
class Report:
    """The work of one worker since its previous report."""

    worker: str  # actor-3, learner, dreamer-0, evaluator
    events: list[Event]
    busy_s: float
    waits_s: dict[str, float]  # roles that the worker waited for → seconds
    updates: int  # gradient steps since the run began
    published: int  # version of the weights that this worker publishes; 0: none yet
    versions: dict[str, int]  # weight group that this worker pulls → version in use
    chunks: int  # chunks that the replay accepted since this worker was started
    fault: Fault | None  # set: the worker is broken until it is restarted
    env: dict[str, Any] = field(default_factory=dict)  # the state of its environments
    best: BestEvaluation | None = None  # set: an evaluation was the best of the run so far


class WorkerRunner:
    """Steps one worker, measures busy and waiting time, and turns exceptions into faults.

    The worker is built at its first step, so that an error of its constructor is a fault, too. A
    SystemExit is a fault, as is a KeyboardInterrupt unless a person interrupted the run.

    interrupted: tells whether a person interrupted the run.
    """

    def __init__(
        self,
        name: str,
        build: Callable[[Progress], Worker],
        progress: Progress,
        interrupted: Callable[[], bool] = lambda: True,
    ) -> None:
        self.name, self._interrupted = name, interrupted
        self._build, self._progress = build, progress
        self._worker: Worker | None = None
        self._busy_s = 0.0
        self._waits_s: dict[str, float] = defaultdict(float)
        self._fault: Fault | None = None

    @property
    def broken(self) -> bool:
        """Tells whether the worker raised an exception since it was last started."""
        return self._fault is not None

    @property
    def waiting_for(self) -> str:
        """Returns the roles that the worker waits for, such as `replay + dreamer`.

        The worker gives the reasons as `role: reason, role: reason`.
        """
        reasons = self._worker.waiting_for.split(", ") if self._worker else []
        return " + ".join(dict.fromkeys(reason.partition(":")[0] for reason in reasons))

    def step(self) -> bool:
        """Takes one step of the worker. Returns False if the worker waited or broke."""
        began = time.perf_counter()
        moved = self._try(lambda worker: worker.step())
        if self.broken:
            return False
        elapsed = time.perf_counter() - began
        if moved:
            self._busy_s += elapsed
        else:
            self.add_wait(elapsed)
        return moved

    def evaluate_saved(self, at: int, states: Mapping[str, Any]) -> None:
        """Has the evaluator evaluate a saved policy.

        at: env steps of the run when the policy was saved. states: weight group → saved state.
        """

        def evaluate(worker: Worker) -> bool:
            assert isinstance(worker, Evaluator)
            worker.evaluate_saved(at, states)
            return True

        if self.broken:
            self.restart(self._progress)
        self._try(evaluate)

    def add_wait(self, seconds: float) -> None:
        """Adds to the waiting time of the worker, for the roles that it waits for now."""
        self._waits_s[self.waiting_for] += seconds

    def _try(self, call: Callable[[Worker], bool]) -> bool:
        """Returns the result of `call` on the worker. An exception becomes a fault, and False."""
        try:
            if self._worker is None:
                self._worker = self._build(self._progress)
            return call(self._worker)
        except Diverged as error:
            self._fault = Fault(str(error), "", final=True)
            return False
        except EnvironmentFault as error:  # its message needs no traceback
            self._fault = Fault(str(error), "", environment=True)
            return False
        except BaseException as error:  # the session decides between a restart and the end
            if isinstance(error, KeyboardInterrupt) and self._interrupted():
                raise
            last_line = traceback.format_exception_only(error)[-1].strip()
            peer_failed = isinstance(error, Gone)
            self._fault = Fault(last_line, traceback.format_exc(), peer_failed=peer_failed)
            return False

    def restart(self, progress: Progress) -> None:
        """Closes the broken worker. The next step builds a new worker from `progress`."""
        close = getattr(self._worker, "close", None)
        if close is not None:
            with contextlib.suppress(Exception):  # closing a broken environment may fail, too
                close()
        self._worker, self._fault, self._progress = None, None, progress

    def report(self) -> Report:
        """Returns a report of the time since the previous report."""
        worker = self._worker
        report = Report(
            worker=self.name,
            events=worker.drain() if worker else [],
            busy_s=self._busy_s,
            waits_s=dict(self._waits_s),
            updates=getattr(worker, "updates", 0),
            published=getattr(worker, "version", 0),
            versions=dict(getattr(worker, "versions", {})),
            chunks=getattr(worker, "chunks", 0),
            fault=self._fault,
            env=getattr(worker, "env_state", {}),
            best=worker.take_best() if isinstance(worker, Evaluator) else None,
        )
        self._busy_s = 0.0
        self._waits_s.clear()
        return report
