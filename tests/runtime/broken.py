"""Environments that hang, never end, or kill their process, for tests of fault handling.

An example of an id is `tests.runtime.broken:Hanging-v0`.
"""

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
    """An environment in which each step hangs for an hour with probability 1/30."""

    def step(self, action: Any) -> Any:
        if self.np_random.random() < 1 / 30:
            time.sleep(3600)
        return super().step(action)


class Killed(Count):
    """An environment in which each step kills its process with probability 1/30.

    The signal is SIGKILL, as on a machine that has run out of memory.
    """

    def step(self, action: Any) -> Any:
        if self.np_random.random() < 1 / 30:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().step(action)


class Endless(Count):
    """An environment whose episodes never end.

    Its step 1,000 creates the file that the environment variable STEPPED names, if it is set.
    """

    steps = 0

    def step(self, action: Any) -> Any:
        obs, reward, _, truncated, info = super().step(action)
        self.steps += 1
        if self.steps == 1_000 and "STEPPED" in os.environ:
            Path(os.environ["STEPPED"]).touch()
        return obs, reward, False, truncated, info


class Unstoppable(Count):
    """An environment that hangs at every step after the first 200, and swallows all exceptions.

    It also swallows the exceptions that signal handlers raise, so a signal cannot stop the step.
    """

    steps = 0  # of all environments in the process

    def step(self, action: Any) -> Any:
        Unstoppable.steps += 1
        while Unstoppable.steps > 201:  # one more: the first step is taken before the run
            with contextlib.suppress(BaseException):
                time.sleep(3600)
        return super().step(action)


class Quits(Count):
    """An environment in which each step ends its process with probability 1/50.

    A game does this when a person closes its window.
    """

    def step(self, action: Any) -> Any:
        if self.np_random.random() < 1 / 50:
            os._exit(7)
        return super().step(action)


for _env in (Hanging, Killed, Endless, Unstoppable, Quits):
    gym.register(f"{_env.__name__}-v0", f"{__name__}:{_env.__name__}")
