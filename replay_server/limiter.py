"""Keeps each consumer's number of samples in proportion to the agent steps added to its table.

A consumer is a named sampler of a table, such as `policy`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from dreamfleet.core.types import Consumer


class Limiter:
    """Counts agent steps and samples, and decides whether adding or sampling must wait.

    A consumer (a named sampler of a table, such as `policy`) has a credit: the number of samples it
    may still take. After the first `min_steps` agent steps, each added agent step raises the credit
    by `samples_per_step`, and each sample lowers the credit by 1. Adding rows must wait while any
    credit is above `slack`.

    If a consumer shares the samples of another one, each sample of that one lowers the credit of
    both. Adding rows does not wait for a consumer that shares, as nobody may sample it.

    The rule is that of Reverb's rate limiter (Cassirer et al. 2021). No method of this class
    blocks: the callers wait.
    """

    def __init__(self, consumers: Mapping[str, Consumer], slack: float) -> None:
        self._consumers = consumers
        self._slack = slack
        self.steps = 0  # agent steps ever added
        self.samples = dict.fromkeys(consumers, 0)  # ever taken, by consumer

    def credit(self, consumer: str) -> float:
        """Returns the number of samples that a consumer (a named sampler) may still take."""
        spec = self._consumers[consumer]
        if self.steps < spec.min_steps:
            return 0.0
        if spec.samples_per_step is None:
            return 1.0  # always one more, and never so many that adding waits
        return (self.steps - spec.min_steps) * spec.samples_per_step - self.taken(consumer)

    def taken(self, consumer: str) -> int:
        """Returns a consumer's samples so far, with those of the consumer whose samples it shares.

        A consumer is a named sampler of a table, such as `policy`.
        """
        shared = self._consumers[consumer].shares
        return self.samples[consumer] + self.samples.get(shared, 0)

    def may_sample(self, consumer: str) -> bool:
        """Returns whether a consumer (a named sampler of a table) may take a sample now."""
        return self.credit(consumer) >= 1

    def behind(self, consumer: str) -> bool:
        """Returns whether a consumer has sampled so little that adding rows must wait for it.

        A consumer is a named sampler of a table, such as `policy`.
        """
        return not self._consumers[consumer].shares and self.credit(consumer) > self._slack

    def room(self, consumer: str) -> float:
        """Returns how many agent steps may be added until adding must wait for this consumer.

        A consumer is a named sampler of a table. The number is negative if adding must wait
        already.
        """
        spec = self._consumers[consumer]
        if spec.samples_per_step is None or spec.shares:
            return math.inf
        most = self._slack + self.samples[consumer]  # samples earned when the consumer is behind
        room = spec.min_steps + most / spec.samples_per_step - self.steps
        # The sign follows from `behind`, which may round differently.
        return min(room, -1e-9) if self.behind(consumer) else max(room, 0.0)

    def ratio(self, consumer: str) -> float:
        """Returns a consumer's samples per agent step, not counting the first `min_steps` steps.

        A consumer is a named sampler of a table, such as `policy`. It takes no samples before
        `min_steps` agent steps. The samples of a consumer whose samples it shares count too.
        """
        steps = self.steps - self._consumers[consumer].min_steps
        return self.taken(consumer) / steps if steps > 0 else 0.0

    def state(self) -> dict[str, Any]:
        """Returns the counts of agent steps and of each consumer's samples, for a checkpoint.

        A consumer is a named sampler of a table, such as `policy`.
        """
        return {"steps": self.steps, "samples": dict(self.samples)}

    def restore(self, state: dict[str, Any]) -> None:
        """Restores the counts of agent steps and samples from a saved `state`.

        Then lowers the sample counts of all consumers (named samplers of a table) that are ahead of
        the slowest one, so that they may sample again.
        """
        self.steps = int(state["steps"])
        self.samples = {name: int(state["samples"][name]) for name in self._consumers}
        self._uncount_lost()

    def _uncount_lost(self) -> None:
        """Lowers each consumer's sample count until no consumer is ahead of the slowest one.

        A consumer (a named sampler of a table) is ahead of another one if the samples it has taken
        correspond to more agent steps.
        """
        rates = {
            name: consumer.samples_per_step
            for name, consumer in self._consumers.items()
            if consumer.samples_per_step
            and not consumer.shares
            and self.steps >= consumer.min_steps
        }
        begin = {name: self._consumers[name].min_steps for name in rates}
        # The agent steps at which each consumer would have earned the samples it has taken.
        reached = [begin[name] + self.samples[name] / rate for name, rate in rates.items()]
        for name, rate in rates.items():
            most = max(round((min(reached) - begin[name]) * rate), 0)
            self.samples[name] = min(self.samples[name], most)
