"""Atari games from ale-py's vectorised emulator. docs/atari.md describes their observations.

After `register`, gymnasium builds the classes of this module for the ids `ALE/…`. The id determines
frame skip and sticky actions. Rewards are not clipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import gymnasium as gym
import numpy as np
from ale_py.vector_env import AtariVectorEnv

from dreamfleet.core.errors import UserError
from dreamfleet.core.types import Array

FRAMES_PER_SECOND = 60  # of the console
SCREEN: Final = (210, 160)  # rows and columns of the console's screen


def register() -> None:
    """Makes gymnasium build the Atari classes of this module for every id `ALE/…`."""
    for spec in [spec for spec in gym.registry.values() if spec.namespace == "ALE"]:
        one, many = f"{__name__}:AtariGame", f"{__name__}:AtariGames"
        gym.registry[spec.id] = replace(spec, entry_point=one, vector_entry_point=many)


class AtariGames(gym.vector.VectorEnv[Array, Array, Array]):
    """A batched environment: N copies of one Atari game, stepped by threads of the emulator.

    A game that is over starts again on the next step. Games cannot be saved: a resumed run starts
    new games.

    game: the name of the ROM. size: rows and columns of a frame; one number for a square. colour:
    whether frames have three channels (RGB) or are grey. stack: frames in an observation, one after
    another along the channels, the newest last; frames before the game's start are black.
    repeat_action_probability: the probability that the game repeats the previous action instead.
    full_action_space: whether the agent can choose all actions of the console, or only those that
    the game uses. frameskip: frames per step. max_num_frames_per_episode: frames after which a game
    is truncated. noop_max: a game starts with a random number of no-ops (actions that do nothing),
    which is below this limit.

    episodic_life: whether the loss of a life ends the episode. The game goes on in the next
    episode, whose first step is a no-op without reward. infos, only with episodic_life: "lives"
    (N,), the lives left; "game_return" (N,) f64, the points since the game began.

    Raises UserError for a wrong `size` or `stack`.
    """

    def __init__(
        self,
        num_envs: int,
        game: str,
        *,
        size: int | Sequence[int] = 84,  # Mnih et al. 2015
        colour: bool = False,
        stack: int = 1,
        repeat_action_probability: float = 0.25,
        full_action_space: bool = False,
        frameskip: int = 4,
        max_num_frames_per_episode: int = 108_000,
        noop_max: int = 30,
        episodic_life: bool = False,
    ) -> None:
        height, width = _rows_and_columns(size)
        if type(stack) is not int or not 1 <= stack <= 16:
            raise UserError(f"env.stack must be a whole number from 1 to 16; found {stack!r}.")
        self._games = AtariVectorEnv(
            game,
            num_envs,
            stack_num=stack,
            img_height=height,
            img_width=width,
            grayscale=not colour,
            reward_clipping=False,
            use_fire_reset=False,
            repeat_action_probability=repeat_action_probability,
            full_action_space=full_action_space,
            frameskip=frameskip,
            max_num_frames_per_episode=max_num_frames_per_episode,
            noop_max=noop_max,
            life_loss_info=episodic_life,  # ale-py's own `episodic_life` abandons the game
        )
        self.num_envs = num_envs
        self.metadata = {"autoreset_mode": gym.vector.AutoresetMode.NEXT_STEP}
        self.single_action_space = self._games.single_action_space
        self.action_space = self._games.action_space
        channels = 3 if colour else 1
        self._emulated = (
            num_envs,
            stack,
            height,
            width,
            channels,
        )  # shape of the emulator's frames
        self._observation = (height, width, stack * channels)
        self.single_observation_space = gym.spaces.Box(0, 255, self._observation, np.uint8)
        self.observation_space = gym.vector.utils.batch_space(
            self.single_observation_space, num_envs
        )
        self._episodic_life = episodic_life
        self._over = np.zeros(num_envs, bool)  # whether the last step ended an episode
        self._frame = np.zeros(num_envs, np.int64)  # frames since each game began
        self._points = np.zeros(num_envs)  # since each game began

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
        frames, info = self._games.reset(seed=seed)
        self._over = np.zeros(self.num_envs, bool)
        self._frame, self._points = info["episode_frame_number"], np.zeros(self.num_envs)
        return self._observed(frames), self._facts(info)

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        if self._episodic_life:
            actions = np.where(self._over, 0, actions)
        frames, reward, terminated, truncated, info = self._games.step(actions)
        if self._episodic_life:
            reward = np.where(self._over, 0, reward)
            begun = info["episode_frame_number"] < self._frame
            self._points = np.where(begun, 0.0, self._points) + reward
            self._over, self._frame = terminated | truncated, info["episode_frame_number"]
        return self._observed(frames), reward, terminated, truncated, self._facts(info)

    def _facts(self, info: dict[str, Any]) -> dict[str, Any]:
        if not self._episodic_life:
            return {}
        return {"lives": info["lives"].copy(), "game_return": self._points.copy()}

    def _observed(self, frames: Array) -> Array:
        stacked = np.moveaxis(frames.reshape(self._emulated), 1, 3)  # (N, rows, columns, stack, C)
        return stacked.reshape(self.num_envs, *self._observation)


def _rows_and_columns(size: Any) -> tuple[int, int]:
    """Returns the rows and columns of a frame. Raises UserError if `size` is not one or two sizes.

    size: one number for a square, or a list of two.
    """
    sizes = tuple(size) if isinstance(size, Sequence) else (size, size)
    if len(sizes) == 2 and all(type(n) is int and 1 <= n <= max(SCREEN) for n in sizes):
        return sizes[0], sizes[1]
    raise UserError(
        f"env.size must be a whole number from 1 to {max(SCREEN)}, or a list of two (rows and "
        f"columns); found {size!r}."
    )


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
        shown = {**options, "size": SCREEN, "colour": True, "stack": 1}
        self._shown = None if render_mode is None else AtariGames(1, game, **shown)
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
