"""Turns: a worker's steps, timed, and what is told of them afterwards."""

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
    """What a worker died of, in words, since an exception may not survive the way to the driver."""

    error: str  # its last line
    text: str  # its whole traceback
    environment: bool = False  # an environment broke its contract: a row was refused
    lost: bool = False  # another process did not answer: it may be the one that broke
    final: bool = False  # a restart cannot help, and `error` says all


@dataclass(frozen=True)
class Report:
    """What a worker did since its last report."""

    worker: str  # actor-3, learner, dreamer-0, evaluator
    events: list[Event]
    busy_s: float
    waits_s: dict[str, float]  # whom it waited for → for how long
    updates: int  # gradient steps, since the run began
    published: int  # version of the weights it writes; 0: none
    versions: dict[str, int]  # weights it uses → their version
    chunks: int  # taken from it by the replay, since it was started
    fault: Fault | None  # it broke, and takes no step until it is restarted
    env: dict[str, Any] = field(default_factory=dict)  # the state of its environments
    best: BestEvaluation | None = None  # an evaluation that was the best of the run so far


class Turns:
    """Gives one worker its steps and keeps the times.

    The worker is built at its first step, so that what its environment raises there is a fault like
    any other. So is a SystemExit, and a KeyboardInterrupt while nobody interrupts.
    interrupted: whether a KeyboardInterrupt is a person's.
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
        return self._fault is not None

    @property
    def waiting_for(self) -> str:
        """Whom it waits for, in a word or two; the worker itself says why, after a colon."""
        reasons = self._worker.waiting_for.split(", ") if self._worker else []
        return " + ".join(dict.fromkeys(reason.partition(":")[0] for reason in reasons))

    def step(self) -> bool:
        """Takes one step of the worker. False: it waited, or broke."""
        began = time.perf_counter()
        moved = self._try(lambda worker: worker.step())
        if self.broken:
            return False
        elapsed = time.perf_counter() - began
        if moved:
            self._busy_s += elapsed
        else:
            self.waited(elapsed)
        return moved

    def evaluate_saved(self, at: int, states: Mapping[str, Any]) -> None:
        """Have the evaluator play the policy that was saved after `at` steps."""

        def evaluate(worker: Worker) -> bool:
            assert isinstance(worker, Evaluator)
            worker.evaluate_saved(at, states)
            return True

        if self.broken:
            self.restart(self._progress)
        self._try(evaluate)

    def waited(self, seconds: float) -> None:
        """Add to the time this worker waited for whom it waits for now."""
        self._waits_s[self.waiting_for] += seconds

    def _try(self, call: Callable[[Worker], bool]) -> bool:
        """Returns what `call` of the worker returns. False: it broke, as the next report says."""
        try:
            if self._worker is None:
                self._worker = self._build(self._progress)
            return call(self._worker)
        except Diverged as error:
            self._fault = Fault(str(error), "", final=True)
            return False
        except EnvironmentFault as error:  # its line says all, and names the environment
            self._fault = Fault(str(error), "", environment=True)
            return False
        except BaseException as error:  # the session has it restarted or gives up
            if isinstance(error, KeyboardInterrupt) and self._interrupted():
                raise
            last_line = traceback.format_exception_only(error)[-1].strip()
            lost = isinstance(error, Gone)
            self._fault = Fault(last_line, traceback.format_exc(), lost=lost)
            return False

    def restart(self, progress: Progress) -> None:
        """Leave the worker that broke and its environment; the next step builds another."""
        close = getattr(self._worker, "close", None)
        if close is not None:
            with contextlib.suppress(Exception):  # what broke may be unable to close, too
                close()
        self._worker, self._fault, self._progress = None, None, progress

    def report(self) -> Report:
        """Returns what happened since the last report."""
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
