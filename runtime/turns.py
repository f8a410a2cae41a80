"""Turns: a worker's steps, timed, and what is told of them afterwards."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from core.types import Event, Worker


@dataclass
class Report:
    """What a worker did since its last report."""

    worker: str
    events: list[Event]
    moved: bool  # at least one step did something
    busy_s: float
    waits_s: dict[str, float]  # whom it waited for → for how long
    updates: int  # gradient steps, since the run began
    published: int  # version of the weights it writes; 0: none
    versions: dict[str, int]  # weights it uses → their version


@dataclass
class Turns:
    """Gives one worker its steps and keeps the times."""

    name: str
    worker: Worker
    _busy_s: float = 0.0
    _waits_s: dict[str, float] = field(default_factory=dict)
    _moved: bool = False

    def step(self) -> bool:
        began = time.perf_counter()
        moved = self.worker.step()
        elapsed = time.perf_counter() - began
        if moved:
            self._moved = True
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
            moved=self._moved,
            busy_s=self._busy_s,
            waits_s=self._waits_s,
            updates=getattr(self.worker, "updates", 0),
            published=getattr(self.worker, "version", 0),
            versions=dict(getattr(self.worker, "versions", {})),
        )
        self._busy_s, self._waits_s, self._moved = 0.0, {}, False
        return report
