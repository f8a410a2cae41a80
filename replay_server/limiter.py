"""Keeps the number of samples of each consumer in proportion to the agent steps added."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from dreamfleet.core.types import Consumer


class Limiter:
    """Counts agent steps and samples, and says when sampling or adding is too early.

    A consumer's credit is the number of samples it may still take. A consumer may sample while its
    credit is at least 1, and adding must wait while a credit is above `slack`. As `slack` is at
    least 1, one of the two is always allowed. A credit is never below 0, and exceeds `slack` by
    no more than the samples that one chunk earns. Reverb's limiter (Cassirer et al. 2021), but
    nothing waits in here: callers ask, and wait themselves.
    """

    def __init__(self, consumers: Mapping[str, Consumer], slack: float) -> None:
        self._consumers = consumers
        self._slack = slack
        self.steps = 0  # agent steps ever added
        self.samples = dict.fromkeys(consumers, 0)  # ever taken, by consumer

    def credit(self, consumer: str) -> float:
        """Returns the number of samples that a consumer may still take."""
        spec = self._consumers[consumer]
        if self.steps < spec.min_steps:
            return 0.0
        if spec.samples_per_step is None:
            return 1.0  # always one more, and never so many that adding waits
        return (self.steps - spec.min_steps) * spec.samples_per_step - self.samples[consumer]

    def may_sample(self, consumer: str) -> bool:
        """Returns whether a consumer may take a sample now."""
        return self.credit(consumer) >= 1

    def behind(self, consumer: str) -> bool:
        """Returns whether adding must wait until this consumer has sampled."""
        return self.credit(consumer) > self._slack

    def room(self, consumer: str) -> float:
        """Returns the agent steps that may be added until this consumer is behind; < 0 if it is."""
        spec = self._consumers[consumer]
        if spec.samples_per_step is None:
            return math.inf
        most = self._slack + self.samples[consumer]  # samples earned when the consumer is behind
        room = spec.min_steps + most / spec.samples_per_step - self.steps
        # The sign follows from `behind`, which may round differently.
        return min(room, -1e-9) if self.behind(consumer) else max(room, 0.0)

    def ratio(self, consumer: str) -> float:
        """Returns the samples per agent step since the consumer's first sample was allowed."""
        steps = self.steps - self._consumers[consumer].min_steps
        return self.samples[consumer] / steps if steps > 0 else 0.0

    def state(self) -> dict[str, Any]:
        """Returns the counts of agent steps and samples."""
        return {"steps": self.steps, "samples": dict(self.samples)}

    def restore(self, state: dict[str, Any]) -> None:
        """Continues from a `state`, with the sample counts lowered as `_uncount_lost` says."""
        self.steps = int(state["steps"])
        self.samples = {name: int(state["samples"][name]) for name in self._consumers}
        self._uncount_lost()

    def _uncount_lost(self) -> None:
        """Lowers every consumer's sample count to that of the slowest consumer.

        Queued dreams are not saved, although the samples they were made of are counted. If the
        dreamer had no credit left to make new dreams, the learner would wait for ever.
        """
        rates = {
            name: consumer.samples_per_step
            for name, consumer in self._consumers.items()
            if consumer.samples_per_step and self.steps >= consumer.min_steps
        }
        begin = {name: self._consumers[name].min_steps for name in rates}
        # The agent steps at which each consumer would have earned the samples it has taken.
        reached = [begin[name] + self.samples[name] / rate for name, rate in rates.items()]
        for name, rate in rates.items():
            most = max(round((min(reached) - begin[name]) * rate), 0)
            self.samples[name] = min(self.samples[name], most)
