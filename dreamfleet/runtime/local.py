"""All parts in one thread, one agent shared by all: deterministic, and without Ray."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

from dreamfleet.core.config import RunConfig
from dreamfleet.core.types import Worker
from dreamfleet.learner.weight_store import LocalWeights
from dreamfleet.replay_server.shards import (
    NearShard,
    ShardedReplay,
    join_states,
    last_steps,
    shard_tables,
    split_state,
)
from dreamfleet.runtime.blueprint import Blueprint, Progress, Site, weight_groups
from dreamfleet.runtime.display import Display
from dreamfleet.runtime.run_folder import RunFolder
from dreamfleet.runtime.session import Session
from dreamfleet.runtime.turns import Turns
from dreamfleet.runtime.watchdog import LOOK_S, EnvCall, EnvCalls, Watchdog

HEARD_S: Final = 0.7  # after an interrupt, how long an environment's call may go on


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
    ends = last_steps(config.steps, states)
    for shard, state, end in zip(shards, states, ends, strict=True):
        if state is not None:
            shard.restore(state)
        shard.end_at(end)

    calls = EnvCalls()

    def interrupted() -> bool:
        session.interrupts.listen()  # environments may have taken the signals
        return session.interrupted

    def build(name: str, progress: Progress) -> Worker:
        site = Site(agent, replay, weights, (), progress, interrupted, calls)
        return blueprint.worker(name, site)

    def save() -> Path | None:
        states = join_states([shard.state() for shard in shards])
        return session.save({group: agent.state(group) for group in groups}, states)

    folder.record(blueprint.agent_options(agent))

    with session, Watchdog(calls, partial(_look, session, save)):
        names = blueprint.crew(groups)
        crew = [
            Turns(
                name,
                partial(build, name),
                session.progress(name),
                interrupted=lambda: session.interrupts.at_once,
            )
            for name in names
        ]
        while not session.over:
            session.interrupts.listen()
            moved = False
            for turns in crew:
                if turns.name == "evaluator" and session.over:
                    continue  # the last evaluation is of what is saved
                moved |= turns.step()
                session.take(turns.report(), replay.stats())
                if turns.broken:
                    _rest(session, session.rest_s(turns.name))
                    turns.restart(session.progress(turns.name))
                    moved = True
            if not moved and not session.over:
                waits = {turns.name: turns.waiting_for for turns in crew}
                raise RuntimeError(f"everybody waits: {waits}")
            if session.save_due:
                save()
        if session.interrupts.at_once:  # and the environment that was interrupted took it
            raise KeyboardInterrupt
        if save() and crew[-1].name == "evaluator" and not session.interrupted:
            assert session.saved_at is not None
            crew[-1].evaluate_saved(session.saved_at, {})  # the agent is as it was saved
            session.take_last_evaluation(crew[-1].report())
        return session.finish()


def _rest(session: Session, seconds: float) -> None:
    """Sleeps, unless somebody interrupts."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and not session.over:
        time.sleep(LOOK_S)


def _look(session: Session, save: Callable[[], object], call: EnvCall | None) -> None:
    """Ends the process when an environment hangs, or does not let an interrupt through.

    Runs in the watchdog's thread. The one thread of the run is inside the environment then, and
    everything else is at rest, so that it can be saved.
    """
    config, interrupts = session.config, session.interrupts
    waited = time.monotonic() - interrupts.since if session.interrupted else 0.0
    if waited > HEARD_S:
        session.announce()
    if call is None:
        return
    seconds, allowed = call.seconds, config.train.env_timeout_s * call.environments
    hangs = f"{call.worker}: a call of its environment {config.env}"
    if interrupts.at_once:
        session.leave(f"left at once, nothing saved. {session.go_on}", interrupts.exit_code)
    elif min(waited, seconds) > HEARD_S:
        session.leave(
            f"{interrupts.name}: left. {hangs} has not returned for {seconds:.1f} s. "
            f"{_saved(session, save)}",
            interrupts.exit_code,
        )
    elif seconds > allowed:
        each = f" for each of {call.environments}" if call.environments > 1 else ""
        session.leave(
            f"{hangs} took longer than {allowed:g} s (train.env_timeout_s{each}). "
            f"{_saved(session, save)}",
            1,
        )


def _saved(session: Session, save: Callable[[], object]) -> str:
    """Saves if that is possible → how to go on."""
    try:
        save()
    except Exception as error:  # whatever it is, the line below must still be said
        return f"Not saved: {error}. {session.go_on}"
    return session.go_on
