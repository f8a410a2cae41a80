"""Changes the rewards that agents learn from. The returns in logs are sums of original rewards."""

from __future__ import annotations

from typing import Any

import gymnasium as gym

from dreamfleet.envs import contract


class RewardFloor(gym.Wrapper[Any, Any, Any, Any]):
    """Raises every reward below `floor` to `floor`.

    `unshaped_return` is the sum of the original rewards of the episode so far. If `step` returns
    values of wrong types, they are passed on unchanged.
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
