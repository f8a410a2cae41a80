"""Tests that a new selector needs only two classes: its specification and its implementation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from dreamfleet.core.errors import UserError
from dreamfleet.core.selectors import Mixture, Selector, Uniform
from dreamfleet.core.types import Array, ChunkId, Consumer, Sample, Space
from dreamfleet.replay_server.budget import table_bytes
from dreamfleet.replay_server.ring import Starts
from dreamfleet.replay_server.rows import Rows
from dreamfleet.replay_server.shards import NearShard, ShardedReplay, shard_tables
from dreamfleet.replay_server.start_selector import implements
from dreamfleet.replay_server.table import Table
from tests.replay_server.model import Episodes, filled, spec


@dataclass(frozen=True)
class Newest(Selector):
    """Draws uniformly from the newest `count` starts (rows at which windows may begin)."""

    count: int

    def fault(self, columns: Mapping[str, Space]) -> str | None:
        return None if self.count >= 1 else f"count must be at least 1, found {self.count}"

    def for_shard(self, shards: int) -> Selector:
        return Newest(-(-self.count // shards))


@implements(Newest)
class NewestSelector:
    def __init__(self, spec: Newest, starts: Starts, rows: Rows, window: int) -> None:
        self._count, self._starts = spec.count, starts
        self._seen = np.zeros(starts.ring.capacity)  # how often each slot was drawn

    @staticmethod
    def nbytes(spec: Newest, rows: int) -> int:
        return 8 * rows

    def add(self, slots: Array) -> None: ...

    def remove(self, slots: Array) -> None: ...

    def update(self, slots: Array, priorities: Array) -> None: ...

    def draw(self, n: int, rng: np.random.Generator) -> Array:
        slots = rng.choice(self._newest(), n)
        np.add.at(self._seen, slots, 1)
        return slots

    def probability(self, slots: Array) -> Array:
        newest = self._newest()
        return np.isin(slots, newest) / newest.size

    def priority_mass(self) -> float:
        return self._newest().size

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None: ...

    def _newest(self) -> Array:
        ring = self._starts.ring
        return self._starts.between(ring.oldest, ring.inserted)[-self._count :]


def test_it_can_be_sampled() -> None:
    table, _ = filled(spec(64, a=Consumer(8, 1, Newest(5))), rows=40)
    starts = np.flatnonzero(table.snapshot().state()["consumers"]["a"]["starts"])
    sample = table.sample("a")
    assert sample is not None
    oldest = table.stats()["inserted"] - table.stats()["stored"]
    assert set((sample.keys - oldest).tolist()) <= set(starts[-5:].tolist())
    assert sample.prob.tolist() == [0.2] * 8 and sample.priority_mass == 5


def test_it_can_be_part_of_a_mixture() -> None:
    table, _ = filled(spec(64, a=Consumer(8, 1, Mixture(((0.5, Uniform()), (0.5, Newest(5)))))))
    assert table.sample("a") is not None


def test_it_is_checked() -> None:
    with pytest.raises(UserError, match=r"'real': 'a': count must be at least 1, found 0"):
        Table("real", spec(64, a=Consumer(1, 1, Newest(0))), 0)


def test_its_memory_is_part_of_the_budget() -> None:
    uniform, newest = (spec(64, a=Consumer(1, 1, each)) for each in (Uniform(), Newest(5)))
    assert table_bytes(newest, 64) == table_bytes(uniform, 64) + 8 * 64
    assert Table("real", newest, 0).nbytes == table_bytes(newest, 64)


def test_shards_draw_as_one_table_does() -> None:
    tables = {"real": spec(64, a=Consumer(8, 1, Newest(6)))}
    parts = [NearShard(shard_tables(tables, 2), seed) for seed in range(2)]
    replay, episodes = ShardedReplay(parts, tables, 0), Episodes()
    for actor in range(2):
        chunk = episodes.chunk([actor], np.zeros(20))
        assert replay.add("real", chunk, np.array([actor]), ChunkId(actor, 0, 0))
    replay.sample("real", "a")  # reports the shards' priority masses
    sample = replay.sample("real", "a")
    assert isinstance(sample, Sample)
    assert sample.prob.tolist() == pytest.approx([1 / 6] * 8)
    assert sample.data["obs"][:, 0, 1].min() >= 17  # of 20 rows, the newest three of each shard
