"""Registers test environments whose values are given by functions."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np

CAMERA = gym.spaces.Box(0, 255, (64, 64, 3), np.uint8)
SWITCHES = gym.spaces.MultiDiscrete([5] * 8)  # 390,625 combinations
TWO = gym.spaces.Discrete(2)
BOX = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)


def register(
    name: str,
    *,
    obs: Callable[[gym.Env[Any, Any], int], Any] = lambda env, t: np.full(2, t, float),
    reward: Callable[[int], Any] = lambda t: 1.0,
    ended: Callable[[int], Any] = lambda t: t >= 5,
    cut: Callable[[int], Any] = lambda t: False,
    info: Callable[[int], Any] = lambda t: {},
    observes: gym.Space[Any] = BOX,
    acts: gym.Space[Any] = TWO,
) -> str:
    """Registers an environment as `name`, and returns the name.

    obs, reward, ended, cut and info are functions of the step t in the episode: they return the
    observation, the reward, whether the episode terminates or is truncated, and the info. observes:
    the observation space. acts: the action space. `obs` finds the last action in `env.action`,
    which is None after a reset.
    """

    class Own(gym.Env[Any, Any]):
        observation_space = observes
        action_space = copy.deepcopy(acts)

        def reset(self, *, seed: Any = None, options: Any = None) -> Any:
            self.t, self.action = 0, None
            return obs(self, 0), info(0)

        def step(self, action: Any) -> Any:
            self.t, self.action = self.t + 1, action
            return obs(self, self.t), reward(self.t), ended(self.t), cut(self.t), info(self.t)

    gym.registry.pop(name, None)
    gym.register(name, Own)
    return name


def drawing(name: str) -> str:
    """Registers an environment that uses every random generator it can reach, and returns its id.

    The generators are its own `np_random`, those of its spaces, and the global ones.
    """

    def obs(env: Any, t: int) -> Any:
        own = env.np_random.random() + env.observation_space.sample()[0]
        shared = random.random() + np.random.rand()  # noqa: NPY002
        return np.array([shared, own + env.action_space.sample()])

    return register(name, obs=obs, observes=gym.spaces.Box(-1, 1, (2,), np.float64))


def car(name: str, **more: Any) -> str:
    """Registers an environment that observes a camera image and a speed, and returns its id.

    In step t of an episode, all pixels are t and the speed is [t / 2, -t]. more: arguments of
    `register`.
    """
    space = gym.spaces.Dict(camera=CAMERA, speed=gym.spaces.Box(-np.inf, np.inf, (2,), np.float64))

    def obs(env: Any, t: int) -> Any:
        return {"camera": np.full((64, 64, 3), t, np.uint8), "speed": np.array([t / 2, -t])}

    return register(name, **{"obs": obs, "observes": space, **more})


def switchboard(name: str) -> str:
    """Registers an environment of eight switches with five positions each, and returns its id.

    An observation is the last action, and zeros after a reset.
    """

    def obs(env: Any, t: int) -> Any:
        return np.zeros(8, np.int64) if env.action is None else env.action

    space = gym.spaces.Box(0, 4, (8,), np.int64)
    return register(name, obs=obs, observes=space, acts=SWITCHES)
