"""The replay service: tables and queues by name. It implements `core.types.Replay`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dreamfleet.core.errors import UserError
from dreamfleet.core.types import Array, Batch, ChunkId, QueueSpec, Sample, TableSpec
from dreamfleet.replay_server.batch_queue import BatchQueue
from dreamfleet.replay_server.consumer_view import Draw
from dreamfleet.replay_server.received_chunks import ReceivedChunks
from dreamfleet.replay_server.snapshot import Snapshot
from dreamfleet.replay_server.table import Table


class ReplayServer:
    """Tables and queues, by name.

    Calls on one table must not overlap. Calls on different tables may: tables share nothing, so a
    caller with threads needs one lock per table.
    """

    def __init__(self, tables: Mapping[str, TableSpec | QueueSpec], seed: int) -> None:
        self._tables: dict[str, Table | BatchQueue] = {
            name: BatchQueue(name, spec)
            if isinstance(spec, QueueSpec)
            else Table(name, spec, [seed, *name.encode()])  # draws do not depend on other tables
            for name, spec in tables.items()
        }
        self._received = {name: ReceivedChunks() for name in tables}

    def add(
        self,
        table: str,
        rows: Batch,
        streams: Array | None = None,
        chunk_id: ChunkId | None = None,
    ) -> bool:
        """Adds rows (N, T, …) of streams with ids (N,), or a batch to a queue, without streams.

        Stream ids are any distinct numbers >= 0. Returns False when the table has no room now. For
        a chunk that was stored before, or is of an actor process that has been replaced, it returns
        True and stores nothing.
        """
        target, received = self._table(table), self._received[table]
        if chunk_id is not None and received.reject(chunk_id):
            return True
        if isinstance(target, BatchQueue):
            added = target.add(rows)
        elif streams is None:
            raise ValueError(f"rows for table {table!r} need the ids of their streams")
        else:
            added = target.add(rows, streams)
        if added and chunk_id is not None:
            received.record(chunk_id)
        return added

    def sample(self, table: str, consumer: str, count: int | None = None) -> Sample | Batch | None:
        """Returns a consumer's next sample, or a queue's next batch; None when it is too early.

        count: the number of windows, where it is not the consumer's batch size.
        """
        source = self._table(table)
        return source.sample() if isinstance(source, BatchQueue) else source.sample(consumer, count)

    def draw(self, table: str, consumer: str, count: int | None = None) -> Draw | Batch | None:
        """Returns windows that are drawn but not copied, or a queue's next batch.

        None when it is too early. How to go on from a draw is described at `Table.sample`.
        """
        source = self._table(table)
        return source.sample() if isinstance(source, BatchQueue) else source.draw(consumer, count)

    def gather(self, table: str, draw: Draw) -> Batch:
        """Copies the rows of a draw. Needs no lock; call `intact` afterwards."""
        return self._stored(table).gather(draw)

    def intact(self, table: str, draw: Draw) -> bool:
        """Returns whether no drawn row has changed since; if not, uncounts the sample."""
        return self._stored(table).intact(draw)

    def update(self, table: str, keys: Array, priorities: Array) -> None:
        """Replaces priorities (B,) by the keys (B,) of a sample."""
        self._stored(table).update(keys, priorities)

    def end_at(self, steps: int) -> None:
        """Limits the agent steps of table "real": after `steps` of them, `add` returns False."""
        self._stored("real").last_step = steps

    # ------------------------------------------------------------------------------- asking

    def room(self, table: str) -> float:
        """Returns the agent steps that may be added to a table, or the batches to a queue.

        Nothing may be added to a table below 0, or to a queue below 1.
        """
        return self._table(table).room

    def capacity(self, table: str) -> int:
        """Returns how many rows a table can store, or how many batches a queue."""
        return self._table(table).capacity

    def added(self, table: str) -> int:
        """Returns the agent steps ever added to a table, or the batches to a queue."""
        target = self._table(table)
        return target.inserted if isinstance(target, BatchQueue) else target.steps

    def actors(self, table: str) -> int:
        """Returns the number of actors that have added chunks."""
        return self._received[table].actors

    def newest(self, table: str, actor: int) -> ChunkId | None:
        """Returns the id of an actor's newest chunk; None where there is none."""
        return self._received[table].newest(actor)

    def stats(self) -> dict[str, float]:
        """Returns `env_steps`, and the counters of all tables as `<table>/<counter>`."""
        real = self._tables.get("real")
        stats: dict[str, float] = {"env_steps": real.steps if isinstance(real, Table) else 0}
        for name, table in self._tables.items():
            counters = table.stats() | self._received[name].stats()
            stats |= {f"{name}/{counter}": value for counter, value in counters.items()}
        return stats

    # ------------------------------------------------------------------------------- saving

    def state(self) -> dict[str, Any]:
        """Returns nested dicts of arrays (copies), numbers and strings, without queued batches."""
        return {name: self.snapshot(name).state() for name in self._tables}

    def snapshot(self, table: str) -> Snapshot:
        """Returns one table's part of `state` at this time, to be copied piece by piece."""
        snapshot = self._table(table).snapshot()
        snapshot.rest["received"] = self._received[table].state()
        return snapshot

    def restore(self, state: dict[str, Any]) -> None:
        """Continues from a `state` draw for draw. Raises UserError when its tables differ."""
        if state.keys() != self._tables.keys():
            raise UserError(
                f"this checkpoint's replay has tables {sorted(state)}, here are "
                f"{sorted(self._tables)}; resume with the agent it was made with"
            )
        for name, table in self._tables.items():
            table.restore(state[name])
            self._received[name].restore(state[name]["received"])

    def _table(self, name: str) -> Table | BatchQueue:
        if name not in self._tables:
            raise KeyError(f"no table {name!r}; there are: {', '.join(sorted(self._tables))}")
        return self._tables[name]

    def _stored(self, name: str) -> Table:
        """Returns the table of this name. Raises ValueError for a queue."""
        table = self._table(name)
        if isinstance(table, BatchQueue):
            raise ValueError(f"table {name!r} is a queue: it has no rows and no priorities")
        return table
