"""Combines several replay processes (shards), so that they act as one replay."""

from __future__ import annotations

import itertools
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

import numpy as np

from dreamfleet.core.errors import UserError
from dreamfleet.core.types import Array, Batch, ChunkId, Consumer, QueueSpec, Sample, TableSpec
from dreamfleet.replay_server.recent_returns import merged
from dreamfleet.replay_server.rewriting import check_windows
from dreamfleet.replay_server.server import ReplayServer


class Shard(Protocol):
    """A shard: one of several replays that each store a part of the rows.

    It is in this process or in another process. A sample is first requested by `ask`, and later
    fetched by `answer`.
    """

    def add(
        self, table: str, rows: Batch, streams: Array | None = None, chunk_id: ChunkId | None = None
    ) -> bool:
        """Adds rows to a table, or a batch to a queue. Returns False if there is no room.

        rows: columns of shape (N, T, …), T rows of each of N streams (a stream is the rows of one
        environment). streams: (N,), the ids of the streams; None for a queue. chunk_id: identifies
        these rows, so that a repeated call does not store them twice.
        """
        ...

    def ask(self, table: str, consumer: str, count: int | None) -> Any:
        """Requests a sample of `count` windows, or a queue's next batch.

        Returns a handle, with which `answer` fetches the result.
        """
        ...

    def answer(self, asked: Any) -> Sample | Batch | None:
        """Returns the sample or the batch that was requested; returns None until it has arrived.

        asked: the handle that `ask` returned. The result is returned only once.
        """
        ...

    def update(self, table: str, keys: Array, rows: Batch, consumer: str = "") -> None:
        """Replaces priorities and other values of sampled windows in this shard of a replay.

        keys: (B,), the windows' keys in this shard. rows: new values by column, one entry for each
        window. consumer: the sampler of the table that drew the windows.
        """
        ...

    def stats(self) -> dict[str, float]:
        """Returns the counters of this shard (part of a replay) by name."""
        ...


class NearShard(ReplayServer):
    """A shard (replay that stores a part of the rows) in the caller's own thread.

    `ask` only notes the request for a sample; `answer` draws the sample.
    """

    def ask(self, table: str, consumer: str, count: int | None) -> Any:
        return table, consumer, count

    def answer(self, asked: Any) -> Sample | Batch | None:
        return self.sample(*asked)


@dataclass
class _PendingSample:
    """A sample that was requested from all shards, with the parts that have arrived.

    A shard is a replay that stores a part of the rows.
    """

    probabilities: Array  # (shards,), with which each window is drawn from a shard
    counts: Array  # (shards,), of windows
    handles: list[Any]  # of the requests
    parts: list[Sample | Batch | None]


