"""Starts and supervises all processes of a run on a cluster. Imports no Ray.

The driver is the process that the user started. The driver lets each worker process (an actor, the
learner, …) work in turns of one second. After a turn the process returns a report on each of its
workers. If no report comes, the process is dead or hangs.
"""

from __future__ import annotations

import contextlib
import itertools
import time
import uuid
from collections import deque
from collections.abc import Mapping, Sequence
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
from dreamfleet.runtime.packed import PackedWeights
from dreamfleet.runtime.processes import (
    Cluster,
    NoAnswer,
    Process,
    ProcessHandle,
    resource_shares,
    start_replay,
)
from dreamfleet.runtime.proxies import ReplayProxy, WeightsProxy
from dreamfleet.runtime.session import Session
from dreamfleet.runtime.worker_runner import Fault, Report

TURN_S: Final = 1.0  # length of a turn
EARLY_TURN_S: Final = 0.2  # the same before the first gradient step, so that it is seen at once
POLL_S: Final = 0.25  # between two checks for interrupts, deadlines and dead processes

# How long the driver waits before it gives up:
START_S: Final = 180.0  # for a process to start, with all imports
ANSWER_S: Final = 300.0  # for a gradient step, or an answer to the driver
EVALUATION_S: Final = 3600.0  # for an evaluation
LAST_ROWS_S: Final = 4.0  # for the last rows of the actors, at the end of the run
INTERRUPTED_REPLAY_S: Final = 10.0  # for an answer of the replay, after an interrupt
INTERRUPTED_UPDATE_S: Final = 60.0  # for a gradient step in progress, after an interrupt
SIGN_OF_LIFE_S: Final = 2.0  # for a process to show that it is alive
SILENT_S: Final = 5.0  # for any answer, before the display names the process

FIRST_START_S: Final = 30.0  # the longest that other processes wait for the first gradient step
MAX_STARTING: Final = 2  # processes that may be starting at once after that


