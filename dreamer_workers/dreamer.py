"""The dreamer: a worker that trains the world model, and makes dreams for the learner.

A dream is a rollout of the policy inside the world model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, cast

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
from dreamfleet.core.write_back import rewritten, write_back

QUEUE_IS_FULL: Final = "learner: room for a dream"


class Dreamer:
    """A worker that makes dreams: rollouts of the policy inside the world model.

    If this dreamer trains the world model and consumer `start` shares `world`, each update of the
    world model is followed by one batch of dreams. They begin at the windows of this update. The
    next update waits until the queue has taken the batch.

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
        assert not (fault := sharing_fault(agent.tables)), fault
        self._trains = trains and "world" in table.consumers
        # Whether dreams begin at the windows of the newest update.
        self._shares = self._trains and any(each.shares for each in table.consumers.values())
        self._learned: Sample | None = None  # the windows of the newest update, until they are used
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
        self.waiting_for = ", ".join(dict.fromkeys(wait for wait in waits if wait))
        return "" in waits

    def drain(self) -> list[Event]:
        """Returns the new events since the last call of `drain`; they hold metrics of updates."""
        events, self._events = self._events, []
        return events

    def _train(self) -> str:
        """Takes one update of the world model on a sample from the replay, and returns "".

        If this is not possible, returns a text that says what the dreamer waits for.
        """
        if self._shares and self._pending is not None:
            return QUEUE_IS_FULL
        real = cast(Sample | None, self._replay.sample("real", "world"))
        if real is None:
            return "replay: real rows to learn the world from"
        feedback = self._agent.learn_world(real)
        write_back(self._replay, "world", real, feedback)
        if self._shares:
            self._learned = rewritten(real, feedback)
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
        waits = QUEUE_IS_FULL
        if self._pending is None:
            if not (self.version if self._trains else self.versions.get("world")):
                return "dreamer: a first world model"
            starts = self._starts()
            if starts is None:
                return "replay: real rows to dream from"
            self._pending = self._agent.dream(starts)
            waits = ""
        if self._replay.add("dream", self._pending):
            self._pending = None
            waits = ""
        return waits

    def _starts(self) -> Sample | None:
        """Returns the windows at which the next dreams begin; None if there are none yet."""
        if self._shares:
            starts, self._learned = self._learned, None
            return starts
        return cast(Sample | None, self._replay.sample("real", "start"))

    def _publish(self) -> None:
        """Publishes the weights, if this is the first version or if somebody could read it."""
        if self.version and not self._weights.wanted("world"):
            return
        weights = check_weights("world", self._agent.weights("world"))
        self.version = self._weights.publish("world", weights)


def sharing_fault(tables: Mapping[str, TableSpec | QueueSpec]) -> str | None:
    """Returns one line that says why dreams cannot begin at the windows of world model updates.

    Returns None if they can, or if no consumer of table "real" shares the samples of another one.
    Each update then makes one dream, so the updates of the world model set the rate of everything
    else. If `policy` could make them wait for rows, both would wait for ever. tables: the tables of
    an agent.
    """
    table = tables["real"]
    assert isinstance(table, TableSpec)
    sharing = {name: each.shares for name, each in table.consumers.items() if each.shares}
    if not sharing:
        return None
    if sharing != {"start": "world"}:
        return f"only the consumer 'start' may share, and only 'world'; found {sharing}"
    world, policy = table.consumers.get("world"), table.consumers.get("policy")
    if world is None or policy is None:  # the table refuses to share an unknown consumer
        return None
    if policy.samples_per_step is not None:
        return (
            "if 'start' shares 'world', the consumer 'policy' must have samples_per_step None, "
            f"found {policy.samples_per_step}: the rate of 'world' then is the rate of dreams"
        )
    if policy.min_steps > world.min_steps or policy.window > world.window:
        return (
            "if 'start' shares 'world', the consumer 'policy' must have no larger min_steps and "
            f"window than 'world', found {policy.min_steps} and {policy.window} with "
            f"{world.min_steps} and {world.window}"
        )
    return None
