"""The running return and length of each episode, and what evaluations make of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dreamfleet.core.types import Batch


@dataclass(frozen=True)
class Episode:
    """One that ended. `told`: what its environment says of it (`VectorEnv.info`)."""

    environment: int
    total: float  # the undiscounted return
    length: int  # agent steps: the rows that an action led to
    told: dict[str, Any]  # name → a Python number
    cut: bool = False  # it did not end: an evaluation stopped it at its limit of steps


class Episodes:
    """Sums the rows of n environments and tells which episodes ended."""

    def __init__(self, n: int) -> None:
        self._return = np.zeros(n)
        self._length = np.zeros(n, np.int64)

    def add(self, rows: Batch, info: Batch) -> list[Episode]:
        """Rows and info (N, …) → the episodes that end with them."""
        self._return = np.where(rows["first"], 0.0, self._return) + rows["reward"]
        self._length = np.where(rows["first"], 0, self._length + 1)
        return [self._episode(int(i), info) for i in np.flatnonzero(rows["last"])]

    def cut(self, i: int, info: Batch) -> Episode:
        """The episode of environment `i` as far as it got."""
        return replace(self._episode(i, info), cut=True)

    def _episode(self, i: int, info: Batch) -> Episode:
        told = {name: values[i].item() for name, values in info.items()}
        return Episode(i, float(self._return[i]), int(self._length[i]), told)


def summary(episodes: Sequence[Episode]) -> dict[str, float]:
    """What an evaluation reports: figures over all episodes, then `kind_2/…`, those of each kind.

    Of what environments tell, whole numbers are kinds, and the others (measures, yes or no) have
    a mean.
    """
    found = figures(episodes)
    found["cut_short"] = sum(episode.cut for episode in episodes)
    for name, value in episodes[0].told.items():
        if type(value) is int:
            for kind in sorted({episode.told[name] for episode in episodes}):
                those = figures([it for it in episodes if it.told[name] == kind])
                found |= {f"{name}_{kind}/{key}": figure for key, figure in those.items()}
    return found


def figures(episodes: Sequence[Episode]) -> dict[str, float]:
    """Means and extremes over episodes."""
    returns = np.array([episode.total for episode in episodes])
    found = {
        "return_mean": float(returns.mean()),
        "return_std": float(returns.std()),
        "return_min": float(returns.min()),
        "length_mean": float(np.mean([episode.length for episode in episodes])),
        "episodes": len(episodes),
    }
    for name, value in episodes[0].told.items():
        if type(value) is not int:
            found[f"{name}_mean"] = float(np.mean([episode.told[name] for episode in episodes]))
    return found
