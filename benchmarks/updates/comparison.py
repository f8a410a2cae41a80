"""What takes part when the updates of a learner are timed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from benchmarks.timing import each
from dreamfleet.core.config import TrainConfig
from dreamfleet.core.types import Agent, Batch, TableSpec
from dreamfleet.learner.learner import Learner
from dreamfleet.learner.weight_store import LocalWeights
from dreamfleet.replay_server import ReplayServer

CHUNK: Final = 8  # rows of each stream that are added at once

Work = Callable[[int], None]  # does so many updates


@dataclass(frozen=True)
class Race:
    """An agent's learner and its peers. `sides` build what they need and return their work."""

    batch: int
    capacity: int  # rows to draw from
    ours: tuple[str, ...]  # the sides that peers are compared with
    others: tuple[str, ...]  # more of ours, only shown
    sides: Mapping[str, Callable[[], Work]]  # by name
    needs: Mapping[str, str] = field(default_factory=dict)  # side → the distribution it is of


def learning(agent: Agent, rows: Batch) -> Work:
    """What `Learner` does in a run, from rows (N, T, …) of N streams in a replay of our own."""
    real = agent.tables["real"]
    assert isinstance(real, TableSpec)
    policy = replace(real.consumers["policy"], samples_per_step=None)  # as fast as it can
    spec = replace(real, consumers={**real.consumers, "policy": policy})
    replay = ReplayServer({**agent.tables, "real": spec}, seed=0)
    rows = {name: of for name, of in rows.items() if name in spec.columns}
    rows["held_out"] = np.zeros_like(rows["last"])
    streams, length = rows["last"].shape
    for begin in range(0, length, CHUNK):
        chunk = {name: of[:, begin : begin + CHUNK] for name, of in rows.items()}
        assert replay.add("real", chunk, np.arange(streams))
    rhythm = TrainConfig()
    learner = Learner(
        agent,
        replay,
        LocalWeights(),
        pulls=(),
        publish_every=rhythm.publish_every,
        log_every=rhythm.log_every,
    )

    def once() -> None:
        assert learner.step()

    return each(once)
