"""The replay service: tables by name behind core.types.Replay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from core.errors import UserError
from core.types import Array, Batch, QueueSpec, Sample, TableSpec
from replay_server.consume_once import ConsumeOnce
from replay_server.table import Table


class ReplayServer:
    """Rings of rows and consume-once queues, for one caller at a time."""

    def __init__(self, tables: Mapping[str, TableSpec | QueueSpec], seed: int) -> None:
        self._tables: dict[str, Table | ConsumeOnce] = {
            name: ConsumeOnce(name, spec)
            if isinstance(spec, QueueSpec)
            else Table(name, spec, [seed, *name.encode()])  # draws do not hang on other tables
            for name, spec in tables.items()
        }

    def add(self, table: str, rows: Batch, streams: Array | None = None) -> bool:
        """Rows (N, T, …) of streams (N,), any distinct ids ≥ 0; or a queue's batch, without."""
        to = self._table(table)
        if isinstance(to, ConsumeOnce):
            return to.add(rows)
        if streams is None:
            raise ValueError(f"table {table!r} stores rows of streams: say of which")
        return to.add(rows, streams)

    def sample(self, table: str, consumer: str) -> Sample | Batch | None:
        """The next draw of this consumer, or a queue's next batch. None: not now."""
        of = self._table(table)
        return of.sample() if isinstance(of, ConsumeOnce) else of.sample(consumer)

    def update(self, table: str, keys: Array, priorities: Array) -> None:
        of = self._table(table)
        if isinstance(of, ConsumeOnce):
            raise ValueError(f"table {table!r} is consumed once and has no priorities")
        of.update(keys, priorities)

    def stats(self) -> dict[str, float]:
        """`env_steps` and `<table>/<counter>`."""
        real = self._tables.get("real")
        stats: dict[str, float] = {"env_steps": real.steps if isinstance(real, Table) else 0}
        for name, table in self._tables.items():
            stats |= {f"{name}/{counter}": value for counter, value in table.stats().items()}
        return stats

    def state(self) -> dict[str, Any]:
        """Nested dicts of copied arrays, numbers and strings. Queued batches are let go."""
        return {name: table.state() for name, table in self._tables.items()}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state` draw for draw. Raises UserError when it is of other tables."""
        if state.keys() != self._tables.keys():
            raise UserError(
                f"this checkpoint's replay has tables {sorted(state)}, here are "
                f"{sorted(self._tables)}; resume with the agent it was made with"
            )
        for name, table in self._tables.items():
            table.restore(state[name])

    def _table(self, name: str) -> Table | ConsumeOnce:
        if name not in self._tables:
            raise KeyError(f"no table {name!r}; there are: {', '.join(sorted(self._tables))}")
        return self._tables[name]
