"""Environments that break in ways an exception cannot tell: `tests.runtime.broken:Hanging-v0`."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import Any

import gymnasium as gym

from dreamfleet.envs.probe import Count


class Hanging(Count):
    """A step in thirty never returns."""

    def step(self, action: Any) -> Any:
        if self.np_random.random() < 1 / 30:
            time.sleep(3600)
        return super().step(action)


class Killed(Count):
    """A step in thirty kills the process, as a machine without memory left would."""

    def step(self, action: Any) -> Any:
        if self.np_random.random() < 1 / 30:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().step(action)


class Endless(Count):
    """No episode ends. After 1,000 steps it makes the file that the variable STEPPED names."""

    steps = 0

    def step(self, action: Any) -> Any:
        obs, reward, _, truncated, info = super().step(action)
        self.steps += 1
        if self.steps == 1_000 and "STEPPED" in os.environ:
            Path(os.environ["STEPPED"]).touch()
        return obs, reward, False, truncated, info


class Deaf(Count):
    """After 200 steps of a run none returns, and whatever a signal raises is swallowed."""

    steps = 0  # of all environments in the process

    def step(self, action: Any) -> Any:
        Deaf.steps += 1
        while Deaf.steps > 201:  # the first one tries the environment out
            with contextlib.suppress(BaseException):
                time.sleep(3600)
        return super().step(action)


class Quits(Count):
    """A step in fifty ends the process, as programs do when their window closes."""

    def step(self, action: Any) -> Any:
        if self.np_random.random() < 1 / 50:
            os._exit(7)
        return super().step(action)


for _env in (Hanging, Killed, Endless, Deaf, Quits):
    gym.register(f"{_env.__name__}-v0", f"{__name__}:{_env.__name__}")
