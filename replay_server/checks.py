"""What a table refuses: specs it could not serve, and chunks that break the contract of rows."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

import numpy as np

from dreamfleet.core.errors import UserError
from dreamfleet.core.types import (
    Array,
    Batch,
    EmphasizeRecent,
    Mixture,
    Prioritized,
    QueueSpec,
    Recency,
    ReturnDeviation,
    Selector,
    Space,
    TableSpec,
)
from dreamfleet.replay_server import budget

REASONS = ("columns", "shape", "dtype", "nan", "streams", "reset")  # why a chunk is refused


class Limits(NamedTuple):
    """What a person calls the limits of a table."""

    capacity: str = "capacity"
    max_bytes: str = "max_bytes"


OWN: Final = Limits()  # as the spec calls them


def check_spec(name: str, spec: TableSpec, limits: Limits = OWN) -> None:
    """Raise UserError for a table that would wait for ever or could not draw."""

    def require(holds: bool, what: str) -> None:
        if not holds:
            raise UserError(f"table {name!r}: {what}")

    for flag in ("first", "last"):
        space = spec.columns.get(flag)
        found = space and (space.dtype, space.shape)
        require(found == ("bool", ()), f"needs a bool column {flag!r} of shape (), found {found}")
    require(spec.capacity >= 1, f"{limits.capacity} must be at least 1 row, found {spec.capacity}")
    require(spec.slack >= 1, f"slack must be at least 1 sample, found {spec.slack}")
    rows = budget.capacity(spec)
    limit, holds = limits.capacity, f"found {rows}"
    if rows < spec.capacity:
        limit = limits.max_bytes
        holds += f" in a budget of {budget.sized(spec.max_bytes or 0)}"
    require(rows >= 1, f"must hold at least 1 row, {holds}: raise {limit}")
    if name_of_return := spec.episode_return:
        what = _unknown((name_of_return,), spec.columns) or _not_a_number(
            name_of_return, spec.columns
        )
        require(not what, f"episode_return: {what}")
    for consumer, of in spec.consumers.items():
        require(
            of.batch >= 1 and of.window >= 1 and of.context >= 0,
            f"{consumer!r} must take batch and window of at least 1 and context of at least 0, "
            f"found {of.batch}, {of.window}, {of.context}",
        )
        length = of.context + of.window
        require(
            of.batch * length <= rows,
            f"{consumer!r} samples {of.batch} windows of {length} rows: raise {limit} to hold "
            f"{of.batch * length} or more, {holds}",
        )
        require(
            of.min_steps >= 0,
            f"{consumer!r} must wait for 0 steps or more, found min_steps {of.min_steps}",
        )
        require(
            of.min_steps <= rows,
            f"{consumer!r} waits for min_steps {of.min_steps}: raise {limit} to hold as many rows, "
            f"{holds}",
        )
        rate = of.samples_per_step
        require(
            rate is None or (math.isfinite(rate) and rate > 0),
            f"{consumer!r} must take more than 0 samples per step, found {rate}",
        )
        what = _selector_fault(of.selector, spec.columns) or _unknown(of.columns, spec.columns)
        require(not what, f"{consumer!r}: {what}")
        once = len(set(of.columns)) == len(of.columns)
        require(once, f"{consumer!r} must name each of its columns once, found {of.columns}")


def check_memory(
    tables: Mapping[str, TableSpec | QueueSpec], shards: int = 1, limits: Limits = OWN
) -> None:
    """Raise UserError when so many times these tables do not fit into what is free here."""
    specs = {name: spec for name, spec in tables.items() if isinstance(spec, TableSpec)}
    rows = {name: budget.capacity(spec) for name, spec in specs.items()}
    need = shards * sum(budget.table_bytes(spec, rows[name]) for name, spec in specs.items())
    free = budget.available_memory()
    if need > free:
        what = " and ".join(f"{shards * n:,} rows of {name!r}" for name, n in rows.items())
        raise UserError(
            f"{what} take {budget.sized(need)}, but {budget.sized(free)} of memory are free: "
            f"lower {limits.capacity} or set {limits.max_bytes}"
        )


def _selector_fault(spec: Selector, columns: Mapping[str, Space]) -> str | None:
    match spec:
        case Prioritized(exponent) if not 0 <= exponent <= 8:
            return f"a priority exponent must lie in [0, 8], found {exponent}"
        case Prioritized(initial=str(initial)):
            return _unknown((initial,), columns) or _not_a_number(initial, columns)
        case Recency(half_life) if not half_life > 0:
            return f"a half-life must be more than 0 rows, found {half_life}"
        case ReturnDeviation(half_life):
            if not half_life > 0:
                return f"a half-life must be more than 0 windows, found {half_life}"
            return _unknown(("reward",), columns) or _not_a_number("reward", columns)
        case EmphasizeRecent(eta, floor, cycle, anneal) if not (
            0 < eta <= 1 and floor >= 1 and cycle >= 1 and anneal >= 1
        ):
            return f"eta must lie in (0, 1] and floor, cycle, anneal be at least 1, found {spec}"
        case Mixture(parts):
            shares = [share for share, _ in parts]
            if min(shares, default=0) <= 0 or not math.isclose(sum(shares), 1):
                return f"the shares of a mixture must be positive and sum to 1, found {shares}"
            faults = (_selector_fault(part, columns) for _, part in parts)
            return next((fault for fault in faults if fault), None)
    return None


def _unknown(names: Iterable[str], columns: Mapping[str, Space]) -> str | None:
    for name in names:
        if name not in columns:
            near = difflib.get_close_matches(name, columns, 1, 0) or ["none"]
            return f"there is no column {name!r}; the nearest is {near[0]!r}"
    return None


def _not_a_number(name: str, columns: Mapping[str, Space]) -> str | None:
    space = columns[name]
    if space.shape or np.dtype(space.dtype).kind != "f":
        return f"column {name!r} must be a float of shape (), found {space.dtype} {space.shape}"
    return None


def find_fault(
    rows: Batch,
    streams: Array,
    columns: Mapping[str, Space],
) -> tuple[str, str] | None:
    """Why a chunk (N, T, …) must be refused: (one of REASONS, one line), or None."""
    if odd := sorted(rows.keys() ^ columns.keys()):
        what = ", ".join(f"{'unknown' if name in rows else 'missing'} {name}" for name in odd)
        return "columns", f"wrong columns: {what}"
    lead = np.shape(rows["last"])
    if len(lead) != 2 or 0 in lead:
        return "shape", f"a chunk is (streams, rows) and not empty, found last of shape {lead}"
    for name, space in columns.items():
        if np.shape(rows[name]) != (*lead, *space.shape):
            expected = (*lead, *space.shape)
            return "shape", f"{name} must have shape {expected}, found {np.shape(rows[name])}"
        if rows[name].dtype != np.dtype(space.dtype):
            return "dtype", f"{name} must be {space.dtype}, found {rows[name].dtype}"
    if streams.shape != lead[:1] or streams.dtype.kind not in "iu":
        found = f"{streams.dtype} {streams.shape}"
        return "streams", f"streams must be {lead[0]} integers, one a stream, found {found}"
    if streams.min() < 0 or len(set(streams.tolist())) < streams.size:
        return "streams", f"streams must be distinct and not negative, found {streams.tolist()}"
    for name, space in columns.items():
        if np.dtype(space.dtype).kind == "f" and not np.isfinite(rows[name]).all():
            n, t = np.argwhere(~np.isfinite(rows[name]))[0, :2]
            return "nan", f"{name} of stream {streams[n]} is not finite in row {t} of the chunk"
    return None


def find_reset_fault(rows: Batch, streams: Array, ended: Array) -> tuple[str, str] | None:
    """A row is `first` exactly after a `last` one; only a new chunk may cut an episode short.

    `ended` (N,): which streams must open an episode with their next row.
    """
    first, last = rows["first"], rows["last"]
    after_last = np.concatenate([ended[:, None], last[:, :-1]], axis=1)  # (N, T)
    wrong = first != after_last
    wrong[:, 0] &= ended
    if not wrong.any():
        return None
    n, t = np.argwhere(wrong)[0]
    what = "unexpected" if first[n, t] else "missing"
    return "reset", f"{what} reset in row {t} of the chunk of stream {streams[n]}"
