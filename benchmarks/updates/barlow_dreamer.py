"""Defines learners for frames of 64 × 64 × 3: Barlow Dreamer with and without a decoder.

An update is one of the world model, one batch of dreams, and one of actor and critic. Both learners
have the size `12M` of DreamerV3, and learn from the same random rows.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any, Final

import numpy as np

from benchmarks.timing import repeated
from benchmarks.updates.comparison import Comparison, Updates
from dreamfleet.agents.barlow_dreamer.agent import BarlowDreamer
from dreamfleet.agents.barlow_dreamer.config import Config
from dreamfleet.core.types import Batch, EnvSpec, Sample, Space
from dreamfleet.core.write_back import rewritten

SPEC: Final = EnvSpec("frames", Space((64, 64, 3), "uint8"), Space((), "int64", n=18))
BARLOW: Final = Config(size="12M", halving="max-pool", batch=2, window=64, capacity=128)
OURS: Final = ("barlow-dreamer",)
DECODER: Final = "barlow-dreamer, objective reconstruction"


def comparison(config: Config = BARLOW) -> Comparison:
    """Returns the compared learners, which differ in the objective alone."""
    rows = cache(lambda: random_windows(config))
    learners = {
        OURS[0]: lambda: whole_updates(config, rows())[1],
        DECODER: lambda: whole_updates(replace(config, objective="reconstruction"), rows())[1],
    }
    return Comparison(config.batch, config.capacity, OURS, (), learners)


def whole_updates(config: Config, rows: Batch) -> tuple[BarlowDreamer, Updates]:
    """Returns an agent, and a function of n that does n updates with dreams on the batch `rows`."""
    agent = BarlowDreamer(config, SPEC, 0, "cpu")
    ones = np.ones(config.batch)
    sample = Sample(rows, np.arange(config.batch), ones / config.batch, config.batch)

    def once() -> None:
        feedback = agent.learn_world(sample)
        agent.learn_policy(None, agent.dream(rewritten(sample, feedback)))

    return agent, repeated(once)


def random_windows(config: Config) -> Batch:
    """Returns a batch of random windows, with one row before each window."""
    rng = np.random.default_rng(0)
    lead = (config.batch, 1 + config.window)
    sizes = config.sizes
    flags: dict[str, Any] = {name: np.zeros(lead, bool) for name in ("first", "last", "terminal")}
    return {
        "obs": rng.integers(0, 256, (*lead, *SPEC.obs.shape), dtype=np.uint8),
        "action": rng.integers(0, SPEC.action.n, lead),
        "reward": rng.standard_normal(lead, dtype=np.float32),
        **flags,
        "deter": np.zeros((config.batch, sizes.deter), np.float16),
        "stoch": np.zeros((config.batch, sizes.groups), np.uint8),
    }
