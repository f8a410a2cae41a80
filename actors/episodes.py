"""Computes the returns and lengths of episodes, and their statistics over an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dreamfleet.core.types import Batch


@dataclass(frozen=True)
class Episode:
    """One episode: its return, its length, and extra values from the environment (facts)."""

    environment: int  # its index
    total: float  # undiscounted return of the unshaped rewards
    length: int  # agent steps
    facts: dict[str, Any]  # name → a Python number, from `VectorEnv.info`
    truncated: bool = False  # by the step limit of an evaluation


class Episodes:
    """Sums the rewards and counts the steps of the current episodes of N environments."""

    def __init__(self, n: int) -> None:
        self._return = np.zeros(n)
        self._length = np.zeros(n, np.int64)

    def add(self, rows: Batch, info: Batch) -> list[Episode]:
        """Adds one row of each of N environments. Returns the episodes that end with these rows.

        rows: columns of shape (N, …). info: name → (N,), extra values of the episodes that end.
        """
        self._return = np.where(rows["first"], 0.0, self._return) + rows["reward"]
        self._length = np.where(rows["first"], 0, self._length + 1)
        return [self._episode(i, info) for i in np.flatnonzero(rows["last"]).tolist()]

    def truncate(self, i: int, info: Batch) -> Episode:
        """Returns the unfinished episode of environment `i`, marked as truncated.

        info: name → (N,), extra values that the environments report for their episodes.
        """
        return replace(self._episode(i, info), truncated=True)

    def _episode(self, i: int, info: Batch) -> Episode:
        facts = {name: _python(values[i]) for name, values in info.items()}
        facts = {name: value for name, value in facts.items() if value is not None}
        total = facts.pop("return", self._return[i])  # of unshaped rewards
        return Episode(i, float(total), int(self._length[i]), facts)


def _python(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def summary(episodes: Sequence[Episode]) -> dict[str, float]:
    """Returns the statistics of all episodes together, and of each category of episodes.

    A fact is a named value that the environment reported for an episode. A fact with integer values
    divides the episodes into categories: `tier_2/return_mean` is the mean return of the episodes
    whose `tier` is 2.
    """
    found = statistics(episodes)
    found["reached_step_limit"] = sum(episode.truncated for episode in episodes)
    for name in _names(episodes, categories=True):
        values = [episode.facts.get(name) for episode in episodes]
        for category in sorted({value for value in values if value is not None}):
            pairs = zip(episodes, values, strict=True)
            members = [episode for episode, value in pairs if value == category]
            of_members = statistics(members).items()
            found |= {f"{name}_{category}/{key}": value for key, value in of_members}
    return found


def statistics(episodes: Sequence[Episode]) -> dict[str, float]:
    """Returns statistics of the episodes' returns and lengths, and the mean of each reported fact.

    Facts with integer values are left out, as they stand for categories. The mean of a fact is over
    the episodes that have this fact.
    """
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
    """Returns the names of the values that environments reported for episodes (facts).

    The names are in order of appearance. categories: True for facts with integer values, which
    stand for categories; False for all other facts.
    """
    names: dict[str, None] = {}
    for episode in episodes:
        for name, value in episode.facts.items():
            if (type(value) is int) == categories:
                names[name] = None
    return list(names)
