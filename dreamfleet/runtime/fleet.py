"""All processes of a run, and the loop of their driver, free of Ray: a `Cluster` starts them.

The driver gives the workers turns of a second; what a turn returns is its report. So nothing runs
that nobody asked for, a process that dies or hangs is noticed by the turn it does not finish, and
stopping is not asking again. Rows, samples and weights never pass through the driver.
"""

from __future__ import annotations

import contextlib
import itertools
import time
import uuid
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from dreamfleet.core.errors import WorkerFailed
from dreamfleet.core.types import Agent
from dreamfleet.learner.weight_store import LocalWeights
from dreamfleet.replay_server.shards import (
    join_states,
    last_steps,
    merged_stats,
    shard_tables,
    split_state,
)
from dreamfleet.runtime.blueprint import Blueprint, weight_groups
from dreamfleet.runtime.hosts import WorkerHost
from dreamfleet.runtime.processes import Cluster, Lost, ProcessLine, shares, start_replay
from dreamfleet.runtime.proxies import ReplayProxy, WeightsProxy
from dreamfleet.runtime.session import Session
from dreamfleet.runtime.turns import Fault, Report

TURN_S: Final = 1.0  # how long a worker works between two reports
EARLY_TURN_S: Final = 0.2  # the same before the first gradient step, so that it is seen at once
START_S: Final = 180.0  # how long a process may take to start, all packages imported
ANSWER_S: Final = 300.0  # how long a gradient step, or an answer to the driver, may take
EVALUATION_S: Final = 3600.0  # how long an evaluation may take
PART_S: Final = 4.0  # how long leaving waits for the last rows of the actors
ALONE_S: Final = 30.0  # the longest the first processes have the machine to themselves
STARTING: Final = 2  # processes that may be starting at once after that
POLL_S: Final = 0.25  # between two looks at the clock and at interrupts, whatever is waited for
SILENT_S: Final = 5.0  # after which the display names the process that is waited for
LEAVE_S: Final = 10.0  # how long an interrupted run waits for a replay that gives no answer
LEARN_S: Final = 60.0  # the same for a gradient step that is under way
SIGN_OF_LIFE_S: Final = 2.0  # how long each process has to show that it lives


@dataclass
class Process:
    """A host of workers and the turn it is taking."""

    names: tuple[str, ...]
    line: ProcessLine
    turn: Any
    deadline: float  # of that turn, on the monotonic clock
    up: bool = False  # it finished a turn: the first one of no time says that it has started
    silent: bool = False  # the display has shown that it is waited for

    @property
    def role(self) -> str:
        return self.names[-1].partition("-")[0]

    @property
    def label(self) -> str:
        return "+".join(self.names)


