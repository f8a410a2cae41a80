"""Proxies through which workers call the replay and the weight store in other processes."""

from __future__ import annotations

import math
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, cast

import numpy as np

from dreamfleet.core.errors import Gone
from dreamfleet.core.types import Array, Batch, ChunkId, QueueSpec, Sample, TableSpec, Weights
from dreamfleet.replay_server.shards import ShardedReplay
from dreamfleet.runtime.hosts import RETRY_S, AddReply, SampleRequest
from dreamfleet.runtime.packed import Packed, PackedWeights

SAMPLE_WAIT_S: Final = 5.0  # how long a sample request may wait in the replay for rows
MAX_MERGED: Final = 16  # chunks of an actor that may be sent as one
PREFETCH: Final = 2  # samples of each consumer that a process requests ahead of use
PULL_EVERY_S: Final = 0.2  # between two requests for newer weights of a group


class Unreachable(Gone):
    """Raised if a process does not answer a call. The call may have been executed or not."""


class Connection(Protocol):
    """Calls methods of an object in another process. A connection can be pickled."""

    def call(self, method: str, *args: Any) -> Any:
        """Sends a call without waiting for the answer. Returns a hashable reference to the answer.

        method: the name of the method to call. args: the arguments of the call.
        """
        ...

    def wait(self, calls: Collection[Any], seconds: float) -> bool:
        """Waits up to `seconds` until one of the calls is answered.

        Returns whether one is answered. calls: references that `call` returned. They may belong to
        several connections.
        """
        ...

    def get(self, call: Any) -> Any:
        """Waits for the answer to a call and returns the answer.

        call: a reference that the method `call` returned. Raises the exception that the called
        method raised, or Unreachable if no answer comes.
        """
        ...


# -------------------------------------------------------------------------------- the replay


@dataclass
class _Chunk:
    """A chunk of an actor's rows, or a batch for a queue, which one call sends to the replay."""

    rows: Batch
    streams: Array | None
    chunk_id: ChunkId | None
    steps: int  # agent steps; 1 for a queue's batch

    @classmethod
    def merge(cls, chunks: Sequence[_Chunk]) -> _Chunk:
        """Joins consecutive chunks of one actor's rows along the time axis. Returns one chunk."""
        first, last = chunks[0], chunks[-1]
        if len(chunks) == 1:
            return first
        rows = {
            name: np.concatenate([chunk.rows[name] for chunk in chunks], axis=1)
            for name in first.rows
        }
        return cls(rows, last.streams, last.chunk_id, sum(chunk.steps for chunk in chunks))


@dataclass
class _SendQueue:
    """The chunks of rows that a worker sends to one replay table, in order.

    One chunk is in flight (sent and not answered). The other chunks wait until it is answered.
    """

    in_flight: _Chunk | None = None
    call: Any = None  # the call that sent `in_flight`; None: the replay refused the chunk
    retry_at: float = 0.0  # when to send a refused chunk again
    waiting: list[_Chunk] = field(default_factory=list)
    # True: `add` returned False for the chunk in flight, so its caller will offer it once more.
    offered_again: bool = False
    credit: int = 0  # agent steps, or batches, that the last answer allowed to send ahead

    @property
    def steps(self) -> int:
        return sum(chunk.steps for chunk in (self.in_flight, *self.waiting) if chunk)


@dataclass
class _Request:
    """A worker's request for one sample from the replay, until the worker has used the sample."""

    table: str
    consumer: str
    count: int | None
    number: int  # requests for this consumer before this one
    call: Any = None


