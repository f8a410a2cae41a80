"""Trains in one thread, without Ray, with one agent for all workers. The run is deterministic."""

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
from dreamfleet.runtime.blueprint import Blueprint, Dependencies, Progress, weight_groups
from dreamfleet.runtime.display import Display
from dreamfleet.runtime.run_folder import RunFolder
from dreamfleet.runtime.session import Session
from dreamfleet.runtime.watchdog import CHECK_EVERY_S, EnvCall, EnvCalls, Watchdog
from dreamfleet.runtime.worker_runner import WorkerRunner

INTERRUPT_S: Final = 0.7  # how long an environment call may go on after an interrupt


def train(
    config: RunConfig, folder: RunFolder, resumed: dict[str, Any] | None, display: Display
) -> int:
    """Trains in this thread until all steps are taken or a signal interrupts.

    Returns the exit code. resumed: the state of the checkpoint from which the run continues; None
    for a new run. Raises WorkerFailed when a worker (such as an actor) fails and a restart cannot
    help.
    """
    session = Session(config, folder, display, resumed)
    blueprint = Blueprint.of(config)
    agent = blueprint.agent("local", config.device)
    groups = weight_groups(agent)
    tables = blueprint.tables(agent)
    parts = shard_tables(tables, config.train.replay_shards)
    shards = [NearShard(parts, seed) for seed in blueprint.shard_seeds()]
    replay = ShardedReplay(shards, tables, blueprint.seed("shares"))
    weights = LocalWeights(read=False)
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

    env_calls = EnvCalls()

    def interrupted() -> bool:
        session.interrupts.listen()  # an environment may have replaced the signal handlers
        return session.interrupted

    def build(name: str, progress: Progress) -> Worker:
        deps = Dependencies(agent, replay, weights, (), progress, interrupted, env_calls)
        return blueprint.worker(name, deps)

    def save() -> Path | None:
        states = join_states([shard.state() for shard in shards])
        return session.save({group: agent.state(group) for group in groups}, states)

    folder.record(blueprint.agent_options(agent))

    with session, Watchdog(env_calls, partial(_check_env_call, session, save)):
        runners = [
            WorkerRunner(
                name,
                partial(build, name),
                session.progress(name),
                interrupted=lambda: session.interrupts.twice,
            )
            for name in blueprint.worker_names(groups)
        ]
        while not session.over:
            session.interrupts.listen()
            moved = False
            for runner in runners:
                if runner.name == "evaluator" and session.over:
                    continue  # the saved policy is evaluated below
                moved |= runner.step()
                session.take(runner.report(), replay.stats())
                if runner.broken:
                    _delay(session, session.rest_s(runner.name))
                    runner.restart(session.progress(runner.name))
                    moved = True
            if not moved and not session.over:
                waits = {runner.name: runner.waiting_for for runner in runners}
                raise RuntimeError(f"all workers wait for each other: {waits}")
            if session.save_due:
                save()
        if session.interrupts.twice:  # the environment swallowed the KeyboardInterrupt
            raise KeyboardInterrupt
        if save() and runners[-1].name == "evaluator" and not session.interrupted:
            assert session.saved_at is not None
            runners[-1].evaluate_saved(session.saved_at, {})  # the agent still is as it was saved
            session.take_last_evaluation(runners[-1].report())
        return session.finish()


def _delay(session: Session, seconds: float) -> None:
    """Sleeps for `seconds`, or until the run is over or interrupted."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and not session.over:
        time.sleep(CHECK_EVERY_S)


def _check_env_call(session: Session, save: Callable[[], object], call: EnvCall | None) -> None:
    """Saves the run and ends the process if an environment call takes too long.

    After Ctrl-C or SIGTERM the limit is `INTERRUPT_S` seconds, otherwise `train.env_timeout_s` for
    each environment. After a second signal the process ends without saving. call: the environment
    call in progress, or None.
    """
    config, interrupts = session.config, session.interrupts
    waited = time.monotonic() - interrupts.first_at if session.interrupted else 0.0
    if waited > INTERRUPT_S:
        session.announce()
    if call is None:
        return
    seconds, allowed = call.seconds, config.train.env_timeout_s * call.environments
    subject = f"{call.worker}: a call of its environment {config.env}"
    if interrupts.twice:
        session.leave(f"left at once, nothing saved. {session.go_on}", interrupts.exit_code)
    elif min(waited, seconds) > INTERRUPT_S:
        session.leave(
            f"{interrupts.name}: left. {subject} has not returned for {seconds:.1f} s. "
            f"{_save_and_advise(session, save)}",
            interrupts.exit_code,
        )
    elif seconds > allowed:
        each = f" for each of {call.environments}" if call.environments > 1 else ""
        session.leave(
            f"{subject} took longer than {allowed:g} s (train.env_timeout_s{each}). "
            f"{_save_and_advise(session, save)}",
            1,
        )


def _save_and_advise(session: Session, save: Callable[[], object]) -> str:
    """Tries to save a checkpoint. Returns a sentence that tells how to continue the run."""
    try:
        save()
    except Exception as error:  # of any kind: the process must still end with a message
        return f"Not saved: {error}. {session.go_on}"
    return session.go_on
