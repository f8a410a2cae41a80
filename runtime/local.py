"""All parts in one thread, one agent shared by all: deterministic, and without Ray."""

from __future__ import annotations

import os
from typing import Any

from core.config import RunConfig
from learner.weight_store import LocalWeights
from replay_server.server import ReplayServer
from runtime.blueprint import Blueprint, Site, weight_groups
from runtime.display import Display
from runtime.run_folder import RunFolder
from runtime.session import Session
from runtime.turns import Turns


def train(
    config: RunConfig, folder: RunFolder, resumed: dict[str, Any] | None, display: Display
) -> int:
    """Train until the steps are done or somebody interrupts → exit code.

    `resumed`: the state of the checkpoint to go on from. Raises WorkerFailed.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # networks this small lose by more threads
    blueprint = Blueprint.of(config)
    agent = blueprint.agent("local", config.device)
    groups = weight_groups(agent)
    replay = ReplayServer(agent.tables, blueprint.seed("replay"))
    weights = LocalWeights()
    if resumed is not None:
        for group in groups:
            agent.restore(group, resumed["agent"][group])
        replay.restore(resumed["replay"])

    with Session(config, folder, display, resumed) as session:

        def start(name: str) -> Turns:
            site = Site(agent, replay, weights, (), session.progress(name))
            return Turns(name, blueprint.worker(name, site))

        def save() -> None:
            session.save({group: agent.state(group) for group in groups}, replay.state())

        crew = {name: start(name) for name in blueprint.crew(groups)}
        while not session.over:
            moved = False
            for name, turns in crew.items():
                moved |= turns.step()
                session.take(turns.report(), replay.stats())
                if turns.broken:
                    crew[name] = start(name)
                    moved = True
            if not moved and not session.over:
                waits = {name: turns.worker.waiting_for for name, turns in crew.items()}
                raise RuntimeError(f"everybody waits: {waits}")
            if session.save_due:
                save()
        save()
    return session.finish()
