"""CartPole with faulty sensors: in some steps, observation and reward are huge random numbers."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.classic_control import CartPoleEnv


class PoisonedCartPole(CartPoleEnv):
    """CartPole in which some observations and rewards are replaced by N(0, 1) · 1e6.

    share: the fraction of the steps in which this happens.
    """

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
