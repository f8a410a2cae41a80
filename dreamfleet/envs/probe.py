"""Tiny environments with known state values for tests, and environments broken on purpose.

Their ids are `dreamfleet.envs.probe:Delayed-v0` and so on. The environments `Constant`,
`ObsReward`, `Delayed`, `ActionReward`, `ObsActionReward` and `Continuous` become harder in this
order (after Andy Jones, "Debugging RL, Without the Agonizing Pain", 2021).
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Discrete

from dreamfleet.core.types import Array

Step = tuple[Any, float, bool, bool, dict[str, Any]]


class _Probe(gym.Env[Array, Any]):
    """Base class of test environments: an observation is one number, an episode is one step."""

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
    """A one-step environment with reward 1.

    It tests whether the critic can learn a constant: the value is 1.
    """

    action_space = Discrete(1)


class ObsReward(_Probe):
    """A one-step environment whose reward is its observation, -1 or 1.

    It tests whether the learned value depends on the observation.
    """

    action_space = Discrete(1)

    def start(self) -> float:
        return self.sign()

    def reward(self, action: Any) -> float:
        return self.seen


class Delayed(_Probe):
    """A two-step environment: the observation is 0, then 1, and the second step has reward 1.

    The value of observation 1 is 1, and the value of observation 0 is the discount factor.
    """

    action_space = Discrete(1)

    def step(self, action: Any) -> Step:
        ends = self.seen == 1.0
        self.seen = 1.0
        return np.ones(1, np.float32), float(ends), ends, False, {}


class ActionReward(_Probe):
    """A one-step environment with reward 1 for action 1, and reward -1 for action 0.

    It tests whether the policy follows the reward.
    """

    def reward(self, action: Any) -> float:
        return 2.0 * float(action) - 1.0


class ObsActionReward(_Probe):
    """A one-step environment in which the right action depends on the observation.

    Action 1 is right after observation 1, and action 0 after observation -1. The reward is 1 for
    the right action, else -1.
    """

    def start(self) -> float:
        return self.sign()

    def reward(self, action: Any) -> float:
        return self.seen * (2.0 * float(action) - 1.0)


class Continuous(_Probe):
    """A one-step environment with actions in [0, 4] and reward -(action - 2 - observation)^2.

    The best action is 2 + observation, and its value is 0.
    """

    action_space = Box(0.0, 4.0, (1,), np.float32)

    def start(self) -> float:
        return self.sign()

    def reward(self, action: Any) -> float:
        return -(float(action[0] - 2.0 - self.seen) ** 2)


class Count(gym.Env[Array, Any]):
    """An environment that counts: in step t, the reward is t and the observation is [episode, t].

    length: steps of an episode. truncate: whether episodes are truncated instead of terminated.
    """

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
    """An environment whose observations are NaN after `healthy` steps of each episode."""

    def __init__(self, healthy: int = 3) -> None:
        super().__init__()
        self.healthy = healthy

    def step(self, action: Any) -> Step:
        obs, reward, terminated, truncated, info = super().step(action)
        if self.t > self.healthy:
            obs = obs * np.nan
        return obs, reward, terminated, truncated, info


class FaultyShape(Count):
    """A broken environment: observations after the first of an episode have one number too many."""

    def step(self, action: Any) -> Step:
        obs, reward, terminated, truncated, info = super().step(action)
        return np.append(obs, np.float32(0.0)), reward, terminated, truncated, info


class FaultyStep(Count):
    """An environment whose steps raise RuntimeError with a given probability."""

    def __init__(self, probability: float = 0.05) -> None:
        super().__init__()
        self.probability = probability

    def step(self, action: Any) -> Step:
        if self.np_random.random() < self.probability:
            raise RuntimeError("the probe broke, as it does now and then")
        return super().step(action)


class FaultyReset(Count):
    """An environment whose reset always raises RuntimeError."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        raise RuntimeError("the probe never starts")


for _probe in (
    *(Constant, ObsReward, Delayed, ActionReward, ObsActionReward, Continuous),
    *(Count, FaultyNaN, FaultyShape, FaultyStep, FaultyReset),
):
    gym.register(f"{_probe.__name__}-v0", f"{__name__}:{_probe.__name__}")
gym.register("CountTruncated-v0", f"{__name__}:Count", kwargs={"truncate": True})
