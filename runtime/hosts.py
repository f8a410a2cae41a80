"""What runs inside the processes of a cluster, free of Ray: given handles, and given turns."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol, TypeVar

from core.types import (
    Agent,
    Array,
    Batch,
    QueueSpec,
    Replay,
    Sample,
    TableSpec,
    WeightStore,
    Worker,
)
from replay_server.server import ReplayServer
from runtime.blueprint import Blueprint, Progress, Site, weight_groups
from runtime.turns import Report, Turns

Result = TypeVar("Result", bool, Sample | Batch | None)
IDLE_S = 0.2  # the longest a process without work sleeps between two looks


class AwaitableReplay(Replay, Protocol):
    """A replay in another process: it says when something has come, instead of being asked."""

    def wait(self, seconds: float) -> None:
        """Until something comes that was asked for in vain since the last wait, or time is up."""
        ...


class ReplayHost:
    """The replay for many callers: one at a time, and those it refuses may wait a while here."""

    def __init__(
        self,
        tables: Mapping[str, TableSpec | QueueSpec],
        seed: int,
        state: dict[str, Any] | None = None,
    ) -> None:
        self._server = ReplayServer(tables, seed)
        if state is not None:
            self._server.restore(state)
        self._lock = threading.Lock()
        condition = lambda: threading.Condition(self._lock)  # noqa: E731
        self._room: dict[str, threading.Condition] = defaultdict(condition)
        self._rows: dict[str, threading.Condition] = defaultdict(condition)

    def add(self, table: str, rows: Batch, streams: Array | None, wait_s: float) -> bool:
        """As Replay.add, waiting up to `wait_s` seconds for room."""
        with self._lock:
            added = _until(
                self._room[table], wait_s, lambda: self._server.add(table, rows, streams)
            )
            if added:
                self._rows[table].notify_all()
                self._room[table].notify()  # there may be room for another
            return added

    def sample(self, table: str, consumer: str, wait_s: float) -> Sample | Batch | None:
        """As Replay.sample, waiting up to `wait_s` seconds for rows."""
        with self._lock:
            sample = _until(self._rows[table], wait_s, lambda: self._server.sample(table, consumer))
            if sample is not None:
                self._room[table].notify()
            return sample

    def update(self, table: str, keys: Array, priorities: Array) -> None:
        with self._lock:
            self._server.update(table, keys, priorities)

    def stats(self) -> dict[str, float]:
        with self._lock:
            return self._server.stats()

    def state(self) -> dict[str, Any]:
        with self._lock:
            return self._server.state()


def _until(changed: threading.Condition, seconds: float, attempt: Callable[[], Result]) -> Result:
    """Try, and again whenever something changed, until it succeeds or the time is up."""
    deadline = time.monotonic() + seconds
    while True:
        result = attempt()
        remaining = deadline - time.monotonic()
        if (result is not None and result is not False) or remaining <= 0:
            return result
        changed.wait(remaining)


class WorkerHost:
    """One process of workers that share an agent, given turns by the driver.

    names: the workers, in the order of their steps. pulls: the weight groups another process
    writes. state: of the weight groups that are restored here, by group.
    """

    def __init__(
        self,
        names: tuple[str, ...],
        blueprint: Blueprint,
        device: str,
        replay: AwaitableReplay,
        weights: WeightStore,
        progress: Mapping[str, Progress],
        state: Mapping[str, Any],
    ) -> None:
        self._names, self._replay = names, replay
        self._agent = blueprint.agent(names[-1], device, progress[names[-1]].starts)
        for group, values in state.items():
            self._agent.restore(group, values)
        pulls = pulled(self._agent, names)

        def build(name: str, progress: Progress) -> Worker:
            return blueprint.worker(name, Site(self._agent, replay, weights, pulls, progress))

        self._crew = {name: Turns(name, partial(build, name), progress[name]) for name in names}

    def __repr__(self) -> str:
        return "+".join(self._names)  # what Ray's dashboard and log lines call this process

    def turn(self, seconds: float, restarts: Mapping[str, Progress]) -> list[Report]:
        """Restart those that broke, then work for about so long or until a worker breaks."""
        for name, progress in restarts.items():
            self._crew[name].restart(progress)
        crew = self._crew.values()
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            moved = [turns.step() for turns in crew]
            if any(turns.broken for turns in crew):
                break
            if not any(moved):
                began = time.monotonic()
                self._replay.wait(min(left, IDLE_S))
                for turns in crew:
                    turns.waited(time.monotonic() - began)
        return [turns.report() for turns in crew]

    def state(self, group: str) -> dict[str, Any]:
        """All of a weight group that learning continues from."""
        return self._agent.state(group)


def pulled(agent: Agent, names: tuple[str, ...]) -> tuple[str, ...]:
    """The weight groups that workers of these names need and do not write themselves."""
    writes = {"learner": "policy", "dreamer-0": "world"}
    written = {writes[name] for name in names if name in writes}
    roles = {name.partition("-")[0] for name in names}
    needed = weight_groups(agent) if roles & {"learner", "dreamer"} else agent.act_groups
    return tuple(group for group in needed if group not in written)
