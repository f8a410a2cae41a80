"""The objects that processes of a run hold: `ReplayHost` for the replay, `WorkerHost` for workers.

Other processes call the methods of these objects. This module does not import Ray.
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
    """A handle of a replay in another process. `wait` sleeps until the replay answers a call."""

    def wait(self, seconds: float) -> None:
        """Sleeps up to `seconds`, until the replay answers a call that is not answered yet."""
        ...

    def flush(self) -> bool:
        """Sends the rows that wait to be sent. Returns whether the replay has accepted all rows."""
        ...


class AddReply(NamedTuple):
    """The replay's answer to rows, or to a batch of dreams, that a worker wants to add."""

    accepted: bool
    credit: int  # agent steps, or batches, that this caller may send before the next answer
    retry_s: float  # seconds after which to send a refused chunk again


class SampleRequest(NamedTuple):
    """A client's request for one sample. The replay answers a client's requests in their order."""

    client: str  # identifies the process that samples
    number: int  # requests of this client for this consumer before this one
    received: int  # samples of this consumer that have reached the client


class _TableAccess:
    """The lock of one replay table, with the callers that wait and the samples being sent."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.room_forecast = RoomForecast()
        self.refused: dict[int | None, int] = {}  # actor that waits for room → rows of its chunk
        self.changes: dict[str, threading.Condition] = {}  # consumer → notified of new rows
        self.copying: Counter[str] = Counter()  # consumer → samples that are being copied
        self.sent: Counter[tuple[str, str]] = Counter()  # consumer, client → samples
        self.received: Counter[tuple[str, str]] = Counter()  # consumer, client → samples

    def change(self, consumer: str) -> threading.Condition:
        """Returns the condition variable on which requests for samples wait for new rows.

        consumer: the purpose of the samples, such as `policy`.
        """
        return self.changes.setdefault(consumer, threading.Condition(self.lock))

    def count_sent(self, consumer: str, to: tuple[str, str]) -> None:
        """Counts a sample as sent to a client, and wakes the requests that wait for samples.

        to: (consumer, client). A consumer is a named sampler of a table, such as `policy`. A client
        is a process that samples.
        """
        self.sent[to] += 1
        self.change(consumer).notify_all()

    def in_transit(self, consumer: str) -> int:
        """Returns how many samples were drawn but have not reached the client that asked for them.

        consumer: the use of the table whose samples are counted, such as `policy`.
        """
        clients = [key for key in self.received if key[0] == consumer]
        sent = sum(self.sent[key] - self.received[key] for key in clients)
        return self.copying[consumer] + sent


class ReplayHost:
    """One replay shard in its own process. It serves many callers at once, with a lock per table.

    `add` never waits. `sample` waits until there are enough rows. state: the saved state of the
    shard; None: empty. end_at: the number of agent steps (actions taken) after which `add` accepts
    no more rows; None: no limit.
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
        """Adds a chunk of rows to a table, or a batch to a queue. Never waits.

        Returns whether the replay has accepted the rows, and how many more the caller may send.
        rows: columns of shape (N, T, …), or a batch for a queue, packed into one buffer. streams:
        (N,), ids of the environments; None for a queue. chunk_id: a chunk with the same id is
        stored only once.
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
        """Samples windows from a table, or takes a batch from a queue.

        Returns the sample or batch, packed into one buffer, or None after `wait_s` seconds.
        consumer: the use of the sample, such as `policy`. count: the number of windows; None: the
        batch size of the consumer. request: the client's name and the number of the request.
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

    def update(self, table: str, keys: Array, rows: Packed, consumer: str = "") -> None:
        """Replaces priorities and other values of sampled windows in a table.

        keys: (B,), the keys of the windows, as the sample gave them. rows: new values by column,
        packed into one buffer. consumer: the use of the sample, such as `policy`.
        """
        with self._access_to(table).lock:
            self._server.update(table, keys, rows.views(), consumer)

    def stats(self) -> dict[str, float]:
        """Returns the counters of all tables, such as the number of stored rows, at one moment."""
        with ExitStack() as locks:
            for access in self._access.values():
                locks.enter_context(access.lock)
            return self._server.stats()

    def newest(self, table: str, actor: int) -> ChunkId | None:
        """Returns the id of the newest chunk of rows that an actor has added to a table.

        Returns None if the actor has added no chunk.
        """
        with self._access_to(table).lock:
            return self._server.newest(table, actor)

    def state(self) -> dict[str, Any]:
        """Returns the state of this replay shard for a checkpoint.

        Serves other calls meanwhile. Samples that have not reached a client yet are not counted as
        sampled.
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
    """Calls `attempt` until its result is not None. Returns this result, or None at the deadline.

    Calls again after each notification of the condition variable `change`, whose lock the caller
    holds. deadline: a time of the monotonic clock.
    """
    while True:
        result = attempt()
        remaining = deadline - time.monotonic()
        if result is not None or remaining <= 0:
            return result
        change.wait(remaining)


class WorkerHost:
    """The workers (such as an actor) of one process, with the agent that they share.

    names: the workers; every worker takes one step in turn, in this order. progress: worker → the
    counters and environment states at the start. state: weight group (`world` or `policy`) → the
    saved state to restore.
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
        """Returns the names of the workers, such as `actor-3`, for Ray's dashboard and logs."""
        return "+".join(self._names)

    def turn(
        self, seconds: float, restarts: Mapping[str, Progress], delay_s: float = 0.0
    ) -> list[Report]:
        """Lets the workers take steps for about `seconds`. Returns a report on each worker.

        Stops early if a worker raises an error. restarts: broken worker → the counters with which
        the worker is restarted. delay_s: seconds to sleep before these restarts.
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

        at: env steps of the run when the policy was saved. states: weight group (networks that one
        process trains) → the saved state.
        """
        (runner,) = self._runners.values()
        runner.evaluate_saved(at, states)
        return [runner.report()]

    def state(self, group: str) -> dict[str, Any]:
        """Returns all that a checkpoint needs of a weight group: networks, optimizers and the rest.

        group: `world` or `policy`, each the set of networks that one process trains.
        """
        return self._agent.state(group)


def groups_to_pull(agent: Agent, names: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the weight groups that the workers of a process use but do not train.

    names: the workers of the process. A weight group is `world` or `policy`.
    """
    trains = {"learner": "policy", "dreamer-0": "world"}
    trained = {trains[name] for name in names if name in trains}
    roles = {name.partition("-")[0] for name in names}
    needed = weight_groups(agent) if roles & {"learner", "dreamer"} else agent.act_groups
    return tuple(group for group in needed if group not in trained)


def build_problem(blueprint: Blueprint) -> str:
    """Builds the environment and the agent of a run, as a test. Returns the problem, or "" if none.

    The problem is one line of text.
    """
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
