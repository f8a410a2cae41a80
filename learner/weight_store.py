"""The weight store of a process: the newest weights of each weight group."""

from __future__ import annotations

from dreamfleet.core.types import Weights


class LocalWeights:
    """The newest weights of each group, in memory. Stores weights without copying them."""

    def __init__(self) -> None:
        self._newest: dict[str, tuple[int, Weights]] = {}

    def publish(self, group: str, weights: Weights) -> int:
        """Replaces the weights of a group → their version: 1, or one more than before."""
        version = self._newest[group][0] + 1 if group in self._newest else 1
        self._newest[group] = (version, weights)
        return version

    def latest(self, group: str, have: int) -> tuple[int, Weights] | None:
        """Returns version and weights of a group; None unless the version is above `have`."""
        newest = self._newest.get(group)
        return newest if newest is not None and newest[0] > have else None
