"""Defines learners for BipedalWalker: Dreamwalker, and TQC of sb3-contrib with equal networks.

    pip install sb3-contrib        # the extra `peers`

TQC is Truncated Quantile Critics. An update of TQC is `TQC.train` with TQC's own replay buffer. All
replays hold the same random rows. No learner uses dreamed rows.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final, cast

import numpy as np

from benchmarks.updates.comparison import Comparison, Updates, our_updates
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


def comparison(config: Config = EQUAL) -> Comparison:
    """Returns the compared learners: Dreamwalker twice, and TQC of sb3-contrib.

    The first Dreamwalker has networks equal to those of TQC, and the settings `config`. The second
    has its own default networks.
    """
    spec = cache(lambda: GymVector(ENV, 1, seed=0).spec)
    rows = cache(lambda: random_episodes(spec(), config.capacity))

    def ours(config: Config) -> Updates:
        return our_updates(cast(Agent, Dreamwalker(config, spec(), 0, "cpu")), rows())

    own = Config(
        emphasize_recent=config.emphasize_recent,
        dream_share=0.0,
        capacity=config.capacity,
        batch=config.batch,
    )
    learners = {
        OURS[0]: lambda: ours(config),
        DEFAULTS: lambda: ours(own),
        TQC: lambda: tqc_updates(tqc(config, rows()), config.batch),
    }
    needs = {TQC: "sb3-contrib"}
    return Comparison(config.batch, config.capacity, OURS, (DEFAULTS,), learners, needs)


def random_episodes(spec: EnvSpec, steps: int) -> Batch:
    """Returns random rows of terminated episodes, with at least `steps` environment steps in total.

    spec: shapes of observations and actions. Each column has the shape (STREAMS, T, …), T rows of
    each of STREAMS environments.
    """
    rng = np.random.default_rng(0)
    per_stream = -(-steps // (STREAMS * (EPISODE - 1)))  # episodes
    lead = (STREAMS, per_stream * EPISODE)
    at = np.broadcast_to(np.arange(lead[1]) % EPISODE, lead)
    last = at == EPISODE - 1
    return {
        "obs": rng.standard_normal((*lead, *spec.obs.shape), dtype=np.float32),
        "action": rng.uniform(-1, 1, (*lead, *spec.action.shape)).astype(np.float32),
        "reward": rng.standard_normal(lead, dtype=np.float32),
        "first": at == 0,
        "last": last,
        "terminal": last,
    }


def tqc(config: Config, rows: Batch) -> Any:
    """Returns TQC of sb3-contrib with network sizes as in `config`, and a filled replay buffer.

    rows: the content of the replay buffer, as returned by `random_episodes`.
    """
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
    model.set_logger(Logger(None, []))  # `train` without `learn` needs a logger
    buffer = model.replay_buffer
    steps = np.flatnonzero(~rows["last"][0])  # the episodes of all streams end at the same time
    for t in steps[: config.capacity // STREAMS]:
        here = (rows["obs"][:, t], rows["obs"][:, t + 1], rows["action"][:, t])
        buffer.add(*here, rows["reward"][:, t + 1], rows["terminal"][:, t + 1], [{}] * STREAMS)
    assert buffer.full
    return model


def tqc_updates(model: Any, batch: int) -> Updates:
    """Returns a function of n that does n updates of a TQC model of sb3-contrib.

    batch: transitions per update.
    """
    return lambda n: model.train(n, batch)
