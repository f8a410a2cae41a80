"""Computes the memory that the tables of the replay need, and the free memory of the machine."""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from dreamfleet.core.types import QueueSpec, TableSpec
from dreamfleet.replay_server import selectors

LINK_BYTES = 16  # per row: the links to the rows before and after, an i64 each
FLAG_BYTES = 1  # per row and consumer: whether the row is a start
CGROUPS = (  # files with the limit and the usage of a container's memory, of versions 2 and 1
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)


def capacity(spec: TableSpec) -> int:
    """Returns how many rows a table can store, limited by its `capacity` and its `max_bytes`."""
    if spec.max_bytes is None:
        return spec.capacity
    rows = range(spec.capacity + 1)
    return bisect.bisect_right(rows, spec.max_bytes, key=lambda n: table_bytes(spec, n)) - 1


def limited(
    tables: Mapping[str, TableSpec | QueueSpec], max_bytes: float
) -> dict[str, TableSpec | QueueSpec]:
    """Returns table specifications that together need at most `max_bytes` of memory.

    If the tables would need more when they are full, the memory is divided among them in proportion
    to their sizes. Specifications of queues stay unchanged.
    """
    needs = {
        name: table_bytes(spec, capacity(spec))
        for name, spec in tables.items()
        if isinstance(spec, TableSpec)
    }
    fraction = max_bytes / max(sum(needs.values()), 1)
    return {
        name: replace(spec, max_bytes=int(fraction * needs[name]))
        if isinstance(spec, TableSpec) and fraction < 1
        else spec
        for name, spec in tables.items()
    }


def table_bytes(spec: TableSpec, rows: int) -> int:
    """Returns the memory, in bytes, of a table with a capacity of `rows` rows."""
    columns = sum(
        np.dtype(space.dtype).itemsize * math.prod(space.shape) for space in spec.columns.values()
    )
    flags = FLAG_BYTES * len(spec.consumers)
    drawing = sum(selectors.nbytes(consumer.selector, rows) for consumer in spec.consumers.values())
    return rows * (columns + LINK_BYTES + flags) + drawing


def available_memory(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> float:
    """Returns how many bytes this process may still allocate; infinity if Linux reports no limit.

    proc, cgroup: the folders in which Linux reports the memory of the machine and of the container.
    """
    available = math.inf
    if (meminfo := proc / "meminfo").exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                available = int(line.split()[1]) * 1024
    for limit, usage in CGROUPS:
        try:
            left = int((cgroup / limit).read_text()) - int((cgroup / usage).read_text())
        except (OSError, ValueError):  # another version, or no limit: "max"
            continue
        available = min(available, left)
    return available


def sized(n: float) -> str:
    """Returns a number of bytes as text with a unit: '7.2 GB' for 7_168_000_000."""
    for unit in ("bytes", "kB", "MB"):
        if n < 1000:
            return f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:,.1f} GB"
