"""A linear system that the world models of agents learn in tests."""

from __future__ import annotations

import numpy as np

from dreamfleet.core.types import Array, Batch, Sample


class Swing:
    """A linear system x' = A x + b u with state x and control u, as an environment for tests.

    Episodes end where |x_0| > `edge`. The reward of a step is x'_0. A continuous action in [-1, 1]
    is the control itself. If there are `choices`, actions are discrete, and the control is the
    action minus 1.
    """

    A = 0.98 * np.array([[np.cos(0.5), np.sin(0.5)], [-np.sin(0.5), np.cos(0.5)]])
    b = np.array([0.0, 0.5])

    def __init__(self, context: int, choices: int = 0, edge: float = np.inf) -> None:
        self.context, self.choices, self.edge = context, choices, edge
        self.rng = np.random.default_rng(0)

    def windows(self, B: int, T: int) -> Sample:
        """Returns B windows of random play, each of C rows of context and T further rows."""
        x, reward, last = self.rng.uniform(-1, 1, (B, 2)), np.zeros(B), np.zeros(B, bool)
        first, held_out = np.zeros(B, bool), self.rng.random(B) < 0.2
        rows: list[Batch] = []
        for t in range(self.context + T):
            last = (np.abs(x[:, 0]) > self.edge) & ~first & (t > self.context)
            action, control = self.act(B)
            rows.append(
                {
                    "obs": x.astype(np.float32),
                    "action": action,
                    "reward": reward.astype(np.float32),
                    "first": first,
                    "last": last,
                    "terminal": last,
                    "discounted_return": (10 * reward).astype(np.float32),
                    "held_out": held_out,
                }
            )
            x = x @ self.A.T + control[:, None] * self.b
            x = np.where(last[:, None], self.rng.uniform(-1, 1, (B, 2)), x)
            reward, first = np.where(last, 0, x[:, 0]), last
        data = {key: np.stack([row[key] for row in rows], 1) for key in rows[0]}
        return Sample(data, np.arange(B), np.full(B, 1 / B), B)

    def act(self, B: int) -> tuple[Array, Array]:
        """Returns B random actions, and the control (B,) of each action."""
        if self.choices:
            action = self.rng.integers(0, self.choices, B)
            return action, action - 1
        action = self.rng.uniform(-1, 1, (B, 1))
        return action.astype(np.float32), action[:, 0]