class Fleet:
    """Starts all processes of a run, lets them work, and replaces processes that fail.

    agent: an agent like those in the processes; the fleet restores the checkpoint into this agent.
    resumed: the state of the checkpoint; empty for a new run.
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
        self._shares = resource_shares(blueprint.config, cluster.resources())
        self._processes: dict[tuple[str, ...], Process] = {}  # by the names of its workers
        self._dead_services: list[str] = []
        self._restart_at: dict[tuple[str, ...], float] = {}  # names of a dead process → time
        names = blueprint.worker_names(self._groups)
        self._tables = blueprint.tables(agent)
        shards = self._train.replay_shards
        self._replay_names = ["replay"] if shards == 1 else [f"replay-{i}" for i in range(shards)]
        self._replays = self._start_replays(resumed.get("replay"))
        self._weights = cluster.start(LocalWeights, name="weights", namespace=self._namespace)
        states = resumed.get("agent", {})
        for group, state in states.items():  # so that nobody acts or dreams on older weights
            agent.restore(group, state)
            packed = PackedWeights.of(agent.weights(group), self._train.weights_dtype)
            self._weights.call("publish", group, packed)
        self._states = cluster.share(states)

        trainers = tuple(name for name in names if name.startswith(("dreamer", "learner")))
        separate = blueprint.config.num_dreamers > 0
        hosts = [(name,) for name in trainers] if separate else [trainers]
        self._trained_by = {"world": hosts[0], "policy": hosts[-1]}  # weight group → process
        feeding = [(name,) for name in names[: len(self._replays)]]  # every shard needs an actor
        first = dict.fromkeys((*self._trained_by.values(), *feeding))
        for process in first:
            self._start(process)
        rest = [(name,) for name in names if name not in itertools.chain(*first)]
        self._to_start = deque(sorted(rest, key=lambda process: process[0].startswith("actor")))
        self._others_start_at = time.monotonic() + FIRST_START_S

    def run(self) -> None:
        """Trains until all steps are taken or a signal interrupts, then saves a checkpoint.

        If no signal interrupts, evaluates the saved policy. Raises WorkerFailed if a process fails
        and cannot be replaced.
        """
        session = self._session
        try:
            while not session.over:
                self._handle_turns(
                    self._ended_turns(POLL_S), TURN_S if session.learning else EARLY_TURN_S
                )
                self._check_services()
                self._start_more()
                session.refresh()
                if session.save_due:
                    self.save()
            session.refresh()
            if session.interrupted and not self._trainers_started():
                session.display.note("not saved: the run was still starting")
                return
            self._finish_turns()
            saved, states = self.save()
            if saved and not session.interrupted:
                self._finish_evaluation()
                self._evaluate_saved({group: states[group] for group in self._act_groups})
        except WorkerFailed as failure:
            # Without its gcs_server Ray's other processes go on for a minute: time to save.
            if self._dead_services == ["gcs_server"]:
                with contextlib.suppress(WorkerFailed):
                    self.save()
            if not session.interrupted:
                raise
            session.display.note(f"not saved: {str(failure).splitlines()[-1]}")

    def _trainers_started(self) -> bool:
        return all(self._processes[names].started for names in self._trained_by.values())

    def save(self) -> tuple[Path | None, dict[str, Any]]:
        """Saves a checkpoint. Returns the checkpoint's path and the state of the agent.

        The path is None if saving failed. The agent's state is a dict: weight group (networks that
        one process trains) → saved state.
        """
        trainers = {group: self._processes[self._trained_by[group]] for group in self._groups}
        calls = {group: process.handle.call("state", group) for group, process in trainers.items()}
        states = [replay.call("state") for replay in self._replays]
        agent = {
            group: self._answer(call, trainers[group].handle, trainers[group].label)
            for group, call in calls.items()
        }
        return self._session.save(agent, join_states(self._replay_answers(states))), agent

    def close(self) -> None:
        """Stops every process of this run. Other programs on the Ray cluster go on."""
        workers = [process.handle for process in self._processes.values()]
        for handle in (*workers, *self._replays, self._weights):
            handle.stop()

    # ------------------------------------------------------------------------------- turns

    def _ended_turns(self, seconds: float) -> list[Process]:
        """Waits up to `seconds` until a worker process ends its turn (one second of work).

        Returns the processes whose turn has ended, and the processes whose turn is past its
        deadline.
        """
        by_turn = {process.turn: process for process in self._processes.values()}
        done, now = self._cluster.wait(list(by_turn), seconds), time.monotonic()
        overdue = []
        for turn in by_turn.keys() - set(done):
            process = by_turn[turn]
            if now > process.deadline:
                overdue.append(turn)
            elif process.role != "evaluator" and process.started and not process.silent:
                silent_s = now - process.deadline + self._time_limit(process.role)
                if silent_s > SILENT_S:
                    process.silent = True
                    self._session.display.note(f"waiting for {process.label}")
        return [by_turn[turn] for turn in (*done, *overdue)]

    def _handle_turns(self, processes: Sequence[Process], next_s: float | None) -> None:
        """Records the reports of processes whose turn has ended, and starts their next turns.

        A turn is one second of work of a process. A process is stopped and later replaced if its
        turn failed or is past its deadline. next_s: the length of the next turns in seconds; None:
        starts no more turns.
        """
        if not processes:
            return
        stats = self._stats()
        for process in processes:
            if not self._cluster.wait([process.turn], 0.0):
                self._replace(process, self._overdue_fault(process))
                continue
            try:
                reports: list[Report] = self._cluster.result(process.turn)
            except NoAnswer as failure:
                self._replace(process, self._process_fault(failure))
                continue
            process.started, process.silent = True, False
            for report in reports:
                if report.fault and report.fault.peer_failed:
                    self._check_irreplaceable()
                self._session.take(report, stats)
            if next_s is not None:
                broken = [report.worker for report in reports if report.fault]
                restarts = {name: self._session.progress(name) for name in broken}
                delay_s = max((self._session.rest_s(name) for name in broken), default=0.0)
                process.turn = process.handle.call("turn", next_s, restarts, delay_s)
                time_limit = self._time_limit(process.role)
                process.deadline = time.monotonic() + next_s + delay_s + time_limit

    def _replace(self, process: Process, fault: Fault) -> None:
        """Stops a dead or hanging process, and schedules a new process with the same workers.

        fault: the reason, for messages. Raises WorkerFailed for a learner or dreamer, and after too
        many failures in a row.
        """
        if process.role in ("learner", "dreamer"):
            self._check_irreplaceable()
        else:
            self._check_services()
        for name in process.names:
            self._session.broke(name, fault, useful=self._has_added_rows(name))
        process.handle.stop()
        del self._processes[process.names]
        delay_s = max(self._session.rest_s(name) for name in process.names)
        self._restart_at[process.names] = time.monotonic() + delay_s

    def _has_added_rows(self, name: str) -> bool:
        """Returns whether the replay has accepted rows of an actor since the actor's last start.

        name: the actor, such as `actor-3`. For any other worker the result is False.
        """
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
        """Returns the counters, such as stored rows, of all replay shards together."""
        return merged_stats(
            self._replay_answers([replay.call("stats") for replay in self._replays])
        )

    def _finish_turns(self) -> None:
        """Waits at the end of the run for the processes' last reports, and records them.

        Learner and dreamers have `ANSWER_S` seconds. After that, actors have `LAST_ROWS_S` seconds.
        After Ctrl-C or SIGTERM the wait ends within `INTERRUPTED_UPDATE_S` seconds.
        """
        started = [process for process in self._processes.values() if process.started]
        trainers = [process for process in started if process.role in ("learner", "dreamer")]
        actors = [process for process in started if process.role == "actor"]
        for processes, seconds in ((trainers, ANSWER_S), (actors, LAST_ROWS_S)):
            turns, until = {process.turn: process for process in processes}, time.monotonic()
            until += seconds
            done: list[Any] = []
            while len(done) < len(turns) and time.monotonic() < until:
                done = self._cluster.wait(list(turns), POLL_S, every=True)
                self._session.refresh()
                if self._session.interrupted:
                    until = min(until, self._session.interrupts.first_at + INTERRUPTED_UPDATE_S)
            self._handle_turns([turns[turn] for turn in done], None)

    def _finish_evaluation(self) -> None:
        """Waits until the evaluation in progress ends, and records it. A signal ends the wait."""
        evaluator = self._processes.get(("evaluator",))
        if evaluator and self._turn_ends(evaluator):
            self._handle_turns([evaluator], None)

    def _evaluate_saved(self, states: Mapping[str, Any]) -> None:
        """Lets the evaluator's process evaluate the saved policy. A signal ends the evaluation.

        states: weight group (networks that one process trains) → the saved state.
        """
        if ("evaluator",) in (*self._to_start, *self._restart_at):
            self._start(("evaluator",))
        evaluator, session = self._processes.get(("evaluator",)), self._session
        if evaluator is None or not self._turn_ends(evaluator):
            return
        assert session.saved_at is not None
        evaluator.turn = evaluator.handle.call("evaluate_saved", session.saved_at, states)
        evaluator.deadline = time.monotonic() + EVALUATION_S
        if not self._turn_ends(evaluator):
            return
        try:
            (report,) = self._cluster.result(evaluator.turn)
        except NoAnswer as failure:
            session.broke_in_last_evaluation(self._process_fault(failure))
        else:
            session.take_last_evaluation(report)

    def _turn_ends(self, process: Process) -> bool:
        """Waits until a process ends its turn (a second of work) or its evaluation.

        Returns True when the turn or evaluation has ended. Returns False if the process misses its
        deadline, or if a signal interrupts the run.
        """
        while not self._cluster.wait([process.turn], POLL_S):
            self._session.refresh()
            if self._session.interrupted or time.monotonic() > process.deadline:
                return False
        return True

    # ------------------------------------------------------------------------------- faults

    def _replay_answers(self, calls: Sequence[Any]) -> list[Any]:
        """Waits until all replay shards have answered a call. Returns the answers.

        calls: the call to each shard, in the order of the shards. Raises WorkerFailed if a shard is
        dead or does not answer in time.
        """
        shards = zip(calls, self._replays, self._replay_names, strict=True)
        return [self._answer(call, handle, name) for call, handle, name in shards]

    def _answer(self, call: Any, handle: ProcessHandle, name: str) -> Any:
        """Returns a process's answer to a call. Waits for the answer.

        handle: the connection to the process. name: the name of the process, for messages. Raises
        WorkerFailed if the process is dead or does not answer in time.
        """
        session, since, noted = self._session, time.monotonic(), False
        limit = ANSWER_S
        while not self._cluster.wait([call], POLL_S):
            session.refresh()
            self._check_services()
            if not noted and time.monotonic() - since > SILENT_S:
                noted = True
                session.display.note(f"waiting for {name}")
            if session.interrupted and limit == ANSWER_S:
                replay = name.startswith("replay")
                limit = INTERRUPTED_REPLAY_S if replay else INTERRUPTED_UPDATE_S
                since = max(since, session.interrupts.first_at)
            if time.monotonic() - since > limit:
                if not self._cluster.wait([handle.alive()], SIGN_OF_LIFE_S):
                    raise WorkerFailed(f"{name} broke: no answer in {limit:g} s")
                since = time.monotonic()  # it is alive and works on the answer
        try:
            return self._cluster.result(call)
        except NoAnswer as failure:
            self._check_irreplaceable()
            raise WorkerFailed(f"{name} broke: {failure.reason}") from failure

    def _time_limit(self, role: str) -> float:
        """Returns how many seconds longer than its turn (a second of work) a process may take.

        A process that needs even more counts as dead. role: actor, learner, dreamer or evaluator.
        """
        return {"actor": self._train.env_timeout_s, "evaluator": EVALUATION_S}.get(role, ANSWER_S)

    def _overdue_fault(self, process: Process) -> Fault:
        """Returns the fault (reason as text) of a process whose turn, a second of work, is late."""
        role = process.role
        what = {"actor": "a step of its environment took"}.get(role, "its turn took")
        limit = f"{self._time_limit(role):g} s" + " (train.env_timeout_s)" * (role == "actor")
        why = f"{what} longer than {limit}: killed" if process.started else "it did not start"
        return Fault(why, why)

    def _process_fault(self, failure: NoAnswer) -> Fault:
        """Returns the fault (reason as text) of a process whose last call failed.

        failure: the exception that the call raised.
        """
        return Fault(failure.reason, failure.reason if failure.died else str(failure))

    def _check_services(self) -> None:
        """Raises WorkerFailed if a process of Ray itself is dead, but at most once per run."""
        dead = self._cluster.dead_services()
        if not dead or self._dead_services:
            return
        self._dead_services = dead
        raise WorkerFailed(f"Ray broke: its process {dead[0]} died")

    def _check_irreplaceable(self) -> None:
        """Raises WorkerFailed if a process is dead that cannot be replaced.

        These are the processes of the replay, the weight store, the learner, the dreamers and Ray
        itself. The message names the dead process.
        """
        self._check_services()
        handles = dict(zip(self._replay_names, self._replays, strict=True))
        handles["the weight store"] = self._weights
        handles |= {
            process.label: process.handle
            for process in self._processes.values()
            if process.role in ("learner", "dreamer")
        }
        names = {handle.alive(): name for name, handle in handles.items()}
        for call in self._cluster.wait(list(names), SIGN_OF_LIFE_S, every=True):
            try:
                self._cluster.result(call)
            except NoAnswer as failure:
                raise WorkerFailed(f"{names[call]} broke: {failure.reason}") from failure

    # ------------------------------------------------------------------------------ starting

    def _start_more(self) -> None:
        """Starts processes whose time has come.

        A replacement for a failed process starts after a delay. Some processes start after the
        first gradient step, or after `FIRST_START_S` seconds.
        """
        now = time.monotonic()
        for names, due in list(self._restart_at.items()):
            if now >= due:
                del self._restart_at[names]
                self._start(names)
        # The first gradient step has the machine to itself, for a while.
        others_wait = not self._session.learning and now < self._others_start_at
        starting = sum(not process.started for process in self._processes.values())
        if self._to_start and not others_wait and starting < MAX_STARTING:
            self._start(self._to_start.popleft())

    def _start_replays(self, state: Mapping[str, Any] | None) -> list[ProcessHandle]:
        """Starts a process for each replay shard (a part of the replay).

        Returns the processes' handles. state: the saved state of the whole replay; None: a new,
        empty replay.
        """
        config, seeds = self._blueprint.config, self._blueprint.shard_seeds()
        tables = shard_tables(self._tables, len(seeds))
        states = split_state(state, len(seeds)) if state else [None] * len(seeds)
        ends = last_steps(config.steps, states)
        samplers = 1 + config.num_dreamers
        options = {"cpus": self._shares["replay"], "namespace": self._namespace}
        return [
            start_replay(self._cluster, tables, seed, samplers, part, end, name=name, **options)
            for name, seed, part, end in zip(self._replay_names, seeds, states, ends, strict=True)
        ]

    def _start(self, names: tuple[str, ...]) -> None:
        """Starts one process that runs the workers `names`.

        Calls the process once without giving it work. The answer will show that the process has
        started.
        """
        progress = {name: self._session.progress(name) for name in names}
        starts = progress[names[-1]].starts
        role = names[-1].partition("-")[0]
        trains = role in ("learner", "dreamer")
        device = self._shares["device"] if trains else "cpu"
        gpus = self._shares["gpu"] if device == "cuda" else 0.0
        label = "+".join(names) + (f" (start {starts + 1})" if starts else "")
        handle = self._cluster.start(
            WorkerHost,
            names,
            self._blueprint,
            device,
            ReplayProxy(self._replays, self._tables, self._blueprint.seed("shares-" + label)),
            WeightsProxy(self._weights, self._train.weights_dtype),
            progress,
            self._states if trains else {},
            cpus=self._shares[role],
            gpus=gpus,
            name=label,
            namespace=self._namespace,
        )
        turn, deadline = handle.call("turn", 0.0, {}), time.monotonic() + START_S
        self._processes[names] = Process(names, handle, turn, deadline)
