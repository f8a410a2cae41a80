"""The dreamer: a worker that trains the world model, and makes dreams for the learner.

A dream is a rollout of the policy inside the world model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from dreamfleet.core.finite import UpdateMonitor, check_weights
from dreamfleet.core.pull import pull
from dreamfleet.core.types import Agent, Batch, Event, Replay, Sample, TableSpec, WeightStore


class Dreamer:
    """A worker that makes dreams: rollouts of the policy inside the world model.

    trains: whether this dreamer also trains the world model; exactly one dreamer of a run does.
    pulls: the weight groups to pull from the weight store. publish_every: updates between two
    published versions. log_every: updates between two events with metrics. updates: updates that a
    resumed run has already taken; 0 for a new run.
    """

    def __init__(
        self,
        agent: Agent,
        replay: Replay,
        weights: WeightStore,
        *,
        pulls: tuple[str, ...],
        trains: bool,
        publish_every: int,
        log_every: int,
        updates: int = 0,
    ) -> None:
        self._agent, self._replay, self._weights = agent, replay, weights
        self._publish_every, self._log_every = publish_every, log_every
        table = agent.tables["real"]
        assert isinstance(table, TableSpec)
        self._trains = trains and "world" in table.consumers
        self._tasks: list[Callable[[], str]] = []
        if self._trains:
            self._tasks.append(self._train)
        if "dream" in agent.tables:
            self._tasks.append(self._dream)
        self._pending: Batch | None = None
        self._events: list[Event] = []
        self._monitor = UpdateMonitor("world model", updates)
        self.updates = updates
        self.version = 0  # of the published "world"; 0: not yet published
        self.versions = dict.fromkeys(pulls, 0)
        self.waiting_for = ""

    def step(self) -> bool:
        """Takes one update of the world model, and makes a batch of dreams.

        The update is left out if this dreamer does not train the world model. Returns False if
        neither the update nor the dreams were possible.
        """
        if self._trains and self.updates and self.version == 0:
            self._publish()  # resumed: its world model can dream before the next update
        pull(self._agent, self._weights, self.versions)
        waits = [task() for task in self._tasks]
        self.waiting_for = ", ".join(wait for wait in waits if wait)
        return "" in waits

    def drain(self) -> list[Event]:
        """Returns the new events since the last call of `drain`; they hold metrics of updates."""
        events, self._events = self._events, []
        return events

    def _train(self) -> str:
        """Takes one update of the world model on a sample from the replay, and returns "".

        If the replay has no sample yet, takes no update, and returns a text that says what the
        dreamer waits for.
        """
        real = cast(Sample | None, self._replay.sample("real", "world"))
        if real is None:
            return "replay: real rows to learn the world from"
        feedback = self._agent.learn_world(real)
        if feedback.priorities is not None:
            self._replay.update("real", real.keys, feedback.priorities)
        self.updates += 1
        self._monitor.check(feedback.metrics, self.updates)
        # Published after the first update: other dreamers make dreams once there is a version.
        if self.version == 0 or self.updates % self._publish_every == 0:
            self._publish()
        if self.updates % self._log_every == 0:
            metrics = {name: float(value) for name, value in feedback.metrics.items()}
            self._events.append({"kind": "world", "updates": self.updates, **metrics})
        return ""

    def _dream(self) -> str:
        """Makes one batch of dreams, adds it to the queue of dreams, and returns "".

        If this is not possible, returns a text that says what the dreamer waits for. If the queue
        is full, the batch is kept until there is room.
        """
        waits = "learner: room for a dream"
        if self._pending is None:
            if not (self.version if self._trains else self.versions.get("world")):
                return "dreamer: a first world model"
            starts = cast(Sample | None, self._replay.sample("real", "start"))
            if starts is None:
                return "replay: real rows to dream from"
            self._pending = self._agent.dream(starts)
            waits = ""
        if self._replay.add("dream", self._pending):
            self._pending = None
            waits = ""
        return waits

    def _publish(self) -> None:
        """Publishes the weights, unless readers have no need of a new version."""
        if self.version and not self._weights.wanted("world"):
            return
        weights = check_weights("world", self._agent.weights("world"))
        self.version = self._weights.publish("world", weights)
