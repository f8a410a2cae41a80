"""Replay workloads (work to be timed) inside one process: our replay and other libraries.

Functions that yield a workload are context managers. They fill the replay before they yield, so
that filling is not timed.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.replay import libraries
from benchmarks.replay.rows import (
    ADDED,
    ATARI,
    BATCH,
    EPISODE,
    LOW,
    PIXELS,
    PRIORITIZED,
    STREAMS,
    TRANSITIONS,
    PrioritizedCycle,
    chunks,
    episodes,
    filled,
)
from benchmarks.timing import COPY_BYTES, Workload, repeated
from dreamfleet.core.types import Consumer

STEPS_ADDED: Final = ADDED * (EPISODE - 1) / EPISODE  # agent steps in one call of `add`
SEQUENCES: Final = Consumer(
    batch=16, window=64, columns=("obs",)
)  # the columns that the numpy workload gathers
FRAMES: Final = SEQUENCES.batch * SEQUENCES.window
STACK, STEPS, ATARI_BATCH, GAMMA = 4, 3, 512, 0.99
# One window has the frames of both stacks, STEPS apart, and the rewards between the stacks.
STACKS: Final = Consumer(ATARI_BATCH, 1 + STEPS, PRIORITIZED, context=STACK - 1)


@dataclass(frozen=True)
class Scale:
    """Sizes and durations of the measurements in the replay benchmark."""

    seconds: float = 0.7  # of a workload in a round
    seconds_apart: float = 2.5  # the same for workloads across processes
    transitions: int = 1 << 20
    stacks: int = 20_480  # Atari transitions; SB3 stores 56 kB for each
    frames: tuple[int, ...] = (10**4, 10**5, 10**6)
    updates: int = 10**8  # priorities written to the sum tree
    inserts: int = 10**7  # rows inserted while memory is watched
    snapshot: int = 10**6  # rows in a snapshot
    copy_bytes: int = COPY_BYTES


QUICK: Final = Scale(
    seconds=0.01,
    seconds_apart=0.05,
    transitions=1 << 12,
    stacks=4096,
    frames=(2048, 2048, 2048),
    updates=1 << 14,
    inserts=1 << 14,
    snapshot=1 << 12,
    copy_bytes=1 << 20,
)


@contextmanager
def our_cycle(scale: Scale) -> Iterator[Workload]:
    """Yields a workload (work to be timed): our replay samples 256 transitions by priority.

    The workload then updates the priorities of these transitions. scale: sizes of the benchmark.
    """
    feed = itertools.cycle(chunks(episodes(LOW, 8)))
    yield Workload(
        "ours",
        repeated(PrioritizedCycle(filled(LOW, scale.transitions, TRANSITIONS, feed), BATCH)),
        BATCH,
    )


@contextmanager
def our_adds(scale: Scale) -> Iterator[Workload]:
    """Yields a workload (work to be timed): our replay adds 64 rows of each of 16 environments.

    The rows are added with priorities. scale: sizes of the benchmark.
    """
    feed = itertools.cycle(chunks(episodes(LOW, 8)))
    server = filled(LOW, scale.transitions, TRANSITIONS, feed)
    yield Workload("ours", repeated(lambda: server.add("real", next(feed), STREAMS)), STEPS_ADDED)


@contextmanager
def cpprb_cycle(scale: Scale) -> Iterator[Workload]:
    """Yields a workload (work to be timed): the library cpprb samples 256 transitions by priority.

    The workload then updates the priorities of these transitions. scale: sizes of the benchmark.
    """
    feed = itertools.cycle(libraries.transitions(episodes(LOW, 8)))
    yield Workload(
        "cpprb",
        repeated(libraries.cpprb_cycle(libraries.cpprb_filled(scale.transitions, feed))),
        BATCH,
    )


@contextmanager
def cpprb_adds(scale: Scale) -> Iterator[Workload]:
    """Yields a workload (work to be timed): the library cpprb adds a batch of transitions.

    The transitions are those of 64 rows of each of 16 environments. They are added with priorities.
    scale: sizes of the benchmark.
    """
    feed = itertools.cycle(libraries.transitions(episodes(LOW, 8)))
    buffer = libraries.cpprb_filled(scale.transitions, feed)
    yield Workload("cpprb", repeated(lambda: buffer.add(**next(feed))), STEPS_ADDED)


@contextmanager
def our_uniform_samples(scale: Scale) -> Iterator[Workload]:
    """Yields a workload (work to be timed): our replay samples 256 transitions uniformly.

    scale: sizes of the benchmark.
    """
    feed = itertools.cycle(chunks(episodes(LOW, 8)))
    server = filled(LOW, scale.transitions, Consumer(BATCH, window=2), feed)
    yield Workload("ours", repeated(lambda: server.sample("real", "learner")), BATCH)


@contextmanager
def sb3_adds(scale: Scale, compact: bool, environments: int) -> Iterator[Workload]:
    """Yields a workload (work to be timed): Stable-Baselines3 adds one step of some environments.

    compact: use the storage layout that has no separate array of next observations. environments:
    number of environments. scale: sizes of the benchmark.
    """
    rows = {name: values[:environments] for name, values in episodes(LOW, 8).items()}
    steps = libraries.vector_steps(rows)
    sb3 = libraries.SB3((24,), "float32", scale.transitions, compact, environments).fill(steps)
    yield Workload(_sb3_name(compact), repeated(lambda: sb3.add(next(steps))), environments)


@contextmanager
def sb3_samples(scale: Scale, compact: bool) -> Iterator[Workload]:
    """Yields a workload (work to be timed): Stable-Baselines3 samples 256 transitions uniformly.

    compact: use the storage layout that has no separate array of next observations. scale: sizes of
    the benchmark.
    """
    steps = libraries.vector_steps(episodes(LOW, 8))
    sb3 = libraries.SB3((24,), "float32", scale.transitions, compact).fill(steps)
    yield Workload(_sb3_name(compact), repeated(lambda: sb3.buffer.sample(BATCH)), BATCH)


@contextmanager
def our_stacks(scale: Scale) -> Iterator[Workload]:
    """Yields a workload (work to be timed): our replay samples 512 Atari transitions by priority.

    The workload also makes frame stacks, n-step returns and importance weights, and updates the
    priorities. scale: sizes of the benchmark.
    """
    feed = itertools.cycle(chunks(episodes(ATARI, 1)))
    cycle = PrioritizedCycle(filled(ATARI, scale.stacks, STACKS, feed), ATARI_BATCH)

    def once() -> tuple[Any, ...]:
        data, weights = cycle()
        obs, next_obs = data["obs"][:, :STACK], data["obs"][:, STEPS:]
        continues = np.cumprod(~data["last"][:, STEPS:-1], axis=1)  # (B, STEPS)
        discount = GAMMA ** np.arange(STEPS)
        reward = (data["reward"][:, STACK:] * continues * discount).sum(axis=1)
        return obs, next_obs, reward, weights

    yield Workload("ours", repeated(once), ATARI_BATCH)


@contextmanager
def sb3_stacks(scale: Scale, compact: bool) -> Iterator[Workload]:
    """Yields a workload (work to be timed): Stable-Baselines3 samples 512 Atari transitions.

    The transitions are sampled uniformly. compact: use the storage layout that has no separate
    array of next observations. scale: sizes of the benchmark.
    """
    steps = libraries.vector_steps(episodes(ATARI, 1), STACK)
    sb3 = libraries.SB3((STACK, *ATARI.shape), ATARI.dtype, scale.stacks, compact).fill(steps)
    yield Workload(
        _sb3_name(compact), repeated(lambda: sb3.buffer.sample(ATARI_BATCH)), ATARI_BATCH
    )


def _sb3_name(compact: bool) -> str:
    """Returns the name of a workload of Stable-Baselines3.

    The name has the value of the library's option `optimize_memory_usage`, which is `compact`.
    """
    return f"SB3, optimize_memory_usage={compact}"


@contextmanager
def our_sequences(scale: Scale, size: int) -> Iterator[Workload]:
    """Yields a workload (work to be timed): our replay samples 16 sequences of 64 frames uniformly.

    The replay stores `scale.frames[size]` frames. If memory is too small, fewer frames are stored,
    and the name of the workload says so.
    """
    feed = itertools.cycle(chunks(episodes(PIXELS, 1)))
    count = frames_that_fit(scale.frames[size])
    server = filled(PIXELS, count, SEQUENCES, feed)
    name = "ours" if count == scale.frames[size] else f"memory has room for {count:,} only"
    yield Workload(name, repeated(lambda: server.sample("real", "learner")), FRAMES)


@contextmanager
def numpy_sequences(scale: Scale, size: int) -> Iterator[Workload]:
    """Yields a workload (work to be timed): np.take copies 16 sequences of 64 frames.

    The sequences are copied from an array of `scale.frames[size]` frames, but at most 10^5 frames.
    """
    rows = episodes(PIXELS, 1)["obs"].reshape(-1, *PIXELS.shape)
    frames = np.resize(rows, (min(scale.frames[size], 10**5), *PIXELS.shape))
    gather = libraries.bare_gather(frames, SEQUENCES.batch, SEQUENCES.window)
    yield Workload("np.take", repeated(gather), FRAMES)


def frames_that_fit(wanted: int) -> int:
    """Returns `wanted`, or a smaller number of frames if memory is too small.

    Memory is too small if `wanted` frames would leave less than 3 GB free (Linux only).
    """
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            room = int(line.split()[1]) * 1024 - 3 * 10**9
            return max(min(wanted, room // 12_400), FRAMES)
    return wanted
