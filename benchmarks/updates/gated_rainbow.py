"""Defines learners for NumberGame: Gated Rainbow, and eager PyTorch with equal networks.

The learners in eager PyTorch are defined in `eager_rainbow.py` in this folder.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache, partial
from typing import Any, Final, cast

import numpy as np

from benchmarks.timing import repeated
from benchmarks.updates.comparison import Comparison, Updates, our_updates
from benchmarks.updates.eager_rainbow import (
    EagerLearner,
    OurReplay,
    Sizes,
    Transition,
    TreeReplay,
    n_step_transitions,
)
from dreamfleet.agents.gated_rainbow.agent import GatedRainbow
from dreamfleet.agents.gated_rainbow.config import CONTEXT, VALUE_RANGE, Config
from dreamfleet.core.types import Agent, Array, Batch, EnvSpec
from dreamfleet.envs.vector import GymVector

ENV: Final = "NumberGame-v1"
GAMES: Final = 64  # environments that are played together to fill the replays
EQUAL: Final = Config(
    gate="none", dream_share=0.0, value_head="c51", noisy_sigma=0.5, n_step=3, batch=256
)
OURS: Final = ("gated-rainbow", "gated-rainbow, compiled")
GATED: Final = "gated-rainbow with its gate"


def comparison(config: Config = EQUAL) -> Comparison:
    """Returns the compared learners: three variants of Gated Rainbow, and two in eager PyTorch.

    The variants of Gated Rainbow are: plain, compiled, and with its gate. One learner in eager
    PyTorch is written as in CleanRL. The other is vectorised and uses our replay.
    """
    played = cache(lambda: RandomPlay(config.capacity, config.gamma))

    def ours(**options: Any) -> Updates:
        agent = GatedRainbow(replace(config, **options), played().spec, 0, "cpu")
        return our_updates(cast(Agent, agent), played().rows)

    def eager(replay: type[TreeReplay] | type[OurReplay], vectorised: bool) -> Updates:
        return repeated(eager_learner(config, played(), replay, vectorised))

    return Comparison(
        config.batch,
        config.capacity,
        OURS,
        (GATED,),
        {
            OURS[0]: ours,
            OURS[1]: partial(ours, compile=True),
            GATED: partial(ours, gate="mlp"),
            "eager, as CleanRL writes it": partial(eager, TreeReplay, vectorised=False),
            "eager, tidied up, on our replay": partial(eager, OurReplay, vectorised=True),
        },
    )


class RandomPlay:
    """Plays random actions in N environments of NumberGame, and keeps the rows in `rows`.

    The action that ends a game (draw) is never chosen. steps: at least this many agent steps are
    played, counted over all environments. Each column in `rows` has the shape (N, T, …).

    The columns of Gated Rainbow are: `history`, the last CONTEXT + 1 observations;
    `discounted_return`, the discounted reward so far; and `episode_return`, the reward so far.
    """

    def __init__(self, steps: int, gamma: float) -> None:
        env, rng = GymVector(ENV, GAMES, seed=0), np.random.default_rng(0)
        self.spec: EnvSpec = env.spec
        rows, played = env.reset(), []
        history = np.zeros((GAMES, CONTEXT + 1, *env.spec.obs.shape), np.float32)
        trace, score = np.zeros((2, GAMES), np.float32)
        taken = 0
        while taken < steps:
            first, obs = rows["first"], rows["obs"][:, None]
            moved = np.concatenate([history[:, 1:], obs], 1)
            history = np.where(first[:, None, None], obs, moved)
            trace = np.where(first, 0, gamma * trace + rows["reward"]).astype(np.float32)
            score = np.where(first, 0, score + rows["reward"]).astype(np.float32)
            action = rng.integers(0, env.spec.action.n - 1, GAMES)  # the last one ends the game
            returns = {"discounted_return": trace, "episode_return": score}
            added = {"action": action, "history": history, **returns}
            played.append({**rows, **added})
            taken += int((~rows["last"]).sum())
            rows = env.step(action)
        env.close()
        self.rows: Batch = {key: np.stack([row[key] for row in played], 1) for key in played[0]}

    def transitions(self, unit: float) -> Iterator[list[Transition]]:
        """Yields the transitions of each environment as a list. Rewards are divided by `unit`."""
        rows = self.rows
        history: Array = rows["history"].reshape(*rows["last"].shape, -1)
        for i in range(GAMES):
            yield [
                Transition(
                    history[i, t],
                    int(rows["action"][i, t]),
                    float(rows["reward"][i, t + 1]) / unit,
                    history[i, t + 1],
                    bool(rows["terminal"][i, t + 1]),
                )
                for t in np.flatnonzero(~rows["last"][i, :-1])
            ]


def eager_learner(
    config: Config,
    played: RandomPlay,
    replay: type[TreeReplay] | type[OurReplay],
    vectorised: bool,
) -> EagerLearner:
    """Returns a Rainbow learner in eager PyTorch, with networks and batch size as in `config`.

    played: the rows that fill the replay. replay: the class of the replay. vectorised: use
    factorised noise, and project target distributions without a loop.
    """
    unit = float(np.abs(played.rows["discounted_return"]).max()) / VALUE_RANGE
    obs = played.spec.obs.shape
    sizes = Sizes(
        inputs=(CONTEXT + 1) * int(np.prod(obs)),
        actions=played.spec.action.n,
        hidden=config.hidden,
        atoms=config.atoms,
        value_range=VALUE_RANGE,
        sigma=config.noisy_sigma,
        batch=config.batch,
        capacity=config.capacity,
        n_step=config.n_step,
        gamma=config.gamma,
        lr=config.lr_critic,
    )
    filled = replay(sizes, seed=0)
    filled.fill(
        transition
        for transitions in played.transitions(unit)
        for transition in n_step_transitions(transitions, sizes.n_step, sizes.gamma)
    )
    return EagerLearner(sizes, filled, vectorised)
