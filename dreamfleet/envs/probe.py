"""Tiny environments whose answers are known, and broken ones.

Their ids are `dreamfleet.envs.probe:Delayed-v0` and so on.

The one-step probes each need one thing more of an agent than the one before, so the first that
fails says what is broken (after Andy Jones, "Debugging RL, Without the Agonizing Pain", 2021).
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Discrete

from dreamfleet.core.types import Array

Step = tuple[Any, float, bool, bool, dict[str, Any]]


class _Probe(gym.Env[Array, Any]):
    """One observation of one number, then the end."""

    observation_space = Box(-1.0, 1.0, (1,), np.float32)
    action_space: gym.Space[Any] = Discrete(2)
    seen = 0.0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.seen = self.start()
        return np.array([self.seen], np.float32), {}

    def step(self, action: Any) -> Step:
        return np.zeros(1, np.float32), self.reward(action), True, False, {}

    def start(self) -> float:
        return 0.0

    def reward(self, action: Any) -> float:
        return 1.0

    def sign(self) -> float:
        return float(self.np_random.choice((-1.0, 1.0)))


class Constant(_Probe):
    """Reward 1, whatever happens. The value is 1: can it learn a constant?"""

    action_space = Discrete(1)


class ObsReward(_Probe):
    """Reward is the observation, -1 or 1: does the value see the observation?"""

    action_space = Discrete(1)

    def start(self) -> float:
        return self.sign()

    def reward(self, action: Any) -> float:
        return self.seen


class Delayed(_Probe):
    """Sees 0, then 1, then is paid 1: value(1) is 1 and value(0) the discount."""

    action_space = Discrete(1)

    def step(self, action: Any) -> Step:
        ends = self.seen == 1.0
        self.seen = 1.0
        return np.ones(1, np.float32), float(ends), ends, False, {}


class ActionReward(_Probe):
    """Action 1 is paid 1, action 0 is paid -1: does the policy follow the reward?"""

    def reward(self, action: Any) -> float:
        return 2.0 * float(action) - 1.0


class ObsActionReward(_Probe):
    """Paid 1 for action 1 when 1 was seen and action 0 when -1 was, else -1: both at once."""

    def start(self) -> float:
        return self.sign()

    def reward(self, action: Any) -> float:
        return self.seen * (2.0 * float(action) - 1.0)


class Continuous(_Probe):
    """An action in [0, 4] is paid -(action - 2 - seen)^2: the best is 2 + seen, the value 0."""

    action_space = Box(0.0, 4.0, (1,), np.float32)

    def start(self) -> float:
        return self.sign()

    def reward(self, action: Any) -> float:
        return -(float(action[0] - 2.0 - self.seen) ** 2)


class Count(gym.Env[Array, Any]):
    """Observes [episode, t], pays t, and ends after `length` steps: every lost row shows."""

    observation_space = Box(0.0, np.inf, (2,), np.float32)
    action_space = Discrete(2)

    def __init__(self, length: int = 5, truncate: bool = False) -> None:
        self.length, self.truncate = length, truncate
        self.episode, self.t = -1, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.episode, self.t = self.episode + 1, 0
        return self._obs(), {}

    def step(self, action: Any) -> Step:
        self.t += 1
        ends = self.t == self.length
        return self._obs(), float(self.t), ends and not self.truncate, ends and self.truncate, {}

    def _obs(self) -> Array:
        return np.array([self.episode, self.t], np.float32)


class FaultyNaN(Count):
    """Observes NaN after `healthy` steps of an episode."""

    def __init__(self, healthy: int = 3) -> None:
        super().__init__()
        self.healthy = healthy

    def step(self, action: Any) -> Step:
        obs, reward, terminated, truncated, info = super().step(action)
        if self.t > self.healthy:
            obs = obs * np.nan
        return obs, reward, terminated, truncated, info


class FaultyShape(Count):
    """Observes one number too many after the first step."""

    def step(self, action: Any) -> Step:
        obs, reward, terminated, truncated, info = super().step(action)
        return np.append(obs, np.float32(0.0)), reward, terminated, truncated, info


class FaultyStep(Count):
    """Raises on a step with a probability."""

    def __init__(self, probability: float = 0.05) -> None:
        super().__init__()
        self.probability = probability

    def step(self, action: Any) -> Step:
        if self.np_random.random() < self.probability:
            raise RuntimeError("the probe broke, as it does now and then")
        return super().step(action)


class FaultyReset(Count):
    """Never starts."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        raise RuntimeError("the probe never starts")


for _probe in (
    *(Constant, ObsReward, Delayed, ActionReward, ObsActionReward, Continuous),
    *(Count, FaultyNaN, FaultyShape, FaultyStep, FaultyReset),
):
    gym.register(f"{_probe.__name__}-v0", f"{__name__}:{_probe.__name__}")
gym.register("CountTruncated-v0", f"{__name__}:Count", kwargs={"truncate": True})
