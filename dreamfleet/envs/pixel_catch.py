"""PixelCatch: catch falling balls on a screen of 64 × 64 pixels. docs/pixel-catch.md has the rules.

The code plays and draws N games at a time; a single game is a batch with N = 1.
"""

from __future__ import annotations

from typing import Any, Final

import gymnasium as gym
import numpy as np

from dreamfleet.core.errors import UserError
from dreamfleet.core.types import Array
from dreamfleet.envs.game_batch import GameBatch, OneGame

SIZE: Final = 64  # rows and columns of the screen, in pixels
BALL: Final = 8  # rows and columns of the ball
PADDLE: Final = 16  # columns of the paddle; it has as many rows as the ball
MOVE: Final = 8  # pixels that the paddle moves in a step, and that the ball falls
FALL: Final = (SIZE - 2 * BALL) // MOVE  # steps from the top row of balls to the row of the paddle
SLOWEST, FASTEST = (
    5,
    14,
)  # horizontal pixels per step of a ball; the paddle cannot follow most balls
MOST_BALLS: Final = 16  # marks that fit into a row of the screen

BALL_COLOUR, PADDLE_COLOUR = (255, 160, 40), (70, 170, 255)
MARK_COLOUR, BACKGROUND = (150, 150, 150), (12, 16, 32)

ENLARGED: Final = 4  # times that `render` enlarges the screen


class PixelCatchVector(GameBatch):
    """N games of PixelCatch as one batched environment.

    balls: balls of a game, from 1 to 16; also the greatest return. render_mode: "rgb_array" or
    None. Raises UserError for another number of balls.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 - gymnasium's own
        "render_modes": ["rgb_array"],
        "render_fps": 10,
    }

    def __init__(self, num_envs: int = 1, render_mode: str | None = None, balls: int = 10) -> None:
        if type(balls) is not int or not 1 <= balls <= MOST_BALLS:
            raise UserError(
                f"env.balls must be a whole number from 1 to {MOST_BALLS}; found {balls!r}."
            )
        screen = gym.spaces.Box(0, 255, (SIZE, SIZE, 3), np.uint8)
        super().__init__(num_envs, screen, gym.spaces.Discrete(3), luck=2, render_mode=render_mode)
        self.balls = balls
        self.paddle = np.zeros(num_envs, np.int64)  # column of its left edge
        self.start = np.zeros(num_envs, np.int64)  # column of the ball's left edge at the top
        self.speed = np.zeros(num_envs, np.int64)  # of the ball, in columns per step at the top
        self.age = np.zeros(num_envs, np.int64)  # steps since the ball was at the top
        self.left = np.zeros(num_envs, np.int64)  # balls that have not landed
        self._everyone = np.arange(num_envs)
        self._empty = np.empty((SIZE, SIZE, 3), np.uint8)
        self._empty[:] = BACKGROUND

    def begin(self, rows: Array, luck: Array) -> None:
        """Starts k games with the paddle in the middle and a ball at the top.

        rows: (k,), the indices of the games. luck: (2, k), numbers uniform in [0, 1).
        """
        self.paddle[rows] = (SIZE - PADDLE) // 2
        self.left[rows] = self.balls
        self._throw(rows, luck)

    def play(self, action: Array, luck: Array) -> tuple[Array, Array]:
        """Moves the paddle left (action 0), not at all (1) or right (2), and then the ball.

        action: (N,). luck: (2, N), numbers uniform in [0, 1), for the games that get a new ball.
        Returns the rewards (N,) f64, and whether each game is over (N,).
        """
        self.paddle = np.clip(self.paddle + MOVE * (action - 1), 0, SIZE - PADDLE)
        gone = self.age == FALL
        self.age += 1
        rows = np.flatnonzero(gone)
        self._throw(rows, luck[:, rows])
        landed = self.age == FALL
        self.left -= landed
        centre = self.column() + BALL // 2
        caught = (self.paddle <= centre) & (centre < self.paddle + PADDLE)
        return (landed & caught).astype(np.float64), landed & (self.left == 0)

    def column(self) -> Array:
        """Returns the column of the left edge of each ball (N,), which bounces off the walls."""
        width = SIZE - BALL
        unfolded = (self.start + self.speed * self.age) % (2 * width)
        return width - np.abs(width - unfolded)

    def observe(self) -> Array:
        """Returns the screens (N, 64, 64, 3) uint8 of N games.

        A mark at the top edge stands for each ball that has not landed.
        """
        screens = np.empty((self.num_envs, SIZE, SIZE, 3), np.uint8)
        screens[:] = self._empty
        marks = np.arange(2 * MOST_BALLS)
        shown = marks // 2 < self.left[:, None]
        game, mark = np.nonzero(shown)
        columns = marks[mark] // 2 * 4 + 1 + marks[mark] % 2
        for row in (0, 1):
            screens[game, row, columns] = MARK_COLOUR
        bottom = np.full(self.num_envs, SIZE - BALL)
        self._paint(screens, bottom, self.paddle, PADDLE, PADDLE_COLOUR)
        self._paint(screens, BALL + MOVE * self.age, self.column(), BALL, BALL_COLOUR)
        return screens

    def render(self) -> tuple[Any, ...] | None:
        """Returns the screens, each enlarged to 256 × 256 × 3, in render mode "rgb_array"."""
        if self.render_mode is None:
            return None
        return tuple(self.observe().repeat(ENLARGED, 1).repeat(ENLARGED, 2))

    def _throw(self, rows: Array, luck: Array) -> None:
        self.age[rows] = 0
        self.start[rows] = (luck[0] * (SIZE - BALL + 1)).astype(np.int64)
        speeds = FASTEST - SLOWEST + 1
        drawn = (luck[1] * 2 * speeds).astype(np.int64)  # the second half goes to the left
        self.speed[rows] = np.where(drawn < speeds, 1, -1) * (SLOWEST + drawn % speeds)

    def _paint(
        self, screens: Array, row: Array, column: Array, width: int, colour: tuple[int, int, int]
    ) -> None:
        """Paints a rectangle of 8 rows and `width` columns into each screen.

        row, column: (N,), of the upper left corner.
        """
        rows = row[:, None, None] + np.arange(BALL)[:, None]
        columns = column[:, None, None] + np.arange(width)
        screens[self._everyone[:, None, None], rows, columns] = colour


class PixelCatch(OneGame):
    """One game of PixelCatch as a gymnasium environment.

    render_mode: "rgb_array" or None. balls: balls of a game, from 1 to 16. Raises UserError for
    another number of balls.
    """

    metadata: dict[str, Any] = {**PixelCatchVector.metadata, "batched": True}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None, balls: int = 10) -> None:
        super().__init__(PixelCatchVector(1, render_mode, balls), render_mode)


gym.register(
    "PixelCatch-v1",
    f"{__name__}:PixelCatch",
    vector_entry_point=f"{__name__}:PixelCatchVector",
)
