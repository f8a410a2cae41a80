"""The weight store of one process: holds the newest weights of each weight group.

A weight group is the networks that one process trains.
"""

from __future__ import annotations

from dreamfleet.core.types import Weights


class LocalWeights:
    """A weight store in memory, which keeps the newest weights of each weight group.

    It does not copy the weights. A weight group is the networks that one process trains: "world" or
    "policy". read: whether anybody reads the weights; False if all workers share one agent.
    """

    def __init__(self, read: bool = True) -> None:
        self._newest: dict[str, tuple[int, Weights]] = {}
        self._read = read

    def wanted(self, group: str) -> bool:
        """Returns whether anybody reads the weights."""
        return self._read

    def publish(self, group: str, weights: Weights) -> int:
        """Replaces the weights of a weight group. Returns their version, which counts from 1.

        A weight group is the networks that one process trains.
        """
        version = self._newest[group][0] + 1 if group in self._newest else 1
        self._newest[group] = (version, weights)
        return version

    def latest(self, group: str, have: int) -> tuple[int, Weights] | None:
        """Returns the newest version and weights of a weight group.

        Returns None if no version is newer than `have`, the caller's version, or if none was
        published.
        """
        newest = self._newest.get(group)
        return newest if newest is not None and newest[0] > have else None
