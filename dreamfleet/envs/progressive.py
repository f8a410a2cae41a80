"""A curriculum: makes a batched environment harder as its mean return rises."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv, VectorWrapper

from dreamfleet.core.errors import UserError


class Progressive(VectorWrapper):
    """A curriculum: makes a batched environment harder, level by level, and never easier again.

    thresholds: mean returns. Level l, counted from 0, ends when the last `window` episodes that
    began at level l have a mean return of thresholds[l] or more. With L levels, level l has
    difficulty (l + 1) / L. infos["level"]: (N,), the level at which each environment's episode
    began.

    env: the batched environment, in gymnasium's NEXT_STEP mode. The environment must accept the
    reset option "difficulty", and start each episode with the difficulty in its attribute
    `difficulty`.
    """

    def __init__(self, env: VectorEnv, thresholds: Sequence[float], window: int = 100) -> None:
        super().__init__(env)
        self._thresholds = tuple(thresholds)
        self._scores: deque[float] = deque(maxlen=window)  # returns of episodes of this level
        self._level = 0
        self._begun_at = np.zeros(self.num_envs, np.int64)
        self._return = np.zeros(self.num_envs)
        self._over = np.zeros(self.num_envs, bool)

    @property
    def level(self) -> int:
        """The level of the curriculum at which the next episodes start, from 0."""
        return self._level

    @property
    def difficulty(self) -> float:
        return (self._level + 1) / (len(self._thresholds) + 1)

    def reset(
        self, *, seed: Any = None, options: Mapping[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Starts all episodes at the current level of the curriculum. A reset keeps the level.

        The level determines the difficulty. Raises UserError if `options` has "difficulty".
        """
        if options and "difficulty" in options:
            raise UserError('option "difficulty" follows the score here: leave it out')
        options = {**(options or {}), "difficulty": self.difficulty}
        obs, info = self.env.reset(seed=seed, options=options)
        self._over[:] = True
        self._begin()
        return obs, {**info, "level": self._begun_at.copy()}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(actions)
        self._begin()  # the episodes after those that ended in the step before
        self._return += reward
        self._over = terminated | truncated
        self._scores.extend(self._return[self._over & (self._begun_at == self._level)].tolist())
        if self._passed():
            self._climb_to(self._level + 1)
        return obs, reward, terminated, truncated, {**info, "level": self._begun_at.copy()}

    def state(self) -> dict[str, Any]:
        """Returns the level of the curriculum, and the returns that decide when the level ends.

        These are the returns of the last episodes that began at this level.
        """
        return {"level": self._level, "scores": list(self._scores)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restores the level of the curriculum, and the returns that decide when the level ends.

        state: the result of the method `state`. Running episodes keep the level at which they
        began.
        """
        self._climb_to(int(state["level"]))
        self._scores.extend(state["scores"])

    def _begin(self) -> None:
        self._return[self._over] = 0.0
        self._begun_at[self._over] = self._level
        self._over = np.zeros_like(self._over)

    def _passed(self) -> bool:
        if self._level == len(self._thresholds) or len(self._scores) < (self._scores.maxlen or 0):
            return False
        return float(np.mean(self._scores)) >= self._thresholds[self._level]

    def _climb_to(self, level: int) -> None:
        self._level = level
        self._scores.clear()
        self.env.unwrapped.difficulty = self.difficulty
