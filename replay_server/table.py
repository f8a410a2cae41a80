"""One ring of rows, and the windows its consumers draw from it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any
from weakref import WeakSet

import numpy as np

from dreamfleet.core.errors import EnvironmentFault, UserError
from dreamfleet.core.types import Array, Batch, Sample, TableSpec
from dreamfleet.replay_server import budget
from dreamfleet.replay_server.checks import (
    REASONS,
    check_memory,
    check_spec,
    find_fault,
    find_reset_fault,
)
from dreamfleet.replay_server.compiled import fastest
from dreamfleet.replay_server.limiter import Limiter
from dreamfleet.replay_server.recent_returns import RecentReturns
from dreamfleet.replay_server.ring import Ring
from dreamfleet.replay_server.rows import Rows
from dreamfleet.replay_server.snapshot import Snapshot
from dreamfleet.replay_server.streams import Streams
from dreamfleet.replay_server.view import Draw, View


class Table:
    """Rows of many streams in one ring, each stored once, in the order they arrived.

    A window is a start and the T - 1 rows that followed it in its stream; `context` rows that came
    before the start, in its episode, may come along. A row is a start once all these are stored,
    unless it is `last`, and until the first of them goes. `nbytes` is what rows, links, flags and
    trees take when the ring is full, in all and by row.
    """

    def __init__(self, name: str, spec: TableSpec, seed: int | Sequence[int]) -> None:
        check_spec(name, spec)
        check_memory({name: spec})
        fastest()  # now, lest somebody wait for the compiler
        self._name, self._spec = name, spec
        self._ring = Ring(budget.capacity(spec))
        self.nbytes = budget.table_bytes(spec, self._ring.capacity)
        self.bytes_per_row = self.nbytes / self._ring.capacity
        self._rows = Rows(self._ring, spec.columns)
        self._views = {
            name: View(consumer, self._rows) for name, consumer in spec.consumers.items()
        }
        consumers = spec.consumers.values()
        self._depth = max([1, *(consumer.window - 1 for consumer in consumers)])
        self._context = max([0, *(consumer.context for consumer in consumers)])
        self._streams = Streams(self._depth)
        self._recent_returns = RecentReturns()
        self._limiter = Limiter(spec.consumers, spec.slack)
        self._counters = dict.fromkeys(
            ("cut", "left_out", "stale", "refused_priority", *(f"refused_{r}" for r in REASONS)), 0
        )
        self.total = math.inf  # agent steps that may ever be added; the run ends with them
        self._snapshots: WeakSet[Snapshot] = WeakSet()  # those somebody still holds
        self._rng = np.random.Generator(np.random.SFC64(seed))

    @property
    def steps(self) -> int:
        """Agent steps ever added: rows that were not `last`."""
        return self._limiter.steps

    @property
    def capacity(self) -> int:
        """Rows it can hold."""
        return self._ring.capacity

    @property
    def room(self) -> float:
        """Returns the agent steps until a consumer is behind or `total` is reached.

        Negative where `add` must wait.
        """
        if self.steps >= self.total:
            return -1.0
        # A consumer without a start could not catch up, so nobody waits for it.
        able = [name for name, view in self._views.items() if view.starts.count]
        return min([self.total - self.steps, *map(self._limiter.room, able)])

    # ------------------------------------------------------------------------------- adding

    def add(self, rows: Batch, streams: Array) -> bool:
        """Rows (N, T, …) that continue N streams. False: a consumer is behind, nothing was taken.

        A chunk that opens with `first` while its stream's episode is still open cuts that episode:
        the row stored last becomes `last`. Of a chunk that would pass `total` agent steps, the rows
        up to the last of these are stored; its other agent steps are counted as `left_out`.
        Raises EnvironmentFault and takes nothing when the chunk is malformed; the reasons are
        counted as `refused_*`.
        """
        if self.room < 0:
            return False
        places = self._places(rows, streams)
        last = rows["last"]
        if last.size > self._ring.capacity:
            raise UserError(
                f"table {self._name!r}: a chunk of {last.size} rows does not fit a capacity of "
                f"{self._ring.capacity}; raise the capacity or send shorter chunks"
            )
        left, steps = self.total - self.steps, last.size - int(np.count_nonzero(last))
        for part, n in _first_steps(rows, left) if steps > left else [(rows, len(streams))]:
            self._store(part, streams[:n], places[:n])
        self._counters["left_out"] += steps - int(min(left, steps))
        return True

    def _store(self, rows: Batch, streams: Array, places: Array) -> None:
        """Writes rows (N, T, …) that keep the contract, and admits the starts they complete."""
        first, last = rows["first"], rows["last"]
        tails = self._streams.tails[places]  # (N, depth)
        if (cut := first[:, 0] & ~self._streams.ended[places]).any():
            self._cut(tails[cut, -1])
        self._evict(self._ring.inserted + last.size - self._ring.capacity)
        keys = self._rows.write(rows, tails[:, -1])
        lines = np.concatenate([tails, keys], axis=1)  # (N, depth + T), stream by stream
        self._admit(lines, last.shape[1])
        self._streams.store(streams, places, lines[:, -self._depth :], last[:, -1])
        self._limiter.steps += last.size - int(np.count_nonzero(last))
        if self._spec.episode_return:
            self._recent_returns.add(rows[self._spec.episode_return][last])

    def _places(self, rows: Batch, streams: Array) -> Array:
        """Returns where `Streams` keeps these streams, if their rows keep the contract."""
        fault = find_fault(rows, streams, self._spec.columns)
        if not fault:
            places = self._streams.places(streams)
            fault = find_reset_fault(rows, streams, self._streams.ended[places])
            if not fault:
                return places
        reason, what = fault
        self._counters[f"refused_{reason}"] += 1
        raise EnvironmentFault(f"table {self._name!r} refused a chunk: {what}")

    def _cut(self, keys: Array) -> None:
        self._counters["cut"] += keys.size
        keys = keys[self._ring.live(keys)]
        for snapshot in self._snapshots:
            snapshot.note_cut(keys)
        slots = self._ring.slots(keys)
        self._rows.columns["last"][slots] = True
        for view in self._views.values():
            view.withdraw(slots)

    def _evict(self, end: int) -> None:
        """Let go of the rows older than `end`, and of the starts that need one of them."""
        oldest = self._ring.oldest
        if end <= oldest:
            return
        for snapshot in self._snapshots:
            snapshot.copy_until(end)
        for view in self._views.values():
            view.withdraw(view.starts.within(oldest, end))
        for step, slots in enumerate(self._rows.uprooted(end, self._context), 1):
            for view in self._views.values():
                if step <= view.spec.context:
                    view.withdraw(slots)

    def _admit(self, lines: Array, new: int) -> None:
        """Admits the starts whose windows the last `new` keys of each line complete."""
        slots = self._ring.slots(lines)
        sound = self._ring.live(lines) & ~self._rows.columns["last"][slots]
        for view in self._views.values():
            begin = self._depth + 1 - view.spec.window
            closed = slice(begin, begin + new)
            starts = slots[:, closed][sound[:, closed]]
            view.admit(starts[self._rows.rooted(starts, view.spec.context)])

    # ----------------------------------------------------------------------------- sampling

    def sample(self, consumer: str, count: int | None = None) -> Sample | None:
        """Windows (B, context + T, …), freshly copied. None: too early, or there is no start yet.

        A host with threads takes the three steps apart, so that nobody waits for the copying: it
        holds its lock for `draw` and again for `intact`, but not for `gather` between them, and
        begins anew when rows were lost meanwhile.

        count: another number of windows than the consumer's batch, where other shards give theirs.
        """
        drawn = self.draw(consumer, count)
        if drawn is None:
            return None
        return Sample(self.gather(drawn), drawn.keys, drawn.prob, drawn.size, drawn.episode_stats)

    def draw(self, consumer: str, count: int | None = None) -> Draw | None:
        """Choose windows, and count them as sampled. None: too early, or there is no start yet."""
        if consumer not in self._views:
            known = ", ".join(sorted(self._views))
            raise KeyError(f"table {self._name!r} has no consumer {consumer!r}; it has: {known}")
        view = self._views[consumer]
        if not view.starts.count or not self._limiter.may_sample(consumer):
            return None
        of, inserted = view.spec, self._ring.inserted
        starts = view.selector.draw(of.batch if count is None else count, self._rng)
        prob = view.selector.probability(starts)
        slots = self._rows.windows(starts, of.context, of.window)
        keys = self._ring.keys_at(starts)
        self._limiter.samples[consumer] += 1
        cuts = self._counters["cut"]
        played = self._recent_returns.summary()
        return Draw(consumer, keys, prob, view.starts.count, slots, inserted, cuts, played)

    def gather(self, draw: Draw) -> Batch:
        """Copy what was drawn. Other threads may use the table meanwhile; then ask `intact`."""
        return self._views[draw.consumer].gather(draw.slots)

    def intact(self, draw: Draw) -> bool:
        """Tells whether no drawn row was overwritten, and no episode was cut, since the draw.

        If not, throw away what was gathered: the sample has been uncounted. Ask once a draw.
        """
        then = replace(self._ring, inserted=draw.inserted)
        oldest = then.keys_at(draw.slots[:, 0]).min(initial=draw.inserted)
        intact = bool(oldest >= self._ring.oldest) and draw.cuts == self._counters["cut"]
        self._limiter.samples[draw.consumer] -= not intact
        return intact

    def priority_mass(self, consumer: str) -> float:
        """Returns the priority mass of a consumer's starts, in one unit for all shards."""
        view = self._views[consumer]
        return view.selector.priority_mass() if view.starts.count else 0.0

    def update(self, keys: Array, priorities: Array) -> None:
        """Tell every prioritized selector. keys, priorities: (B,).

        Keys of overwritten rows are ignored and counted as `stale`, priorities that are negative
        or not finite as `refused_priority`.
        """
        keys, priorities = np.array(keys, np.int64), np.array(priorities, np.float64)
        if keys.shape != priorities.shape or keys.ndim != 1:
            raise ValueError(f"{keys.shape} keys cannot take {priorities.shape} priorities")
        ring = self._ring
        slots, priorities, stale, refused = fastest().sift(
            keys, priorities, ring.oldest, ring.inserted, ring.capacity
        )
        self._counters["stale"] += stale
        self._counters["refused_priority"] += refused
        for view in self._views.values():
            starts = view.starts.flags.take(slots)
            view.selector.update(slots[starts], priorities[starts])

    def stats(self) -> dict[str, float]:
        """`inserted` = `held` + `evicted` in rows; `refused_*` in chunks; `ratio_*` per step."""
        ring, limiter = self._ring, self._limiter
        stats: dict[str, float] = {"inserted": ring.inserted, "held": ring.held}
        stats |= {"evicted": ring.oldest, **self._counters}
        stats |= {"capacity": ring.capacity, "bytes": self.nbytes}
        for name, view in self._views.items():
            stats[f"samples_{name}"] = limiter.samples[name]
            stats[f"ratio_{name}"] = limiter.ratio(name)
            stats[f"starts_{name}"] = view.starts.count
        return stats

    # ------------------------------------------------------------------------------- saving

    def snapshot(self) -> Snapshot:
        """Begin to save the table as it stands: what is small at once, the rows piece by piece."""
        views = {
            name: {
                "starts": self._ring.ordered(view.starts.flags),
                "selector": view.selector.state(),
            }
            for name, view in self._views.items()
        }
        small = {
            "layout": self._layout(),
            "inserted": self._ring.inserted,
            "views": views,
            "streams": self._streams.state(),
            "limiter": self._limiter.state(),
            "recent_returns": self._recent_returns.state(),
            "counters": dict(self._counters),
            "generator": self._rng.bit_generator.state,
        }
        snapshot = Snapshot(self._rows, small)
        self._snapshots.add(snapshot)
        return snapshot

    def state(self) -> dict[str, Any]:
        """Copies of all that later draws depend on, live rows only, oldest first."""
        return self.snapshot().state()

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state` bit for bit. Raises UserError when it is of another layout."""
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
        for at, place in self._ring.runs(self._ring.oldest, self._ring.inserted):
            for name, column in self._rows.columns.items():
                column[at] = state["columns"][name][place]
            self._rows.previous[at] = state["previous"][place]
        self._rows.relink()
        for name, view in self._views.items():
            view.starts.restore(state["views"][name]["starts"])
            view.selector.restore(state["views"][name]["selector"])
        self._streams.restore(state["streams"])
        self._limiter.restore(state["limiter"])
        self._recent_returns.restore(state.get("recent_returns", {}))
        kept = state["counters"]  # one from before a counter was introduced lacks it
        self._counters = {name: int(kept.get(name, 0)) for name in self._counters}
        self._rng.bit_generator.state = state["generator"]

    def _layout(self) -> dict[str, str]:
        """Returns what a state must agree on with the table that takes it over."""
        layout = {"capacity": f"{self._ring.capacity} rows"}
        for name, space in self._spec.columns.items():
            layout[f"column {name}"] = f"{space.dtype} {space.shape}"
        for name, of in self._spec.consumers.items():
            layout[f"consumer {name}"] = (
                f"windows of {of.window} after {of.context} by {of.selector}"
            )
        return layout


def _first_steps(rows: Batch, steps: float) -> Iterator[tuple[Batch, int]]:
    """Yields the rows (n, T, …) of the first n streams that hold the first `steps` agent steps.

    Steps are in the order of time, and at one time in the order of the streams.
    """
    acted = ~rows["last"]
    after = acted.sum(axis=0).cumsum()  # agent steps up to each time
    whole = int(np.searchsorted(after, steps, side="right"))  # times that are taken whole
    if whole:
        yield {name: column[:, :whole] for name, column in rows.items()}, acted.shape[0]
    more = int(steps) - (int(after[whole - 1]) if whole else 0)
    if more:
        n = int(np.searchsorted(acted[:, whole].cumsum(), more)) + 1
        yield {name: column[:n, whole : whole + 1] for name, column in rows.items()}, n
