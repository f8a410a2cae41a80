"""Predicts when a full table will have room for more agent steps."""

from __future__ import annotations

import math
from typing import Final

MEASURED_S: Final = 0.25  # shortest time over which the rate is measured, in seconds


class RoomForecast:
    """Estimates how long a refused caller must wait until a table has room.

    The estimate follows the table's limit: the agent steps added so far plus the room for more.
    The limit grows as consumers take samples. Times are seconds of any monotonic clock.
    """

    def __init__(self) -> None:
        self._limit = math.inf  # newest limit, in agent steps
        self._changed_at = -math.inf  # when the limit last changed
        self._measured_limit = math.inf  # limit at the start of the present measurement
        self._measured_at = -math.inf
        self._steps_per_s = 0.0

    def record(self, limit: float, now: float) -> None:
        """Records the table's limit at time `now`, and updates the measured rate."""
        if limit != self._limit:
            self._changed_at = now
        if math.isinf(limit) or math.isinf(self._measured_limit):
            self._measured_limit, self._measured_at = limit, now
        elif now - self._measured_at >= MEASURED_S:
            self._steps_per_s = (limit - self._measured_limit) / (now - self._measured_at)
            self._measured_limit, self._measured_at = limit, now
        self._limit = limit

    def seconds_until(self, steps: float, now: float) -> float:
        """Returns the expected seconds until there is room for `steps` more agent steps.

        The result is at least the time since the limit last changed: a limit that has not moved
        for a while is expected not to move for as long again.
        """
        at_rate = steps / self._steps_per_s if self._steps_per_s > 0 else 0.0
        return max(at_rate, now - self._changed_at)
