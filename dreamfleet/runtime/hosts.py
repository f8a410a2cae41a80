"""What runs inside the processes of a cluster, free of Ray: given handles, and given turns."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol, cast

from dreamfleet.core.import_guard import never_import_from
from dreamfleet.core.types import (
    Agent,
    Array,
    Batch,
    ChunkId,
    QueueSpec,
    Replay,
    TableSpec,
    WeightStore,
    Worker,
)
from dreamfleet.replay_server.server import ReplayServer
from dreamfleet.runtime.blueprint import Blueprint, Progress, Site, describe, weight_groups
from dreamfleet.runtime.packed import Drawn, Packed
from dreamfleet.runtime.room_forecast import RoomForecast
from dreamfleet.runtime.turns import Report, Turns

IDLE_S: Final = 0.2  # the longest a process without work sleeps between two looks
BREATH_S: Final = 0.001  # between two pieces of a table that is being saved
AGAIN_S: Final = (0.005, 0.5)  # the soonest and the latest that who was refused is to offer again


class AwaitableReplay(Replay, Protocol):
    """A replay in another process: it says when something has come, instead of being asked."""

    def wait(self, seconds: float) -> None:
        """Until something comes that was asked for in vain since the last wait, or time is up."""
        ...

    def flush(self) -> bool:
        """Send on what had to wait. → whether all that was added has arrived"""
        ...


class Receipt(NamedTuple):
    """What the replay answers to an offer of rows, or of a queue's batch."""

    taken: bool
    credit: int  # agent steps, or batches, that this caller may send without awaiting the answer
    again_s: float  # when to offer again what was not taken


class Reader(NamedTuple):
    """A process that samples. It gets what it asked for in the order in which it asked."""

    name: str
    number: int  # of samples of this consumer that it asked for before
    received: int  # how many of those it has


