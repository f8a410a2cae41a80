"""The weight store of one process: holds the newest weights of each weight group."""

from __future__ import annotations

from dreamfleet.core.types import Weights


class LocalWeights:
    """A weight store in memory. It keeps the newest weights of each weight group, and copies none.

    A weight group is the networks that one process trains: "world" or "policy".
    """

    def __init__(self) -> None:
        self._newest: dict[str, tuple[int, Weights]] = {}

    def publish(self, group: str, weights: Weights) -> int:
        """Replaces the weights of a weight group. Returns their version, which counts from 1."""
        version = self._newest[group][0] + 1 if group in self._newest else 1
        self._newest[group] = (version, weights)
        return version

    def latest(self, group: str, have: int) -> tuple[int, Weights] | None:
        """Returns the newest version and weights of a weight group, if the version is above `have`.

        Returns None if the caller has the newest version already, or if none was published.
        """
        newest = self._newest.get(group)
        return newest if newest is not None and newest[0] > have else None
