"""The replay and the weights from another process, whatever lies between the two."""

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
from dreamfleet.runtime.hosts import AGAIN_S, Reader, Receipt
from dreamfleet.runtime.packed import Packed

WAIT_S: Final = 5.0  # how long a call may wait in the replay for rows
TOGETHER: Final = 16  # chunks of an actor that may travel as one, when they come that fast
AHEAD: Final = 2  # samples that a process has asked for before it wants them, of each kind
ASK_EVERY_S: Final = 0.2  # between two looks for newer weights of a group


class Unreachable(Gone):
    """The other side did not answer. What was asked of it may be done, or not."""


class Line(Protocol):
    """To an object in another process; it travels with the proxy that speaks through it."""

    def call(self, method: str, *args: Any) -> Any:
        """Send a call and do not wait. → what stands for its answer, and can be hashed"""
        ...

    def wait(self, calls: Collection[Any], seconds: float) -> bool:
        """Until one of these is answered, or time is up: whether one is. Calls of any lines."""
        ...

    def get(self, call: Any) -> Any:
        """The answer, awaited; what the other side raised is raised here. May be Unreachable."""
        ...


# -------------------------------------------------------------------------------- the replay


@dataclass
class _Parcel:
    """Rows, or a queue's batch, for the replay."""

    rows: Batch
    streams: Array | None
    chunk_id: ChunkId | None
    steps: int  # of agents; 1 for a queue's batch

    @classmethod
    def of(cls, parcels: Sequence[_Parcel]) -> _Parcel:
        """Chunks that one actor handed over one after another, as one."""
        first, last = parcels[0], parcels[-1]
        if len(parcels) == 1:
            return first
        rows = {
            name: np.concatenate([parcel.rows[name] for parcel in parcels], axis=1)
            for name in first.rows
        }
        return cls(rows, last.streams, last.chunk_id, sum(parcel.steps for parcel in parcels))


@dataclass
class _Outbox:
    """What goes to one table, in order: one parcel under way, the next one growing meanwhile."""

    under_way: _Parcel | None = None
    call: Any = None  # under way; none: it was refused
    due: float = 0.0  # when to offer it again then
    then: list[_Parcel] = field(default_factory=list)
    awaited: bool = False  # the caller offers his rows again until they are taken; or has gone on
    credit: int = 0  # steps, or batches, as the last answer said

    @property
    def steps(self) -> int:
        return sum(parcel.steps for parcel in (self.under_way, *self.then) if parcel)


@dataclass
class _Asked:
    """A sample that was asked for."""

    table: str
    consumer: str
    count: int | None
    number: int  # of samples of this consumer that were asked for before
    call: Any = None