class ShardProxy:
    """A proxy for one replay shard (a part of the replay) in another process.

    `add`, `ask` and `answer` never wait. For each table at most one chunk of rows is sent and not
    yet confirmed. The shard confirms each chunk. The confirmation says how many agent steps
    (actions taken) may be sent before the next confirmation. Beyond this number `add` returns
    False.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection, self._client = connection, uuid.uuid4().hex
        self._send_queues: dict[str, _SendQueue] = defaultdict(_SendQueue)  # by table
        self._requested: Counter[tuple[str, str]] = Counter()  # table, consumer → samples
        self._received: Counter[tuple[str, str]] = Counter()  # table, consumer → samples
        self._update: Any = None
        self.unanswered: set[Any] = set()  # calls found unanswered since the last wait

    def add(
        self, table: str, rows: Batch, streams: Array | None = None, chunk_id: ChunkId | None = None
    ) -> bool:
        """Adds a chunk of rows to a table, or a batch to a queue. Does not wait for the answer.

        Returns False if the caller must add the same chunk again later. rows: columns of shape (N,
        T, …), or a batch for a queue. streams: (N,), ids of the environments; None for a queue.
        chunk_id: a chunk with the same id is stored only once.
        """
        queue = self._send_queues[table]
        self._advance(table, queue)
        accepted = self._enqueue(table, queue, rows, streams, chunk_id)
        if not accepted and queue.call is not None:
            self.unanswered.add(queue.call)
        return accepted

    def _enqueue(
        self,
        table: str,
        queue: _SendQueue,
        rows: Batch,
        streams: Array | None,
        chunk_id: ChunkId | None,
    ) -> bool:
        """Sends a chunk of rows at once, or after the chunk in flight (sent and not answered).

        Returns True if the caller may go on to its next chunk, False if the caller must add this
        chunk again. queue: the table's chunks to send.
        """
        if queue.offered_again:
            queue.offered_again = queue.in_flight is not None
            return not queue.offered_again
        steps = 1 if streams is None else rows["last"].size - int(np.count_nonzero(rows["last"]))
        chunk = _Chunk(rows, streams, chunk_id, steps)
        within_credit = queue.steps + steps <= queue.credit
        if queue.in_flight is None:
            queue.in_flight, queue.offered_again = chunk, not within_credit
            self._send(table, queue)
            return within_credit
        previous = queue.waiting[-1] if queue.waiting else queue.in_flight
        full = len(queue.waiting) == MAX_MERGED
        if not within_credit or full or not _same_start(chunk, previous):
            return False
        queue.waiting.append(chunk)
        return True

    def ask(self, table: str, consumer: str, count: int | None) -> _Request:
        """Requests a sample from a table, or the next batch of a queue. Does not wait for it.

        Returns the request, to pass to `answer`. consumer: the use of the sample, such as `policy`.
        count: the number of windows; None: the batch size of the consumer.
        """
        request = _Request(table, consumer, count, self._requested[table, consumer])
        self._requested[table, consumer] += 1
        self._request(request)
        return request

    def answer(self, asked: _Request) -> Sample | Batch | None:
        """Returns the sample or batch that was requested, or None if it has not arrived yet.

        asked: the request, which `ask` returned.
        """
        if not self._arrived(asked.call):
            return None
        answer = self._connection.get(asked.call)
        if answer is None:  # no rows came within SAMPLE_WAIT_S
            self._request(asked)
            self.unanswered.add(asked.call)
            return None
        self._received[asked.table, asked.consumer] += 1
        return cast(Sample | Batch, answer.unpack())

    def update(self, table: str, keys: Array, rows: Batch, consumer: str = "") -> None:
        """Sends new values of sampled windows to the replay, without waiting for the answer.

        keys: (B,), as the sample gave them. rows: new values by column. consumer: the use of the
        sample, such as `policy`. If the replay raises an error, the next call of `update` raises
        the same error.
        """
        if self._update is not None:
            self._connection.get(self._update)
        self._update = self._connection.call("update", table, keys, Packed.of(rows), consumer)

    def stats(self) -> dict[str, float]:
        """Returns the counters of the replay shard, such as rows stored. Waits for the answer."""
        return cast(dict[str, float], self._connection.get(self._connection.call("stats")))

    def flush(self) -> bool:
        """Sends chunks of rows that wait to be sent.

        Returns whether the replay has accepted all chunks.
        """
        for table, queue in list(self._send_queues.items()):
            self._advance(table, queue)
            if queue.call is not None:
                self.unanswered.add(queue.call)
        return all(queue.in_flight is None for queue in self._send_queues.values())

    def retry_at(self) -> float:
        """Returns the earliest time at which a chunk that the replay refused is to be sent again.

        The time is of the monotonic clock. Returns infinity if no chunk is refused.
        """
        queues = self._send_queues.values()
        refused = (queue.retry_at for queue in queues if queue.in_flight and queue.call is None)
        return min(refused, default=math.inf)

    def _request(self, asked: _Request) -> None:
        table, consumer = asked.table, asked.consumer
        request = SampleRequest(self._client, asked.number, self._received[table, consumer])
        asked.call = self._connection.call(
            "sample", table, consumer, SAMPLE_WAIT_S, asked.count, request
        )

    def _advance(self, table: str, queue: _SendQueue) -> None:
        """Sends the next chunk of rows to a table if the replay has answered the last one.

        Sends a refused chunk again when the time of the next try has come. If the replay raised an
        error, raises the same error and drops all chunks for this table.
        """
        chunk = queue.in_flight
        if chunk is None:
            return
        if queue.call is None:
            if time.monotonic() < queue.retry_at:
                return
            self._send(table, queue)
        if not self._arrived(queue.call):
            return
        del self._send_queues[table]
        try:
            reply = self._connection.get(queue.call)
        except Unreachable:  # the replay recognises the id of a chunk that is sent twice
            if chunk.chunk_id is None:
                raise
            reply = AddReply(False, 0, RETRY_S[1])
        self._send_queues[table] = queue
        queue.call, queue.credit = None, reply.credit
        if not reply.accepted:
            queue.retry_at = time.monotonic() + reply.retry_s
            return
        queue.in_flight = None
        if queue.waiting:
            queue.in_flight, queue.waiting = _Chunk.merge(queue.waiting), []
            self._send(table, queue)

    def _send(self, table: str, queue: _SendQueue) -> None:
        chunk = queue.in_flight
        assert chunk is not None
        rows = Packed.of(chunk.rows)
        queue.call = self._connection.call("add", table, rows, chunk.streams, chunk.chunk_id)

    def _arrived(self, call: Any) -> bool:
        """Returns whether a call is answered. If it is not, `ReplayProxy.wait` will wait for it."""
        arrived = self._connection.wait([call], 0.0)
        (self.unanswered.discard if arrived else self.unanswered.add)(call)
        return arrived


class ReplayProxy(ShardedReplay):
    """A proxy for the replay in other processes, one process for each of its shards.

    The method `wait` sleeps until an answer arrives. connections: one to each shard. tables: the
    tables of the whole replay. seed: seed of the random numbers that divide a sample between
    shards.
    """

    def __init__(
        self,
        connections: Sequence[Connection],
        tables: Mapping[str, TableSpec | QueueSpec],
        seed: int,
    ) -> None:
        self._connection = connections[0]
        self._proxies = [ShardProxy(connection) for connection in connections]
        super().__init__(self._proxies, tables, seed, PREFETCH)

    def flush(self) -> bool:
        """Sends chunks of rows that wait to be sent.

        Returns whether the replay has accepted all chunks.
        """
        arrived = [proxy.flush() for proxy in self._proxies]
        return all(arrived)

    def wait(self, seconds: float) -> None:
        """Sleeps up to `seconds`, until an answer arrives or it is time to send refused rows again.

        It waits for the answers to calls that were found unanswered since the last `wait`.
        """
        unanswered = [call for proxy in self._proxies for call in proxy.unanswered]
        for proxy in self._proxies:
            proxy.unanswered.clear()
        until_retry = min(proxy.retry_at() for proxy in self._proxies) - time.monotonic()
        seconds = min(seconds, max(until_retry, 0.0))
        if unanswered:
            self._connection.wait(unanswered, seconds)
        else:
            time.sleep(seconds)


def _same_start(chunk: _Chunk, previous: _Chunk) -> bool:
    """Returns whether two chunks of rows come from one actor that was not restarted in between."""
    a, b = chunk.chunk_id, previous.chunk_id
    return bool(a and b and (a.actor, a.restarts) == (b.actor, b.restarts))


# ------------------------------------------------------------------------------- the weights


@dataclass
class WeightsProxy:
    """A proxy for the weight store in another process.

    Weights are requested at most once in `PULL_EVERY_S` seconds. dtype: "bfloat16" halves the size
    of published parameters.
    """

    connection: Connection
    dtype: str = "float32"
    _published_at: dict[str, float] = field(default_factory=dict)  # group → last time
    _pull_at: dict[str, float] = field(default_factory=dict)  # group → earliest next request

    def publish(self, group: str, weights: Weights) -> int:
        """Sends new weights to the weight store. Returns their version, a number that counts up.

        group: the weight group: the set of networks that one process trains (`world` or `policy`).
        """
        self._published_at[group] = time.monotonic()
        packed = PackedWeights.of(weights, self.dtype)
        return cast(int, self.connection.get(self.connection.call("publish", group, packed)))

    def wanted(self, group: str) -> bool:
        """Returns whether anybody could read a version that was published now.

        Nobody reads more than one version in `PULL_EVERY_S` seconds. group: `world` or `policy`.
        """
        return time.monotonic() >= self._published_at.get(group, -math.inf) + PULL_EVERY_S

    def latest(self, group: str, have: int) -> tuple[int, Weights] | None:
        """Returns (version, weights) if the store has a newer version than `have`, else None.

        Also returns None within `PULL_EVERY_S` seconds after the last request for this weight
        group. group: `world` or `policy`. have: the version that the caller has.
        """
        if time.monotonic() < self._pull_at.get(group, 0.0):
            return None
        newer = self.connection.get(self.connection.call("latest", group, have))
        self._pull_at[group] = time.monotonic() + PULL_EVERY_S
        if newer is None:
            return None
        version, packed = newer
        return version, packed.views()
