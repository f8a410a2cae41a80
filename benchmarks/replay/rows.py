"""Makes random rows of 16 streams (environments) for the replay benchmark, and fills our replay."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Final

import numpy as np

from dreamfleet.core.selectors import Prioritized
from dreamfleet.core.types import Array, Batch, Consumer, Space, TableSpec
from dreamfleet.replay_server import ReplayServer

STREAMS: Final = np.arange(16)
CHUNK: Final = 64  # rows of each stream in one call of `add`
ADDED: Final = STREAMS.size * CHUNK  # rows in one call of `add`
EPISODE: Final = 4 * CHUNK  # rows, the last one included
BATCH: Final = 256  # transitions
BETA: Final = 0.4  # exponent of the importance weights

LOW: Final = Space((24,), "float32")  # low-dimensional: an observation of BipedalWalker
ATARI: Final = Space((84, 84), "uint8")
PIXELS: Final = Space((64, 64, 3), "uint8")

PRIORITIZED: Final = Prioritized(exponent=0.6, initial="priority")
NEEDED: Final = ("obs", "action", "reward", "terminal")  # columns of a transition
TRANSITIONS: Final = Consumer(batch=BATCH, window=2, selector=PRIORITIZED, columns=NEEDED)


def columns(obs: Space) -> dict[str, Space]:
    """Returns the spaces (shapes and data types) of a replay table's columns, by column name.

    obs: the space of an observation.
    """
    flags = dict.fromkeys(("first", "last", "terminal"), Space((), "bool"))
    numbers = dict.fromkeys(("reward", "priority"), Space((), "float32"))
    return {"obs": obs, "action": Space((), "int64", 4), **numbers, **flags}


def episodes(obs: Space, n: int) -> Batch:
    """Returns random rows for the replay benchmark: n episodes of each of 16 environments.

    All episodes end by termination. Each column has the shape (16, n * EPISODE, …). obs: shape and
    data type of an observation.
    """
    rng = np.random.default_rng(0)
    lead = (STREAMS.size, n * EPISODE)
    values: Array
    if obs.dtype == "uint8":
        size = int(np.prod((*lead, *obs.shape)))
        values = np.frombuffer(rng.bytes(size), np.uint8).reshape(*lead, *obs.shape)
    else:
        values = rng.standard_normal((*lead, *obs.shape), dtype=np.float32)
    at = np.arange(lead[1]) % EPISODE
    first, last = (np.broadcast_to(at == end, lead).copy() for end in (0, EPISODE - 1))
    rows = {
        "obs": values,
        "action": rng.integers(0, 4, lead),
        "reward": rng.standard_normal(lead, dtype=np.float32),
        "first": first,
        "last": last,
        "terminal": last,
        "priority": rng.random(lead, dtype=np.float32),
    }
    return {name: rows[name] for name in columns(obs)}


def chunks(rows: Batch) -> list[Batch]:
    """Splits rows of 16 environments into chunks, the parts that an actor sends in one call.

    rows: columns of shape (16, T, …), T rows of each environment. A chunk has columns of shape (16,
    CHUNK, …).
    """
    length = rows["last"].shape[1]
    return [
        {name: np.ascontiguousarray(values[:, t : t + CHUNK]) for name, values in rows.items()}
        for t in range(0, length, CHUNK)
    ]


def endless(obs: Space, n: int) -> Iterator[Batch]:
    """Yields random chunks of episodes that never end, one episode for each of 16 environments.

    A chunk is 64 rows of each environment. The values repeat after n * EPISODE rows. obs: shape and
    data type of an observation.
    """
    rows = episodes(obs, n)
    for name in ("first", "last", "terminal"):
        rows[name] = np.zeros_like(rows[name])
    first_chunk = chunks(rows)[0]
    first_chunk["first"][:, 0] = True
    return itertools.chain([first_chunk], itertools.cycle(chunks(rows)))


def filled(obs: Space, capacity: int, consumer: Consumer, feed: Iterator[Batch]) -> ReplayServer:
    """Returns a replay server whose table `real` is filled to `capacity` rows.

    obs: shape and data type of an observation. consumer: how the table is sampled. feed: yields
    chunks of rows that fill the table.
    """
    spec = TableSpec(capacity, columns(obs), {"learner": consumer})
    server = ReplayServer({"real": spec}, seed=0)
    for _ in range(-(-capacity // ADDED)):
        assert server.add("real", next(feed), STREAMS)
    return server


class PrioritizedCycle:
    """Repeats the replay calls of a prioritized update: sample, compute weights, update priorities.

    Each call of the object does one such update, without learning: the new priorities are random.
    """

    def __init__(self, server: ReplayServer, batch: int) -> None:
        self._server = server
        errors = np.random.default_rng(1).random((64, batch))
        self._errors = itertools.cycle(errors)

    def __call__(self) -> tuple[Batch, Array]:
        """Samples a batch, updates its priorities with random numbers, and returns it.

        Returns the sampled data and its importance weights, which are scaled to a maximum of 1.
        """
        sample = self._server.sample("real", "learner")
        assert sample is not None and not isinstance(sample, dict)
        weights = (sample.size * sample.prob) ** -BETA
        weights /= weights.max()
        self._server.update("real", sample.keys, {"priority": next(self._errors)})
        return sample.data, weights
