from __future__ import annotations

import numpy as np
import pytest

from dreamfleet.runtime.room_forecast import RoomForecast


def test_the_wait_follows_from_the_rate_at_which_the_limit_grows():
    forecast = RoomForecast()
    for tick in range(101):
        forecast.record(100 + 0.5 * tick, now=7.0 + 0.01 * tick)  # 50 steps a second
    assert forecast.seconds_until(8, now=8.0) == pytest.approx(8 / 50, rel=1e-6)
    forecast.record(np.inf, now=9.0)
    forecast.record(500.0, now=10.0)  # a jump from infinity is not a rate
    forecast.record(510.0, now=11.0)
    assert forecast.seconds_until(5, now=11.0) == pytest.approx(0.5)


def test_the_wait_grows_while_the_limit_does_not_change():
    forecast = RoomForecast()
    forecast.record(100.0, now=7.0)
    waits = [forecast.seconds_until(8, now) for now in (7.0, 7.1, 9.0)]
    assert waits == pytest.approx([0.0, 0.1, 2.0])
    forecast.record(200.0, now=8.0)
    assert forecast.seconds_until(1, now=8.0) == pytest.approx(0.01)
    assert forecast.seconds_until(1, now=20.0) == pytest.approx(12.0)
