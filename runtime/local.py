"""All parts in one thread, one agent shared by all: deterministic, and without Ray."""

from __future__ import annotations

import os
from typing import Any

from learner.weight_store import LocalWeights
from replay_server.server import ReplayServer
from runtime.blueprint import Blueprint, weight_groups
from runtime.display import Display
from runtime.run_folder import RunFolder
from runtime.session import Session
from runtime.turns import Turns


def train(
    blueprint: Blueprint, folder: RunFolder, resumed: dict[str, Any] | None, display: Display
) -> int:
    """Train until the steps are done or somebody interrupts → exit code.

    `resumed`: the state of the checkpoint to go on from. Raises WorkerFailed.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # networks this small lose by more threads
    config = blueprint.config
    agent = blueprint.agent("local", config.device)
    groups = weight_groups(agent)
    replay = ReplayServer(agent.tables, blueprint.seed("replay"))
    weights = LocalWeights()
    if resumed is not None:
        for group in groups:
            agent.restore(group, resumed["agent"][group])
        replay.restore(resumed["replay"])

    starts = dict.fromkeys(range(config.num_actors), 0)

    def actor(index: int) -> Turns:
        start = starts[index]
        starts[index] += 1
        return Turns(
            f"actor-{index}", blueprint.actor(index, agent, replay, weights, (), start)
        )

    with Session(config, folder, display, resumed) as session:
        actors = [actor(index) for index in starts]
        learner = blueprint.learner(agent, replay, weights, (), session.updates["learner"])
        others = [Turns("learner", learner)]
        ...
    return session.finish()
