"""Runs one worker (such as an actor) step by step: measures its time, and catches its errors."""

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
    """An exception that stopped a worker, as text, because some exceptions cannot be pickled."""

    error: str  # the last line of the traceback
    text: str  # the whole traceback
    environment: bool = False  # an environment broke its contract: a row was refused
    peer_failed: bool = False  # another process did not answer: that process may be the cause
    final: bool = False  # a restart cannot help, and `error` is the whole message


@dataclass(frozen=True)
class Report:
    """What one worker has done since its previous report: events, times, counters and its error."""

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
    """Runs one worker (such as an actor), measures its times, and catches its exceptions.

    An exception becomes a fault (the exception as text) in the worker's next report. SystemExit is
    caught. KeyboardInterrupt is caught unless `interrupted` returns True, which means that the user
    ends the run.
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
        """Whether the worker has raised an exception since it was last started."""
        return self._fault is not None

    @property
    def waiting_for(self) -> str:
        """The parts of the run that the worker waits for, such as `replay + dreamer`, or ""."""
        reasons = self._worker.waiting_for.split(", ") if self._worker else []
        return " + ".join(dict.fromkeys(reason.partition(":")[0] for reason in reasons))

    def step(self) -> bool:
        """Lets the worker take one step. Returns False if the worker had to wait or failed."""
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
        """Lets the evaluator evaluate a saved policy.

        at: env steps of the run when the policy was saved. states: weight group (networks that one
        process trains) → the saved state.
        """

        def evaluate(worker: Worker) -> bool:
            assert isinstance(worker, Evaluator)
            worker.evaluate_saved(at, states)
            return True

        if self.broken:
            self.restart(self._progress)
        self._try(evaluate)

    def add_wait(self, seconds: float) -> None:
        """Adds `seconds` to the worker's waiting time.

        The time is counted for the parts of the run that the worker waits for now, such as the
        replay.
        """
        self._waits_s[self.waiting_for] += seconds

    def _try(self, call: Callable[[Worker], bool]) -> bool:
        """Calls `call(worker)` and returns its result, or False if it raises an exception.

        Builds the worker first if there is none. Keeps the exception for the worker's next report.
        """
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
        """Closes the worker after an error. The next step builds a new worker.

        progress: the counters and the saved environment state with which the new worker starts.
        """
        close = getattr(self._worker, "close", None)
        if close is not None:
            with contextlib.suppress(Exception):  # closing a broken environment may fail, too
                close()
        self._worker, self._fault, self._progress = None, None, progress

    def report(self) -> Report:
        """Returns what the worker has done since its previous report. Sets measured times to 0."""
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
