"""All parts in one thread, one agent shared by all: deterministic, and without Ray."""

from __future__ import annotations

from functools import partial
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
    step_shares,
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
    states: list[dict[str, Any] | None] = [None] * len(shards)
    if resumed is not None:
        for group in groups:
            agent.restore(group, resumed["agent"][group])
        states = [*split_state(resumed["replay"], len(shards))]
    ends = step_shares(config.steps, states)
    for shard, state, end in zip(shards, states, ends, strict=True):
        if state is not None:
            shard.restore(state)
        shard.end_at(end)

    def build(name: str, progress: Progress) -> Worker:
        return blueprint.worker(name, Site(agent, replay, weights, (), progress))

    def save() -> None:
        states = join_states([shard.state() for shard in shards])
        session.save({group: agent.state(group) for group in groups}, states)

    with session:
        names = blueprint.crew(groups)
        crew = [Turns(name, partial(build, name), session.progress(name)) for name in names]
        while not session.over:
            moved = False
            for turns in crew:
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
        save()
        return session.finish()