class _Desk:
    """One table among many callers: its lock, who waits for what, and what is on its way."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.room_forecast = RoomForecast()
        self.refused: dict[int | None, int] = {}  # actors that wait for room, with how many rows
        self.rows: dict[str, threading.Condition] = {}  # consumer → who waits for rows
        self.drawn: Counter[str] = Counter()  # consumer → samples that are being gathered
        self.served: Counter[tuple[str, str]] = Counter()  # consumer, reader → samples
        self.received: Counter[tuple[str, str]] = Counter()

    def rows_for(self, consumer: str) -> threading.Condition:
        return self.rows.setdefault(consumer, threading.Condition(self.lock))

    def hand_over(self, consumer: str, to: tuple[str, str]) -> None:
        self.served[to] += 1
        self.rows_for(consumer).notify_all()  # it may be another's turn

    def on_the_way(self, consumer: str) -> int:
        """Samples that were drawn for readers who do not have them yet."""
        readers = [key for key in self.received if key[0] == consumer]
        sent = sum(self.served[key] - self.received[key] for key in readers)
        return self.drawn[consumer] + sent


class ReplayHost:
    """The replay for many callers at once: a lock a table, and no copying of samples under it.

    Nobody waits here for room: who is refused is told when to offer again. Samples are waited for,
    by a thread for each that was asked for, so that a batch is on its way when its last row comes.
    """

    def __init__(
        self,
        tables: Mapping[str, TableSpec | QueueSpec],
        seed: int,
        state: dict[str, Any] | None = None,
        end_at: int | None = None,
    ) -> None:
        self._server = ReplayServer(tables, seed)
        if state is not None:
            self._server.restore(state)
        if end_at is not None:
            self._server.end_at(end_at)
        self._desks = {name: _Desk() for name in tables}

    def add(
        self,
        table: str,
        rows: Packed,
        streams: Array | None = None,
        chunk_id: ChunkId | None = None,
    ) -> Receipt:
        """Adds as Replay.add does, at once. A queue keeps its batch packed."""
        desk, actor, queue = (
            self._desk(table),
            chunk_id.actor if chunk_id else None,
            streams is None,
        )
        batch = cast(Batch, rows) if queue else rows.batch()
        with desk.lock:
            taken = self._server.add(table, batch, streams, chunk_id)
            room, now = self._server.room(table), time.monotonic()
            desk.room_forecast.record(self._server.added(table) + room, now)
            if taken:
                for waiting in desk.rows.values():
                    waiting.notify_all()
                desk.refused.pop(actor, None)
                # Where there is room for any number, still not so many that they flood the table.
                room = min(room, self._server.capacity(table) / 8) if not queue else room
                share = room / max(self._server.actors(table), 1)
                return Receipt(True, max(int(share), 0), 0.0)
            desk.refused.setdefault(actor, 1 if queue else batch["last"].size)
            before = list(desk.refused).index(actor)
            steps = max(1, -room) + sum(list(desk.refused.values())[:before])
            # Half of it, again and again, meets the moment without asking often.
            again_s = desk.room_forecast.seconds_until(steps, now) / 2
            return Receipt(False, 0, min(max(again_s, AGAIN_S[0]), AGAIN_S[1]))

    def sample(
        self,
        table: str,
        consumer: str,
        wait_s: float,
        count: int | None = None,
        reader: Reader | None = None,
    ) -> Drawn | Packed | None:
        """Samples as Replay.sample does, waiting `wait_s` seconds at most. Packed: a queue's batch.

        count: another number of windows than the consumer's batch.
        """
        desk, server, deadline = self._desk(table), self._server, time.monotonic() + wait_s
        key = consumer, reader.name if reader else ""

        def draw_in_turn() -> Any:
            if reader and reader.number != desk.served[key]:
                return None
            return server.draw(table, consumer, count)

        while True:
            with desk.lock:
                if reader:
                    desk.received[key] = max(desk.received[key], reader.received)
                draw = _until(desk.rows_for(consumer), deadline, draw_in_turn)
                if draw is None:
                    return None
                desk.room_forecast.record(
                    server.added(table) + server.room(table), time.monotonic()
                )
                if isinstance(draw, Packed):
                    desk.hand_over(consumer, key)
                    return draw
                desk.drawn[consumer] += 1
            packed = Packed.of(server.gather(table, draw))
            with desk.lock:
                desk.drawn[consumer] -= 1
                if server.intact(table, draw):
                    desk.hand_over(consumer, key)
                    return Drawn(packed, draw.sample)

    def update(self, table: str, keys: Array, priorities: Array) -> None:
        with self._desk(table).lock:
            self._server.update(table, keys, priorities)

    def stats(self) -> dict[str, float]:
        with ExitStack() as locks:
            for desk in self._desks.values():
                locks.enter_context(desk.lock)
            return self._server.stats()

    def newest(self, table: str, actor: int) -> ChunkId | None:
        """Returns the newest chunk that an actor handed over, if it ever did."""
        with self._desk(table).lock:
            return self._server.newest(table, actor)

    def state(self) -> dict[str, Any]:
        """Returns a state as the server's, copied while others go on.

        Samples still on their way do not count, as they will be lost.
        """
        state = {}
        for table, desk in self._desks.items():
            with desk.lock:
                snapshot = self._server.snapshot(table)
                late = {consumer: desk.on_the_way(consumer) for consumer in desk.rows}
                left = snapshot.copy_piece()
            while left:
                time.sleep(BREATH_S)  # a lock let go for less is taken again by the same thread
                with desk.lock:
                    left = snapshot.copy_piece()
            state[table] = snapshot.state()
            if samples := state[table].get("limiter", {}).get("samples"):
                samples |= {consumer: n - late.get(consumer, 0) for consumer, n in samples.items()}
        return state

    def _desk(self, table: str) -> _Desk:
        if table not in self._desks:
            raise KeyError(f"no table {table!r}; there are: {', '.join(sorted(self._desks))}")
        return self._desks[table]


def _until(changed: threading.Condition, deadline: float, attempt: Callable[[], Any]) -> Any:
    """Tries, and again whenever something changed, until there is a result or the time is up."""
    while True:
        result = attempt()
        remaining = deadline - time.monotonic()
        if result is not None or remaining <= 0:
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
        if blueprint.config.run_dir:
            never_import_from(Path(blueprint.config.run_dir))
        self._names, self._replay = names, replay
        self._agent = blueprint.agent(names[-1], device, progress[names[-1]].starts)
        for group, values in state.items():
            self._agent.restore(group, values)
        pulls = pulled(self._agent, names)

        def build(name: str, progress: Progress) -> Worker:
            return blueprint.worker(name, Site(self._agent, replay, weights, pulls, progress))

        self._crew = {  # signals are the driver's to hear: here nobody interrupts
            name: Turns(name, partial(build, name), progress[name], interrupted=lambda: False)
            for name in names
        }

    def __repr__(self) -> str:
        return "+".join(self._names)  # what Ray's dashboard and log lines call this process

    def turn(
        self, seconds: float, restarts: Mapping[str, Progress], rest_s: float = 0.0
    ) -> list[Report]:
        """Restart those that broke, then work for about so long or until a worker breaks.

        rest_s: how long to wait before the restarts.
        """
        time.sleep(rest_s)
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

    def evaluate_saved(self, at: int, states: Mapping[str, Any]) -> list[Report]:
        """Play the policy that was saved after `at` steps: `states`, by weight group."""
        (turns,) = self._crew.values()
        turns.evaluate_saved(at, states)
        return [turns.report()]

    def state(self, group: str) -> dict[str, Any]:
        """Returns all of a weight group that learning continues from."""
        return self._agent.state(group)


def pulled(agent: Agent, names: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the weight groups that workers of these names need and do not write themselves."""
    writes = {"learner": "policy", "dreamer-0": "world"}
    written = {writes[name] for name in names if name in writes}
    roles = {name.partition("-")[0] for name in names}
    needed = weight_groups(agent) if roles & {"learner", "dreamer"} else agent.act_groups
    return tuple(group for group in needed if group not in written)


def try_out(blueprint: Blueprint) -> str:
    """Builds a run's environment and agent here → what is wrong with them in a line, or nothing."""
    from dreamfleet.envs import registry

    try:
        registry.register_missing(blueprint.registered)
        found = describe(blueprint.config)
        blueprint.agent("driver", "cpu")
    except Exception as error:
        return " ".join(f"the run cannot be built: {error}".split())
    if found != blueprint.spec:
        return f'env "{found.env_id}" is another one: {found}, and here {blueprint.spec}'
    return ""
