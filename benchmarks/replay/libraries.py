"""What others would store the same rows in, inside one process. Each at its best setting.

cpprb without `next_of`: with it, batch adds were 1.4 times and cycles 1.1 times slower, and
successors at the ends of chunks wrong. SB3 without `handle_timeout_termination`: an array less to
read and write; of its two layouts the faster one is picked before the rounds begin.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks.replay.rows import BATCH, BETA, CHUNK, EPISODE, STREAMS
from dreamfleet.core.types import Array, Batch

N = STREAMS.size


def transitions(rows: Batch) -> list[Batch]:
    """Rows (16, T, …) as transitions (n, …), chunk by chunk, computed ahead for the peer."""
    rng = np.random.default_rng(2)
    made = []
    for t in range(0, rows["last"].shape[1] - 1, CHUNK):
        now, then = slice(t, t + CHUNK), slice(t + 1, t + CHUNK + 1)
        steps = ~rows["last"][:, now][:, : rows["last"][:, then].shape[1]]
        here = {name: rows[name][:, now][:, : steps.shape[1]][steps] for name in ("obs", "action")}
        after = {name: rows[name][:, then][steps] for name in ("obs", "reward", "terminal")}
        made.append(
            {
                "obs": here["obs"],
                "act": here["action"],
                "rew": after["reward"],
                "next_obs": after["obs"],
                "done": after["terminal"],
                "priorities": rng.random(len(here["action"])),
            }
        )
    return made


# ----------------------------------------------------------------------------------- cpprb


def cpprb_filled(capacity: int, feed: Iterator[Batch]) -> Any:
    """Its prioritized buffer, full."""
    from cpprb import PrioritizedReplayBuffer

    fields = {
        "obs": {"shape": 24},
        "act": {"dtype": np.int64},
        "rew": {},
        "next_obs": {"shape": 24},
        "done": {"dtype": np.bool_},
    }
    buffer = PrioritizedReplayBuffer(capacity, fields, alpha=0.6)
    while buffer.get_stored_size() < capacity:
        buffer.add(**next(feed))
    return buffer


def cpprb_cycle(buffer: Any) -> Callable[[], object]:
    """Sample with weights, then update."""
    errors = itertools.cycle(np.random.default_rng(1).random((64, BATCH)))

    def cycle() -> object:
        sample = buffer.sample(BATCH, beta=BETA)
        buffer.update_priorities(sample["indexes"], next(errors))
        return sample

    return cycle


# ------------------------------------------------------------------------------------- SB3


class SB3:
    """Its uniform buffer. add() takes one step of n environments, the only way there is."""

    def __init__(
        self, shape: tuple[int, ...], dtype: str, capacity: int, compact: bool, n: int = N
    ) -> None:
        from gymnasium import spaces
        from stable_baselines3.common.buffers import ReplayBuffer

        high = 255 if dtype == "uint8" else np.inf
        self.buffer = ReplayBuffer(
            capacity,
            spaces.Box(0 if dtype == "uint8" else -high, high, shape, np.dtype(dtype).type),
            spaces.Discrete(4),
            n_envs=n,
            optimize_memory_usage=compact,  # no next_obs is stored
            handle_timeout_termination=False,
        )
        self._infos: list[dict[str, Any]] = [{} for _ in range(n)]

    def fill(self, steps: Iterator[tuple[Array, ...]]) -> SB3:
        while not self.buffer.full:
            self.add(next(steps))
        return self

    def add(self, step: tuple[Array, ...]) -> None:
        self.buffer.add(*step, self._infos)


def vector_steps(rows: Batch, stack: int = 1) -> Iterator[tuple[Array, ...]]:
    """obs, next_obs, action, reward, done of 16 environments, step by step, without end.

    With a stack, obs are (16, stack, …): what a frame-stacking environment hands over.
    """
    obs = rows["obs"]

    def seen(t: int) -> Array:
        found: Array = obs[:, t - stack + 1 : t + 1] if stack > 1 else obs[:, t]
        return np.ascontiguousarray(found)

    def step(t: int) -> tuple[Array, ...]:
        action = rows["action"][:, t, None]
        return seen(t), seen(t + 1), action, rows["reward"][:, t + 1], rows["terminal"][:, t + 1]

    ends = rows["last"][0]  # all streams end together
    begins = [t for t in range(stack - 1, ends.size) if not ends[t]]
    opened = [t for t in begins if t % EPISODE >= stack - 1]  # no stack across two episodes
    return itertools.cycle([step(t) for t in opened])


# ----------------------------------------------------------------------------------- numpy


def bare_gather(frames: Array, batch: int, length: int) -> Callable[[], Array]:
    """np.take of windows of neighbouring rows, their indices known beforehand."""
    rng = np.random.default_rng(3)
    starts = rng.integers(0, len(frames) - length + 1, (64, batch, 1))
    indices = itertools.cycle(starts + np.arange(length))
    return lambda: np.take(frames, next(indices), axis=0)
