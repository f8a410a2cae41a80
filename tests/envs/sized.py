"""An environment whose argument changes its observation space."""

from __future__ import annotations

import gymnasium as gym
import numpy as np


class Sized(gym.Env):
    """An environment whose observations have `size` numbers, and whose episodes have one step."""

    action_space = gym.spaces.Discrete(2)

    def __init__(self, size=2):
        self.observation_space = gym.spaces.Box(0, 1, (size,), np.float32)

    def reset(self, *, seed=None, options=None):
        return np.zeros(self.observation_space.shape, np.float32), {}

    def step(self, action):
        return np.zeros(self.observation_space.shape, np.float32), 1.0, True, False, {}


gym.register("Sized-v0", Sized)
