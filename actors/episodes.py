"""The running return and length of each episode, and what evaluations make of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dreamfleet.core.types import Batch


@dataclass(frozen=True)
class Episode:
    """An episode that ended."""

    environment: int
    total: float  # the undiscounted return, of unshaped rewards
    length: int  # agent steps: the rows that an action led to
    facts: dict[str, Any]  # name → a Python number, from `VectorEnv.info`
    cut: bool = False  # it did not end: an evaluation stopped it at its limit of steps


class Episodes:
    """Sums the rows of n environments and finds the episodes that ended."""

    def __init__(self, n: int) -> None:
        self._return = np.zeros(n)
        self._length = np.zeros(n, np.int64)

    def add(self, rows: Batch, info: Batch) -> list[Episode]:
        """Rows and info (N, …) → the episodes that end with them."""
        self._return = np.where(rows["first"], 0.0, self._return) + rows["reward"]
        self._length = np.where(rows["first"], 0, self._length + 1)
        return [self._episode(i, info) for i in np.flatnonzero(rows["last"]).tolist()]

    def cut(self, i: int, info: Batch) -> Episode:
        """Returns the episode of environment `i` as far as it got."""
        return replace(self._episode(i, info), cut=True)

    def _episode(self, i: int, info: Batch) -> Episode:
        facts = {name: _python(values[i]) for name, values in info.items()}
        facts = {name: value for name, value in facts.items() if value is not None}
        total = facts.pop("return", self._return[i])  # the unshaped one, where there are two
        return Episode(i, float(total), int(self._length[i]), facts)


def _python(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def summary(episodes: Sequence[Episode]) -> dict[str, float]:
    """Returns figures over all episodes, then `tier_2/…`: those of each category.

    Facts that are integers are categories; the others have a mean, over the episodes that have
    them.
    """
    found = figures(episodes)
    found["cut_short"] = sum(episode.cut for episode in episodes)
    for name in _names(episodes, categories=True):
        of_each = [episode.facts.get(name) for episode in episodes]
        for category in sorted({value for value in of_each if value is not None}):
            pairs = zip(episodes, of_each, strict=True)
            these = [episode for episode, value in pairs if value == category]
            found |= {f"{name}_{category}/{key}": value for key, value in figures(these).items()}
    return found


def figures(episodes: Sequence[Episode]) -> dict[str, float]:
    """Returns means and extremes over episodes."""
    returns = np.array([episode.total for episode in episodes])
    found = {
        "return_mean": float(returns.mean()),
        "return_std": float(returns.std()),
        "return_min": float(returns.min()),
        "length_mean": float(np.mean([episode.length for episode in episodes])),
        "episodes": len(episodes),
    }
    for name in _names(episodes, categories=False):
        values = [episode.facts[name] for episode in episodes if name in episode.facts]
        found[f"{name}_mean"] = float(np.mean(values))
    return found


def _names(episodes: Sequence[Episode], categories: bool) -> list[str]:
    """Returns the names of facts in the order in which they first come up."""
    names: dict[str, None] = {}
    for episode in episodes:
        for name, value in episode.facts.items():
            if (type(value) is int) == categories:
                names[name] = None
    return list(names)
