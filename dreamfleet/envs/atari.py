"""Atari games from ale-py's vectorised emulator. An observation is one grey frame of 84 × 84.

After `register`, gymnasium builds the classes of this module for the ids `ALE/…`. Frames are
computed as in gymnasium's AtariPreprocessing. The id determines frame skip and sticky actions.
Frames are not stacked, and rewards are not clipped.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
from ale_py.vector_env import AtariVectorEnv

from dreamfleet.core.types import Array

FRAMES_PER_SECOND = 60  # of the console


def register() -> None:
    """Makes gymnasium build the Atari classes of this module for every id `ALE/…`."""
    for spec in [spec for spec in gym.registry.values() if spec.namespace == "ALE"]:
        one, many = f"{__name__}:AtariGame", f"{__name__}:AtariGames"
        gym.registry[spec.id] = replace(spec, entry_point=one, vector_entry_point=many)


class AtariGames(gym.vector.VectorEnv[Array, Array, Array]):
    """A batched environment: N copies of one Atari game, stepped by threads of the emulator.

    A game that is over starts again on the next step. Games cannot be saved: a resumed run starts
    new games.

    game: the name of the ROM. repeat_action_probability: the probability that the game repeats the
    previous action instead. full_action_space: whether the agent can choose all actions of the
    console, or only those that the game uses. frameskip: frames per step.
    max_num_frames_per_episode: frames after which a game is truncated. noop_max: a game starts with
    a random number of no-ops (actions that do nothing), which is below this limit. episodic_life:
    whether the loss of a life ends the episode.
    """

    SHAPE = (84, 84, 1)  # rows, columns and channels of a frame; Mnih et al. 2015

    def __init__(
        self,
        num_envs: int,
        game: str,
        *,
        repeat_action_probability: float = 0.25,
        full_action_space: bool = False,
        frameskip: int = 4,
        max_num_frames_per_episode: int = 108_000,
        noop_max: int = 30,
        episodic_life: bool = False,
    ) -> None:
        height, width, channels = self.SHAPE
        self._games = AtariVectorEnv(
            game,
            num_envs,
            stack_num=1,
            img_height=height,
            img_width=width,
            grayscale=channels == 1,
            reward_clipping=False,
            use_fire_reset=False,
            repeat_action_probability=repeat_action_probability,
            full_action_space=full_action_space,
            frameskip=frameskip,
            max_num_frames_per_episode=max_num_frames_per_episode,
            noop_max=noop_max,
            episodic_life=episodic_life,
        )
        self.num_envs = num_envs
        self.metadata = {"autoreset_mode": gym.vector.AutoresetMode.NEXT_STEP}
        self.single_action_space = self._games.single_action_space
        self.action_space = self._games.action_space
        self.single_observation_space = gym.spaces.Box(0, 255, self.SHAPE, np.uint8)
        self.observation_space = gym.vector.utils.batch_space(
            self.single_observation_space, num_envs
        )

    def reset(
        self, *, seed: Any = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Starts all games. seed: a list with one seed per game, or one number for all games.

        options: ignored.
        """
        if isinstance(seed, int):
            seed = np.random.SeedSequence(seed).generate_state(self.num_envs)
        if seed is not None:
            seed = np.array(seed, np.int64) >> 1  # the emulator takes 31 bits
        frames, _ = self._games.reset(seed=seed)
        return self._last(frames), {}

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        frames, reward, terminated, truncated, _ = self._games.step(actions)
        return self._last(frames), reward, terminated, truncated, {}

    def _last(self, frames: Array) -> Array:
        return frames.reshape(self.num_envs, *self.SHAPE)


class Screens(AtariGames):
    """Atari games whose observations are the full colour screens, for `AtariGame.render`."""

    SHAPE = (210, 160, 3)


class AtariGame(gym.Env[Array, Any]):
    """One Atari game. In render mode rgb_array, `render` returns the game's screen in colour.

    With a given seed, the game is the same as in a batch `AtariGames` of one game.
    """

    metadata = {  # noqa: RUF012 - as gymnasium has it
        "batched": True,
        "render_modes": ["rgb_array"],
        "render_fps": FRAMES_PER_SECOND // 4,
    }

    def __init__(self, game: str, render_mode: str | None = None, **options: Any) -> None:
        self._game = AtariGames(1, game, **options)
        self._shown = None if render_mode is None else Screens(1, game, **options)
        self._screen: Array | None = None
        self.render_mode = render_mode
        self.observation_space = self._game.single_observation_space
        self.action_space = self._game.single_action_space

    def reset(
        self, *, seed: Any = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        frames, info = self._game.reset(seed=seed)
        if self._shown is not None:
            self._screen = self._shown.reset(seed=seed)[0][0]
        return frames[0], info

    def step(self, action: Any) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        taken = np.array([action])
        frames, reward, terminated, truncated, info = self._game.step(taken)
        if self._shown is not None:
            self._screen = self._shown.step(taken)[0][0]
        return frames[0], float(reward[0]), bool(terminated[0]), bool(truncated[0]), info

    def render(self) -> Any:
        return self._screen
