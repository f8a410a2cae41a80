"""Dreamwalker's learner and the TQC of sb3-contrib at equal networks, on a BipedalWalker's spaces.

    pip install sb3-contrib        # the extra `peers`

An update is a uniform sample and the gradient steps of critics, actor and temperature: theirs is
`TQC.train`, with its own replay buffer. Both replays hold the same random rows. Nobody dreams.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final, cast

import numpy as np

from benchmarks.updates.comparison import Race, Work, learning
from dreamfleet.agents.dreamwalker.agent import Dreamwalker
from dreamfleet.agents.dreamwalker.config import Config
from dreamfleet.core.types import Agent, Batch, EnvSpec
from dreamfleet.envs.vector import GymVector

ENV: Final = "BipedalWalker-v3"
STREAMS: Final = 16
EPISODE: Final = 256  # rows, the last one included
SIZES: Final = (400, 300)
EQUAL: Final = Config(
    critics=2,
    critic_hidden=SIZES,
    actor_hidden=SIZES,
    dense=False,
    emphasize_recent=False,
    dream_share=0.0,
    capacity=100_000,
)
OURS: Final = ("dreamwalker",)
DEFAULTS: Final = "dreamwalker, its own networks"
TQC: Final = "TQC of sb3-contrib"


def race(config: Config = EQUAL) -> Race:
    spec = cache(lambda: GymVector(ENV, 1, seed=0).spec)
    rows = cache(lambda: episodes(spec(), config.capacity))

    def ours(config: Config) -> Work:
        return learning(cast(Agent, Dreamwalker(config, spec(), 0, "cpu")), rows())

    own = Config(
        emphasize_recent=config.emphasize_recent,
        dream_share=0.0,
        capacity=config.capacity,
        batch=config.batch,
    )
    sides = {
        OURS[0]: lambda: ours(config),
        DEFAULTS: lambda: ours(own),
        TQC: lambda: training(peer(config, rows()), config.batch),
    }
    needs = {TQC: "sb3-contrib"}
    return Race(config.batch, config.capacity, OURS, (DEFAULTS,), sides, needs)


def episodes(spec: EnvSpec, steps: int) -> Batch:
    """Terminated episodes of random rows, of `steps` agent steps and more: (STREAMS, T, …)."""
    random = np.random.default_rng(0)
    each = -(-steps // (STREAMS * (EPISODE - 1)))  # episodes of a stream
    lead = (STREAMS, each * EPISODE)
    at = np.broadcast_to(np.arange(lead[1]) % EPISODE, lead)
    last = at == EPISODE - 1
    return {
        "obs": random.standard_normal((*lead, *spec.obs.shape), dtype=np.float32),
        "action": random.uniform(-1, 1, (*lead, *spec.action.shape)).astype(np.float32),
        "reward": random.standard_normal(lead, dtype=np.float32),
        "first": at == 0,
        "last": last,
        "terminal": last,
    }


def peer(config: Config, rows: Batch) -> Any:
    """sb3-contrib's TQC of the same sizes, its replay buffer filled with the steps of `rows`."""
    from sb3_contrib import TQC
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.logger import Logger

    model = TQC(
        "MlpPolicy",
        make_vec_env(ENV, STREAMS),
        learning_rate=config.lr_critic,
        buffer_size=config.capacity,
        batch_size=config.batch,
        tau=config.slow_critic,
        gamma=config.gamma,
        top_quantiles_to_drop_per_net=config.dropped_quantiles,
        policy_kwargs={
            "net_arch": {"pi": list(config.actor_hidden), "qf": list(config.critic_hidden)},
            "n_critics": config.critics,
            "n_quantiles": config.quantiles,
        },
        seed=0,
        device="cpu",
    )
    model.set_logger(Logger(None, []))  # to train without `learn`
    buffer = model.replay_buffer
    for t in np.flatnonzero(~rows["last"][0])[: config.capacity // STREAMS]:  # all end together
        here = (rows["obs"][:, t], rows["obs"][:, t + 1], rows["action"][:, t])
        buffer.add(*here, rows["reward"][:, t + 1], rows["terminal"][:, t + 1], [{}] * STREAMS)
    assert buffer.full
    return model


def training(model: Any, batch: int) -> Work:
    return lambda updates: model.train(updates, batch)
