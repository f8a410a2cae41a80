"""Turns: a worker's steps, timed, and what is told of them afterwards."""

from __future__ import annotations

import time
import traceback
from dataclasses import dataclass, field

from core.errors import EnvironmentFault
from core.types import Event, Worker


@dataclass
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
    fault: Fault | None  # it broke, and must not be given another turn


@dataclass(frozen=True)
class Fault:
    """What a worker died of, in words, since an exception may not survive the way to the driver."""

    error: str  # its last line
    text: str  # its whole traceback
    environment: bool  # an environment broke its contract: a row was refused


@dataclass
class Turns:
    """Gives one worker its steps and keeps the times."""

    name: str
    worker: Worker
    _busy_s: float = 0.0
    _waits_s: dict[str, float] = field(default_factory=dict)
    _fault: Fault | None = None

    @property
    def broken(self) -> bool:
        return self._fault is not None

    def step(self) -> bool:
        """One step of the worker. False: it waited, or broke."""
        began = time.perf_counter()
        try:
            moved = self.worker.step()
        except Exception as error:  # told to the supervisor, which restarts the worker or gives up
            summary = traceback.format_exception_only(error)[-1].strip()
            environment = isinstance(error, EnvironmentFault)
            self._fault = Fault(summary, traceback.format_exc(), environment)
            return False
        elapsed = time.perf_counter() - began
        if moved:
            self._busy_s += elapsed
        else:
            self.waited(elapsed)
        return moved

    def waited(self, seconds: float) -> None:
        """Add to the time this worker waited for whom it waits for now."""
        whom = self.worker.waiting_for
        self._waits_s[whom] = self._waits_s.get(whom, 0.0) + seconds

    def report(self) -> Report:
        report = Report(
            worker=self.name,
            events=self.worker.drain(),
            busy_s=self._busy_s,
            waits_s=self._waits_s,
            updates=getattr(self.worker, "updates", 0),
            published=getattr(self.worker, "version", 0),
            versions=dict(getattr(self.worker, "versions", {})),
            chunks=getattr(self.worker, "chunks", 0),
            fault=self._fault,
        )
        self._busy_s, self._waits_s = 0.0, {}
        return report
