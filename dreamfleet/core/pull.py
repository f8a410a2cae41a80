"""Pulls newer weights from the weight store into an agent."""

from __future__ import annotations

from dreamfleet.core.types import Agent, WeightStore


def pull(agent: Agent, weights: WeightStore, versions: dict[str, int]) -> None:
    """Loads the weight groups of which the store has newer versions into `agent`.

    versions: weight group → version that the agent has; updated in place.
    """
    for group, version in versions.items():
        newer = weights.latest(group, version)
        if newer is not None:
            versions[group], values = newer
            agent.load(group, values)
