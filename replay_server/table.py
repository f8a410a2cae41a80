"""One ring of rows, and the windows its consumers draw from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from core.errors import EnvironmentFault, UserError
from core.types import Array, Batch, Consumer, Sample, TableSpec
from replay_server.checks import REASONS, check_spec, find_fault
from replay_server.limiter import Limiter
from replay_server.ring import Ring, Starts
from replay_server.selectors import build
from replay_server.streams import Streams


class _View:
    """A consumer's starts and how it draws among them."""

    def __init__(self, spec: Consumer, ring: Ring) -> None:
        self.spec = spec
        self.starts = Starts(ring)
        self.selector = build(spec.selector, self.starts)

    def admit(self, keys: Array) -> None:
        self.starts.admit(keys)
        self.selector.admit(keys)

    def withdraw(self, keys: Array) -> None:
        self.selector.withdraw(self.starts.withdraw(keys))

    @property
    def nbytes(self) -> int:
        return self.starts.flags.nbytes + self.selector.nbytes


class Table:
    """Rows of many streams in one ring, each stored once, in the order they arrived.

    A window is a start and the T - 1 rows that followed it in its stream. A row is a start once
    those are stored, unless it is `last`. A start leaves before the rows of its window do.
    `nbytes` is what rows, links, flags and trees take, all reserved at construction.
    """

    def __init__(self, name: str, spec: TableSpec, seed: int | Sequence[int]) -> None:
        check_spec(name, spec)
        self._name, self._spec = name, spec
        self._ring = Ring(spec.capacity)
        self._columns = {
            column: np.zeros((spec.capacity, *space.shape), space.dtype)
            for column, space in spec.columns.items()
        }
        self._next = np.zeros(spec.capacity, np.int64)  # key of the row that followed in the stream
        self._views = {
            name: _View(consumer, self._ring) for name, consumer in spec.consumers.items()
        }
        longest = max((consumer.window for consumer in spec.consumers.values()), default=1)
        self._depth = max(longest - 1, 1)
        self._streams = Streams(self._depth)
        self._limiter = Limiter(spec.consumers, spec.slack)
        self._counters = dict.fromkeys(
            ("cut", "stale", "refused_priority", *(f"refused_{reason}" for reason in REASONS)), 0
        )
        self._rng = np.random.Generator(np.random.SFC64(seed))
        self.nbytes = self._next.nbytes
        self.nbytes += sum(column.nbytes for column in self._columns.values())
        self.nbytes += sum(view.nbytes for view in self._views.values())

    @property
    def steps(self) -> int:
        """Agent steps ever added: rows that were not `last`."""
        return self._limiter.steps

    # ------------------------------------------------------------------------------- adding

    def add(self, rows: Batch, streams: Array) -> bool:
        """Rows (N, T, …) that continue N streams. False: a consumer is behind, nothing was taken.

        A chunk that opens with `first` while its stream's episode is still open cuts that episode:
        the row stored last becomes `last`. Raises EnvironmentFault and takes nothing when the
        chunk is malformed; the reasons are counted as `refused_*`.
        """
        # A consumer without a start could not catch up, so nobody waits for it.
        if any(
            self._limiter.behind(name) and view.starts.count for name, view in self._views.items()
        ):
            return False
        if fault := find_fault(rows, streams, self._spec.columns, self._streams.ended):
            reason, what = fault
            self._counters[f"refused_{reason}"] += 1
            raise EnvironmentFault(f"table {self._name!r} refused a chunk: {what}")
        first, last = rows["first"], rows["last"]
        if last.size > self._spec.capacity:
            raise UserError(
                f"table {self._name!r}: a chunk of {last.size} rows does not fit a capacity of "
                f"{self._spec.capacity}; raise the capacity or send shorter chunks"
            )
        tails = self._streams.tails(streams)  # (N, depth)
        self._cut(tails[first[:, 0] & ~self._streams.ended(streams), -1])
        self._evict(last.size)
        keys = self._write(rows, last.size).reshape(last.shape)
        lines = np.concatenate([tails, keys], axis=1)  # (N, depth + T), stream by stream
        self._link(lines[:, self._depth - 1 : -1], keys)
        for view in self._views.values():
            begin = self._depth + 1 - view.spec.window
            self._admit(view, lines[:, begin : begin + last.shape[1]])
        self._streams.store(streams, lines[:, -self._depth :], last[:, -1])
        self._limiter.steps += last.size - int(np.count_nonzero(last))
        return True

    def _cut(self, keys: Array) -> None:
        self._counters["cut"] += keys.size
        keys = keys[self._ring.live(keys)]
        self._columns["last"][self._ring.slots(keys)] = True
        for view in self._views.values():
            view.withdraw(keys)

    def _evict(self, n: int) -> None:
        """Withdraw the rows that the next n will overwrite."""
        ring = self._ring
        excess = max(ring.held + n - ring.capacity, 0)
        for view in self._views.values():
            view.withdraw(ring.oldest + np.arange(excess))

    def _write(self, rows: Batch, n: int) -> Array:
        """Copy n rows (N, T, …) into the ring, stream after stream. → their keys (n,)"""
        ring = self._ring
        begin = ring.inserted % ring.capacity
        fit = min(n, ring.capacity - begin)
        for name, column in self._columns.items():
            flat = rows[name].reshape(n, *column.shape[1:])
            column[begin : begin + fit] = flat[:fit]
            column[: n - fit] = flat[fit:]
        ring.inserted += n
        return np.arange(ring.inserted - n, ring.inserted)

    def _link(self, before: Array, after: Array) -> None:
        live = self._ring.live(before)
        self._next[self._ring.slots(before[live])] = after[live]

    def _admit(self, view: _View, keys: Array) -> None:
        """Of these keys, to which the last row of their window has just come, take the starts."""
        keys = keys[self._ring.live(keys)]
        view.admit(keys[~self._columns["last"][self._ring.slots(keys)]])

    # ----------------------------------------------------------------------------- sampling

    def sample(self, consumer: str) -> Sample | None:
        """Windows (B, T, …), freshly copied. None: too early, or there is no start yet."""
        if consumer not in self._views:
            known = ", ".join(sorted(self._views))
            raise KeyError(f"table {self._name!r} has no consumer {consumer!r}; it has: {known}")
        view = self._views[consumer]
        if not view.starts.count or not self._limiter.may_sample(consumer):
            return None
        keys = view.selector.draw(view.spec.batch, self._rng)
        prob = view.selector.probability(keys)
        slots = np.empty((view.spec.batch, view.spec.window), np.int64)
        slots[:, 0] = self._ring.slots(keys)
        for t in range(1, view.spec.window):
            slots[:, t] = self._ring.slots(self._next[slots[:, t - 1]])
        data = {name: np.take(column, slots, axis=0) for name, column in self._columns.items()}
        self._limiter.samples[consumer] += 1
        return Sample(data, keys, prob, view.starts.count)

    def update(self, keys: Array, priorities: Array) -> None:
        """Tell every prioritized selector. keys, priorities: (B,).

        Keys of overwritten rows are ignored and counted as `stale`, priorities that are negative
        or not finite as `refused_priority`.
        """
        keys, priorities = np.asarray(keys), np.asarray(priorities, np.float64)
        if keys.shape != priorities.shape or keys.ndim != 1:
            raise ValueError(f"{keys.shape} keys cannot take {priorities.shape} priorities")
        live = self._ring.live(keys)
        sound = np.isfinite(priorities) & (priorities >= 0)
        self._counters["stale"] += int(np.count_nonzero(~live))
        self._counters["refused_priority"] += int(np.count_nonzero(live & ~sound))
        keys, priorities = keys[live & sound], priorities[live & sound]
        for view in self._views.values():
            starts = view.starts.flags[self._ring.slots(keys)]
            view.selector.update(keys[starts], priorities[starts])

    def stats(self) -> dict[str, float]:
        """`inserted` = `held` + `evicted` in rows; `refused_*` in chunks; `ratio_*` per step."""
        ring, limiter = self._ring, self._limiter
        stats: dict[str, float] = {"inserted": ring.inserted, "held": ring.held}
        stats |= {"evicted": ring.oldest, "bytes": self.nbytes, **self._counters}
        for name, view in self._views.items():
            stats[f"samples_{name}"] = limiter.samples[name]
            stats[f"ratio_{name}"] = limiter.ratio(name)
            stats[f"starts_{name}"] = view.starts.count
        return stats

    # ------------------------------------------------------------------------------- saving

    def state(self) -> dict[str, Any]:
        """Copies of all that later draws depend on, live rows only, oldest first."""
        slots = self._ring.slots(self._ring.keys)
        views = {
            name: {"starts": view.starts.flags[slots], "selector": view.selector.state()}
            for name, view in self._views.items()
        }
        return {
            "layout": self._layout(),
            "inserted": self._ring.inserted,
            "columns": {name: column[slots] for name, column in self._columns.items()},
            "next": self._next[slots],
            "views": views,
            "streams": self._streams.state(),
            "limiter": self._limiter.state(),
            "counters": dict(self._counters),
            "generator": self._rng.bit_generator.state,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state` bit for bit. Raises UserError when it is of another layout."""
        ours, theirs = self._layout(), state["layout"]
        for part in sorted(ours.keys() | theirs.keys()):
            if ours.get(part) != theirs.get(part):
                raise UserError(
                    f"table {self._name!r} cannot continue from this checkpoint: its {part} is "
                    f"{theirs.get(part)}, here {ours.get(part)}; resume with the same settings"
                )
        self._ring.inserted = int(state["inserted"])
        slots = self._ring.slots(self._ring.keys)
        for name, column in self._columns.items():
            column[slots] = state["columns"][name]
        self._next[slots] = state["next"]
        for name, view in self._views.items():
            view.starts.restore(state["views"][name]["starts"])
            view.selector.restore(state["views"][name]["selector"])
        self._streams.restore(state["streams"])
        self._limiter.restore(state["limiter"])
        self._counters = {name: int(state["counters"][name]) for name in self._counters}
        self._rng.bit_generator.state = state["generator"]

    def _layout(self) -> dict[str, str]:
        """What a state must agree on with the table that takes it over."""
        layout = {"capacity": f"{self._spec.capacity} rows"}
        for name, space in self._spec.columns.items():
            layout[f"column {name}"] = f"{space.dtype} {space.shape}"
        for name, of in self._spec.consumers.items():
            layout[f"consumer {name}"] = f"windows of {of.window} by {of.selector}"
        return layout
