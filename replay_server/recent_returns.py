"""Computes the mean return of the episodes that a table received most recently."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dreamfleet.core.types import Array, EpisodeStats

LAST = 100  # episodes in the mean return
OUTLIER = 3000.0  # a return whose size exceeds the median size so many times is left out


class RecentReturns:
    """Counts episodes, and computes the mean return of the last hundred of them."""

    def __init__(self) -> None:
        self._episodes = 0
        self._returns: deque[float] = deque(maxlen=LAST)

    def add(self, returns: Array) -> None:
        """Adds the returns (K,) of K finished episodes."""
        self._episodes += returns.size
        self._returns.extend(returns.tolist())

    def summary(self) -> EpisodeStats:
        """Returns the number of episodes, and the mean of the last hundred returns except outliers.

        A return is an outlier if its absolute value is over `OUTLIER` times the median of the
        absolute values.
        """
        if not self._returns:
            return EpisodeStats()
        returns = np.array(self._returns)
        size = np.abs(returns)
        median = np.median(size)
        kept = returns[size <= OUTLIER * median] if median else returns
        return EpisodeStats(self._episodes, float(kept.mean()))

    def state(self) -> dict[str, Any]:
        """Returns the number of episodes and the last hundred returns, for a checkpoint."""
        return {"episodes": self._episodes, "returns": np.array(self._returns, np.float64)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restores the number of episodes and the last returns from a saved `state`."""
        self._episodes = int(state["episodes"])
        self._returns = deque(state["returns"].tolist(), LAST)


def merged(stats: Sequence[EpisodeStats]) -> EpisodeStats:
    """Returns the statistics of all episodes, from those of each shard (replay process)."""
    weights = [min(shard.episodes, LAST) for shard in stats]
    total = sum(weight * shard.mean_return for weight, shard in zip(weights, stats, strict=True))
    return EpisodeStats(sum(shard.episodes for shard in stats), total / max(sum(weights), 1))
