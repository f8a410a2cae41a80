"""Several replays that draw as if they were one."""

from __future__ import annotations

import itertools
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, cast

import numpy as np

from dreamfleet.core.errors import UserError
from dreamfleet.core.types import (
    Array,
    Batch,
    ChunkId,
    Consumer,
    EmphasizeRecent,
    Mixture,
    QueueSpec,
    Recency,
    ReturnDeviation,
    Sample,
    Selector,
    TableSpec,
)
from dreamfleet.replay_server.recent_returns import merged
from dreamfleet.replay_server.server import ReplayServer


class Part(NamedTuple):
    """A shard's windows of a sample, and what all its starts weigh together."""

    sample: Sample
    priority_mass: float


class Shard(Protocol):
    """One of the replays, here or in another process."""

    def add(
        self, table: str, rows: Batch, streams: Array | None = None, chunk_id: ChunkId | None = None
    ) -> bool: ...

    def ask(self, table: str, consumer: str, count: int | None) -> Any:
        """Ask for so many windows, or a queue's next batch. → what to show for the `answer`"""
        ...

    def answer(self, asked: Any) -> Part | Batch | None:
        """Returns what was asked for, once. None: not yet."""
        ...

    def update(self, table: str, keys: Array, priorities: Array) -> None: ...

    def stats(self) -> dict[str, float]: ...


class NearShard(ReplayServer):
    """A shard in the caller's own thread: it answers when it is shown what was asked."""

    def ask(self, table: str, consumer: str, count: int | None) -> Any:
        return table, consumer, count

    def answer(self, asked: Any) -> Part | Batch | None:
        table, consumer, count = asked
        sample = self.sample(table, consumer, count)
        return (
            Part(sample, self.priority_mass(table, consumer))
            if isinstance(sample, Sample)
            else sample
        )


@dataclass
class _Order:
    """A sample under way: how it is shared out among the shards, and the parts that came."""

    shares: Array  # (shards,), of all draws
    counts: Array  # (shards,) windows
    asked: list[Any]
    parts: list[Part | Batch | None]


