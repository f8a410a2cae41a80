"""A table: a ring buffer of rows, from which consumers sample windows of consecutive rows.

A consumer is a named sampler of a table, such as `policy`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any
from weakref import WeakSet

import numpy as np

from dreamfleet.core.errors import EnvironmentFault, UserError
from dreamfleet.core.types import PRIORITY, Array, Batch, Consumer, Sample, TableSpec
from dreamfleet.replay_server import budget
from dreamfleet.replay_server.checks import (
    REASONS,
    check_memory,
    check_spec,
    find_fault,
    find_reset_fault,
)
from dreamfleet.replay_server.compiled import fastest
from dreamfleet.replay_server.consumer_view import ConsumerView, Draw
from dreamfleet.replay_server.limiter import Limiter
from dreamfleet.replay_server.recent_returns import RecentReturns
from dreamfleet.replay_server.rewriting import check_new_values, finite_windows, last_writes
from dreamfleet.replay_server.ring import Ring
from dreamfleet.replay_server.rows import Rows
from dreamfleet.replay_server.snapshot import Snapshot
from dreamfleet.replay_server.streams import Streams

COUNTERS = (
    "truncated",  # episodes that a reset ended
    "steps_past_the_end",  # agent steps not stored, because the run's last step had been added
    "stale_updates",  # windows whose new values came after their rows were overwritten
    "invalid_priorities",  # priorities that were negative or not finite
    "invalid_updates",  # windows whose new values were not finite
    *(f"refused_{reason}" for reason in REASONS),  # chunks
)


class Table:
    """The rows of many streams in one ring buffer, each row stored once, in the order of arrival.

    A stream is the rows of one environment. A window is T consecutive rows of a stream, and its
    first row is its start. The `context` rows before the start, in its episode, are sampled too.
    `nbytes` is the memory of the full table.
    """

    def __init__(self, name: str, spec: TableSpec, seed: int | Sequence[int]) -> None:
        check_spec(name, spec)
        check_memory({name: spec})
        fastest()  # compiles the loops now, so that no later call waits for the compiler
        self._name, self._spec = name, spec
        self._ring = Ring(budget.capacity(spec))
        self.nbytes = budget.table_bytes(spec, self._ring.capacity)
        self._rows = Rows(self._ring, spec.columns)
        self._views = {
            name: ConsumerView(consumer, self._rows) for name, consumer in spec.consumers.items()
        }
        consumers = spec.consumers.values()
        self._depth = max([1, *(consumer.window - 1 for consumer in consumers)])
        self._context = max([0, *(consumer.context for consumer in consumers)])
        self._streams = Streams(self._depth)
        self._recent_returns = RecentReturns()
        self._limiter = Limiter(spec.consumers, spec.slack)
        self._counters = dict.fromkeys(COUNTERS, 0)
        self.last_step = math.inf  # agent steps after which the run ends
        self._snapshots: WeakSet[Snapshot] = WeakSet()  # in use
        self._rng = np.random.Generator(np.random.SFC64(seed))

    @property
    def steps(self) -> int:
        """Returns the number of agent steps ever added: the rows that are not `last`."""
        return self._limiter.steps

    @property
    def capacity(self) -> int:
        """Returns the number of rows that the table can store."""
        return self._ring.capacity

    @property
    def room(self) -> float:
        """Returns how many agent steps may be added until the run ends or adding must wait.

        Adding must wait if a consumer (a named sampler of the table) has sampled too little. The
        number is negative while `add` returns False.
        """
        if self.steps >= self.last_step:
            return -1.0
        # A consumer without starts could not catch up, so adding does not wait for it.
        able = [name for name, view in self._views.items() if view.starts.count]
        return min([self.last_step - self.steps, *map(self._limiter.room, able)])

    # ------------------------------------------------------------------------------- adding

    def add(self, rows: Batch, streams: Array) -> bool:
        """Adds T rows to each of N streams. A stream is the rows of one environment.

        rows: columns of shape (N, T, …). streams: (N,), the streams' ids. Returns False, and stores
        nothing, while a consumer (a named sampler of the table) has sampled too little, and after
        the last step of the run. Raises EnvironmentFault, and stores nothing, if the rows are
        malformed.

        If a stream's first new row is `first` although its episode has not ended, that episode is
        truncated.
        """
        if self.room < 0:
            return False
        indices = self._stream_indices(rows, streams)
        last = rows["last"]
        if last.size > self._ring.capacity:
            raise UserError(
                f"table {self._name!r}: a chunk of {last.size} rows does not fit a capacity of "
                f"{self._ring.capacity}; raise the capacity or send shorter chunks"
            )
        left, steps = self.last_step - self.steps, last.size - int(np.count_nonzero(last))
        for part, n in _first_steps(rows, left) if steps > left else [(rows, len(streams))]:
            self._store(part, streams[:n], indices[:n])
        self._counters["steps_past_the_end"] += steps - int(min(left, steps))
        return True

    def _store(self, rows: Batch, streams: Array, indices: Array) -> None:
        """Stores valid rows (N, T, …) of N streams, and adds the starts of complete windows.

        A start is a row at which a window may begin. streams: (N,), the ids of the streams.
        indices: (N,), their indices in the arrays of class `Streams`.
        """
        first, last = rows["first"], rows["last"]
        newest_keys = self._streams.newest_keys[indices]  # (N, depth)
        truncated = first[:, 0] & ~self._streams.ended[indices]
        if truncated.any():
            self._truncate(newest_keys[truncated, -1])
        self._evict(self._ring.inserted + last.size - self._ring.capacity)
        keys = self._rows.write(rows, newest_keys[:, -1])
        keys = np.concatenate([newest_keys, keys], axis=1)  # (N, depth + T), by stream
        self._add_starts(keys, last.shape[1])
        self._streams.store(streams, indices, keys[:, -self._depth :], last[:, -1])
        self._limiter.steps += last.size - int(np.count_nonzero(last))
        if self._spec.episode_return:
            self._recent_returns.add(rows[self._spec.episode_return][last])

    def _stream_indices(self, rows: Batch, streams: Array) -> Array:
        """Returns the indices (N,) of N streams in the arrays of class `Streams`.

        A stream is the rows of one environment. streams: (N,), the ids of the streams. Raises
        EnvironmentFault if the rows are invalid.
        """
        fault = find_fault(rows, streams, self._spec.columns)
        if not fault:
            indices = self._streams.indices(streams)
            fault = find_reset_fault(rows, streams, self._streams.ended[indices])
            if not fault:
                return indices
        reason, message = fault
        self._counters[f"refused_{reason}"] += 1
        raise EnvironmentFault(f"table {self._name!r} refused a chunk: {message}")

    def _truncate(self, keys: Array) -> None:
        """Marks the newest rows of open episodes as `last`: a reset has ended these episodes.

        keys: for each of these rows, the number of rows that were inserted before it.
        """
        self._counters["truncated"] += keys.size
        keys = keys[self._ring.contains(keys)]
        for snapshot in self._snapshots:
            snapshot.keep(keys, "last")
        slots = self._ring.slots(keys)
        self._rows.columns["last"][slots] = True
        for view in self._views.values():
            view.remove(slots)

    def _evict(self, end: int) -> None:
        """Evicts all rows with keys below `end`, and removes all starts that need one of them.

        A row's key is the number of rows that were inserted before it. A start needs the rows of
        its window and of its context.
        """
        oldest = self._ring.oldest
        if end <= oldest:
            return
        for snapshot in self._snapshots:
            snapshot.copy_until(end)
        for view in self._views.values():
            view.remove(view.starts.between(oldest, end))
        for step, slots in enumerate(self._rows.losing_context(end, self._context), 1):
            for view in self._views.values():
                if step <= view.spec.context:
                    view.remove(slots)

    def _add_starts(self, keys: Array, new: int) -> None:
        """Adds the starts whose windows became complete by the last `new` rows of each stream.

        A start is a row at which a window may begin. keys: (N, depth + new), the keys of the newest
        rows of each of N streams; -1 where there is no row.
        """
        slots = self._ring.slots(keys)
        usable = self._ring.contains(keys) & ~self._rows.columns["last"][slots]
        for view in self._views.values():
            begin = self._depth + 1 - view.spec.window
            completed = slice(begin, begin + new)
            starts = slots[:, completed][usable[:, completed]]
            view.add(starts[self._rows.has_context(starts, view.spec.context)])

    # ----------------------------------------------------------------------------- sampling

    def sample(self, consumer: str, count: int | None = None) -> Sample | None:
        """Returns a sample of B windows, with copies of their rows; None if the consumer must wait.

        The consumer (a named sampler of the table) must wait while no window is complete, and while
        it has taken as many samples as the agent steps so far allow. The sample's columns have
        shape (B, context + T, …). count: the number of windows B; None for the consumer's batch
        size.

        A caller with several threads calls `draw`, `gather` and `intact` instead.
        """
        draw = self.draw(consumer, count)
        return None if draw is None else replace(draw.sample, data=self.gather(draw))

    def draw(self, consumer: str, count: int | None = None) -> Draw | None:
        """Draws windows without copying their rows, and counts a sample.

        Returns None if the consumer (a named sampler of the table) must wait. `gather` copies the
        rows; `intact` checks that they were not overwritten meanwhile. count: the number of
        windows; None for the consumer's batch size.
        """
        if consumer not in self._views:
            known = ", ".join(sorted(self._views))
            raise KeyError(f"table {self._name!r} has no consumer {consumer!r}; it has: {known}")
        view = self._views[consumer]
        if not view.starts.count or not self._limiter.may_sample(consumer):
            return None
        spec = view.spec
        starts = view.selector.draw(spec.batch if count is None else count, self._rng)
        sample = Sample(
            data={},
            keys=self._ring.keys_at(starts),
            prob=view.selector.probability(starts),
            size=view.starts.count,
            episode_stats=self._recent_returns.summary(),
            priority_mass=view.selector.priority_mass(),
        )
        slots = self._rows.windows(starts, spec.context, spec.window)
        self._limiter.samples[consumer] += 1
        return Draw(consumer, slots, self._ring.inserted, self._counters["truncated"], sample)

    def gather(self, draw: Draw) -> Batch:
        """Copies the rows of drawn windows. The caller need not hold the table's lock.

        As rows may be overwritten during the copy, the caller then calls `intact`. If `update`
        rewrites a column during the copy, some of the copied values are old and others new. No
        method rewrites observations, actions, rewards and flags.
        """
        return self._views[draw.consumer].gather(draw.slots)

    def intact(self, draw: Draw) -> bool:
        """Returns True if no drawn row was overwritten and no episode was truncated since the draw.

        Otherwise the copied rows must not be used, and the sample is no longer counted. Call this
        method once per draw.
        """
        ring_then = replace(self._ring, inserted=draw.inserted)
        oldest = ring_then.keys_at(draw.slots[:, 0]).min(initial=draw.inserted)
        unchanged = draw.truncated == self._counters["truncated"]
        intact = bool(oldest >= self._ring.oldest) and unchanged
        self._limiter.samples[draw.consumer] -= not intact
        return intact

    def update(self, keys: Array, rows: Batch, consumer: str = "") -> None:
        """Replaces the priorities of sampled windows, and rewrites columns of their rows.

        keys: (B,), the keys that came with the sample. `rows["priority"]` has shape (B,) and
        applies to all consumers (uses of the table). Any other column of `rows` has shape (B, R,
        …), with new values for the last R rows of each window of `consumer`, context included. If
        a row occurs several times, its last value counts.

        Ignores and counts new values for overwritten rows, priorities that are negative or not
        finite, and other new values of a window if one of them is not finite. Raises ValueError as
        `check_new_values` does.
        """
        keys = np.array(keys, np.int64)
        check_new_values(rows, keys, self._spec, consumer)
        stale = 0
        if PRIORITY in rows:
            stale = self._update_priorities(keys, np.array(rows[PRIORITY], np.float64))
        columns = {name: values for name, values in rows.items() if name != PRIORITY}
        if columns:
            stale = self._rewrite(keys, columns, self._spec.consumers[consumer])
        self._counters["stale_updates"] += stale

    def _update_priorities(self, keys: Array, priorities: Array) -> int:
        """Replaces the priorities of windows. Returns how many windows have no stored row.

        keys, priorities: (B,).
        """
        ring = self._ring
        slots, priorities, stale, invalid = fastest().valid_priorities(
            keys, priorities, ring.oldest, ring.inserted, ring.capacity
        )
        self._counters["invalid_priorities"] += invalid
        for view in self._views.values():
            starts = view.starts.flags.take(slots)
            view.selector.update(slots[starts], priorities[starts])
        return stale

    def _rewrite(self, keys: Array, columns: Batch, spec: Consumer) -> int:
        """Rewrites columns of windows. Returns for how many windows a row is no longer stored.

        keys: (B,). columns: new values of shape (B, R, …) for the last R rows of each window. spec:
        the consumer (sampler of the table) that drew the windows.
        """
        ring, rows = self._ring, self._rows
        context = max(0, max(values.shape[1] for values in columns.values()) - spec.window)
        kept = ring.contains(keys)
        kept[kept] = rows.has_context(ring.slots(keys[kept]), context)
        stale = int(np.count_nonzero(~kept))
        finite = finite_windows(columns)
        self._counters["invalid_updates"] += int(np.count_nonzero(kept & ~finite))
        kept &= finite
        windows = rows.windows(ring.slots(keys[kept]), context, spec.window)
        for name, values in columns.items():
            values = values if kept.all() else values[kept]
            slots, values = last_writes(windows[:, windows.shape[1] - values.shape[1] :], values)
            for snapshot in self._snapshots:
                snapshot.keep(ring.keys_at(slots), name)
            rows.columns[name][slots] = values
        return stale

    def stats(self) -> dict[str, float]:
        """Returns the counters of the table by name.

        For each consumer (a named sampler of the table), there are `samples_<consumer>`,
        `ratio_<consumer>` (samples per agent step) and `starts_<consumer>` (rows at which its
        windows may begin).
        """
        ring, limiter = self._ring, self._limiter
        stats: dict[str, float] = {"inserted": ring.inserted, "stored": ring.stored}
        stats |= {"evicted": ring.oldest, **self._counters}
        stats |= {"capacity": ring.capacity, "bytes": self.nbytes}
        for name, view in self._views.items():
            stats[f"samples_{name}"] = limiter.samples[name]
            stats[f"ratio_{name}"] = limiter.ratio(name)
            stats[f"starts_{name}"] = view.starts.count
        return stats

    # ------------------------------------------------------------------------------- saving

    def snapshot(self) -> Snapshot:
        """Returns a snapshot of the table's present state, for a checkpoint.

        The snapshot copies the table's rows piece by piece, while rows are added to the table.
        """
        consumers = {
            name: {
                "starts": self._ring.oldest_first(view.starts.flags),
                "selector": view.selector.state(),
            }
            for name, view in self._views.items()
        }
        rest = {
            "layout": self._layout(),
            "inserted": self._ring.inserted,
            "consumers": consumers,
            "streams": self._streams.state(),
            "limiter": self._limiter.state(),
            "recent_returns": self._recent_returns.state(),
            "counters": dict(self._counters),
            "rng": self._rng.bit_generator.state,
        }
        snapshot = Snapshot(rest, self._rows)
        self._snapshots.add(snapshot)
        return snapshot

    def restore(self, state: dict[str, Any]) -> None:
        """Restores a saved `state`, so that the table continues bit for bit.

        Raises UserError unless the saved table has the same columns, capacity and consumers.
        """
        ours, theirs = self._layout(), state["layout"]
        for part in sorted(ours.keys() | theirs.keys()):
            if ours.get(part) != theirs.get(part):
                raise UserError(
                    f"table {self._name!r} cannot continue from this checkpoint: its {part} is "
                    f"{theirs.get(part)}, here {ours.get(part)}; resume with the same settings"
                )
        for snapshot in self._snapshots:
            snapshot.copy_until(self._ring.inserted)
        self._ring.inserted = int(state["inserted"])
        for at, place in self._ring.slices(self._ring.oldest, self._ring.inserted):
            for name, column in self._rows.columns.items():
                column[at] = state["columns"][name][place]
            self._rows.previous[at] = state["previous"][place]
        self._rows.restore_following()
        for name, view in self._views.items():
            view.starts.restore(state["consumers"][name]["starts"])
            view.selector.restore(state["consumers"][name]["selector"])
        self._streams.restore(state["streams"])
        self._limiter.restore(state["limiter"])
        self._recent_returns.restore(state["recent_returns"])
        self._counters = {name: int(state["counters"].get(name, 0)) for name in COUNTERS}
        self._rng.bit_generator.state = state["rng"]

    def _layout(self) -> dict[str, str]:
        """Returns this table's columns, capacity and consumers, to compare them with a saved table.

        A saved table that differs in one of them cannot be restored here.
        """
        layout = {"capacity": f"{self._ring.capacity} rows"}
        for name, space in self._spec.columns.items():
            layout[f"column {name}"] = f"{space.dtype} {space.shape}"
        for name, consumer in self._spec.consumers.items():
            layout[f"consumer {name}"] = (
                f"windows of {consumer.window} after {consumer.context} by {consumer.selector}"
            )
        return layout


def _first_steps(rows: Batch, steps: float) -> Iterator[tuple[Batch, int]]:
    """Yields the rows of a chunk (rows of one call) up to agent step number `steps` of the chunk.

    An agent step is a row that is not `last`. Agent steps are ordered by time, then by environment.
    rows: columns of shape (N, T, …). Yields at most two parts, each as its columns and its number
    of streams (a stream is the rows of one environment).
    """
    acted = ~rows["last"]
    after = acted.sum(axis=0).cumsum()  # (T,) agent steps up to each time
    whole = int(np.searchsorted(after, steps, side="right"))  # times of which all rows are taken
    if whole:
        yield {name: column[:, :whole] for name, column in rows.items()}, acted.shape[0]
    more = int(steps) - (int(after[whole - 1]) if whole else 0)
    if more:
        n = int(np.searchsorted(acted[:, whole].cumsum(), more)) + 1
        yield {name: column[:n, whole : whole + 1] for name, column in rows.items()}, n