class ShardedReplay:
    """Combines several shards (replays that each store a part of the rows) to one replay.

    Each actor writes to one shard, and all queues are in the first shard. Each window's shard is
    drawn at random, with probability proportional to the shard's priority mass (sum of sampling
    weights) as last reported.

    tables: the specifications of the whole replay. ahead: how many samples of a consumer (a named
    sampler of a table) are requested before they are needed.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        tables: Mapping[str, TableSpec | QueueSpec],
        seed: int,
        ahead: int = 0,
    ) -> None:
        self._shards, self._tables, self._ahead = shards, tables, ahead
        self._rng = np.random.default_rng(seed)
        # By (table, consumer):
        self._pending: dict[tuple[str, str], deque[_PendingSample]] = defaultdict(deque)
        self._priority_mass: dict[tuple[str, str], Array] = {}  # (shards,)

    def add(
        self, table: str, rows: Batch, streams: Array | None = None, chunk_id: ChunkId | None = None
    ) -> bool:
        actor = chunk_id.actor if chunk_id else 0
        shard = self._shards[actor % len(self._shards)]
        return shard.add(table, rows, streams, chunk_id)

    def sample(self, table: str, consumer: str) -> Sample | Batch | None:
        pending = self._pending[table, consumer]
        queue = isinstance(self._tables.get(table), QueueSpec)
        ahead = min(self._ahead, 1) if queue else self._ahead  # two batches could change places
        while len(pending) < max(ahead, 1):
            pending.append(self._request(table, consumer))
        if not self._complete(pending[0], table, consumer):
            return None
        complete = pending.popleft()
        while len(pending) < ahead:
            pending.append(self._request(table, consumer))
        return cast(Batch, complete.parts[0]) if queue else self._merge(complete)

    def update(self, table: str, keys: Array, rows: Batch, consumer: str = "") -> None:
        if len(self._shards) == 1:
            self._shards[0].update(table, keys, rows, consumer)
            return
        own_keys, shards = np.divmod(np.asarray(keys), len(self._shards))
        for name, values in rows.items():
            check_windows(name, np.shape(values), own_keys)
        for i, shard in enumerate(self._shards):
            if (mask := shards == i).any():
                part = {name: np.asarray(values)[mask] for name, values in rows.items()}
                shard.update(table, own_keys[mask], part, consumer)

    def stats(self) -> dict[str, float]:
        return merged_stats([shard.stats() for shard in self._shards])

    def _request(self, table: str, consumer: str) -> _PendingSample:
        """Requests a consumer's sample from all shards, or a queue's batch from the first shard.

        A consumer is a named sampler of a table, such as `policy`.
        """
        spec = self._tables.get(table)
        if not isinstance(spec, TableSpec) or consumer not in spec.consumers:
            # A queue. For an unknown table or consumer, the shard raises the error.
            handles = [self._shards[0].ask(table, consumer, None)]
            return _PendingSample(np.ones(1), np.ones(1), handles, [None])
        n = len(self._shards)
        mass = self._priority_mass.setdefault((table, consumer), np.ones(n))
        probabilities = mass / mass.sum() if mass.sum() > 0 else np.full(n, 1 / n)
        batch = spec.consumers[consumer].batch
        counts = self._rng.multinomial(batch, probabilities) if n > 1 else np.array([batch])
        handles = [
            shard.ask(table, consumer, int(count))
            for shard, count in zip(self._shards, counts, strict=True)
        ]
        return _PendingSample(probabilities, counts, handles, [None] * n)

    def _complete(self, pending: _PendingSample, table: str, consumer: str) -> bool:
        """Fetches the parts of a requested sample that have arrived.

        Returns whether all parts have arrived. Each shard (replay that stores a part of the rows)
        sends one part.
        """
        for i, handle in enumerate(pending.handles):
            if pending.parts[i] is None:
                part = pending.parts[i] = self._shards[i].answer(handle)
                if isinstance(part, Sample):
                    self._priority_mass[table, consumer][i] = part.priority_mass
        return all(part is not None for part in pending.parts)

    def _merge(self, complete: _PendingSample) -> Sample:
        """Returns the parts of all shards as one sample, with the windows in random order.

        A window's key (the number that identifies it) becomes its key in the shard times the number
        of shards, plus the shard's index.
        """
        samples = [part for part in complete.parts if isinstance(part, Sample)]
        n, first = len(samples), samples[0]
        if n == 1:
            return first
        size, ends = complete.counts.sum(), complete.counts.cumsum()
        places = np.split(self._rng.permutation(size), ends[:-1])  # in the batch, by shard
        data = {
            name: np.empty((size, *column.shape[1:]), column.dtype)
            for name, column in first.data.items()
        }
        keys, prob = np.empty(size, np.int64), np.empty(size)
        for i, (sample, at) in enumerate(zip(samples, places, strict=True)):
            for name, column in sample.data.items():
                data[name][at] = column
            keys[at] = sample.keys * n + i
            prob[at] = sample.prob * complete.probabilities[i]
        return Sample(
            data,
            keys,
            prob,
            size=sum(sample.size for sample in samples),
            episode_stats=merged([sample.episode_stats for sample in samples]),
            priority_mass=sum(sample.priority_mass for sample in samples),
        )


# ------------------------------------------------------------- the whole divided, and put together


def shard_tables(
    tables: Mapping[str, TableSpec | QueueSpec], shards: int
) -> dict[str, TableSpec | QueueSpec]:
    """Returns the table specifications for each of several shards of a replay.

    All shards together store as many rows, and sample as fast, as `tables` specifies. The
    specifications of queues stay unchanged.
    """
    return {
        name: spec if isinstance(spec, QueueSpec) else _shard_table(spec, shards)
        for name, spec in tables.items()
    }


def _shard_table(spec: TableSpec, shards: int) -> TableSpec:
    consumers = {name: _shard_consumer(spec, shards) for name, spec in spec.consumers.items()}
    return replace(
        spec,
        capacity=-(-spec.capacity // shards),
        consumers=consumers,
        max_bytes=spec.max_bytes and spec.max_bytes // shards,
    )


def _shard_consumer(spec: Consumer, shards: int) -> Consumer:
    """Returns a consumer's specification for one of several shards of a replay.

    A shard takes part in every sample, but receives only its part of the agent steps. Therefore
    `samples_per_step` is multiplied by the number of shards, and `batch` and `min_steps` are
    divided by the number of shards.
    """
    return replace(
        spec,
        batch=-(-spec.batch // shards),
        selector=spec.selector.for_shard(shards),
        samples_per_step=spec.samples_per_step and spec.samples_per_step * shards,
        min_steps=-(-spec.min_steps // shards),
    )


def merged_stats(stats: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Returns the counters of the whole replay, from the counters of each shard (replay process).

    Most counters are sums over the shards. A counter `samples_…` is the smallest of the shards'
    values.
    """
    merged: dict[str, float] = {}
    for name in stats[0]:
        values = [each[name] for each in stats]
        counter = name.rpartition("/")[2]
        if counter.startswith("samples_"):
            merged[name] = min(values)
        elif counter.startswith("ratio_"):  # the same samples, divided by the sum of the steps
            merged[name] = 1 / sum(1 / value for value in values) if all(values) else 0.0
        else:
            merged[name] = sum(values)
    return merged


def join_states(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns the saved states of all shards (replay processes) as one state.

    A single shard's state stays unchanged.
    """
    return states[0] if len(states) == 1 else {f"shard-{i}": s for i, s in enumerate(states)}


def split_state(state: Mapping[str, Any], shards: int) -> list[dict[str, Any]]:
    """Returns the state of each shard (replay process), from a state that `join_states` returned.

    Raises UserError unless `join_states` has joined the states of `shards` shards.
    """
    found = next(i for i in itertools.count() if f"shard-{i}" not in state) or 1
    if found != shards:
        raise UserError(
            f"this checkpoint's replay has {found} shards, here are {shards}; "
            f"resume with train.replay_shards={found}"
        )
    return [dict(state)] if shards == 1 else [state[f"shard-{i}"] for i in range(shards)]


def last_steps(steps: int, states: Sequence[Mapping[str, Any] | None]) -> list[int]:
    """Returns the number of agent steps after which each shard (replay process) takes no more rows.

    steps: agent steps of the whole run. states: the saved state of each shard; None for a new
    shard.
    """
    added = [int(state["real"]["limiter"]["steps"]) if state else 0 for state in states]
    left, n = max(steps - sum(added), 0), len(added)
    return [done + (left + i) // n for i, done in enumerate(added)]
