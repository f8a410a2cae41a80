"""Synthetic rows of 16 streams, and our replay full of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Final

import numpy as np

from dreamfleet.core.selectors import Prioritized
from dreamfleet.core.types import Array, Batch, Consumer, Space, TableSpec
from dreamfleet.replay_server import ReplayServer

STREAMS: Final = np.arange(16)
CHUNK: Final = 64  # rows of a stream in one add
ADDED: Final = STREAMS.size * CHUNK  # rows of one add
EPISODE: Final = 4 * CHUNK  # rows, the last one included
BATCH: Final = 256  # transitions
BETA: Final = 0.4  # of the importance weights

LOW: Final = Space((24,), "float32")  # a BipedalWalker's observation
ATARI: Final = Space((84, 84), "uint8")
PIXELS: Final = Space((64, 64, 3), "uint8")

PRIORITIZED: Final = Prioritized(exponent=0.6, initial="priority")
NEEDED: Final = ("obs", "action", "reward", "terminal")  # of a transition
TRANSITIONS: Final = Consumer(batch=BATCH, window=2, selector=PRIORITIZED, columns=NEEDED)


def columns(obs: Space) -> dict[str, Space]:
    flags = dict.fromkeys(("first", "last", "terminal"), Space((), "bool"))
    numbers = dict.fromkeys(("reward", "priority"), Space((), "float32"))
    return {"obs": obs, "action": Space((), "int64", 4), **numbers, **flags}


def episodes(obs: Space, n: int) -> Batch:
    """n terminated episodes of random rows on every stream: (16, n * EPISODE, …)."""
    rng = np.random.default_rng(0)
    lead = (STREAMS.size, n * EPISODE)
    seen: Array
    if obs.dtype == "uint8":
        size = int(np.prod((*lead, *obs.shape)))
        seen = np.frombuffer(rng.bytes(size), np.uint8).reshape(*lead, *obs.shape)
    else:
        seen = rng.standard_normal((*lead, *obs.shape), dtype=np.float32)
    at = np.arange(lead[1]) % EPISODE
    first, last = (np.broadcast_to(at == edge, lead).copy() for edge in (0, EPISODE - 1))
    made = {
        "obs": seen,
        "action": rng.integers(0, 4, lead),
        "reward": rng.standard_normal(lead, dtype=np.float32),
        "first": first,
        "last": last,
        "terminal": last,
        "priority": rng.random(lead, dtype=np.float32),
    }
    return {name: made[name] for name in columns(obs)}


def chunks(rows: Batch) -> list[Batch]:
    """Rows (16, T, …) as actors send them: (16, CHUNK, …) at a time."""
    length = rows["last"].shape[1]
    return [
        {name: np.ascontiguousarray(of[:, t : t + CHUNK]) for name, of in rows.items()}
        for t in range(0, length, CHUNK)
    ]


def endless(obs: Space, n: int) -> Iterator[Batch]:
    """Chunks of one episode that never ends, so that every row is an agent step."""
    rows = episodes(obs, n)
    for name in ("first", "last", "terminal"):
        rows[name] = np.zeros_like(rows[name])
    opening = chunks(rows)[0]
    opening["first"][:, 0] = True
    return itertools.chain([opening], itertools.cycle(chunks(rows)))


def filled(obs: Space, capacity: int, consumer: Consumer, feed: Iterator[Batch]) -> ReplayServer:
    """A replay whose table `real` was filled to its capacity once from `feed`."""
    spec = TableSpec(capacity, columns(obs), {"learner": consumer})
    server = ReplayServer({"real": spec}, seed=0)
    for _ in range(-(-capacity // ADDED)):
        assert server.add("real", next(feed), STREAMS)
    return server


class Cycle:
    """What a prioritized learner asks of the replay for one update, its learning left out."""

    def __init__(self, server: ReplayServer, batch: int) -> None:
        self._server = server
        self._errors = np.random.default_rng(1).random((64, batch))  # TD errors of no learner
        self._turn = itertools.cycle(self._errors)

    def __call__(self) -> tuple[Batch, Array]:
        """→ the data and its importance weights, at most 1."""
        sample = self._server.sample("real", "learner")
        assert sample is not None and not isinstance(sample, dict)
        weights = (sample.size * sample.prob) ** -BETA
        weights /= weights.max()
        self._server.update("real", sample.keys, next(self._turn))
        return sample.data, weights
