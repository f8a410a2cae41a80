"""Both sides of every comparison inside one process, filled and ready to be timed."""

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
    Cycle,
    chunks,
    episodes,
    filled,
)
from benchmarks.timing import Side, each
from dreamfleet.core.types import Consumer

STEPS_ADDED: Final = (
    ADDED * (EPISODE - 1) / EPISODE
)  # of an add; the last row of an episode is none
SEQUENCES: Final = Consumer(batch=16, window=64, columns=("obs",))  # what numpy gathers
FRAMES: Final = SEQUENCES.batch * SEQUENCES.window
STACK, STEPS, ATARI_BATCH, GAMMA = 4, 3, 512, 0.99
# The frames of two stacks, STEPS apart, and the rewards between them: nothing twice.
STACKS: Final = Consumer(ATARI_BATCH, 1 + STEPS, PRIORITIZED, context=STACK - 1)


@dataclass(frozen=True)
class Scale:
    """How large everything is."""

    seconds: float = 0.7  # of a side in a round
    seconds_apart: float = 2.5  # the same across processes
    transitions: int = 1 << 20
    stacks: int = 20_480  # Atari transitions; SB3 takes 56 kB for each
    frames: tuple[int, ...] = (10**4, 10**5, 10**6)
    updates: int = 10**8  # of priorities
    inserts: int = 10**7
    snapshot: int = 10**6


QUICK: Final = Scale(
    seconds=0.01,
    seconds_apart=0.05,
    transitions=1 << 12,
    stacks=4096,
    frames=(2048, 2048, 2048),
    updates=1 << 14,
    inserts=1 << 14,
    snapshot=1 << 12,
)


@contextmanager
def our_cycle(scale: Scale) -> Iterator[Side]:
    feed = itertools.cycle(chunks(episodes(LOW, 8)))
    yield Side("ours", each(Cycle(filled(LOW, scale.transitions, TRANSITIONS, feed), BATCH)), BATCH)


@contextmanager
def our_adds(scale: Scale) -> Iterator[Side]:
    feed = itertools.cycle(chunks(episodes(LOW, 8)))
    server = filled(LOW, scale.transitions, TRANSITIONS, feed)
    yield Side("ours", each(lambda: server.add("real", next(feed), STREAMS)), STEPS_ADDED)


@contextmanager
def cpprb_cycle(scale: Scale) -> Iterator[Side]:
    feed = itertools.cycle(libraries.transitions(episodes(LOW, 8)))
    yield Side(
        "cpprb", each(libraries.cpprb_cycle(libraries.cpprb_filled(scale.transitions, feed))), BATCH
    )


@contextmanager
def cpprb_adds(scale: Scale) -> Iterator[Side]:
    feed = itertools.cycle(libraries.transitions(episodes(LOW, 8)))
    buffer = libraries.cpprb_filled(scale.transitions, feed)
    yield Side("cpprb", each(lambda: buffer.add(**next(feed))), STEPS_ADDED)


@contextmanager
def our_uniform_samples(scale: Scale) -> Iterator[Side]:
    feed = itertools.cycle(chunks(episodes(LOW, 8)))
    server = filled(LOW, scale.transitions, Consumer(BATCH, window=2), feed)
    yield Side("ours", each(lambda: server.sample("real", "learner")), BATCH)


@contextmanager
def sb3_adds(scale: Scale, compact: bool, environments: int) -> Iterator[Side]:
    rows = {name: of[:environments] for name, of in episodes(LOW, 8).items()}
    steps = libraries.vector_steps(rows)
    sb3 = libraries.SB3((24,), "float32", scale.transitions, compact, environments).fill(steps)
    yield Side(_sb3(compact), each(lambda: sb3.add(next(steps))), environments)


@contextmanager
def sb3_samples(scale: Scale, compact: bool) -> Iterator[Side]:
    steps = libraries.vector_steps(episodes(LOW, 8))
    sb3 = libraries.SB3((24,), "float32", scale.transitions, compact).fill(steps)
    yield Side(_sb3(compact), each(lambda: sb3.buffer.sample(BATCH)), BATCH)


@contextmanager
def our_stacks(scale: Scale) -> Iterator[Side]:
    """Frames, n-step returns and weights; the stacks are slices of the frames."""
    feed = itertools.cycle(chunks(episodes(ATARI, 1)))
    cycle = Cycle(filled(ATARI, scale.stacks, STACKS, feed), ATARI_BATCH)

    def once() -> tuple[Any, ...]:
        data, weights = cycle()
        obs, next_obs = data["obs"][:, :STACK], data["obs"][:, STEPS:]
        goes_on = np.cumprod(~data["last"][:, STEPS:-1], axis=1)  # (B, STEPS)
        discount = GAMMA ** np.arange(STEPS)
        reward = (data["reward"][:, STACK:] * goes_on * discount).sum(axis=1)
        return obs, next_obs, reward, weights

    yield Side("ours", each(once), ATARI_BATCH)


@contextmanager
def sb3_stacks(scale: Scale, compact: bool) -> Iterator[Side]:
    steps = libraries.vector_steps(episodes(ATARI, 1), STACK)
    sb3 = libraries.SB3((STACK, *ATARI.shape), ATARI.dtype, scale.stacks, compact).fill(steps)
    yield Side(_sb3(compact), each(lambda: sb3.buffer.sample(ATARI_BATCH)), ATARI_BATCH)


def _sb3(compact: bool) -> str:
    return f"SB3, optimize_memory_usage={compact}"


@contextmanager
def our_sequences(scale: Scale, size: int) -> Iterator[Side]:
    feed = itertools.cycle(chunks(episodes(PIXELS, 1)))
    held = frames_held(scale.frames[size])
    server = filled(PIXELS, held, SEQUENCES, feed)
    name = "ours" if held == scale.frames[size] else f"memory has room for {held:,} only"
    yield Side(name, each(lambda: server.sample("real", "learner")), FRAMES)


@contextmanager
def numpy_sequences(scale: Scale, size: int) -> Iterator[Side]:
    """From 10^5 frames at most: there is no room for a million twice, and fewer are no slower."""
    rows = episodes(PIXELS, 1)["obs"].reshape(-1, *PIXELS.shape)
    frames = np.resize(rows, (min(scale.frames[size], 10**5), *PIXELS.shape))
    gather = libraries.bare_gather(frames, SEQUENCES.batch, SEQUENCES.window)
    yield Side("np.take", each(gather), FRAMES)


def frames_held(wanted: int) -> int:
    """As many as memory has room for, with 3 GB to spare (Linux)."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            room = int(line.split()[1]) * 1024 - 3 * 10**9
            return max(min(wanted, room // 12_400), FRAMES)
    return wanted
