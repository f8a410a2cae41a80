"""The objects that live in the processes of a cluster: one replay shard, or some workers.

The driver and other processes call the methods of these objects. This module does not import Ray.
"""

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
from dreamfleet.runtime.blueprint import (
    Blueprint,
    Dependencies,
    Progress,
    env_spec,
    weight_groups,
)
from dreamfleet.runtime.packed import Packed, PackedSample
from dreamfleet.runtime.room_forecast import RoomForecast
from dreamfleet.runtime.worker_runner import Report, WorkerRunner

IDLE_S: Final = 0.2  # the longest that a process sleeps when no worker of it has work
PAUSE_S: Final = 0.001  # between two pieces of a table that is being saved
RETRY_S: Final = (0.005, 0.5)  # bounds on the retry delay of a refused add


class AwaitableReplay(Replay, Protocol):
    """A replay in another process, with a method that sleeps until the replay answers a call."""

    def wait(self, seconds: float) -> None:
        """Sleeps until an answer arrives that an earlier call lacked, at most `seconds`."""
        ...

    def flush(self) -> bool:
        """Sends the chunks of rows that had to wait. Returns whether all chunks have arrived."""
        ...


class AddReply(NamedTuple):
    """The replay's answer to an added chunk of rows, or to a batch added to a queue."""

    accepted: bool
    credit: int  # agent steps, or batches, that this caller may send before the next answer
    retry_s: float  # seconds after which to send a refused chunk again


class SampleRequest(NamedTuple):
    """A client's request for one sample. Requests are numbered and answered in this order."""

    client: str  # identifies the process that samples
    number: int  # requests of this client for this consumer before this one
    received: int  # samples of this consumer that have reached the client


