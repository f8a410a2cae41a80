"""Base classes of this project's own games: N games as one batch, and a batch of one as a game."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from dreamfleet.core.types import Array


class GameBatch(VectorEnv[Array, Array, Array]):
    """N games as one batched environment. A subclass has the rules of the game.

    A game that is over starts again on its next step, which ignores the action. With one seed for
    all games, game i also depends on N. With a seed for each game, a game is the one that the
    single environment (`OneGame`) plays with this seed.

    luck: uniform random numbers in [0, 1) that a game gets for a step, or for its start.
    """

    def __init__(
        self,
        num_envs: int,
        observation_space: gym.Space[Any],
        action_space: gym.Space[Any],
        luck: int,
        render_mode: str | None,
    ) -> None:
        self.num_envs, self.render_mode = num_envs, render_mode
        self.metadata = {**self.metadata, "autoreset_mode": AutoresetMode.NEXT_STEP}
        self.single_observation_space = observation_space
        self.single_action_space = action_space
        self.observation_space = batch_space(observation_space, num_envs)
        self.action_space = batch_space(action_space, num_envs)
        self._luck_per_step = luck
        self._over = np.ones(num_envs, bool)
        self._own: list[np.random.Generator] = []  # of each game, where they have their own seeds

    # ------------------------------------------------------------------- the rules of the game

    def configure(self, options: Mapping[str, Any]) -> None:
        """Takes the options of a reset. The base class ignores them."""

    def begin(self, rows: Array, luck: Array) -> None:
        """Starts k games. rows: (k,), the indices of the games. luck: (luck, k)."""
        raise NotImplementedError

    def play(self, action: Array, luck: Array) -> tuple[Array, Array]:
        """Takes one step of N games with actions (N,). luck: (luck, N).

        Returns the rewards (N,) f64, and whether each game is over (N,). The result for a game that
        was over before is ignored.
        """
        raise NotImplementedError

    def observe(self) -> Array:
        """Returns the observations (N, …) of N games as a new array."""
        raise NotImplementedError

    def facts(self) -> dict[str, Any]:
        """Returns the infos of N games: name → array (N,). The base class has none."""
        return {}

    # ----------------------------------------------------------------------- as gymnasium has it

    def reset(
        self,
        *,
        seed: int | Sequence[int] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> tuple[Array, dict[str, Any]]:
        """Starts all games. seed: one for all games, or a list with one per game.

        If `seed` is None, the random generators continue. options: see `configure`.
        """
        if isinstance(seed, Sequence):
            assert len(seed) == self.num_envs, f"{len(seed)} seeds for {self.num_envs} games"
            self._own = [seeding.np_random(of)[0] for of in seed]
        elif seed is not None:
            super().reset(seed=seed)
            self._own = []
        self.configure(options or {})
        self.begin(np.arange(self.num_envs), self._luck())
        self._over = np.zeros(self.num_envs, bool)
        return self.observe(), self.facts()

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        assert self.action_space.contains(actions), f"no such actions: {actions!r}"
        starts, luck = self._over, self._luck()
        reward, over = self.play(np.where(starts, 0, actions), luck)
        reward[starts], over[starts] = 0.0, False
        rows = np.flatnonzero(starts)
        if len(rows):
            self.begin(rows, luck[:, rows])
        self._over = over
        return self.observe(), reward, over, np.zeros_like(over), self.facts()

    def _luck(self) -> Array:
        if self._own:
            return np.stack([own.random(self._luck_per_step) for own in self._own], 1)
        return self.np_random.random((self._luck_per_step, self.num_envs))


class OneGame(gym.Env[Array, int]):
    """One game as a gymnasium environment: a batch of one.

    batch: a `GameBatch` of one game, or a wrapper of it. render_mode: that of `batch`.
    """

    def __init__(self, batch: VectorEnv[Any, Any, Any], render_mode: str | None) -> None:
        self.render_mode = render_mode
        self._batch = batch
        self._over = True
        self.observation_space = batch.single_observation_space
        self.action_space = batch.single_action_space

    def reset(
        self,
        *,
        seed: int | Sequence[int] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> tuple[Array, dict[str, Any]]:
        """Starts a game. Returns the observation and the info.

        seed: of the game, also as a list of one number. options: those of the batch.
        """
        super().reset(seed=seed[0] if isinstance(seed, Sequence) else seed)
        self._batch.np_random = self.np_random
        obs, info = self._batch.reset(options=dict(options or {}))
        self._over = False
        return obs[0], _alone(info)

    def step(self, action: Any) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        if self._over:
            raise gym.error.ResetNeeded("this game is over: reset() starts another")
        obs, reward, over, _, info = self._batch.step(np.array([action]))
        self._over = bool(over[0])
        return obs[0], float(reward[0]), self._over, False, _alone(info)

    def render(self) -> Any:
        """Returns what the batch draws for its game, or None without a render mode."""
        drawn: tuple[Any, ...] | None = self._batch.render()
        return drawn[0] if drawn else None


def _alone(info: Mapping[str, Array]) -> dict[str, int | bool]:
    return {name: values[0].item() for name, values in info.items()}
