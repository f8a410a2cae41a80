"""Replay buffers of other libraries for the replay benchmark, each with its fastest setting.

cpprb is used without its option `next_of`. With this option, adding batches took 1.4 times as long,
and sampling with new priorities took 1.1 times as long. In addition, next observations were wrong
at the ends of chunks (parts that are added in one call).

Stable-Baselines3 (SB3) is used without `handle_timeout_termination`, and with the faster of its two
storage layouts.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks.replay.rows import BATCH, BETA, CHUNK, EPISODE, STREAMS
from dreamfleet.core.types import Array, Batch

STREAM_COUNT = STREAMS.size


def transitions(rows: Batch) -> list[Batch]:
    """Converts rows of 16 environments to transitions, and returns them as a list of batches.

    rows: arrays of shape (16, T, …), T rows of each environment. Each batch has the transitions of
    CHUNK consecutive rows of each environment.
    """
    rng = np.random.default_rng(2)
    chunks = []
    for t in range(0, rows["last"].shape[1] - 1, CHUNK):
        now, following = slice(t, t + CHUNK), slice(t + 1, t + CHUNK + 1)
        steps = ~rows["last"][:, now][:, : rows["last"][:, following].shape[1]]
        here = {name: rows[name][:, now][:, : steps.shape[1]][steps] for name in ("obs", "action")}
        after = {name: rows[name][:, following][steps] for name in ("obs", "reward", "terminal")}
        chunks.append(
            {
                "obs": here["obs"],
                "act": here["action"],
                "rew": after["reward"],
                "next_obs": after["obs"],
                "done": after["terminal"],
                "priorities": rng.random(len(here["action"])),
            }
        )
    return chunks


# ----------------------------------------------------------------------------------- cpprb


def cpprb_filled(capacity: int, feed: Iterator[Batch]) -> Any:
    """Returns a prioritized replay buffer of cpprb, filled to `capacity` transitions.

    feed: yields batches of transitions.
    """
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
    """Returns a function that samples from a buffer of cpprb, and then updates the priorities.

    The function returns the sampled batch with importance weights. The new priorities are random.
    """
    errors = itertools.cycle(np.random.default_rng(1).random((64, BATCH)))

    def cycle() -> object:
        sample = buffer.sample(BATCH, beta=BETA)
        buffer.update_priorities(sample["indexes"], next(errors))
        return sample

    return cycle


# ------------------------------------------------------------------------------------- SB3


class SB3:
    """A uniform replay buffer of Stable-Baselines3 for n environments.

    A call of `add` adds one step of all n environments. shape, dtype: of an observation. compact:
    use the storage layout that has no separate array of next observations.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: str,
        capacity: int,
        compact: bool,
        n: int = STREAM_COUNT,
    ) -> None:
        from gymnasium import spaces
        from stable_baselines3.common.buffers import ReplayBuffer

        high = 255 if dtype == "uint8" else np.inf
        self.buffer = ReplayBuffer(
            capacity,
            spaces.Box(0 if dtype == "uint8" else -high, high, shape, np.dtype(dtype).type),
            spaces.Discrete(4),
            n_envs=n,
            optimize_memory_usage=compact,
            handle_timeout_termination=False,
        )
        self._infos: list[dict[str, Any]] = [{} for _ in range(n)]

    def fill(self, steps: Iterator[tuple[Array, ...]]) -> SB3:
        """Adds steps of all environments until the replay buffer is full, and returns this object.

        steps: yields arguments of `add`: obs, next_obs, action, reward and done.
        """
        while not self.buffer.full:
            self.add(next(steps))
        return self

    def add(self, step: tuple[Array, ...]) -> None:
        self.buffer.add(*step, self._infos)


def vector_steps(rows: Batch, stack: int = 1) -> Iterator[tuple[Array, ...]]:
    """Yields steps of 16 environments, one after the other, without end.

    A step is (obs, next_obs, action, reward, done), arrays whose first dimension is 16. rows:
    arrays of shape (16, T, …). stack: frames per observation. With more than one frame, obs and
    next_obs have the shape (16, stack, …).
    """
    obs = rows["obs"]

    def stacked(t: int) -> Array:
        found: Array = obs[:, t - stack + 1 : t + 1] if stack > 1 else obs[:, t]
        return np.ascontiguousarray(found)

    def step(t: int) -> tuple[Array, ...]:
        action = rows["action"][:, t, None]
        return (
            stacked(t),
            stacked(t + 1),
            action,
            rows["reward"][:, t + 1],
            rows["terminal"][:, t + 1],
        )

    ends = rows["last"][0]  # all streams end together
    steps = [t for t in range(stack - 1, ends.size) if not ends[t]]
    whole = [t for t in steps if t % EPISODE >= stack - 1]  # no stack across two episodes
    return itertools.cycle([step(t) for t in whole])


# ----------------------------------------------------------------------------------- numpy


def bare_gather(frames: Array, batch: int, length: int) -> Callable[[], Array]:
    """Returns a function that copies random windows of consecutive frames into one array (np.take).

    batch: number of windows. length: frames in a window. The function returns an array of shape
    (batch, length, …).
    """
    rng = np.random.default_rng(3)
    starts = rng.integers(0, len(frames) - length + 1, (64, batch, 1))
    indices = itertools.cycle(starts + np.arange(length))
    return lambda: np.take(frames, next(indices), axis=0)