class _TableAccess:
    """The lock of one table, with records of waiting callers and of samples on their way."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.room_forecast = RoomForecast()
        self.refused: dict[int | None, int] = {}  # actor that waits for room → rows of its chunk
        self.changes: dict[str, threading.Condition] = {}  # consumer → notified of new rows
        self.copying: Counter[str] = Counter()  # consumer → samples that are being copied
        self.sent: Counter[tuple[str, str]] = Counter()  # consumer, client → samples
        self.received: Counter[tuple[str, str]] = Counter()  # consumer, client → samples

    def change(self, consumer: str) -> threading.Condition:
        """Returns the condition variable on which requests for samples of a consumer wait.

        A consumer is one use of a table, such as `policy`.
        """
        return self.changes.setdefault(consumer, threading.Condition(self.lock))

    def count_sent(self, consumer: str, to: tuple[str, str]) -> None:
        """Counts a sample as sent to a client, and wakes the requests that wait.

        to: the consumer and the client. The next request of this client may be served after the
        call.
        """
        self.sent[to] += 1
        self.change(consumer).notify_all()

    def in_transit(self, consumer: str) -> int:
        """Returns the number of samples that were drawn but have not reached their client yet.

        consumer: the use of the table, such as `policy`, whose samples are counted.
        """
        clients = [key for key in self.received if key[0] == consumer]
        sent = sum(self.sent[key] - self.received[key] for key in clients)
        return self.copying[consumer] + sent


class ReplayHost:
    """One replay shard that serves many callers at once, with one lock for each table.

    `add` never blocks: its answer to a refused caller contains the time of the next try. `sample`
    blocks its thread until there are enough rows, so that a batch is sent as soon as its last row
    arrives. Samples are copied while the lock is free.

    state: the saved state from which to continue. end_at: the number of agent steps after which
    `add` stores nothing.
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
        self._access = {name: _TableAccess() for name in tables}

    def add(
        self,
        table: str,
        rows: Packed,
        streams: Array | None = None,
        chunk_id: ChunkId | None = None,
    ) -> AddReply:
        """Adds a chunk of rows to a table, or a batch to a queue, and answers at once.

        The arguments are those of `Replay.add`, with the rows packed. The answer says whether the
        rows were accepted, and how many more the caller may send. A queue keeps its batch packed.
        """
        access, actor, queue = (
            self._access_to(table),
            chunk_id.actor if chunk_id else None,
            streams is None,
        )
        batch = cast(Batch, rows) if queue else rows.views()
        with access.lock:
            accepted = self._server.add(table, batch, streams, chunk_id)
            room, now = self._server.room(table), time.monotonic()
            access.room_forecast.record(self._server.added(table) + room, now)
            if accepted:
                for change in access.changes.values():
                    change.notify_all()
                access.refused.pop(actor, None)
                # An eighth of the capacity bounds the credit where the limiter sets no bound.
                room = min(room, self._server.capacity(table) / 8) if not queue else room
                share = room / max(self._server.actors(table), 1)
                return AddReply(True, max(int(share), 0), 0.0)
            access.refused.setdefault(actor, 1 if queue else batch["last"].size)
            position = list(access.refused).index(actor)
            steps = max(1, -room) + sum(list(access.refused.values())[:position])
            # Half of the expected wait: a few retries then meet the moment closely.
            retry_s = access.room_forecast.seconds_until(steps, now) / 2
            return AddReply(False, 0, min(max(retry_s, RETRY_S[0]), RETRY_S[1]))

    def sample(
        self,
        table: str,
        consumer: str,
        wait_s: float,
        count: int | None = None,
        request: SampleRequest | None = None,
    ) -> PackedSample | Packed | None:
        """Samples from a table, or takes a batch from a queue; blocks for up to `wait_s` seconds.

        Returns a packed sample of a table, a packed batch of a queue, or None when the time is up.
        count: the number of windows; None: the batch size of the consumer. request: the number of
        the request, so that a client's requests are answered in order.
        """
        access, server = self._access_to(table), self._server
        deadline = time.monotonic() + wait_s
        key = consumer, request.client if request else ""

        def draw_in_order() -> Any:
            if request and request.number != access.sent[key]:
                return None
            return server.draw(table, consumer, count)

        while True:
            with access.lock:
                if request:
                    access.received[key] = max(access.received[key], request.received)
                draw = _retry_on_change(access.change(consumer), deadline, draw_in_order)
                if draw is None:
                    return None
                access.room_forecast.record(
                    server.added(table) + server.room(table), time.monotonic()
                )
                if isinstance(draw, Packed):
                    access.count_sent(consumer, key)
                    return draw
                access.copying[consumer] += 1
            packed = Packed.of(server.gather(table, draw))
            with access.lock:
                access.copying[consumer] -= 1
                if server.intact(table, draw):
                    access.count_sent(consumer, key)
                    return PackedSample(packed, draw.sample)

    def update(self, table: str, keys: Array, priorities: Array) -> None:
        """Sets new priorities of rows in a table.

        keys: the numbers of the rows, (N,). priorities: the new priorities, (N,).
        """
        with self._access_to(table).lock:
            self._server.update(table, keys, priorities)

    def stats(self) -> dict[str, float]:
        """Returns the counters of all tables, such as rows stored, taken at one moment."""
        with ExitStack() as locks:
            for access in self._access.values():
                locks.enter_context(access.lock)
            return self._server.stats()

    def newest(self, table: str, actor: int) -> ChunkId | None:
        """Returns the id of an actor's newest chunk, or None before the actor's first chunk."""
        with self._access_to(table).lock:
            return self._server.newest(table, actor)

    def state(self) -> dict[str, Any]:
        """Returns the state of the shard, copied in pieces so that other calls are served between.

        Samples on their way to a client are not counted as sampled, because a run that is resumed
        from the state has lost them.
        """
        state = {}
        for table, access in self._access.items():
            with access.lock:
                snapshot = self._server.snapshot(table)
                in_transit = {consumer: access.in_transit(consumer) for consumer in access.changes}
                left = snapshot.copy_piece()
            while left:
                time.sleep(PAUSE_S)  # after a shorter pause the same thread would get the lock
                with access.lock:
                    left = snapshot.copy_piece()
            state[table] = snapshot.state()
            if samples := state[table].get("limiter", {}).get("samples"):
                samples |= {
                    consumer: n - in_transit.get(consumer, 0) for consumer, n in samples.items()
                }
        return state

    def _access_to(self, table: str) -> _TableAccess:
        if table not in self._access:
            raise KeyError(f"no table {table!r}; there are: {', '.join(sorted(self._access))}")
        return self._access[table]


