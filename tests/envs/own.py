"""Registers test environments whose values are given by functions."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np

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
) -> str:
    """Registers an environment as `name`, and returns the name.

    obs, reward, ended, cut and info are functions of the step t in the episode: they return the
    observation, the reward, whether the episode terminates or is truncated, and the info. observes:
    the observation space.
    """

    class Own(gym.Env[Any, Any]):
        observation_space = observes
        action_space = gym.spaces.Discrete(2)

        def reset(self, *, seed: Any = None, options: Any = None) -> Any:
            self.t = 0
            return obs(self, 0), info(0)

        def step(self, action: Any) -> Any:
            self.t += 1
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
