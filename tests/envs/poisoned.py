"""CartPole with faulty sensors: some of its steps return noise a million times too large."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.classic_control import CartPoleEnv


class PoisonedCartPole(CartPoleEnv):
    """share: of the steps whose observation and reward are N(0, 1) · 1e6."""

    def __init__(self, share: float = 0.005) -> None:
        super().__init__()
        self.share = share

    def step(self, action: Any) -> Any:
        obs, reward, *rest = super().step(action)
        if self.np_random.random() < self.share:
            obs = (1e6 * self.np_random.normal(size=4)).astype(np.float32)
            reward = 1e6 * self.np_random.normal()
        return obs, reward, *rest


gym.register("PoisonedCartPole-v0", PoisonedCartPole, max_episode_steps=500)
