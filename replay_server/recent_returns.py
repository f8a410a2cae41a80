"""The returns of the episodes whose rows a table was given."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dreamfleet.core.types import Array, EpisodeStats

LAST = 100  # episodes that the mean return is of
OUTLIER = 3000.0  # median sizes; a return beyond is left out, as a faulty reward made it


class RecentReturns:
    """Counts episodes and keeps the returns of the last hundred."""

    def __init__(self) -> None:
        self._episodes = 0
        self._returns: deque[float] = deque(maxlen=LAST)

    def add(self, returns: Array) -> None:
        """Take in the returns of episodes that ended (K,)."""
        self._episodes += returns.size
        self._returns.extend(returns.tolist())

    def summary(self) -> EpisodeStats:
        """Return how many episodes ended so far, and the mean return of the last hundred."""
        if not self._returns:
            return EpisodeStats()
        returns = np.array(self._returns)
        size = np.abs(returns)
        usual = np.median(size)
        kept = returns[size <= OUTLIER * usual] if usual else returns
        return EpisodeStats(self._episodes, float(kept.mean()))

    def state(self) -> dict[str, Any]:
        return {"episodes": self._episodes, "returns": np.array(self._returns, np.float64)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a state, or from nothing, which older checkpoints have."""
        self._episodes = int(state.get("episodes", 0))
        self._returns = deque(np.asarray(state.get("returns", ())).tolist(), LAST)


def merged(parts: Sequence[EpisodeStats]) -> EpisodeStats:
    """Return what several shards, each with its own episodes, know together."""
    weights = [min(part.episodes, LAST) for part in parts]
    total = sum(weight * part.mean_return for weight, part in zip(weights, parts, strict=True))
    return EpisodeStats(sum(part.episodes for part in parts), total / max(sum(weights), 1))
