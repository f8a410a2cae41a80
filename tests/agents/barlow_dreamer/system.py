"""Builds small Barlow Dreamer agents for tests, and random real rows for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from dreamfleet.agents.barlow_dreamer.agent import BarlowDreamer
from dreamfleet.agents.barlow_dreamer.config import Config
from dreamfleet.core.types import Batch, EnvSpec, Sample, Space

VECTOR = EnvSpec("Vector-v0", Space((3,), "float32"), Space((), "int64", 4))
CONTINUOUS = EnvSpec("Continuous-v0", Space((3,), "float32"), Space((2,), "float32"))
IMAGES = EnvSpec("Images-v0", Space((32, 16, 3), "uint8"), Space((), "int64", 4))
SMALL: dict[str, Any] = {"batch": 4, "window": 6, "dream_horizon": 3, "lr_warmup": 0}


def build_agent(spec: EnvSpec = VECTOR, seed: int = 0, **options: Any) -> BarlowDreamer:
    return BarlowDreamer(
        Config(**{**SMALL, "target_encoder": "trained", **options}), spec, seed, "cpu"
    )


def draw_rows(agent: BarlowDreamer, seed: int = 0) -> Batch:
    """Returns random real rows (B, 1 + T, …) as `update_world` takes them."""
    rng = torch.Generator().manual_seed(seed)
    config, spec = agent.config, agent.spec
    shape = config.batch, 1 + config.window
    size = config.sizes
    if spec.obs.image:
        obs = torch.randint(256, (*shape, *spec.obs.shape), generator=rng, dtype=torch.uint8)
    else:
        obs = 3 * torch.randn(*shape, *spec.obs.shape, generator=rng)
    if spec.action.discrete:
        action = torch.randint(spec.action.n, shape, generator=rng)
    else:
        action = torch.rand(*shape, *spec.action.shape, generator=rng) * 2 - 1
    last = torch.rand(shape, generator=rng) < 0.2
    first = torch.cat([torch.zeros_like(last[:, :1]), last[:, :-1]], 1)
    last &= ~first
    return {
        "obs": obs,
        "action": action,
        "reward": torch.randn(shape, generator=rng),
        "first": first,
        "last": last,
        "terminal": last & (torch.rand(shape, generator=rng) < 0.5),
        "deter": torch.randn(shape[0], size.deter, generator=rng).tanh().half(),
        "stoch": torch.randint(
            size.classes, (shape[0], size.groups), generator=rng, dtype=torch.uint8
        ),
    }


def dream(agent: BarlowDreamer, rows: Batch, states: Batch) -> Batch:
    """Returns dreams that begin at rows which the world model has just learned from."""
    data = {**rows, **states}
    keys = np.arange(len(rows["reward"]))
    return agent.dream(Sample(data, keys, np.ones(len(keys)), len(keys)))
