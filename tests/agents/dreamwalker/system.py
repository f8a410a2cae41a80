"""What the tests of Dreamwalker learn from."""

from __future__ import annotations

from typing import Any

import numpy as np

from agents.dreamwalker.agent import Dreamwalker
from agents.dreamwalker.config import Config
from core.types import Batch, EnvSpec, Sample, Space

CONTEXT, HORIZON = 3, 4
SMALL: dict[str, Any] = {
    "critics": 3,
    "quantiles": 5,
    "drop": 1,
    "critic_hidden": (32, 32),
    "actor_hidden": (32, 32),
    "batch": 40,
    "context": CONTEXT,
    "dream_horizon": HORIZON,
    "dreams": 10,
    "world_size": 32,
    "world_layers": 1,
    "world_batch": 60,
    "lr_world": 3e-3,
    "slow_world": 0.05,
}


class Swing:
    """A linear system with a push, x' = A x + b u, |u| ≤ 1, that ends beyond `edge`.

    The reward of a step is x_0 where it leads to.
    """

    A = 0.98 * np.array([[np.cos(0.5), np.sin(0.5)], [-np.sin(0.5), np.cos(0.5)]])
    b = np.array([0.0, 0.5])

    def __init__(self, edge: float = np.inf) -> None:
        self.edge = edge
        self.rng = np.random.default_rng(0)

    def windows(self, B: int, T: int) -> Sample:
        """Windows of random play (B, C + T, …), the rows of the context lived through."""
        x, reward, last = self.rng.uniform(-1, 1, (B, 2)), np.zeros(B), np.zeros(B, bool)
        first, held_out = np.zeros(B, bool), self.rng.random(B) < 0.2
        rows: list[Batch] = []
        for t in range(CONTEXT + T):
            last = (np.abs(x[:, 0]) > self.edge) & ~first & (t > CONTEXT)
            action = self.rng.uniform(-1, 1, (B, 1))
            rows.append(
                {
                    "obs": x.astype(np.float32),
                    "action": action.astype(np.float32),
                    "reward": reward.astype(np.float32),
                    "first": first,
                    "last": last,
                    "terminal": last,
                    "held_out": held_out,
                }
            )
            x = x @ self.A.T + action * self.b
            x = np.where(last[:, None], self.rng.uniform(-1, 1, (B, 2)), x)
            reward, first = np.where(last, 0, x[:, 0]), last
        data = {key: np.stack([row[key] for row in rows], 1) for key in rows[0]}
        return Sample(data, np.arange(B), np.full(B, 1 / B), B)


def build(seed: int = 0, **options: Any) -> Dreamwalker:
    spec = EnvSpec("Swing-v0", Space((2,), "float32"), Space((1,), "float32"))
    return Dreamwalker(Config(**{**SMALL, **options}), spec, seed, "cpu")


def steps(B: int, seed: int = 0) -> Sample:
    """Windows of two rows, as policies learn from."""
    rng = np.random.default_rng(seed)
    last = np.zeros((B, 2), bool)
    last[:, 1] = rng.random(B) < 0.5
    data = {
        "obs": rng.normal(size=(B, 2, 2)).astype(np.float32),
        "action": rng.uniform(-1, 1, (B, 2, 1)).astype(np.float32),
        "reward": rng.normal(size=(B, 2)).astype(np.float32),
        "last": last,
        "terminal": last & (rng.random(B) < 0.5)[:, None],
    }
    return Sample(data, np.arange(B), np.full(B, 1 / B), B)
