"""How much memory a table takes, and how much there is."""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from dreamfleet.core.types import (
    Mixture,
    Prioritized,
    QueueSpec,
    Recency,
    ReturnDeviation,
    Selector,
    TableSpec,
)
from dreamfleet.replay_server.sum_tree import level_sizes

LINK_BYTES = 16  # the rows before and after, an i64 each
FLAG_BYTES = 1  # of a start, for each consumer
CGROUPS = (  # (limit, usage) of a container, version 2 and version 1
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)


def capacity(spec: TableSpec) -> int:
    """The rows that both `capacity` and `max_bytes` allow."""
    if spec.max_bytes is None:
        return spec.capacity
    rows = range(spec.capacity + 1)
    return bisect.bisect_right(rows, spec.max_bytes, key=lambda n: table_bytes(spec, n)) - 1


def within(
    tables: Mapping[str, TableSpec | QueueSpec], max_bytes: float
) -> dict[str, TableSpec | QueueSpec]:
    """These tables, sharing `max_bytes` in the proportion of what they would take."""
    needs = {
        name: table_bytes(spec, capacity(spec))
        for name, spec in tables.items()
        if isinstance(spec, TableSpec)
    }
    part = max_bytes / max(sum(needs.values()), 1)
    return {
        name: replace(spec, max_bytes=int(part * needs[name]))
        if isinstance(spec, TableSpec) and part < 1
        else spec
        for name, spec in tables.items()
    }


def table_bytes(spec: TableSpec, rows: int) -> int:
    """What a full table of so many rows takes."""
    columns = sum(
        np.dtype(space.dtype).itemsize * math.prod(space.shape) for space in spec.columns.values()
    )
    flags = FLAG_BYTES * len(spec.consumers)
    trees = sum(_selector_bytes(consumer.selector, rows) for consumer in spec.consumers.values())
    return rows * (columns + LINK_BYTES + flags) + trees


def _selector_bytes(selector: Selector, rows: int) -> int:
    match selector:
        case Mixture(parts):
            return sum(_selector_bytes(part, rows) for _, part in parts)
        case Prioritized() | Recency() | ReturnDeviation():
            return sum(level_sizes(rows)) * 8
    return 0


def available_memory(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> float:
    """Bytes this process may still take; infinite where the system does not say."""
    available = math.inf
    if (meminfo := proc / "meminfo").exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                available = int(line.split()[1]) * 1024
    for limit, usage in CGROUPS:
        try:
            left = int((cgroup / limit).read_text()) - int((cgroup / usage).read_text())
        except (OSError, ValueError):  # not this version, or "max"
            continue
        available = min(available, left)
    return available


def sized(n: float) -> str:
    """7_168_000_000 → '7.2 GB'."""
    for unit in ("bytes", "kB", "MB"):
        if n < 1000:
            return f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:,.1f} GB"
