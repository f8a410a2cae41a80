"""A small Dreamwalker agent for tests, and the linear system that its world model learns."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from dreamfleet.agents.dreamwalker.agent import Dreamwalker
from dreamfleet.agents.dreamwalker.config import Config
from dreamfleet.core.types import EnvSpec, Sample, Space
from tests.agents import swing

CONTEXT, HORIZON = 3, 4
SMALL: dict[str, Any] = {
    "critics": 3,
    "quantiles": 5,
    "dropped_quantiles": 1,
    "critic_hidden": (32, 32),
    "actor_hidden": (32, 32),
    "batch": 40,
    "context": CONTEXT,
    "dream_horizon": HORIZON,
    "dreams_per_update": 10,
    "world_hidden": 32,
    "world_layers": 1,
    "world_batch": 60,
    "lr_world": 3e-3,
    "slow_world": 0.05,
}


Swing = partial(swing.Swing, CONTEXT)


def build_agent(seed: int = 0, **options: Any) -> Dreamwalker:
    spec = EnvSpec("Swing-v0", Space((2,), "float32"), Space((1,), "float32"))
    return Dreamwalker(Config(**{**SMALL, **options}), spec, seed, "cpu")


def policy_windows(B: int, seed: int = 0) -> Sample:
    """Returns B random windows of two rows, as `learn_policy` needs them."""
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
