"""What the replay promises of itself: sums and memory that stay, snapshots nobody waits for."""

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


def sum_drift(size: int, updates: int) -> float:
    """How far a tree's root is from the sum of its masses after so many updates, in 10⁻¹² of it.

    Masses are of all sizes from 1e-6 to 1e6, and slots are named twice.
    """
    tree, rng = SumTree(size), np.random.default_rng(0)
    for _ in range(updates // ADDED):
        tree.write(rng.integers(0, size, ADDED), 10 ** rng.uniform(-6, 6, ADDED))
    return 1e12 * abs(tree.total / math.fsum(tree.weights) - 1)


def memory_drift(capacity: int, inserts: int) -> float:
    """By how many percent a fresh process grows while `inserts` rows go into a full ring."""
    code = "from benchmarks.replay.alone import grow; grow()"
    words = [sys.executable, "-c", code, str(capacity), str(inserts)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise WorkerFailed(f"{done.stderr}\nthe process whose memory is watched broke")
    began, most = json.loads(done.stdout)
    return 100 * (most / began - 1)


def grow() -> None:
    """Print the resident bytes of this process when the ring was full, and the most after that."""
    capacity, inserts = map(int, sys.argv[1:])
    feed = itertools.cycle(chunks(episodes(LOW, 2)))
    server = filled(LOW, capacity, TRANSITIONS, feed)
    for _ in range(capacity // ADDED):  # once around: every page has been written to
        server.add("real", next(feed), STREAMS)
    began = most = resident()
    for n in range(inserts // ADDED):
        server.add("real", next(feed), STREAMS)
        if n % 64 == 0:
            most = max(most, resident())
    print(json.dumps([began, max(most, resident())]))


def resident() -> int:
    """Bytes of this process in memory (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def snapshot_stalls(capacity: int) -> Iterator[float]:
    """The longest call, in ms, of one who adds and samples while a snapshot is taken; for ever.

    A snapshot is what a checkpoint asks of the replay's process, here in a thread beside it.
    """
    feed = itertools.cycle(chunks(episodes(LOW, 2)))
    host = ReplayHost({"real": TableSpec(capacity, columns(LOW), {"learner": TRANSITIONS})}, 0)
    for _ in range(-(-capacity // ADDED)):
        host.add("real", Packed.of(next(feed)), STREAMS)
    while True:
        snapshot = threading.Thread(target=host.state)
        longest = 0.0
        snapshot.start()
        serving = True
        while serving:
            serving = snapshot.is_alive()
            for call in (
                lambda: host.add("real", Packed.of(next(feed)), STREAMS),
                lambda: host.sample("real", "learner", 0.0),
            ):
                began = time.perf_counter()
                call()
                longest = max(longest, time.perf_counter() - began)
        yield 1000 * longest
