"""A small Gated Rainbow agent for tests, and the linear system that its world model learns."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from dreamfleet.agents.gated_rainbow.agent import GatedRainbow
from dreamfleet.agents.gated_rainbow.config import CONTEXT, Config
from dreamfleet.core.types import Array, EnvSpec, Space
from tests.agents import swing

OBS, ACTION = Space((2,), "float32"), Space((), "int64", n=3)
SMALL: dict[str, Any] = {
    "hidden": 32,
    "world_hidden": 64,
    "lr_world": 3e-3,
    "slow_world": 0.05,
    "batch": 50,
    "lr_critic": 1e-3,
}
HEADS = ["expected", "c51", "quantile"]

Swing = partial(swing.Swing, CONTEXT, choices=3)


def build_agent(seed: int = 0, **options: Any) -> GatedRainbow:
    spec = EnvSpec("Swing-v0", OBS, ACTION)
    return GatedRainbow(Config(**{**SMALL, **options}), spec, seed, "cpu")


def n_step_returns(rows: dict[str, Array], n: int, gamma: float) -> tuple[Array, Array, Array]:
    """Returns the parts of each window's n-step return from row 0, computed by a plain loop.

    The parts are the sum of discounted rewards, the number of steps, and the discount of the value
    at the end.
    """
    results = []
    for reward, last, terminal in zip(rows["reward"], rows["last"], rows["terminal"], strict=True):
        total, m = 0.0, 0
        while m < n and not last[m]:
            m += 1
            total += gamma ** (m - 1) * reward[m]
        results.append((total, m, 0.0 if terminal[m] else gamma**m))
    total, steps, discount = zip(*results, strict=True)
    return np.array(total), np.array(steps), np.array(discount)
