"""The replay service: tables and queues by name. It implements the protocol `core.types.Replay`."""

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
    """Holds all tables of rows and all queues of batches, by name.

    Two calls on the same table must not overlap in time, but calls on different tables may.
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
        """Adds rows to a table, or a batch to a queue. Returns False if there is no room.

        rows: columns of shape (N, T, …), T rows of each of N streams (a stream is the rows of one
        environment). streams: (N,), the ids of the streams, any distinct numbers >= 0; None for a
        queue. chunk_id: identifies this call. Rows that were stored before are not stored again;
        the call then returns True.
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
        """Returns the next sample of a consumer (a named sampler), or the next batch of a queue.

        Returns None if none is available yet. count: number of windows; None for the consumer's
        batch size.
        """
        source = self._table(table)
        return source.sample() if isinstance(source, BatchQueue) else source.sample(consumer, count)

    def draw(self, table: str, consumer: str, count: int | None = None) -> Draw | Batch | None:
        """Draws windows without copying their rows, or takes the next batch of a queue.

        Returns None if no sample or batch is available yet. Rows of drawn windows are copied by
        `gather`. consumer: the name of a sampler of the table, such as `policy`. count: number of
        windows; None for the consumer's batch size.
        """
        source = self._table(table)
        return source.sample() if isinstance(source, BatchQueue) else source.draw(consumer, count)

    def gather(self, table: str, draw: Draw) -> Batch:
        """Copies the rows of drawn windows. The caller need not hold the table's lock.

        As rows may be overwritten during the copy, the caller then calls `intact`.
        """
        return self._stored(table).gather(draw)

    def intact(self, table: str, draw: Draw) -> bool:
        """Returns whether all rows of drawn windows are still unchanged.

        If not, the copied rows must not be used, and the sample is no longer counted.
        """
        return self._stored(table).intact(draw)

    def update(self, table: str, keys: Array, rows: Batch, consumer: str = "") -> None:
        """Replaces priorities and other values of sampled windows in a table.

        keys: (B,), the keys that came with the sample. rows: new values by column. consumer: the
        sampler of the table that drew the windows. `Table.update` describes shapes and errors.
        """
        self._stored(table).update(keys, rows, consumer)

    def end_at(self, steps: int) -> None:
        """Ends table "real" after `steps` agent steps: from then on, `add` returns False for it."""
        self._stored("real").last_step = steps

    # ------------------------------------------------------------------------------- asking

    def room(self, table: str) -> float:
        """Returns how many agent steps may be added to a table, or how many batches to a queue.

        If the number is below 0 for a table, or below 1 for a queue, `add` returns False.
        """
        return self._table(table).room

    def capacity(self, table: str) -> int:
        """Returns how many rows a table can store, or how many batches a queue can hold."""
        return self._table(table).capacity

    def added(self, table: str) -> int:
        """Returns the number of agent steps ever added to a table, or of batches to a queue."""
        target = self._table(table)
        return target.inserted if isinstance(target, BatchQueue) else target.steps

    def actors(self, table: str) -> int:
        """Returns the number of actors that have added rows to a table."""
        return self._received[table].actors

    def newest(self, table: str, actor: int) -> ChunkId | None:
        """Returns the id of the newest chunk that an actor has added to a table.

        A chunk is the rows that an actor sends in one call. Returns None if the actor has added
        none.
        """
        return self._received[table].newest(actor)

    def stats(self) -> dict[str, float]:
        """Returns `env_steps`, and the counters of all tables and queues as `<table>/<counter>`.

        `env_steps` is the number of agent steps ever added to table "real".
        """
        real = self._tables.get("real")
        stats: dict[str, float] = {"env_steps": real.steps if isinstance(real, Table) else 0}
        for name, table in self._tables.items():
            counters = table.stats() | self._received[name].stats()
            stats |= {f"{name}/{counter}": value for counter, value in counters.items()}
        return stats

    # ------------------------------------------------------------------------------- saving

    def state(self) -> dict[str, Any]:
        """Returns the state of all tables and queues for a checkpoint, except batches in queues.

        It consists of nested dicts of numbers, strings and copied arrays.
        """
        return {name: self.snapshot(name).state() for name in self._tables}

    def snapshot(self, table: str) -> Snapshot:
        """Returns a snapshot of one table's present state, for a checkpoint.

        The snapshot copies the table's rows piece by piece, while rows are added to the table.
        """
        snapshot = self._table(table).snapshot()
        snapshot.rest["received"] = self._received[table].state()
        return snapshot

    def restore(self, state: dict[str, Any]) -> None:
        """Restores all tables and queues from a saved `state`. Batches in queues were not saved.

        Raises UserError if the state has other tables.
        """
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
        """Returns the table called `name`. Raises ValueError if `name` is a queue."""
        table = self._table(name)
        if isinstance(table, BatchQueue):
            raise ValueError(f"table {name!r} is a queue: it has no rows and no priorities")
        return table
