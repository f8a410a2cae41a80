"""Predicts when a full replay table will accept rows again."""

from __future__ import annotations

import math
from typing import Final

MEASURED_S: Final = 0.25  # shortest time over which the rate is measured, in seconds


class RoomForecast:
    """Predicts how long an actor must wait until a replay table accepts its rows.

    The table's limit is the number of agent steps (actions taken) added so far plus the number that
    the table still accepts. All times are seconds of one monotonic clock.
    """

    def __init__(self) -> None:
        self._limit = math.inf  # newest limit, in agent steps
        self._changed_at = -math.inf  # when the limit last changed
        self._measured_limit = math.inf  # limit at the start of the present measurement
        self._measured_at = -math.inf
        self._steps_per_s = 0.0

    def record(self, limit: float, now: float) -> None:
        """Records the limit of the replay table at the time `now`, to measure how fast it grows.

        limit: the agent steps (actions taken) added so far, plus those that the table still
        accepts.
        """
        if limit != self._limit:
            self._changed_at = now
        if math.isinf(limit) or math.isinf(self._measured_limit):
            self._measured_limit, self._measured_at = limit, now
        elif now - self._measured_at >= MEASURED_S:
            self._steps_per_s = (limit - self._measured_limit) / (now - self._measured_at)
            self._measured_limit, self._measured_at = limit, now
        self._limit = limit

    def seconds_until(self, steps: float, now: float) -> float:
        """Returns the expected seconds until the replay table accepts `steps` more agent steps.

        now: the present time. The result is at least the time since the table's limit last changed.
        """
        at_rate = steps / self._steps_per_s if self._steps_per_s > 0 else 0.0
        return max(at_rate, now - self._changed_at)
