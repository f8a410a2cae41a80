"""How samples keep step with what is added."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from dreamfleet.core.types import Consumer


class Limiter:
    """Counts steps in and samples out, and says who is early. Data, never a lock: callers wait.

    A consumer's credit is the number of samples it may still take. It never falls below 0 nor
    rises past `slack` by more than one added chunk earns, and because slack is at least 1, either
    adding or sampling is always allowed. Reverb's limiter (Cassirer et al. 2021) without the lock.
    """

    def __init__(self, consumers: Mapping[str, Consumer], slack: float) -> None:
        self._consumers = consumers
        self._slack = slack
        self.steps = 0
        self.samples = dict.fromkeys(consumers, 0)

    def credit(self, consumer: str) -> float:
        spec = self._consumers[consumer]
        if self.steps < spec.min_steps:
            return 0.0
        if spec.samples_per_step is None:
            return 1.0  # always one more, and never so many that adding waits
        return (self.steps - spec.min_steps) * spec.samples_per_step - self.samples[consumer]

    def may_sample(self, consumer: str) -> bool:
        return self.credit(consumer) >= 1

    def behind(self, consumer: str) -> bool:
        """Whether adding must wait until this consumer has sampled."""
        return self.credit(consumer) > self._slack

    def room(self, consumer: str) -> float:
        """Steps that may be added until this consumer is behind; negative when it is."""
        spec = self._consumers[consumer]
        if spec.samples_per_step is None:
            return math.inf
        owed = self._slack + self.samples[consumer]  # samples that may be due without being taken
        room = spec.min_steps + owed / spec.samples_per_step - self.steps
        return min(room, -1e-9) if self.behind(consumer) else max(room, 0.0)  # not as rounding says

    def ratio(self, consumer: str) -> float:
        """Samples per agent step since sampling was first allowed."""
        steps = self.steps - self._consumers[consumer].min_steps
        return self.samples[consumer] / steps if steps > 0 else 0.0

    def state(self) -> dict[str, Any]:
        return {"steps": self.steps, "samples": dict(self.samples)}

    def restore(self, state: dict[str, Any]) -> None:
        self.steps = int(state["steps"])
        self.samples = {name: int(state["samples"][name]) for name in self._consumers}
        self._uncount_lost()

    def _uncount_lost(self) -> None:
        """Take nobody for further than the slowest.

        What was made of samples but not used yet, dreams above all, is not saved. Whoever waits
        for it would wait for ever if those who make it had no credit left.
        """
        rates = {
            name: of.samples_per_step
            for name, of in self._consumers.items()
            if of.samples_per_step and self.steps >= of.min_steps
        }
        begun = {name: self._consumers[name].min_steps for name in rates}
        reached = [begun[name] + self.samples[name] / rate for name, rate in rates.items()]
        for name, rate in rates.items():
            most = max(round((min(reached) - begun[name]) * rate), 0)
            self.samples[name] = min(self.samples[name], most)
