"""Rewards to learn from that differ from those that count."""

from __future__ import annotations

from typing import Any

import gymnasium as gym


class RewardFloor(gym.Wrapper[Any, Any, Any, Any]):
    """Pays no reward below `floor`. infos["unshaped_return"]: what the episode paid so far.

    A rare penalty that dwarfs all other rewards, as the -100 for a fall in BipedalWalker does,
    teaches standing still before it lets anybody learn to walk.
    """

    def __init__(self, env: gym.Env[Any, Any], floor: float) -> None:
        super().__init__(env)
        self._floor = floor
        self._return = 0.0

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        obs, info = self.env.reset(**options)
        self._return = 0.0
        return obs, {**info, "unshaped_return": self._return}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        self._return += float(reward)
        told = {**info, "unshaped_return": self._return}
        return obs, max(float(reward), self._floor), terminated, truncated, told
