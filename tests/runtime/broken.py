"""Environments that hang or end their process, such as `tests.runtime.broken:Hanging-v0`."""

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
    """A step never returns, with probability 1/30."""

    def step(self, action: Any) -> Any:
        if self.np_random.random() < 1 / 30:
            time.sleep(3600)
        return super().step(action)


class Killed(Count):
    """A step kills the process with probability 1/30, as a machine out of memory would."""

    def step(self, action: Any) -> Any:
        if self.np_random.random() < 1 / 30:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().step(action)


class Endless(Count):
    """No episode ends. Step 1,000 creates the file whose path is in the variable STEPPED."""

    steps = 0

    def step(self, action: Any) -> Any:
        obs, reward, _, truncated, info = super().step(action)
        self.steps += 1
        if self.steps == 1_000 and "STEPPED" in os.environ:
            Path(os.environ["STEPPED"]).touch()
        return obs, reward, False, truncated, info


class Unstoppable(Count):
    """After 200 steps no step returns, and the exceptions of signal handlers are swallowed."""

    steps = 0  # of all environments in the process

    def step(self, action: Any) -> Any:
        Unstoppable.steps += 1
        while Unstoppable.steps > 201:  # one more: the first step is taken before the run
            with contextlib.suppress(BaseException):
                time.sleep(3600)
        return super().step(action)


class Quits(Count):
    """A step ends the process with probability 1/50, as a game with a closed window may."""

    def step(self, action: Any) -> Any:
        if self.np_random.random() < 1 / 50:
            os._exit(7)
        return super().step(action)


for _env in (Hanging, Killed, Endless, Unstoppable, Quits):
    gym.register(f"{_env.__name__}-v0", f"{__name__}:{_env.__name__}")
