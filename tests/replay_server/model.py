"""A simple model of a replay table, for tests. It keeps all rows ever added in Python lists.

The module also makes chunks of rows.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from dreamfleet.core.selectors import EmphasizeRecent, Prioritized, Recency, Selector, Uniform
from dreamfleet.core.types import Array, Batch, Consumer, Space, TableSpec
from dreamfleet.replay_server.table import Table

COLUMNS = {
    "obs": Space((2,), "float32"),  # (stream, number of the row in the stream)
    "action": Space((), "int64"),
    "reward": Space((), "float32"),
    "first": Space((), "bool"),
    "last": Space((), "bool"),
    "terminal": Space((), "bool"),
    "deter": Space((2,), "float16"),
    "stoch": Space((3,), "uint8"),
}


def spec(capacity: int = 64, slack: float = 1.0, **consumers: Consumer) -> TableSpec:
    return TableSpec(capacity, COLUMNS, consumers, slack)


class Episodes:
    """Makes rows of streams. An observation is (stream, number of the row in the stream)."""

    def __init__(self) -> None:
        self.length: dict[int, int] = {}  # rows, by stream
        self.open: dict[int, bool] = {}  # whether the episode is open, by stream

    def chunk(self, streams: list[int], last: ArrayLike, reset: bool = False) -> Batch:
        """Returns the next T rows of N streams as columns (N, T, …).

        last: (N, T), the rows that end an episode. reset: whether to begin a new episode even if
        the newest one has not ended.
        """
        ends = np.atleast_2d(np.asarray(last, bool))
        first = np.zeros_like(ends)
        first[:, 1:] = ends[:, :-1]
        obs = np.zeros((*ends.shape, 2), np.float32)
        for n, stream in enumerate(streams):
            begin = self.length.get(stream, 0)
            first[n, 0] = reset or not self.open.get(stream, False)
            obs[n, :, 0] = stream
            obs[n, :, 1] = np.arange(begin, begin + ends.shape[1])
            self.length[stream] = begin + ends.shape[1]
            self.open[stream] = not ends[n, -1]
        return {
            "obs": obs,
            "action": obs[..., 1].astype(np.int64),
            "reward": obs[..., 1] / 2,
            "first": first,
            "last": ends,
            "terminal": ends.copy(),
            "deter": (obs % 1000).astype(np.float16),
            "stoch": np.repeat(obs[..., 1:] % 256, 3, axis=2).astype(np.uint8),
        }


def filled(
    spec: TableSpec, rows: int = 40, streams: int = 2, seed: int = 0
) -> tuple[Table, Episodes]:
    table, episodes = Table("real", spec, seed), Episodes()
    for begin in range(0, rows, 4):
        last = np.zeros((streams, 4), bool)
        last[:, 2] = begin % 8 == 0
        assert table.add(episodes.chunk(list(range(streams)), last), np.arange(streams))
    return table, episodes


class Model:
    """A slow and simple table, whose behaviour `Table` must have too."""

    def __init__(self, spec: TableSpec) -> None:
        self.spec = spec
        self.rows: list[Batch] = []  # by key
        self.streams: dict[int, list[int]] = {}
        self.truncated = self.stale = self.invalid = self.steps = 0
        self.priority: dict[str, dict[int, float]] = {name: {} for name in spec.consumers}
        self.largest = dict.fromkeys(spec.consumers, 1.0)

    @property
    def oldest(self) -> int:
        return max(len(self.rows) - self.spec.capacity, 0)

    def add(self, rows: Batch, streams: list[int]) -> None:
        for n, stream in enumerate(streams):
            keys = self.streams.setdefault(stream, [])
            if keys and rows["first"][n, 0] and not self.rows[keys[-1]]["last"]:
                self.rows[keys[-1]]["last"] = np.True_
                self.truncated += 1
            for t in range(rows["last"].shape[1]):
                keys.append(len(self.rows))
                self.rows.append({name: rows[name][n, t].copy() for name in rows})
                self.steps += not rows["last"][n, t]
        for name in self.spec.consumers:
            starts = self.starts(name)
            known = self.priority[name]
            self.priority[name] = {key: known.get(key, self.largest[name]) for key in starts}

    def window(self, key: int, length: int) -> list[int] | None:
        for keys in self.streams.values():
            if key in keys:
                place = keys.index(key)
                found = keys[place : place + length]
                return found if len(found) == length else None
        raise AssertionError(f"no row {key}")

    def context(self, key: int, length: int) -> list[int]:
        """Returns the keys of the `length` rows before row `key`, in its episode.

        If there are fewer, the first row of the episode is repeated.
        """
        keys = next(keys for keys in self.streams.values() if key in keys)
        found = [key]
        for _ in range(length):
            first = self.rows[found[0]]["first"]
            found.insert(0, found[0] if first else keys[keys.index(found[0]) - 1])
        return found[:-1]

    def starts(self, consumer: str) -> list[int]:
        spec = self.spec.consumers[consumer]
        return [
            key
            for key in range(self.oldest, len(self.rows))
            if not self.rows[key]["last"]
            and self.window(key, spec.window)
            and min([key, *self.context(key, spec.context)]) >= self.oldest
        ]

    def update(self, keys: Array, rows: Batch, consumer: str = "") -> None:
        columns = {name: values for name, values in rows.items() if name != "priority"}
        for b, key in enumerate(keys.tolist()):
            touched = self._touched(key, columns, consumer)
            if min([key, *touched]) < self.oldest:
                self.stale += 1
            elif not all(np.isfinite(values[b]).all() for values in columns.values()):
                self.invalid += 1
            else:
                for name, values in columns.items():
                    written = touched[len(touched) - len(values[b]) :]
                    for row, value in zip(written, values[b], strict=True):
                        self.rows[row][name] = value.copy()
        for name, known in self.priority.items():
            for key, priority in zip(keys.tolist(), rows.get("priority", []), strict=False):
                if key in known:
                    known[key] = max(priority, 1e-6)
                    self.largest[name] = max(self.largest[name], known[key])

    def _touched(self, key: int, columns: Batch, consumer: str) -> list[int]:
        """Returns the keys of the rows for which an update of window `key` has new values."""
        if not columns:
            return []
        spec = self.spec.consumers[consumer]
        window = self.context(key, spec.context) + (self.window(key, spec.window) or [])
        return window[-max(values.shape[1] for values in columns.values()) :]

    def probability(self, consumer: str, draws: int = 0) -> dict[int, float]:
        """Returns the probability of each start, by key, after a consumer took `draws` samples.

        A start is a row at which a window may begin.
        """
        return self._probability(self.spec.consumers[consumer].selector, consumer, draws)

    def _probability(self, selector: Selector, consumer: str, draws: int) -> dict[int, float]:
        starts = self.starts(consumer)
        newest = len(self.rows) - 1
        match selector:
            case Uniform():
                weights = dict.fromkeys(starts, 1.0)
            case Prioritized(exponent):
                weights = {key: self.priority[consumer][key] ** exponent for key in starts}
            case Recency(half_life):
                youngest = newest - max(starts)  # a common factor, so that not all weights are 0
                weights = {k: 0.5 ** ((newest - k - youngest) / half_life) for k in starts}
            case EmphasizeRecent(eta, floor, cycle, anneal):
                stored = len(self.rows) - self.oldest
                now = eta + (1 - eta) * min(draws / anneal, 1)
                k = draws % cycle + 1
                rows = int(max(stored * now ** (1000 * k / cycle), floor))
                recent = [key for key in starts if newest - key < rows] or starts
                weights = {key: float(key in recent) for key in starts}
            case _:
                parts = [(s, self._probability(p, consumer, draws)) for s, p in selector.parts]
                return {key: sum(s * p[key] for s, p in parts) for key in starts}
        total = sum(weights.values())
        return {key: value / total for key, value in weights.items()}


def chi_square_bound(degrees: int) -> float:
    """Returns a bound that a χ² variable exceeds with probability 1e-6 (Wilson & Hilferty 1931)."""
    return degrees * (1 - 2 / (9 * degrees) + 4.75 * (2 / (9 * degrees)) ** 0.5) ** 3
