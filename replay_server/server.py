"""The replay service: tables by name behind core.types.Replay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dreamfleet.core.errors import UserError
from dreamfleet.core.types import Array, Batch, ChunkId, QueueSpec, Sample, TableSpec
from dreamfleet.replay_server.batch_queue import BatchQueue
from dreamfleet.replay_server.received_chunks import ReceivedChunks
from dreamfleet.replay_server.table import Table
from dreamfleet.replay_server.view import Draw


class ReplayServer:
    """Rings of rows and consume-once queues.

    For one caller at a time and table: nothing is shared between two tables, so each may have a
    lock of its own.
    """

    def __init__(self, tables: Mapping[str, TableSpec | QueueSpec], seed: int) -> None:
        self._tables: dict[str, Table | BatchQueue] = {
            name: BatchQueue(name, spec)
            if isinstance(spec, QueueSpec)
            else Table(name, spec, [seed, *name.encode()])  # draws do not hang on other tables
            for name, spec in tables.items()
        }
        self._received = {name: ReceivedChunks() for name in tables}

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._tables)

    def add(
        self,
        table: str,
        rows: Batch,
        streams: Array | None = None,
        chunk_id: ChunkId | None = None,
    ) -> bool:
        """Rows (N, T, …) of streams (N,), any distinct ids ≥ 0; or a queue's batch, without.

        A chunk that was taken before, or is of a replaced actor, is answered as if it were taken.
        """
        to, received = self._table(table), self._received[table]
        if chunk_id is not None and received.known(chunk_id):
            return True
        if isinstance(to, BatchQueue):
            taken = to.add(rows)
        elif streams is None:
            raise ValueError(f"table {table!r} stores rows of streams: say of which")
        else:
            taken = to.add(rows, streams)
        if taken and chunk_id is not None:
            received.take(chunk_id)
        return taken

    def sample(self, table: str, consumer: str, count: int | None = None) -> Sample | Batch | None:
        """Returns the next draw of this consumer, or a queue's next batch. None: not now.

        count: another number of windows than the consumer's batch.
        """
        of = self._table(table)
        return of.sample() if isinstance(of, BatchQueue) else of.sample(consumer, count)

    def draw(self, table: str, consumer: str, count: int | None = None) -> Draw | Batch | None:
        """Choose and count what `sample` would hand out; of a queue, hand it out. None: not now."""
        of = self._table(table)
        return of.sample() if isinstance(of, BatchQueue) else of.draw(consumer, count)

    def gather(self, table: str, draw: Draw) -> Batch:
        """Copy what was drawn, needing no lock; then ask once whether it is `intact`."""
        return self._ring(table).gather(draw)

    def intact(self, table: str, draw: Draw) -> bool:
        """Tells whether nothing that was drawn has been overwritten; if not, it was not counted."""
        return self._ring(table).intact(draw)

    def update(self, table: str, keys: Array, priorities: Array) -> None:
        self._ring(table).update(keys, priorities)

    def end_at(self, steps: int) -> None:
        """Takes no agent step of the table "real" beyond so many; `add` then answers False."""
        self._ring("real").total = steps

    # ------------------------------------------------------------------------------- asking

    def room(self, table: str) -> float:
        """Returns how many agent steps may be added (none below 0), or batches (none below 1)."""
        return self._table(table).room

    def capacity(self, table: str) -> int:
        """Rows, or a queue's batches, that it can hold."""
        return self._table(table).capacity

    def added(self, table: str) -> int:
        """Returns the agent steps, or a queue's batches, added so far."""
        of = self._table(table)
        return of.inserted if isinstance(of, BatchQueue) else of.steps

    def actors(self, table: str) -> int:
        """Returns how many actors have added chunks."""
        return self._received[table].actors

    def newest(self, table: str, actor: int) -> ChunkId | None:
        """Returns the newest chunk that an actor handed over, if it ever did."""
        return self._received[table].newest(actor)

    def priority_mass(self, table: str, consumer: str) -> float:
        """Returns the priority mass of a consumer's starts, in one unit for all shards."""
        of = self._table(table)
        return 0.0 if isinstance(of, BatchQueue) else of.priority_mass(consumer)

    def stats(self) -> dict[str, float]:
        """`env_steps` and `<table>/<counter>`."""
        real = self._tables.get("real")
        stats: dict[str, float] = {"env_steps": real.steps if isinstance(real, Table) else 0}
        for name, table in self._tables.items():
            counters = table.stats() | self._received[name].stats()
            stats |= {f"{name}/{counter}": value for counter, value in counters.items()}
        return stats

    # ------------------------------------------------------------------------------- saving

    def state(self) -> dict[str, Any]:
        """Returns nested dicts of copied arrays, numbers and strings. Queued batches are let go."""
        return {name: self.saving(name).state() for name in self._tables}

    def saving(self, table: str) -> Saving:
        """Returns one table's part of `state`, as it stands now, to be copied piece by piece."""
        return Saving(self._table(table), self._received[table])

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state` draw for draw. Raises UserError when it is of other tables."""
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

    def _ring(self, name: str) -> Table:
        table = self._table(name)
        if isinstance(table, BatchQueue):
            raise ValueError(f"table {name!r} is consumed once and has no priorities")
        return table


class Saving:
    """A table's state as it was when this was made. Each call is for who may use the table then."""

    def __init__(self, table: Table | BatchQueue, received: ReceivedChunks) -> None:
        self._snapshot = None if isinstance(table, BatchQueue) else table.snapshot()
        self._rest = table.state() if isinstance(table, BatchQueue) else {}
        self._rest["received"] = received.state()

    def copy_piece(self) -> bool:
        """Copy some more rows. → whether any are left"""
        return self._snapshot is not None and self._snapshot.copy_piece()

    def state(self) -> dict[str, Any]:
        """Returns all of it; copies what is left."""
        return self._rest | (self._snapshot.state() if self._snapshot else {})
