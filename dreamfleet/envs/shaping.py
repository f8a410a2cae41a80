"""Rewards to learn from that differ from those that count."""

from __future__ import annotations

from typing import Any

import gymnasium as gym

from dreamfleet.envs import contract


class RewardFloor(gym.Wrapper[Any, Any, Any, Any]):
    """Pays no reward below `floor`. `unshaped_return`: what the episode paid so far.

    A rare penalty that dwarfs all other rewards, as the -100 for a fall in BipedalWalker does,
    teaches standing still before it lets anybody learn to walk. What breaks the contract of
    environments passes through as it is, and is named where rows are made.
    """

    def __init__(self, env: gym.Env[Any, Any], floor: float) -> None:
        super().__init__(env)
        self._floor = floor
        self.unshaped_return = 0.0

    def reset(self, **options: Any) -> Any:
        self.unshaped_return = 0.0
        return self.env.reset(**options)

    def step(self, action: Any) -> Any:
        result = self.env.step(action)
        checked = contract.step_result(result)
        reward = None if checked is None else contract.number(checked[1])
        if checked is None or reward is None:
            return result
        obs, _, terminated, truncated, info = checked
        self.unshaped_return += reward
        return obs, max(reward, self._floor), terminated, truncated, info
