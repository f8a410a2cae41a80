"""Gated Rainbow's learner and eager PyTorch at equal networks, on rows of NumberGame.

An update is a prioritized sample, the gradient step and the new priorities.
The peers, and what they leave out: `benchmarks/updates/eager_rainbow.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache, partial
from typing import Any, Final, cast

import numpy as np

from benchmarks.timing import each
from benchmarks.updates.comparison import Race, Work, learning
from benchmarks.updates.eager_rainbow import Learner as Peer
from benchmarks.updates.eager_rainbow import OurReplay, Sizes, Step, TreeReplay, of_n_steps
from dreamfleet.agents.gated_rainbow.agent import GatedRainbow
from dreamfleet.agents.gated_rainbow.config import CONTEXT, VALUE_RANGE, Config
from dreamfleet.core.types import Agent, Array, Batch, EnvSpec
from dreamfleet.envs.vector import GymVector

ENV: Final = "NumberGame-v1"
GAMES: Final = 64  # played together to fill the replays
EQUAL: Final = Config(
    gate="none", dream_share=0.0, value_head="c51", noisy_sigma=0.5, n_step=3, batch=256
)
OURS: Final = ("gated-rainbow", "gated-rainbow, compiled")
GATED: Final = "gated-rainbow with its gate"


def race(config: Config = EQUAL) -> Race:
    played = cache(lambda: Games(config.capacity, config.gamma))

    def ours(**options: Any) -> Work:
        agent = GatedRainbow(replace(config, **options), played().spec, 0, "cpu")
        return learning(cast(Agent, agent), played().rows)

    def theirs(replay: type[TreeReplay] | type[OurReplay], tidy: bool) -> Work:
        return each(peer(config, played(), replay, tidy))

    return Race(
        config.batch,
        config.capacity,
        OURS,
        (GATED,),
        {
            OURS[0]: ours,
            OURS[1]: partial(ours, compile=True),
            GATED: partial(ours, gate="mlp"),
            "eager, as CleanRL writes it": partial(theirs, TreeReplay, tidy=False),
            "eager, tidied up, on our replay": partial(theirs, OurReplay, tidy=True),
        },
    )


class Games:
    """Random play of `steps` agent steps and more, as rows (N, T, …) with histories and traces."""

    def __init__(self, steps: int, gamma: float) -> None:
        env, random = GymVector(ENV, GAMES, seed=0), np.random.default_rng(0)
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
            action = random.integers(0, env.spec.action.n - 1, GAMES)  # a draw would end them all
            returns = {"discounted_return": trace, "episode_return": score}
            played.append({**rows, "action": action, "history": history, **returns})
            taken += int((~rows["last"]).sum())
            rows = env.step(action)
        env.close()
        self.rows: Batch = {key: np.stack([row[key] for row in played], 1) for key in played[0]}

    def transitions(self, unit: float) -> Iterator[list[Step]]:
        """The steps of each environment, rewards divided by `unit`."""
        rows = self.rows
        history: Array = rows["history"].reshape(*rows["last"].shape, -1)
        for i in range(GAMES):
            yield [
                Step(
                    history[i, t],
                    int(rows["action"][i, t]),
                    float(rows["reward"][i, t + 1]) / unit,
                    history[i, t + 1],
                    bool(rows["terminal"][i, t + 1]),
                )
                for t in np.flatnonzero(~rows["last"][i, :-1])
            ]


def peer(
    config: Config, played: Games, replay: type[TreeReplay] | type[OurReplay], tidy: bool
) -> Peer:
    """A peer with the same networks, the same batches, and as much to draw from."""
    unit = float(np.abs(played.rows["discounted_return"]).max()) / VALUE_RANGE
    obs = played.spec.obs.shape
    sizes = Sizes(
        inputs=(CONTEXT + 1) * int(np.prod(obs)),
        actions=played.spec.action.n,
        hidden=config.hidden,
        atoms=config.atoms,
        span=VALUE_RANGE,
        sigma=config.noisy_sigma,
        batch=config.batch,
        capacity=config.capacity,
        n=config.n_step,
        gamma=config.gamma,
        lr=config.lr_critic,
    )
    holds = replay(sizes, seed=0)
    holds.fill(
        step
        for steps in played.transitions(unit)
        for step in of_n_steps(steps, sizes.n, sizes.gamma)
    )
    return Peer(sizes, holds, tidy)
