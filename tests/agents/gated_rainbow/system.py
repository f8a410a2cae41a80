"""What the tests of Gated Rainbow learn from."""

from __future__ import annotations

from typing import Any

import numpy as np

from agents.gated_rainbow.agent import GatedRainbow
from agents.gated_rainbow.config import CONTEXT, Config
from core.types import Array, Batch, EnvSpec, Sample, Space

VECTOR, CHOICE = Space((2,), "float32"), Space((), "int64", n=3)
SMALL: dict[str, Any] = {
    "hidden": 32,
    "world_hidden": 64,
    "lr_world": 3e-3,
    "slow_world": 0.05,
    "batch": 50,
    "lr": 1e-3,
}
HEADS = ["expected", "c51", "quantile"]


class Swing:
    """A linear system with a push, x' = A x + b (a - 1), a in {0, 1, 2}, that ends beyond `edge`.

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
            action = self.rng.integers(0, 3, B)
            rows.append(
                {
                    "obs": x.astype(np.float32),
                    "action": action,
                    "reward": reward.astype(np.float32),
                    "first": first,
                    "last": last,
                    "terminal": last,
                    "trace": (10 * reward).astype(np.float32),
                    "held_out": held_out,
                }
            )
            x = x @ self.A.T + (action - 1)[:, None] * self.b
            x = np.where(last[:, None], self.rng.uniform(-1, 1, (B, 2)), x)
            reward, first = np.where(last, 0, x[:, 0]), last
        data = {key: np.stack([row[key] for row in rows], 1) for key in rows[0]}
        return Sample(data, np.arange(B), np.full(B, 1 / B), B)


def build(seed: int = 0, **options: Any) -> GatedRainbow:
    spec = EnvSpec("Swing-v0", VECTOR, CHOICE)
    return GatedRainbow(Config(**{**SMALL, **options}), spec, seed, "cpu")


def returns(rows: dict[str, Array], n: int, gamma: float) -> tuple[Array, Array, Array]:
    """The n-step return from row 0, step by step."""
    found = []
    for reward, last, terminal in zip(rows["reward"], rows["last"], rows["terminal"], strict=True):
        total, m = 0.0, 0
        while m < n and not last[m]:
            m += 1
            total += gamma ** (m - 1) * reward[m]
        found.append((total, m, 0.0 if terminal[m] else gamma**m))
    total, steps, discount = zip(*found, strict=True)
    return np.array(total), np.array(steps), np.array(discount)
