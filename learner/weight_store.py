"""Where weights wait to be pulled."""

from __future__ import annotations

from dreamfleet.core.types import Weights


class LocalWeights:
    """The newest weights of each group, in memory. It keeps what it is given: agents copy."""

    def __init__(self) -> None:
        self._newest: dict[str, tuple[int, Weights]] = {}

    def publish(self, group: str, weights: Weights) -> int:
        """Replace the weights of a group. → their version, from 1 and only rising."""
        version = self._newest[group][0] + 1 if group in self._newest else 1
        self._newest[group] = (version, weights)
        return version

    def latest(self, group: str, have: int) -> tuple[int, Weights] | None:
        """(version, weights) when newer than `have`, else None."""
        newest = self._newest.get(group)
        return newest if newest is not None and newest[0] > have else None
