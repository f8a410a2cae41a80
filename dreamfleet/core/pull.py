"""Pulls newer weights from the weight store into an agent."""

from __future__ import annotations

from dreamfleet.core.types import Agent, WeightStore


def pull(agent: Agent, weights: WeightStore, versions: dict[str, int]) -> None:
    """Loads newer weights into `agent`, for each weight group with a newer version in the store.

    A weight group is the networks that one process trains. versions: for each group to pull, the
    version that the agent has; updated in place.
    """
    for group, version in versions.items():
        newer = weights.latest(group, version)
        if newer is not None:
            versions[group], values = newer
            agent.load(group, values)
