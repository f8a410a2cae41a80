"""The learner: a worker that trains policy and critic on samples and dreams.

A dream is a rollout of the policy inside the world model.
"""

from __future__ import annotations

from typing import cast

from dreamfleet.core.finite import UpdateMonitor, check_weights
from dreamfleet.core.pull import pull
from dreamfleet.core.types import (
    Agent,
    Batch,
    Event,
    QueueSpec,
    Replay,
    Sample,
    TableSpec,
    WeightStore,
)
from dreamfleet.core.write_back import write_back


class Learner:
    """A worker that trains policy and critic, and publishes their weights as weight group "policy".

    pulls: the weight groups to pull from the weight store. publish_every: updates between two
    published versions. log_every: updates between two events with metrics. updates: the number of
    updates that a resumed run has already taken; 0 for a new run.
    """

    def __init__(
        self,
        agent: Agent,
        replay: Replay,
        weights: WeightStore,
        *,
        pulls: tuple[str, ...],
        publish_every: int,
        log_every: int,
        updates: int = 0,
    ) -> None:
        self._agent, self._replay, self._weights = agent, replay, weights
        self._publish_every, self._log_every = publish_every, log_every
        table = agent.tables["real"]
        assert isinstance(table, TableSpec)
        self._wants_real = "policy" in table.consumers
        dream = agent.tables.get("dream")
        self._wants_dreams = dream is not None
        self._updates_per_dream = dream.updates_per_batch if isinstance(dream, QueueSpec) else 0
        assert self._wants_real or self._wants_dreams, "nothing to learn from"
        self._real: Sample | None = None
        self._dreams: Batch | None = None
        self._dream_uses = 0  # updates taken with `_dreams`
        self._events: list[Event] = []
        self._monitor = UpdateMonitor("policy", updates)
        self.updates = updates
        self.version = 0  # of the published "policy"; 0: not yet published
        self.versions = dict.fromkeys(pulls, 0)
        self.waiting_for = ""

    def step(self) -> bool:
        """Takes one update of policy and critic. Returns False if the update lacks a batch.

        Depending on the agent, an update needs a batch of real rows, a batch of dreams, or both.
        """
        if self.version == 0:  # actors and dreamers begin with this learner's weights
            self._publish()
        if not self._gather():
            return False
        pull(self._agent, self._weights, self.versions)
        feedback = self._agent.learn_policy(self._real, self._dreams)
        if self._real is not None:
            write_back(self._replay, "policy", self._real, feedback)
        self._real = None
        self._dream_uses += 1
        if self._dream_uses >= self._updates_per_dream:
            self._dreams, self._dream_uses = None, 0
        self.updates += 1
        self._monitor.check(feedback.metrics, self.updates)
        if self.updates % self._publish_every == 0:
            self._publish()
        if self.updates % self._log_every == 0:
            metrics = {name: float(value) for name, value in feedback.metrics.items()}
            self._events.append({"kind": "learn", "updates": self.updates, **metrics})
        return True

    def drain(self) -> list[Event]:
        """Returns the new events since the last call of `drain`; they hold metrics of updates."""
        events, self._events = self._events, []
        return events

    def _gather(self) -> bool:
        """Fetches the batches that the next update still lacks: of real rows, of dreams, or both.

        Returns whether the update now has all its batches.
        """
        missing = []
        if self._wants_real and self._real is None:
            self._real = cast(Sample | None, self._replay.sample("real", "policy"))
            if self._real is None:
                missing.append("replay: real rows to learn from")
        if self._wants_dreams and self._dreams is None:
            self._dreams = cast(Batch | None, self._replay.sample("dream", "policy"))
            if self._dreams is None:
                missing.append("dreamer: a dream")
        self.waiting_for = ", ".join(missing)
        return not missing

    def _publish(self) -> None:
        """Publishes the weights, if this is the first version or if somebody could read it."""
        if self.version and not self._weights.wanted("policy"):
            return
        weights = check_weights("policy", self._agent.weights("policy"))
        self.version = self._weights.publish("policy", weights)
