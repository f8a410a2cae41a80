"""Films episodes of an environment as mp4 files, one complete episode per file."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import gymnasium as gym

from dreamfleet.core.errors import UserError
from dreamfleet.envs import registry

UNFINISHED: Final = ".unfinished.mp4"  # the file of the episode that is being filmed

# Without these, pygame prints a greeting and complains about missing sound and screens.
QUIET_PYGAME: Final = {"PYGAME_HIDE_SUPPORT_PROMPT": "1", "SDL_AUDIODRIVER": "dummy"}
SCREENS: Final = ("DISPLAY", "WAYLAND_DISPLAY")  # variables of a machine that has a screen


class Film:
    """Writes films of episodes into a folder, one mp4 file per episode.

    env: an environment that `filmed_env` returned. env_id: the beginning of each film's file name.
    """

    def __init__(self, env: Any, env_id: str, folder: Path) -> None:
        from moviepy.video.io.ffmpeg_writer import FFMPEG_VideoWriter

        self._make_writer = FFMPEG_VideoWriter
        self._env, self._folder = env, folder
        self._name = env_id.replace("/", "-").replace(":", "-")
        self._fps = float(env.metadata.get("render_fps") or 30)
        self._writer: Any = None
        self._filming = False
        self._episode = 0
        self.files: list[Path] = []  # the finished films

    def begin(self, episode: int) -> None:
        """Starts the film of an episode. Call this method after the environment's reset.

        episode: number of the episode, from 0.
        """
        self.finish("cut-short")
        self._episode, self._filming = episode, True
        self.add_frame()

    def add_frame(self) -> None:
        """Adds a picture of the environment to the film, if an episode is being filmed."""
        if not self._filming:
            return
        frame = self._env.render()
        if self._writer is None:
            height, width = frame.shape[:2]
            file = str(self._folder / UNFINISHED)
            self._writer = self._make_writer(file, (width, height), self._fps)
        self._writer.write_frame(frame)

    def finish(self, ending: str = "") -> None:
        """Ends the film of the episode, if one is being filmed.

        ending: text at the end of the file's name, such as `cut-short`; "" for a complete episode.
        """
        if self._filming:
            self._close_writer()
            parts = [self._name, f"episode-{self._episode + 1}", *([ending] if ending else [])]
            file = self._folder / f"{'_'.join(parts)}.mp4"
            (self._folder / UNFINISHED).replace(file)
            self.files.append(file)
        self._filming = False

    def discard(self) -> None:
        """Deletes the film of the episode that is being filmed, if there is one."""
        self._close_writer()
        (self._folder / UNFINISHED).unlink(missing_ok=True)
        self._filming = False

    def _close_writer(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def filmed_env(
    env_id: str, env: gym.Env[Any, Any], folder: Path, options: dict[str, Any]
) -> gym.Env[Any, Any]:
    """Returns a new environment like `env` that can be filmed, and closes `env`.

    folder: the folder for the films, which is made. Raises UserError if the environment draws no
    pictures, if the folder cannot be made, or if moviepy is missing.
    """
    modes = env.metadata.get("render_modes") or ()
    if "rgb_array" not in modes:
        found = ", ".join(modes) or "none"
        raise UserError(
            f'env "{env_id}" cannot be filmed: it lacks render mode rgb_array (has: {found})'
        )
    registry.close(env)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot film into {folder}: {error.strerror}. Name a folder.") from None
    try:
        import moviepy  # noqa: F401 - only whether it is installed
    except ModuleNotFoundError as missing:
        raise UserError("filming needs moviepy. Run: pip install moviepy") from missing
    for name, value in QUIET_PYGAME.items():
        os.environ.setdefault(name, value)
    if not any(os.environ.get(name) for name in SCREENS):
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    with quiet():
        return registry.make(env_id, render_mode="rgb_array", **options)


@contextmanager
def quiet() -> Iterator[None]:
    """Hides all warnings during a `with` block, such as those of libraries that draw."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
