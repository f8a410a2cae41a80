"""Defines which learners are compared in the benchmark of updates per second."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from benchmarks.timing import repeated
from dreamfleet.core.config import TrainConfig
from dreamfleet.core.types import Agent, Batch, TableSpec
from dreamfleet.learner.learner import Learner
from dreamfleet.learner.weight_store import LocalWeights
from dreamfleet.replay_server import ReplayServer

CHUNK: Final = 8  # rows of each stream that are added in one call

Updates = Callable[[int], None]  # a function of n that does n updates


@dataclass(frozen=True)
class Comparison:
    """Learners whose speed is compared: learners of one of our agents, and other implementations.

    `learners` maps a name to a function that builds the learner with its own, filled replay. All
    replays have the same capacity.
    """

    batch: int
    capacity: int  # rows in the replay
    ours: tuple[str, ...]  # learners of ours that the other implementations are compared with
    others: tuple[str, ...]  # further learners of ours, shown without a comparison
    learners: Mapping[str, Callable[[], Updates]]  # name → builder
    needs: Mapping[str, str] = field(default_factory=dict)  # name → package that must be installed


def our_updates(agent: Agent, rows: Batch) -> Updates:
    """Returns a function of n that does n updates as our `Learner` does in a run.

    rows: the rows that fill the replay, as columns of shape (N, T, …), T rows of each of N
    environments.
    """
    real = agent.tables["real"]
    assert isinstance(real, TableSpec)
    policy = replace(real.consumers["policy"], samples_per_step=None)  # no limit by a ratio
    spec = replace(real, consumers={**real.consumers, "policy": policy})
    replay = ReplayServer({**agent.tables, "real": spec}, seed=0)
    rows = {name: values for name, values in rows.items() if name in spec.columns}
    rows["held_out"] = np.zeros_like(rows["last"])
    streams, length = rows["last"].shape
    for begin in range(0, length, CHUNK):
        chunk = {name: values[:, begin : begin + CHUNK] for name, values in rows.items()}
        assert replay.add("real", chunk, np.arange(streams))
    defaults = TrainConfig()
    learner = Learner(
        agent,
        replay,
        LocalWeights(),
        pulls=(),
        publish_every=defaults.publish_every,
        log_every=defaults.log_every,
    )

    def once() -> None:
        assert learner.step()

    return repeated(once)
