"""Checks new values for columns of sampled windows, and orders their writes to the rows.

A window is a sequence of consecutive rows of one environment. A learner computes the new values,
such as the latent states of a world model.
"""

from __future__ import annotations

import math

import numpy as np

from dreamfleet.core.selectors import unknown_column_fault
from dreamfleet.core.types import ENV_COLUMNS, PRIORITY, Array, Batch, TableSpec

FIXED = (*ENV_COLUMNS, "action")  # columns that tell what happened; so do columns `obs.NAME`


def check_new_values(rows: Batch, keys: Array, spec: TableSpec, consumer: str) -> None:
    """Raises ValueError unless new values fit the windows and the columns of a table.

    rows: new values by column, and "priority". keys: (B,), the keys of the windows. spec: the
    specification of the table. consumer: the sampler of the table that drew the windows.
    """
    for name, values in rows.items():
        check_windows(name, np.shape(values), keys)
        if name == PRIORITY:
            continue
        if fault := unknown_column_fault(name, spec.columns):
            raise ValueError(f"cannot rewrite column {name!r}: {fault}")
        if name.partition(".")[0] in FIXED:
            raise ValueError(f"cannot rewrite column {name!r}: it holds what happened")
        if consumer not in spec.consumers:
            known = ", ".join(sorted(spec.consumers))
            raise ValueError(
                f"cannot rewrite column {name!r} of windows of consumer {consumer!r}; the table "
                f"has: {known}"
            )
        space, drawn_by = spec.columns[name], spec.consumers[consumer]
        longest, shape = drawn_by.context + drawn_by.window, values.shape
        if len(shape) < 2 or not 1 <= shape[1] <= longest or shape[2:] != space.shape:
            expected = ", ".join(map(str, (keys.size, f"1 … {longest}", *space.shape)))
            raise ValueError(f"new values of {name!r} must have shape ({expected}), found {shape}")
        if values.dtype != np.dtype(space.dtype):
            raise ValueError(f"new values of {name!r} must be {space.dtype}, found {values.dtype}")


def check_windows(name: str, shape: tuple[int, ...], keys: Array) -> None:
    """Raises ValueError unless a column has new values for as many windows as there are keys.

    name: the column, or "priority", which has one value for each window. shape: the shape of the
    new values. keys: (B,).
    """
    lead = shape if name == PRIORITY else shape[:1]
    if keys.ndim != 1 or lead != keys.shape:
        raise ValueError(f"{keys.shape} keys cannot take new values of {name!r} of shape {shape}")


def finite_windows(columns: Batch) -> Array:
    """Returns a mask (B,) of the windows whose new values are all finite.

    columns: new values of shape (B, R, …).
    """
    masks = [
        np.isfinite(values).reshape(len(values), math.prod(values.shape[1:])).all(axis=1)
        if values.dtype.kind == "f"
        else np.ones(len(values), bool)
        for values in columns.values()
    ]
    return np.logical_and.reduce(masks)


def last_writes(slots: Array, values: Array) -> tuple[Array, Array]:
    """Returns slots (n,) and their values (n, …), with each slot once: its last value counts.

    Of two windows that overlap, the second one in the batch thus wins. slots: (B, R), positions of
    rows in the ring buffer. values: (B, R, …).
    """
    slots, values = slots.reshape(-1), values.reshape(-1, *values.shape[2:])
    _, from_end = np.unique(slots[::-1], return_index=True)
    if from_end.size == slots.size:
        return slots, values
    last = slots.size - 1 - from_end
    return slots[last], values[last]
