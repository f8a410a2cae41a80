"""All parts in one thread, one agent shared by all: deterministic, and without Ray."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from dreamfleet.core.config import RunConfig
from dreamfleet.core.types import Worker
from dreamfleet.learner.weight_store import LocalWeights
from dreamfleet.replay_server.shards import (
    NearShard,
    ShardedReplay,
    join_states,
    shard_tables,
    split_state,
)
from dreamfleet.runtime.blueprint import Blueprint, Progress, Site, weight_groups
from dreamfleet.runtime.display import Display
from dreamfleet.runtime.run_folder import RunFolder
from dreamfleet.runtime.session import Session
from dreamfleet.runtime.turns import Turns


def train(
    config: RunConfig, folder: RunFolder, resumed: dict[str, Any] | None, display: Display
) -> int:
    """Train until the steps are done or somebody interrupts → exit code.

    `resumed`: the state of the checkpoint to go on from. Raises WorkerFailed.
    """
    session = Session(config, folder, display, resumed)
    blueprint = Blueprint.of(config)
    agent = blueprint.agent("local", config.device)
    groups = weight_groups(agent)
    tables = blueprint.tables(agent)
    parts = shard_tables(tables, config.train.replay_shards)
    shards = [NearShard(parts, seed) for seed in blueprint.shard_seeds()]
    replay = ShardedReplay(shards, tables, blueprint.seed("shares"))
    weights = LocalWeights()
    if resumed is not None:
        for group in groups:
            agent.restore(group, resumed["agent"][group])
        for shard, state in zip(shards, split_state(resumed["replay"], len(shards)), strict=True):
            shard.restore(state)

    def build(name: str, progress: Progress) -> Worker:
        return blueprint.worker(name, Site(agent, replay, weights, (), progress, interrupted))

    def interrupted() -> bool:
        return session.interrupted_by is not None

    def save() -> Path | None:
        states = join_states([shard.state() for shard in shards])
        return session.save({group: agent.state(group) for group in groups}, states)

    folder.record(blueprint.agent_options())

    with session:
        names = blueprint.crew(groups)
        crew = [Turns(name, partial(build, name), session.progress(name)) for name in names]
        while not session.over:
            moved = False
            for turns in crew:
                if turns.name == "evaluator" and session.over:
                    continue  # the last evaluation is of what is saved
                moved |= turns.step()
                session.take(turns.report(), replay.stats())
                if turns.broken:
                    turns.restart(session.progress(turns.name))
                    moved = True
            if not moved and not session.over:
                waits = {turns.name: turns.waiting_for for turns in crew}
                raise RuntimeError(f"everybody waits: {waits}")
            if session.save_due:
                save()
        if save() and crew[-1].name == "evaluator" and not interrupted():
            assert session.saved_at is not None
            crew[-1].evaluate_saved(session.saved_at, {})  # the agent is as it was saved
            session.take_last_evaluation(crew[-1].report())
        return session.finish()
