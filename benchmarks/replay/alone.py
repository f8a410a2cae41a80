"""Measures our replay alone, without comparison to another library.

The rounding error of the sum tree, the growth of memory, and the longest call during a snapshot (a
copy of the replay for a checkpoint) are measured.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.processes import ROOT
from benchmarks.replay.rows import (
    ADDED,
    LOW,
    STREAMS,
    TRANSITIONS,
    chunks,
    columns,
    episodes,
    filled,
)
from dreamfleet.core.errors import WorkerFailed
from dreamfleet.core.types import TableSpec
from dreamfleet.replay_server.sum_tree import SumTree
from dreamfleet.runtime.hosts import ReplayHost
from dreamfleet.runtime.packed import Packed


def sum_error(size: int, updates: int) -> float:
    """Returns the relative error of a sum tree's root after many updates of leaves, times 10¹².

    size: number of leaves. updates: number of leaf updates. The root is compared with the exact sum
    of the leaves.
    """
    tree, rng = SumTree(size), np.random.default_rng(0)
    for _ in range(updates // ADDED):
        tree.write(rng.integers(0, size, ADDED), 10 ** rng.uniform(-6, 6, ADDED))
    return 1e12 * abs(tree.total / math.fsum(tree.weights) - 1)


def memory_growth(capacity: int, inserts: int) -> float:
    """Returns by how many percent the memory of a process grows while a full replay gets more rows.

    capacity: rows in the replay. inserts: rows that are added to the full replay.
    """
    code = "from benchmarks.replay.alone import print_memory; print_memory()"
    words = [sys.executable, "-c", code, str(capacity), str(inserts)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise WorkerFailed(f"{done.stderr}\nthe process whose memory is measured broke")
    first, highest = json.loads(done.stdout)
    return 100 * (highest / first - 1)


def print_memory() -> None:
    """Prints the resident memory of this process as JSON: two numbers of bytes.

    The first number is the memory with a full replay. The second is the highest memory while rows
    are added. The command-line arguments are the capacity and the number of added rows.
    """
    capacity, inserts = map(int, sys.argv[1:])
    feed = itertools.cycle(chunks(episodes(LOW, 2)))
    server = filled(LOW, capacity, TRANSITIONS, feed)
    for _ in range(capacity // ADDED):  # overwrite every row once: all memory pages are in use then
        server.add("real", next(feed), STREAMS)
    first = highest = resident()
    for n in range(inserts // ADDED):
        server.add("real", next(feed), STREAMS)
        if n % 64 == 0:
            highest = max(highest, resident())
    print(json.dumps([first, max(highest, resident())]))


def resident() -> int:
    """Returns the resident memory of this process in bytes (Linux only)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def snapshot_stalls(capacity: int) -> Iterator[float]:
    """Yields the duration in milliseconds of the longest replay call during a snapshot.

    A snapshot is a copy of the replay for a checkpoint. Values are yielded without end, each from a
    new snapshot. capacity: rows in the replay.
    """
    feed = itertools.cycle(chunks(episodes(LOW, 2)))
    host = ReplayHost({"real": TableSpec(capacity, columns(LOW), {"learner": TRANSITIONS})}, 0)
    for _ in range(-(-capacity // ADDED)):
        host.add("real", Packed.of(next(feed)), STREAMS)
    while True:
        snapshot = threading.Thread(target=host.state)
        longest = 0.0
        snapshot.start()
        running = True
        while running:
            running = snapshot.is_alive()
            for call in (
                lambda: host.add("real", Packed.of(next(feed)), STREAMS),
                lambda: host.sample("real", "learner", 0.0),
            ):
                began = time.perf_counter()
                call()
                longest = max(longest, time.perf_counter() - began)
        yield 1000 * longest
