"""Pulls newer weights from the weight store into an agent."""

from __future__ import annotations

from dreamfleet.core.types import Agent, WeightStore


def pull(agent: Agent, weights: WeightStore, versions: dict[str, int]) -> None:
    """Loads those weight groups into `agent` of which the weight store has a newer version.

    A weight group is the networks that one process trains. weights: the weight store. versions: for
    each group to pull, the version that the agent has; updated in place.
    """
    for group, version in versions.items():
        newer = weights.latest(group, version)
        if newer is not None:
            versions[group], values = newer
            agent.load(group, values)