class ShardProxy:
    """A shard of the replay from another process; it never blocks, and hands over what has come.

    One parcel a table is under way at a time, so that chunks arrive in order. Within the credit
    that the last answer gave, the caller goes on meanwhile, and what he adds until that parcel has
    arrived travels together as the next. Without credit he awaits the answer.
    """

    def __init__(self, line: Line) -> None:
        self._line, self._name = line, uuid.uuid4().hex
        self._outboxes: dict[str, _Outbox] = defaultdict(_Outbox)  # by table
        self._asked: Counter[tuple[str, str]] = Counter()  # table, consumer → samples
        self._received: Counter[tuple[str, str]] = Counter()
        self._update: Any = None
        self.missed: set[Any] = set()  # looked for in vain since this was cleared

    def add(
        self, table: str, rows: Batch, streams: Array | None = None, chunk_id: ChunkId | None = None
    ) -> bool:
        box = self._outboxes[table]
        self._deliver(table, box)
        taken = self._accept(table, box, rows, streams, chunk_id)
        if not taken and box.call is not None:
            self.missed.add(box.call)
        return taken

    def _accept(
        self,
        table: str,
        box: _Outbox,
        rows: Batch,
        streams: Array | None,
        chunk_id: ChunkId | None,
    ) -> bool:
        """Whether the caller need not offer these rows again."""
        if box.awaited:
            box.awaited = box.under_way is not None
            return not box.awaited
        steps = 1 if streams is None else rows["last"].size - int(np.count_nonzero(rows["last"]))
        parcel = _Parcel(rows, streams, chunk_id, steps)
        covered = box.steps + steps <= box.credit
        if box.under_way is None:
            box.under_way, box.awaited = parcel, not covered
            self._send(table, box)
            return covered
        before = box.then[-1] if box.then else box.under_way
        if not covered or len(box.then) == TOGETHER or not _continues(parcel, before):
            return False
        box.then.append(parcel)
        return True

    def ask(self, table: str, consumer: str, count: int | None) -> _Asked:
        asked = _Asked(table, consumer, count, self._asked[table, consumer])
        self._asked[table, consumer] += 1
        self._sample(asked)
        return asked

    def answer(self, asked: _Asked) -> Sample | Batch | None:
        if not self._here(asked.call):
            return None
        answer = self._line.get(asked.call)
        if answer is None:  # no rows came while it could be waited for
            self._sample(asked)
            self.missed.add(asked.call)
            return None
        self._received[asked.table, asked.consumer] += 1
        return cast(Sample | Batch, answer.owned())

    def update(self, table: str, keys: Array, priorities: Array) -> None:
        """Sent without awaiting it; what goes wrong is raised by the next one."""
        if self._update is not None:
            self._line.get(self._update)
        self._update = self._line.call("update", table, keys, priorities)

    def stats(self) -> dict[str, float]:
        return cast(dict[str, float], self._line.get(self._line.call("stats")))

    def flush(self) -> bool:
        """Send on what had to wait. → whether all that was added has arrived"""
        for table, box in list(self._outboxes.items()):
            self._deliver(table, box)
            if box.call is not None:
                self.missed.add(box.call)
        return all(box.under_way is None for box in self._outboxes.values())

    def due(self) -> float:
        """When to offer again what was refused."""
        boxes = self._outboxes.values()
        refused = (box.due for box in boxes if box.under_way and box.call is None)
        return min(refused, default=math.inf)

    def _sample(self, asked: _Asked) -> None:
        table, consumer = asked.table, asked.consumer
        reader = Reader(self._name, asked.number, self._received[table, consumer])
        asked.call = self._line.call("sample", table, consumer, WAIT_S, asked.count, reader)

    def _deliver(self, table: str, box: _Outbox) -> None:
        """Hear whether the parcel under way was taken; send the next one, or the same when due.

        Raises what the replay says of it, and then drops it and all that was to follow.
        """
        parcel = box.under_way
        if parcel is None:
            return
        if box.call is None:
            if time.monotonic() < box.due:
                return
            self._send(table, box)
        if not self._here(box.call):
            return
        del self._outboxes[table]
        try:
            receipt = self._line.get(box.call)
        except Unreachable:  # taken or not: who has an chunk_id may offer it again
            if parcel.chunk_id is None:
                raise
            receipt = Receipt(False, 0, AGAIN_S[1])
        self._outboxes[table] = box
        box.call, box.credit = None, receipt.credit
        if not receipt.taken:
            box.due = time.monotonic() + receipt.again_s
            return
        box.under_way = None
        if box.then:
            box.under_way, box.then = _Parcel.of(box.then), []
            self._send(table, box)

    def _send(self, table: str, box: _Outbox) -> None:
        parcel = box.under_way
        assert parcel is not None
        rows = Packed.of(parcel.rows)
        box.call = self._line.call("add", table, rows, parcel.streams, parcel.chunk_id)

    def _here(self, call: Any) -> bool:
        here = self._line.wait([call], 0.0)
        (self.missed.discard if here else self.missed.add)(call)
        return here


class ReplayProxy(ShardedReplay):
    """The replay from another process, which can be waited for."""

    def __init__(
        self,
        lines: Sequence[Line],
        tables: Mapping[str, TableSpec | QueueSpec],
        seed: int,
    ) -> None:
        self._line = lines[0]
        self._proxies = [ShardProxy(line) for line in lines]
        super().__init__(self._proxies, tables, seed, AHEAD)

    def flush(self) -> bool:
        """Send on what had to wait. → whether all that was added has arrived"""
        arrived = [proxy.flush() for proxy in self._proxies]
        return all(arrived)

    def wait(self, seconds: float) -> None:
        """Until something comes that was looked for in vain since the last wait, or time is up."""
        missed = [call for proxy in self._proxies for call in proxy.missed]
        for proxy in self._proxies:
            proxy.missed.clear()
        until_due = min(proxy.due() for proxy in self._proxies) - time.monotonic()
        seconds = min(seconds, max(until_due, 0.0))
        if missed:
            self._line.wait(missed, seconds)
        else:
            time.sleep(seconds)


def _continues(after: _Parcel, before: _Parcel) -> bool:
    """Whether two parcels in a row come from one restarts of an actor."""
    ours, theirs = after.chunk_id, before.chunk_id
    return bool(ours and theirs and (ours.actor, ours.restarts) == (theirs.actor, theirs.restarts))


# ------------------------------------------------------------------------------- the weights


@dataclass
class WeightsProxy:
    """The weight store from another process: looks for newer ones a few times a second at most."""

    line: Line
    _again: dict[str, float] = field(default_factory=dict)  # group → when to ask for it again

    def publish(self, group: str, weights: Weights) -> int:
        return cast(int, self.line.get(self.line.call("publish", group, weights)))

    def latest(self, group: str, have: int) -> tuple[int, Weights] | None:
        if time.monotonic() < self._again.get(group, 0.0):
            return None
        newer = self.line.get(self.line.call("latest", group, have))
        self._again[group] = time.monotonic() + ASK_EVERY_S
        return cast(tuple[int, Weights] | None, newer)