class Fleet:
    """Starts all processes of a run, gives them turns, replaces those that break.

    agent: one like those of the processes, for its tables and to read a checkpoint. resumed: the
    state of the checkpoint to go on from, or nothing.
    """

    def __init__(
        self,
        cluster: Cluster,
        blueprint: Blueprint,
        agent: Agent,
        session: Session,
        resumed: Mapping[str, Any],
    ) -> None:
        self._cluster, self._blueprint, self._session = cluster, blueprint, session
        self._train = blueprint.config.train
        self._groups, self._act_groups = weight_groups(agent), agent.act_groups
        self._namespace = f"{session.folder.path.name}-{uuid.uuid4().hex[:8]}"
        self._shares = shares(blueprint.config, cluster.resources())
        self._processes: dict[tuple[str, ...], Process] = {}
        self._lost_services: list[str] = []
        self._resting: dict[tuple[str, ...], float] = {}  # that died → when to start them again
        crew = blueprint.crew(self._groups)
        self._tables = blueprint.tables(agent)
        shards = self._train.replay_shards
        self._replay_names = ["replay"] if shards == 1 else [f"replay-{i}" for i in range(shards)]
        self._replays = self._start_replays(resumed.get("replay"))
        self._weights = cluster.start(LocalWeights, name="weights", namespace=self._namespace)
        states = resumed.get("agent", {})
        for group, state in states.items():  # so that nobody acts or dreams on anything older
            agent.restore(group, state)
            self._weights.call("publish", group, agent.weights(group))
        self._states = cluster.share(states)

        trainers = tuple(name for name in crew if name.startswith(("dreamer", "learner")))
        apart = blueprint.config.num_dreamers > 0
        hosts = [(name,) for name in trainers] if apart else [trainers]
        self._owners = {"world": hosts[0], "policy": hosts[-1]}
        feeding = [(name,) for name in crew[: len(self._replays)]]  # every shard needs an actor
        first = dict.fromkeys((*self._owners.values(), *feeding))
        for names in first:
            self._start(names)
        rest = [(name,) for name in crew if name not in itertools.chain(*first)]
        self._to_start = deque(sorted(rest, key=lambda names: names[0].startswith("actor")))
        self._alone_until = time.monotonic() + ALONE_S

    def run(self) -> None:
        """Gives turns until the session is over, then awaits open work, saves and evaluates."""
        session = self._session
        try:
            while not session.over:
                self._take(self._finished(POLL_S), TURN_S if session.learning else EARLY_TURN_S)
                self._check_services()
                self._stage()
                session.refresh()
                if session.save_due:
                    self.save()
            session.refresh()
            if session.interrupted and not self._learners_up():
                session.display.note("not saved: it was still starting")
                return
            self._take_last()
            saved, states = self.save()
            if saved and not session.interrupted:
                self._await_evaluation()
                self._evaluate_saved({group: states[group] for group in self._act_groups})
        except WorkerFailed as failure:
            if self._lost_services == ["gcs_server"]:  # the others go on without it, for a minute
                with contextlib.suppress(WorkerFailed):
                    self.save()
            if not session.interrupted:
                raise
            session.display.note(f"not saved: {str(failure).splitlines()[-1]}")

    def _learners_up(self) -> bool:
        return all(self._processes[names].up for names in self._owners.values())

    def save(self) -> tuple[Path | None, dict[str, Any]]:
        """Has the session write a checkpoint → its path, the state of each weight group."""
        owners = {group: self._processes[self._owners[group]] for group in self._groups}
        asked = {group: owner.line.call("state", group) for group, owner in owners.items()}
        states = [replay.call("state") for replay in self._replays]
        agent = {
            group: self._answer(state, owners[group].line, owners[group].label)
            for group, state in asked.items()
        }
        return self._session.save(agent, join_states(self._answers(states))), agent

    def close(self) -> None:
        """Stops every process of this run; others in the cluster stay."""
        workers = [process.line for process in self._processes.values()]
        for line in (*workers, *self._replays, self._weights):
            line.stop()

    # ------------------------------------------------------------------------------- turns

    def _finished(self, seconds: float) -> list[Process]:
        """Returns the processes whose turn is over or overdue, once there is one or time is up."""
        by_turn = {process.turn: process for process in self._processes.values()}
        done, now = self._cluster.answered(list(by_turn), seconds), time.monotonic()
        overdue = []
        for turn in by_turn.keys() - set(done):
            process = by_turn[turn]
            if now > process.deadline:
                overdue.append(turn)
            elif process.role != "evaluator" and process.up and not process.silent:
                silent_s = now - process.deadline + self._patience(process.role)
                if silent_s > SILENT_S:
                    process.silent = True
                    self._session.display.note(f"waiting for {process.label}")
        return [by_turn[turn] for turn in (*done, *overdue)]

    def _take(self, processes: Sequence[Process], then_s: float | None) -> None:
        """Takes the reports of turns that are over; restarts what broke, gives turns of `then_s`.

        then_s: None at the end of the run, when no more turns are given.
        """
        if not processes:
            return
        stats = self._stats()
        for process in processes:
            if not self._cluster.answered([process.turn], 0.0):
                self._replace(process, self._overdue(process))
                continue
            try:
                reports: list[Report] = self._cluster.answer(process.turn)
            except Lost as lost:
                self._replace(process, self._death(process, lost))
                continue
            process.up, process.silent = True, False
            for report in reports:
                if report.fault and report.fault.lost:
                    self._check_vital()
                self._session.take(report, stats)
            if then_s is not None:
                broken = [report.worker for report in reports if report.fault]
                restarts = {name: self._session.progress(name) for name in broken}
                rest_s = max((self._session.rest_s(name) for name in broken), default=0.0)
                process.turn = process.line.call("turn", then_s, restarts, rest_s)
                patience = self._patience(process.role)
                process.deadline = time.monotonic() + then_s + rest_s + patience

    def _replace(self, process: Process, fault: Fault) -> None:
        """Have another process take the place of one that died or hangs, after a rest."""
        if process.role in ("learner", "dreamer"):
            self._check_vital()
        else:
            self._check_services()
        for name in process.names:
            self._session.broke(name, fault, useful=self._handed_over(name))
        process.line.stop()
        del self._processes[process.names]
        rest_s = max(self._session.rest_s(name) for name in process.names)
        self._resting[process.names] = time.monotonic() + rest_s

    def _handed_over(self, name: str) -> bool:
        """Tells whether the replay took rows from an actor since its last start."""
        role, _, index = name.partition("-")
        if role != "actor":
            return False
        shard = int(index) % len(self._replays)
        replay = self._replays[shard]
        call = replay.call("newest", "real", int(index))
        newest = self._answer(call, replay, self._replay_names[shard])
        starts = self._session.progress(name).starts
        return newest is not None and newest.restarts == starts

    def _stats(self) -> dict[str, float]:
        """Returns the counters of the whole replay."""
        return merged_stats(self._answers([replay.call("stats") for replay in self._replays]))

    def _take_last(self) -> None:
        """Awaits the turns under way: those of learner and dreamers until they end, those of actors
        for `PART_S`.
        """
        up = [process for process in self._processes.values() if process.up]
        learn = [process for process in up if process.role in ("learner", "dreamer")]
        others = [process for process in up if process.role == "actor"]
        for processes, seconds in ((learn, ANSWER_S), (others, PART_S)):
            turns, until = {process.turn: process for process in processes}, time.monotonic()
            until += seconds
            done: list[Any] = []
            while len(done) < len(turns) and time.monotonic() < until:
                done = self._cluster.answered(list(turns), POLL_S, every=True)
                self._session.refresh()
                if self._session.interrupted:
                    until = min(until, self._session.interrupts.since + LEARN_S)
            self._take([turns[turn] for turn in done], None)

    def _await_evaluation(self) -> None:
        """Awaits the evaluation under way, unless somebody interrupts."""
        evaluator = self._processes.get(("evaluator",))
        if evaluator and self._over(evaluator):
            self._take([evaluator], None)

    def _evaluate_saved(self, states: Mapping[str, Any]) -> None:
        """Has the policy that was saved evaluated, unless somebody interrupts."""
        if ("evaluator",) in (*self._to_start, *self._resting):
            self._start(("evaluator",))
        evaluator, session = self._processes.get(("evaluator",)), self._session
        if evaluator is None or not self._over(evaluator):
            return
        assert session.saved_at is not None
        evaluator.turn = evaluator.line.call("evaluate_saved", session.saved_at, states)
        evaluator.deadline = time.monotonic() + EVALUATION_S
        if not self._over(evaluator):
            return
        try:
            (report,) = self._cluster.answer(evaluator.turn)
        except Lost as lost:
            session.broke_in_last_evaluation(self._death(evaluator, lost))
        else:
            session.take_last_evaluation(report)

    def _over(self, process: Process) -> bool:
        """Waits for a turn to end → whether it did; else it is overdue, or somebody interrupts."""
        while not self._cluster.answered([process.turn], POLL_S):
            self._session.refresh()
            if self._session.interrupted or time.monotonic() > process.deadline:
                return False
        return True

    # ------------------------------------------------------------------------------- faults

    def _answers(self, calls: Sequence[Any]) -> list[Any]:
        """Returns what every shard of the replay answers, to a call each. Raises WorkerFailed."""
        shards = zip(calls, self._replays, self._replay_names, strict=True)
        return [self._answer(call, line, name) for call, line, name in shards]

    def _answer(self, call: Any, line: ProcessLine, name: str) -> Any:
        """Returns what a process answers. Raises WorkerFailed when it is dead or silent."""
        session, since, noted = self._session, time.monotonic(), False
        limit = ANSWER_S
        while not self._cluster.answered([call], POLL_S):
            session.refresh()
            self._check_services()
            if not noted and time.monotonic() - since > SILENT_S:
                noted = True
                session.display.note(f"waiting for {name}")
            if session.interrupted and limit == ANSWER_S:
                limit = LEAVE_S if name.startswith("replay") else LEARN_S
                since = max(since, session.interrupts.since)
            if time.monotonic() - since > limit:
                if not self._cluster.answered([line.alive()], SIGN_OF_LIFE_S):
                    raise WorkerFailed(f"{name} broke: no answer in {limit:g} s")
                since = time.monotonic()  # it works on the answer
        try:
            return self._cluster.answer(call)
        except Lost as lost:
            self._check_vital()
            raise WorkerFailed(f"{name} broke: {_reason(lost)}") from lost

    def _patience(self, role: str) -> float:
        return {"actor": self._train.env_timeout_s, "evaluator": EVALUATION_S}.get(role, ANSWER_S)

    def _overdue(self, process: Process) -> Fault:
        """Returns what is known of a process whose turn is overdue."""
        role = process.role
        what = {"actor": "a step of its environment took"}.get(role, "its turn took")
        limit = f"{self._patience(role):g} s" + " (train.env_timeout_s)" * (role == "actor")
        why = f"{what} longer than {limit}: killed" if process.up else "it did not start"
        return Fault(why, why)

    def _death(self, process: Process, lost: Lost) -> Fault:
        """Returns what is known of a process that did not finish its turn."""
        return Fault(_reason(lost), _reason(lost) if lost.died else str(lost))

    def _check_services(self) -> None:
        """Raises WorkerFailed, once, when a process of the cluster itself is dead."""
        dead = self._cluster.dead_services()
        if not dead or self._lost_services:
            return
        self._lost_services = dead
        raise WorkerFailed(f"Ray broke: its process {dead[0]} died")

    def _check_vital(self) -> None:
        """Raises WorkerFailed, and names it, when a process that cannot be replaced is dead."""
        self._check_services()
        lines = dict(zip(self._replay_names, self._replays, strict=True))
        lines["the weight store"] = self._weights
        lines |= {
            process.label: process.line
            for process in self._processes.values()
            if process.role in ("learner", "dreamer")
        }
        asked = {line.alive(): name for name, line in lines.items()}
        for call in self._cluster.answered(list(asked), SIGN_OF_LIFE_S, every=True):
            try:
                self._cluster.answer(call)
            except Lost as lost:
                raise WorkerFailed(f"{asked[call]} broke: {_reason(lost)}") from lost

    # ------------------------------------------------------------------------------ starting

    def _stage(self) -> None:
        """Starts more processes, without slowing the first gradient step down for them."""
        now = time.monotonic()
        for names, due in list(self._resting.items()):
            if now >= due:
                del self._resting[names]
                self._start(names)
        alone = not self._session.learning and now < self._alone_until
        starting = sum(not process.up for process in self._processes.values())
        if self._to_start and not alone and starting < STARTING:
            self._start(self._to_start.popleft())

    def _start_replays(self, state: Mapping[str, Any] | None) -> list[ProcessLine]:
        """Starts a process for each shard, which goes on from what a checkpoint holds of it."""
        config, seeds = self._blueprint.config, self._blueprint.shard_seeds()
        tables = shard_tables(self._tables, len(seeds))
        states = split_state(state, len(seeds)) if state else [None] * len(seeds)
        ends = last_steps(config.steps, states)
        consuming = 1 + config.num_dreamers
        about = {"cpus": self._shares["replay"], "namespace": self._namespace}
        return [
            start_replay(self._cluster, tables, seed, consuming, part, end, name=name, **about)
            for name, seed, part, end in zip(self._replay_names, seeds, states, ends, strict=True)
        ]

    def _start(self, names: tuple[str, ...]) -> None:
        progress = {name: self._session.progress(name) for name in names}
        starts = progress[names[-1]].starts
        role = names[-1].partition("-")[0]
        trains = role in ("learner", "dreamer")
        device = self._shares["device"] if trains else "cpu"
        gpus = self._shares["gpu"] if device == "cuda" else 0.0
        label = "+".join(names) + (f" (start {starts + 1})" if starts else "")
        line = self._cluster.start(
            WorkerHost,
            names,
            self._blueprint,
            device,
            ReplayProxy(self._replays, self._tables, self._blueprint.seed("shares-" + label)),
            WeightsProxy(self._weights),
            progress,
            self._states if trains else {},
            cpus=self._shares[role],
            gpus=gpus,
            name=label,
            namespace=self._namespace,
        )
        turn, deadline = line.call("turn", 0.0, {}), time.monotonic() + START_S
        self._processes[names] = Process(names, line, turn, deadline)


def _reason(lost: Lost) -> str:
    """Returns, on one line, why a call was not answered."""
    if lost.died:
        return "its process died: killed, out of memory, or ended by its own code"
    lines = str(lost).strip().splitlines()
    return lines[-1].strip() if lines else "no answer"