def _retry_on_change(
    change: threading.Condition, deadline: float, attempt: Callable[[], Any]
) -> Any:
    """Returns the first result of `attempt` that is not None, or None at the deadline.

    Calls `attempt` at once, and again after each notification of `change`. The caller holds the
    lock of `change`. deadline: a time of the monotonic clock.
    """
    while True:
        result = attempt()
        remaining = deadline - time.monotonic()
        if result is not None or remaining <= 0:
            return result
        change.wait(remaining)


class WorkerHost:
    """One process of workers, which share one agent.

    names: the workers, in the order of their steps. progress: worker → the counters from which the
    worker starts. state: weight group → the saved state to restore.
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
        pulls = groups_to_pull(self._agent, names)

        def build(name: str, progress: Progress) -> Worker:
            deps = Dependencies(self._agent, replay, weights, pulls, progress)
            return blueprint.worker(name, deps)

        # Only the driver handles signals, so a KeyboardInterrupt here is a fault of the worker.
        self._runners = {
            name: WorkerRunner(
                name, partial(build, name), progress[name], interrupted=lambda: False
            )
            for name in names
        }

    def __repr__(self) -> str:
        """Returns the name of this process in Ray's dashboard and logs."""
        return "+".join(self._names)

    def turn(
        self, seconds: float, restarts: Mapping[str, Progress], delay_s: float = 0.0
    ) -> list[Report]:
        """Steps the workers for about `seconds`, or until one breaks. Returns a report of each.

        restarts: broken worker → the progress from which to restart the worker. delay_s: seconds to
        sleep before the restarts.
        """
        time.sleep(delay_s)
        for name, progress in restarts.items():
            self._runners[name].restart(progress)
        runners = self._runners.values()
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            moved = [runner.step() for runner in runners]
            if any(runner.broken for runner in runners):
                break
            if not any(moved):
                began = time.monotonic()
                self._replay.wait(min(left, IDLE_S))
                for runner in runners:
                    runner.add_wait(time.monotonic() - began)
        return [runner.report() for runner in runners]

    def evaluate_saved(self, at: int, states: Mapping[str, Any]) -> list[Report]:
        """Evaluates a saved policy. Returns a list with the evaluator's report.

        at: env steps of the run when the policy was saved. states: weight group → saved state.
        """
        (runner,) = self._runners.values()
        runner.evaluate_saved(at, states)
        return [runner.report()]

    def state(self, group: str) -> dict[str, Any]:
        """Returns the whole learning state of a weight group: networks, optimizers and the rest."""
        return self._agent.state(group)


def groups_to_pull(agent: Agent, names: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the weight groups that these workers use but do not train.

    A weight group is the set of networks that one process trains (`world` or `policy`). The workers
    must pull these weights from the weight store. names: the workers of one process.
    """
    trains = {"learner": "policy", "dreamer-0": "world"}
    trained = {trains[name] for name in names if name in trains}
    roles = {name.partition("-")[0] for name in names}
    needed = weight_groups(agent) if roles & {"learner", "dreamer"} else agent.act_groups
    return tuple(group for group in needed if group not in trained)


def build_problem(blueprint: Blueprint) -> str:
    """Tries to build a run's environment and agent. Returns the problem as one line, or ""."""
    from dreamfleet.envs import registry

    try:
        registry.register_missing(blueprint.registry_entry)
        found = env_spec(blueprint.config)
        blueprint.agent("driver", "cpu")
    except Exception as error:
        return " ".join(f"the run cannot be built: {error}".split())
    if found != blueprint.spec:
        return f'env "{found.env_id}" differs: it has {found}, but {blueprint.spec} here'
    return ""
