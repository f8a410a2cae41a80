"""Checks the specifications of tables, and the rows that actors add to a table."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from typing import Final, NamedTuple

import numpy as np

from dreamfleet.core.errors import UserError
from dreamfleet.core.selectors import number_column_fault, unknown_column_fault
from dreamfleet.core.types import Array, Batch, Consumer, QueueSpec, Space, TableSpec
from dreamfleet.replay_server import budget

REASONS = ("columns", "shape", "dtype", "nan", "streams", "reset")  # why a chunk is refused


class Limits(NamedTuple):
    """The names of a table's two size limits (rows and bytes), as error messages show them.

    They are names of settings that the user can change.
    """

    capacity: str = "capacity"
    max_bytes: str = "max_bytes"


SPEC_FIELDS: Final = Limits()  # the names in `TableSpec`


def check_spec(name: str, spec: TableSpec, limits: Limits = SPEC_FIELDS) -> None:
    """Raises UserError unless a table's specification is valid.

    name: the table's name. limits: the names of the size limits, for error messages.
    """

    def require(holds: bool, message: str) -> None:
        if not holds:
            raise UserError(f"table {name!r}: {message}")

    for flag in ("first", "last"):
        space = spec.columns.get(flag)
        found = space and (space.dtype, space.shape)
        require(found == ("bool", ()), f"needs a bool column {flag!r} of shape (), found {found}")
    require(spec.capacity >= 1, f"{limits.capacity} must be at least 1 row, found {spec.capacity}")
    require(spec.slack >= 1, f"slack must be at least 1 sample, found {spec.slack}")
    rows = budget.capacity(spec)
    limit, found_rows = limits.capacity, f"found {rows}"
    if rows < spec.capacity:
        limit = limits.max_bytes
        found_rows += f" in a budget of {budget.sized(spec.max_bytes or 0)}"
    require(rows >= 1, f"must store at least 1 row, {found_rows}: raise {limit}")
    if spec.episode_return:
        fault = number_column_fault(spec.episode_return, spec.columns)
        require(not fault, f"episode_return: {fault}")
    for consumer_name, consumer in spec.consumers.items():
        fault = _consumer_fault(consumer, spec.columns)
        fault = fault or _sharing_fault(consumer_name, spec.consumers)
        require(not fault, f"{consumer_name!r}: {fault}")
        length = consumer.context + consumer.window
        require(
            consumer.batch * length <= rows,
            f"{consumer_name!r} samples {consumer.batch} windows of {length} rows: raise {limit} "
            f"to store {consumer.batch * length} or more, {found_rows}",
        )
        require(
            consumer.min_steps <= rows,
            f"{consumer_name!r} waits for min_steps {consumer.min_steps}: raise {limit} to store "
            f"as many rows, {found_rows}",
        )


def _consumer_fault(consumer: Consumer, columns: Mapping[str, Space]) -> str | None:
    """Returns one line about an invalid field of a consumer's specification; None if all are valid.

    A consumer is a named sampler of a table, such as `policy`. columns: the columns of the table.
    """
    if consumer.batch < 1 or consumer.window < 1 or consumer.context < 0:
        return (
            "batch and window must be at least 1 and context at least 0, "
            f"found {consumer.batch}, {consumer.window}, {consumer.context}"
        )
    if consumer.min_steps < 0:
        return f"min_steps must be at least 0, found {consumer.min_steps}"
    rate = consumer.samples_per_step
    if rate is not None and not (math.isfinite(rate) and rate > 0):
        return f"samples_per_step must be more than 0, found {rate}"
    if fault := consumer.selector.fault(columns):
        return fault
    named = (*consumer.columns, *consumer.first_columns)
    for name in named:
        if fault := unknown_column_fault(name, columns):
            return fault
    if len(set(named)) < len(named):
        return f"each column must be named once, found {named}"
    return None


def _sharing_fault(name: str, consumers: Mapping[str, Consumer]) -> str | None:
    """Returns one line that says why a consumer cannot share the samples of another consumer.

    Returns None if it can, or if it does not share. A consumer is a named sampler of a table. name:
    the consumer that shares. consumers: all consumers of the table.
    """
    shared = consumers[name].shares
    if not shared:
        return None
    others = [other for other in consumers if other != name]
    if shared not in others:
        near = difflib.get_close_matches(shared, others, 1, 0) or ["none"]
        return f"there is no other consumer {shared!r} to share; the nearest is {near[0]!r}"
    if consumers[shared].shares:
        return f"{shared!r} shares {consumers[shared].shares!r}: share that consumer instead"
    return None


def check_memory(
    tables: Mapping[str, TableSpec | QueueSpec], shards: int = 1, limits: Limits = SPEC_FIELDS
) -> None:
    """Raises UserError if the free memory of this machine is too small for the replay's tables.

    shards: the number of replay processes on this machine. limits: the names of the size limits,
    for error messages.
    """
    specs = {name: spec for name, spec in tables.items() if isinstance(spec, TableSpec)}
    rows = {name: budget.capacity(spec) for name, spec in specs.items()}
    need = shards * sum(budget.table_bytes(spec, rows[name]) for name, spec in specs.items())
    free = budget.available_memory()
    if need > free:
        all_rows = " and ".join(f"{shards * n:,} rows of {name!r}" for name, n in rows.items())
        raise UserError(
            f"{all_rows} take {budget.sized(need)}, but {budget.sized(free)} of memory are free: "
            f"lower {limits.capacity} or set {limits.max_bytes}"
        )


def find_fault(
    rows: Batch,
    streams: Array,
    columns: Mapping[str, Space],
) -> tuple[str, str] | None:
    """Checks a chunk of rows. Returns None if it is valid, else a reason and a message.

    The reason is one of `REASONS`. rows: columns of shape (N, T, …), for T rows of each of N
    streams (a stream is the rows of one environment). streams: (N,), the ids of the streams.
    columns: the columns that the table expects.
    """
    if different := sorted(rows.keys() ^ columns.keys()):
        listed = ", ".join(
            f"{'unknown' if name in rows else 'missing'} {name}" for name in different
        )
        return "columns", f"wrong columns: {listed}"
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
    """Checks the `first` flags of a chunk. Returns None if they are right, else reason and message.

    A row must be `first` if the row before it in its stream (the rows of one environment) is
    `last`, and only then. The first row of a chunk may also be `first` in the middle of an episode,
    which is then truncated. rows: columns of shape (N, T, …). streams: (N,), the ids of the
    streams. ended: (N,), whether the newest stored row of each stream is `last`.
    """
    first, last = rows["first"], rows["last"]
    after_last = np.concatenate([ended[:, None], last[:, :-1]], axis=1)  # (N, T)
    wrong = first != after_last
    wrong[:, 0] &= ended
    if not wrong.any():
        return None
    n, t = np.argwhere(wrong)[0]
    kind = "unexpected" if first[n, t] else "missing"
    return "reset", f"{kind} reset in row {t} of the chunk of stream {streams[n]}"