class ShardedReplay:
    """One replay of several shards. Each actor writes to one of them, queues live in the first.

    A sample takes a multinomial number of windows from each shard, in the proportion of what their
    starts weighed when last heard of. A draw's probability is that share times the one within the
    shard, hence exact, even where the weights have moved on since. Each sample asks all shards, so
    that their limiters count alike and their weights stay known.

    tables: of the whole, as the agent has them. ahead: samples of a consumer that are asked for
    before they are wanted.
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
        self._orders: dict[tuple[str, str], deque[_Order]] = defaultdict(deque)
        self._mass: dict[tuple[str, str], Array] = {}

    def add(
        self, table: str, rows: Batch, streams: Array | None = None, chunk_id: ChunkId | None = None
    ) -> bool:
        actor = chunk_id.actor if chunk_id else 0
        shard = self._shards[actor % len(self._shards)]
        return shard.add(table, rows, streams, chunk_id)

    def sample(self, table: str, consumer: str) -> Sample | Batch | None:
        orders = self._orders[table, consumer]
        in_order = isinstance(self._tables.get(table), QueueSpec)  # two answers could swap
        ahead = min(self._ahead, 1) if in_order else self._ahead
        while len(orders) < max(ahead, 1):
            orders.append(self._order(table, consumer))
        if not self._complete(orders[0], table, consumer):
            return None
        order = orders.popleft()
        while len(orders) < ahead:
            orders.append(self._order(table, consumer))
        return cast(Batch, order.parts[0]) if in_order else self._merged(order)

    def update(self, table: str, keys: Array, priorities: Array) -> None:
        keys, priorities = np.asarray(keys), np.asarray(priorities)
        own, shards = np.divmod(keys, len(self._shards))
        for i, shard in enumerate(self._shards):
            if (mine := shards == i).any():
                shard.update(table, own[mine], priorities[mine])

    def stats(self) -> dict[str, float]:
        return merged_stats([shard.stats() for shard in self._shards])

    def _order(self, table: str, consumer: str) -> _Order:
        spec = self._tables.get(table)
        if not isinstance(spec, TableSpec) or consumer not in spec.consumers:
            asked = [self._shards[0].ask(table, consumer, None)]  # a queue, or it will complain
            return _Order(np.ones(1), np.ones(1), asked, [None])
        n = len(self._shards)
        mass = self._mass.setdefault((table, consumer), np.ones(n))
        shares = mass / mass.sum() if mass.sum() > 0 else np.full(n, 1 / n)
        batch = spec.consumers[consumer].batch
        counts = self._rng.multinomial(batch, shares) if n > 1 else np.array([batch])
        asked = [
            shard.ask(table, consumer, int(count))
            for shard, count in zip(self._shards, counts, strict=True)
        ]
        return _Order(shares, counts, asked, [None] * n)

    def _complete(self, order: _Order, table: str, consumer: str) -> bool:
        for i, asked in enumerate(order.asked):
            if order.parts[i] is None:
                part = order.parts[i] = self._shards[i].answer(asked)
                if isinstance(part, Part):
                    self._mass[table, consumer][i] = part.priority_mass
        return all(part is not None for part in order.parts)

    def _merged(self, order: _Order) -> Sample:
        samples = [part.sample for part in order.parts if isinstance(part, Part)]
        n, first = len(samples), samples[0]
        if n == 1:
            return first
        # Shuffled, so that a part of the windows is as fair as the whole.
        places = np.split(self._rng.permutation(order.counts.sum()), order.counts.cumsum()[:-1])
        data = {
            name: np.empty((order.counts.sum(), *column.shape[1:]), column.dtype)
            for name, column in first.data.items()
        }
        keys, prob = np.empty(order.counts.sum(), np.int64), np.empty(order.counts.sum())
        for i, (sample, at) in enumerate(zip(samples, places, strict=True)):
            for name, column in sample.data.items():
                data[name][at] = column
            keys[at] = sample.keys * n + i
            prob[at] = sample.prob * order.shares[i]
        size, played = sum(sample.size for sample in samples), [s.episode_stats for s in samples]
        return Sample(data, keys, prob, size, merged(played))


# ----------------------------------------------------------------- what is each, and what is all


def shard_tables(
    tables: Mapping[str, TableSpec | QueueSpec], shards: int
) -> dict[str, TableSpec | QueueSpec]:
    """Returns the tables of each shard, which together hold and hand out what `tables` would."""
    return {
        name: spec if isinstance(spec, QueueSpec) else _thinned(spec, shards)
        for name, spec in tables.items()
    }


def _thinned(spec: TableSpec, shards: int) -> TableSpec:
    consumers = {name: _share(consumer, shards) for name, consumer in spec.consumers.items()}
    return replace(
        spec,
        capacity=-(-spec.capacity // shards),
        consumers=consumers,
        max_bytes=spec.max_bytes and spec.max_bytes // shards,
    )


def _share(of: Consumer, shards: int) -> Consumer:
    """Returns a shard's part of a consumer: all samples, but only a part of the steps, reach it."""
    return replace(
        of,
        batch=-(-of.batch // shards),
        selector=_selector(of.selector, shards),
        samples_per_step=of.samples_per_step and of.samples_per_step * shards,
        min_steps=-(-of.min_steps // shards),
    )


def _selector(spec: Selector, shards: int) -> Selector:
    """Ages are counted in rows, of which a shard gets its part."""
    match spec:
        case Recency(half_life):
            return Recency(half_life / shards)
        case EmphasizeRecent(floor=floor):
            return replace(spec, floor=-(-floor // shards))
        case ReturnDeviation(half_life):
            return ReturnDeviation(half_life / shards)
        case Mixture(parts):
            return Mixture(tuple((share, _selector(part, shards)) for share, part in parts))
    return spec


def merged_stats(stats: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Returns the counters of all shards: sums, but of samples the least, as each asks all."""
    merged: dict[str, float] = {}
    for name in stats[0]:
        values = [each[name] for each in stats]
        counter = name.rpartition("/")[2]
        if counter.startswith("samples_"):
            merged[name] = min(values)
        elif counter.startswith("ratio_"):  # the same samples over the sum of the steps
            merged[name] = 1 / sum(1 / value for value in values) if all(values) else 0.0
        else:
            merged[name] = sum(values)
    return merged


def join_states(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns the states of all shards as one; that of a single shard is what it always was."""
    return states[0] if len(states) == 1 else {f"shard-{i}": s for i, s in enumerate(states)}


def split_state(state: Mapping[str, Any], shards: int) -> list[dict[str, Any]]:
    """Returns what `join_states` joined. Raises UserError for another number of shards."""
    found = next(i for i in itertools.count() if f"shard-{i}" not in state) or 1
    if found != shards:
        raise UserError(
            f"this checkpoint's replay has {found} shards, here are {shards}; "
            f"resume with train.replay_shards={found}"
        )
    return [dict(state)] if shards == 1 else [state[f"shard-{i}"] for i in range(shards)]


def step_shares(steps: int, states: Sequence[Mapping[str, Any] | None]) -> list[int]:
    """Returns the agent steps at which each shard of a run of `steps` ends.

    states: of the shards so far. What is left of the run is divided equally.
    """
    taken = [int(state["real"]["limiter"]["steps"]) if state else 0 for state in states]
    left, n = max(steps - sum(taken), 0), len(taken)
    return [done + (left + i) // n for i, done in enumerate(taken)]
