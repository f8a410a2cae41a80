"""Weights travel by pulling: whoever acts or learns on them asks for newer ones."""

from __future__ import annotations

from dreamfleet.core.types import Agent, WeightStore


def pull(agent: Agent, weights: WeightStore, versions: dict[str, int]) -> None:
    """Load every group of `versions` (group → version held) that the store holds newer."""
    for group, held in versions.items():
        newer = weights.latest(group, held)
        if newer is not None:
            versions[group], values = newer
            agent.load(group, values)
