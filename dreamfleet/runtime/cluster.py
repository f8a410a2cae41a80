"""Each part in a process of its own, on Ray. The only module that imports it.

The driver starts the processes and gives the workers turns of a second; what a turn returns is its
report. So nothing runs that nobody asked for, a process that dies or hangs is noticed by the turn
it does not finish, and stopping is not asking again. Rows, samples and weights never pass through
the driver: the proxies of `runtime/proxies.py` speak to the replay and the weights by themselves.
"""

from __future__ import annotations

import itertools
import logging
import os
import re
import subprocess
import sys
import time
import uuid
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, TypeVar

import ray
from ray.actor import ActorHandle
from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayError

from dreamfleet.core.config import RunConfig
from dreamfleet.core.errors import UserError, WorkerFailed
from dreamfleet.core.import_guard import importable_path
from dreamfleet.core.own_files import open_own
from dreamfleet.core.types import Agent, QueueSpec, TableSpec
from dreamfleet.learner.weight_store import LocalWeights
from dreamfleet.replay_server.shards import join_states, merged_stats, shard_tables, split_state
from dreamfleet.runtime.blueprint import Blueprint, weight_groups
from dreamfleet.runtime.display import Display
from dreamfleet.runtime.hosts import ReplayHost, WorkerHost
from dreamfleet.runtime.proxies import AHEAD, ReplayProxy, Unreachable, WeightsProxy
from dreamfleet.runtime.run_folder import RunFolder
from dreamfleet.runtime.session import Session
from dreamfleet.runtime.turns import Fault

T = TypeVar("T")

PACKAGE: Final = Path(__file__).parent.parent
TURN_S: Final = 1.0  # how long a worker works between two reports
EARLY_TURN_S: Final = 0.2  # the same before the first gradient step, so that it is seen at once
ASKING: Final = 4 * AHEAD  # threads for what one process samples; more would find no use
SERVED_BY: Final = {  # method of the replay → threads, so that no kind of call holds up another
    **dict.fromkeys(("add", "update"), "insert"),
    "sample": "sample",
    **dict.fromkeys(("stats", "state"), "control"),
}
HEALTH_S: Final = 10.0  # how long a cluster that is to be joined may take to answer at all
START_S: Final = 180.0  # how long a process may take to start, all packages imported
ANSWER_S: Final = 300.0  # how long a gradient step, or an answer to the driver, may take
EVALUATION_S: Final = 3600.0  # how long an evaluation may take
PART_S: Final = 4.0  # how long leaving waits for the last rows of the actors
ALONE_S: Final = 30.0  # the longest the first processes have the machine to themselves
STARTING: Final = 2  # processes that may be starting at once after that


def train(
    config: RunConfig, folder: RunFolder, resumed: dict[str, Any] | None, display: Display
) -> int:
    """Train until the steps are done or somebody interrupts → exit code.

    `resumed`: the state of the checkpoint to go on from. Raises WorkerFailed.
    """
    blueprint = Blueprint.of(config)
    build = partial(blueprint.agent, "driver", "cpu")  # imports torch, while Ray starts
    with (
        Session(config, folder, display, resumed) as session,
        os.fdopen(open_own(folder.log, os.O_WRONLY | os.O_APPEND), "a") as log,
        redirect_stdout(log),  # Ray prints warnings of its own
        cluster(session, meanwhile=build) as agent,
    ):
        folder.record(blueprint.agent_options())
        fleet = Fleet(blueprint, agent, session, resumed or {})
        try:
            fleet.run()
        finally:
            fleet.close()
        return session.finish()


@contextmanager
def cluster(session: Session, meanwhile: Callable[[], T]) -> Iterator[T]:
    """A Ray cluster on this machine, or the running one at `--address`; → what `meanwhile` gives.

    No signal reaches Ray while it starts: one would leave it half started, its processes behind.
    """
    session.hold()
    with joined(session.config) as joining:
        result = meanwhile()
        dashboard = joining.result()
        session.listen()
        if dashboard:
            how = "token: run `ray get-auth-token`"
            session.display.note(f"dashboard http://{dashboard} ({how})")
        yield result


@contextmanager
def joined(config: RunConfig) -> Iterator[Future[str]]:
    """Ray, until left. → when it is there, and where its dashboard then is, if wanted.

    The thread that starts a cluster lives as long as it, as its processes die with that thread.
    What this process has joined before is used as it is, and not left.
    """
    before = ray.is_initialized()
    with ThreadPoolExecutor(1) as thread, only_dreamfleet() as importable:
        joining = thread.submit(lambda: "" if before else _join(config, importable))
        try:
            yield joining
        finally:
            wait([joining])
            if not before:
                ray.shutdown()


@contextmanager
def only_dreamfleet() -> Iterator[str]:
    """Yields a folder from which `dreamfleet` can be imported, and nothing else.

    A checkout's own folder would do, but a person's `actors` or `tests` must win over ours.
    """
    with TemporaryDirectory(prefix="dreamfleet-") as folder:
        (Path(folder) / "dreamfleet").symlink_to(PACKAGE)
        yield folder


def _join(config: RunConfig, importable: str) -> str:
    """Start or join Ray → where its dashboard is, if wanted. Raises UserError for `--address`."""
    joined: dict[str, Any] = {
        "address": config.address,
        "runtime_env": {"py_modules": [str(PACKAGE)]},
    }
    path = os.pathsep.join([importable, *importable_path()])  # as this process imports
    started: dict[str, Any] = {
        "address": "local",
        "include_dashboard": config.dashboard,
        "runtime_env": {"env_vars": {"PYTHONPATH": path}},
    }
    if config.address:
        _check_health(config.address)
    about = joined if config.address else started
    try:
        context = ray.init(log_to_driver=False, logging_level=logging.ERROR, **about)
    except (ConnectionError, RuntimeError) as error:
        if config.address:
            raise UserError(f"--address {config.address}: {error}") from error
        raise
    return str(context.dashboard_url or "") if config.dashboard else ""


def _check_health(address: str) -> None:
    """UserError unless a Ray cluster answers at `address`, where joining would wait for ever."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=HEALTH_S)
        said = (done.stderr or done.stdout).strip().splitlines()[-1:]
    except subprocess.TimeoutExpired:
        done, said = None, [f"no answer in {HEALTH_S:g} s"]
    if done is None or done.returncode:
        raise UserError(f"--address {address}: no Ray cluster is well there: {' '.join(said)}")


# --------------------------------------------------------------------------- processes and lines


@dataclass(frozen=True)
class RayLine:
    """A Line to the object that a process holds.

    groups: which of its groups of threads serves a method, where it has several.
    """

    handle: ActorHandle
    groups: Mapping[str, str] = field(default_factory=dict)

    def call(self, method: str, *args: Any) -> ray.ObjectRef:
        remote = getattr(self.handle, method)
        if method in self.groups:
            remote = remote.options(concurrency_group=self.groups[method])
        return remote.remote(*args)

    def wait(self, calls: Collection[ray.ObjectRef], seconds: float) -> bool:
        return bool(ray.wait(list(calls), timeout=seconds)[0])

    def get(self, call: ray.ObjectRef) -> Any:
        try:
            return ray.get(call)
        except ActorUnavailableError as error:
            raise Unreachable(str(error)) from error

    def stop(self) -> None:
        """Kill the process."""
        ray.kill(self.handle)


def start(
    kind: type,
    *args: Any,
    cpus: float = 0.0,
    gpus: float = 0.0,
    threads: Mapping[str, int] | None = None,
    groups: Mapping[str, str] | None = None,
    **about: str,
) -> RayLine:
    """A process of its own for `kind(*args)`, which must be importable there.

    threads: how many in each group of them. about: Ray's `name` and `namespace`.
    """
    remote = ray.remote(concurrency_groups=dict(threads)) if threads else ray.remote
    process = remote(kind).options(num_cpus=cpus, num_gpus=gpus, **about)
    return RayLine(process.remote(*args), groups or {})


def start_replay(
    tables: Mapping[str, TableSpec | QueueSpec],
    seed: int,
    consuming: int,
    state: dict[str, Any] | None = None,
    **about: Any,
) -> RayLine:
    """A process for tables that so many other processes sample. about: as of `start`."""
    threads = {"insert": 2, "sample": ASKING * consuming, "control": 2}
    return start(ReplayHost, tables, seed, state, threads=threads, groups=SERVED_BY, **about)


def answer(call: ray.ObjectRef, whom: str) -> Any:
    """What a process answers to the driver. Raises WorkerFailed when it is dead or silent."""
    try:
        return ray.get(call, timeout=ANSWER_S)
    except GetTimeoutError:
        raise WorkerFailed(f"{whom} broke: no answer in {ANSWER_S:g} s") from None
    except RayError as error:
        raise WorkerFailed(f"{error}\n{whom} broke: {type(error).__name__}") from error


# --------------------------------------------------------------------------------- the fleet


@dataclass
class Process:
    """A host of workers and the turn it is taking."""

    names: tuple[str, ...]
    line: RayLine
    turn: ray.ObjectRef
    deadline: float  # of that turn, on the monotonic clock
    up: bool = False  # it finished a turn: the first one of no time says that it has started

    @property
    def role(self) -> str:
        return self.names[-1].partition("-")[0]


class Fleet:
    """All processes of a run, and the loop of their driver.

    agent: one like those of the processes, for its tables and to read a checkpoint. resumed: the
    state of the checkpoint to go on from, or nothing.
    """

    def __init__(
        self, blueprint: Blueprint, agent: Agent, session: Session, resumed: Mapping[str, Any]
    ) -> None:
        self._blueprint, self._session = blueprint, session
        self._train = blueprint.config.train
        self._groups, self._act_groups = weight_groups(agent), agent.act_groups
        self._namespace = f"{session.folder.path.name}-{uuid.uuid4().hex[:8]}"
        self._shares = shares(blueprint.config, _resources(blueprint.config))
        self._processes: dict[tuple[str, ...], Process] = {}
        crew = blueprint.crew(self._groups)
        self._tables = blueprint.tables(agent)
        self._replays = self._start_replays(resumed.get("replay"))
        self._weights = start(LocalWeights, name="weights", namespace=self._namespace)
        states = resumed.get("agent", {})
        for group, state in states.items():  # so that nobody acts or dreams on anything older
            agent.restore(group, state)
            self._weights.call("publish", group, agent.weights(group))
        self._states = ray.put(states)

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
        """Until the session is over; then the work under way is awaited, saved and scored."""
        session = self._session
        while not session.over:
            self._take(self._finished(0.25), TURN_S if session.learning else EARLY_TURN_S)
            self._stage()
            session.refresh()
            if session.save_due:
                self.save()
        session.refresh()
        self._take_last()
        saved, states = self.save()
        if saved and not session.interrupted_by:
            self._await_evaluation()
            self._evaluate_saved({group: states[group] for group in self._act_groups})

    def save(self) -> tuple[Path | None, dict[str, Any]]:
        """Have the session write a checkpoint → its path, the state of each weight group."""
        owners = {group: self._processes[self._owners[group]] for group in self._groups}
        asked = {group: owner.line.call("state", group) for group, owner in owners.items()}
        states = [replay.call("state") for replay in self._replays]
        agent = {
            group: answer(state, "+".join(owners[group].names)) for group, state in asked.items()
        }
        replay = join_states([answer(state, "replay") for state in states])
        return self._session.save(agent, replay), agent

    def close(self) -> None:
        """Stop every process of this run; others in the cluster stay."""
        workers = [process.line for process in self._processes.values()]
        for line in (*workers, *self._replays, self._weights):
            line.stop()

    # ------------------------------------------------------------------------------- turns

    def _finished(self, seconds: float) -> list[Process]:
        """The processes whose turn is over or overdue, once there is one or the time is up."""
        by_turn = {process.turn: process for process in self._processes.values()}
        done, pending = ray.wait(list(by_turn), timeout=seconds)
        now = time.monotonic()
        overdue = [ref for ref in pending if now > by_turn[ref].deadline]
        return [by_turn[ref] for ref in (*done, *overdue)]

    def _take(self, processes: Sequence[Process], then_s: float | None) -> None:
        """Hear the reports of turns that are over; restart what broke, give turns of `then_s`."""
        if not processes:
            return
        stats = self._stats()
        for process in processes:
            try:
                reports = ray.get(process.turn, timeout=0)
            except RayError as error:
                for name in process.names:
                    self._session.broke(name, self._death(process, error))
                process.line.stop()
                if then_s is not None:
                    self._start(process.names)
                continue
            process.up = True
            for report in reports:
                self._session.take(report, stats)
            if then_s is not None:
                broken = [report.worker for report in reports if report.fault]
                restarts = {name: self._session.progress(name) for name in broken}
                process.turn = process.line.call("turn", then_s, restarts)
                process.deadline = time.monotonic() + then_s + self._patience(process.role)

    def _stats(self) -> dict[str, float]:
        """The counters of the whole replay."""
        asked = [replay.call("stats") for replay in self._replays]
        return merged_stats([answer(stats, "replay") for stats in asked])

    def _take_last(self) -> None:
        """Await the turns under way: of those who learn for sure, of the others for a moment."""
        up = [process for process in self._processes.values() if process.up]
        learn = [process for process in up if process.role in ("learner", "dreamer")]
        others = [process for process in up if process.role == "actor"]
        for processes, seconds in ((learn, ANSWER_S), (others, PART_S)):
            if processes:
                turns = {process.turn: process for process in processes}
                done, _ = ray.wait(list(turns), num_returns=len(turns), timeout=seconds)
                self._take([turns[turn] for turn in done], None)

    def _await_evaluation(self) -> None:
        """Await the evaluation under way, unless somebody interrupts."""
        evaluator = self._processes.get(("evaluator",))
        if evaluator and self._over(evaluator):
            self._take([evaluator], None)

    def _evaluate_saved(self, states: Mapping[str, Any]) -> None:
        """Have the policy that was saved evaluated, unless somebody interrupts."""
        if ("evaluator",) in self._to_start:
            self._start(("evaluator",))
        evaluator = self._processes.get(("evaluator",))
        if evaluator is None or not self._over(evaluator):
            return
        session = self._session
        assert session.saved_at is not None
        evaluator.turn = evaluator.line.call("evaluate_saved", session.saved_at, states)
        evaluator.deadline = time.monotonic() + EVALUATION_S
        if self._over(evaluator):
            try:
                (report,) = ray.get(evaluator.turn)
            except RayError as error:
                session.broke_in_last_evaluation(self._death(evaluator, error))
            else:
                session.take_last_evaluation(report)

    def _over(self, process: Process) -> bool:
        """Wait for its turn, unless it is overdue or somebody interrupts."""
        while not ray.wait([process.turn], timeout=0.25)[0]:
            self._session.refresh()
            if self._session.interrupted_by or time.monotonic() > process.deadline:
                return False
        return True

    def _patience(self, role: str) -> float:
        return {"actor": self._train.env_timeout_s, "evaluator": EVALUATION_S}.get(role, ANSWER_S)

    def _death(self, process: Process, error: RayError) -> Fault:
        """What is known of a process that did not finish its turn."""
        if isinstance(error, GetTimeoutError):
            role = process.role
            what = {"actor": "a step of its environment took"}.get(role, "its turn took")
            limit = f"{self._patience(role):g} s" + " (train.env_timeout_s)" * (role == "actor")
            why = f"{what} longer than {limit}: killed" if process.up else "it did not start"
            return Fault(why, why)
        text = re.sub(r"\x1b\[\d*m", "", str(error)).strip()
        return Fault(text.splitlines()[-1].strip() if text else type(error).__name__, text)

    # ------------------------------------------------------------------------------ starting

    def _stage(self) -> None:
        """Start more processes, without slowing the first gradient step down for them."""
        alone = not self._session.learning and time.monotonic() < self._alone_until
        starting = sum(not process.up for process in self._processes.values())
        if self._to_start and not alone and starting < STARTING:
            self._start(self._to_start.popleft())

    def _start_replays(self, state: Mapping[str, Any] | None) -> list[RayLine]:
        """A process for each shard, going on from what a checkpoint holds of it."""
        seeds = self._blueprint.shard_seeds()
        tables = shard_tables(self._tables, len(seeds))
        states = split_state(state, len(seeds)) if state else [None] * len(seeds)
        consuming = 1 + self._blueprint.config.num_dreamers
        about = {"cpus": self._shares["replay"], "namespace": self._namespace}
        names = ["replay" if len(seeds) == 1 else f"replay-{i}" for i in range(len(seeds))]
        return [
            start_replay(tables, seed, consuming, part, name=name, **about)
            for name, seed, part in zip(names, seeds, states, strict=True)
        ]

    def _start(self, names: tuple[str, ...]) -> None:
        progress = {name: self._session.progress(name) for name in names}
        starts = progress[names[-1]].starts
        role = names[-1].partition("-")[0]
        trains = role in ("learner", "dreamer")
        device = self._shares["device"] if trains else "cpu"
        gpus = self._shares["gpu"] if device == "cuda" else 0.0
        label = "+".join(names) + (f" (start {starts + 1})" if starts else "")
        line = start(
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


def shares(config: RunConfig, found: Mapping[str, float]) -> dict[str, Any]:
    """How much of the machines each process asks for, and where networks are trained.

    `found`: the cluster's resources by name. One CPU each where there are enough, else equal parts
    of what there is, so that 16 actors start on 2 cores. Raises UserError without a GPU for `cuda`.
    """
    trainers = 1 + config.num_dreamers
    wanted = {"actor": 1.0, "learner": 1.0, "dreamer": 1.0, "replay": 0.5, "evaluator": 0.5}
    total = config.num_actors + trainers + 0.5 * config.train.replay_shards + 0.5
    part = min(1.0, found.get("CPU", 0.0) / total)
    gpus = found.get("GPU", 0.0)
    if config.device == "cuda" and gpus == 0:
        raise UserError("--device cuda: no machine of this cluster has a GPU. Use --device cpu.")
    device = "cuda" if gpus > 0 and config.device != "cpu" else "cpu"
    cpus = {role: int(1000 * part * share) / 1000 for role, share in wanted.items()}
    return {**cpus, "device": device, "gpu": int(1000 * min(1.0, gpus / trainers)) / 1000}


def _resources(config: RunConfig) -> Mapping[str, float]:
    """What there is for this run: of a cluster that was running before, what others leave."""
    return ray.available_resources() if config.address else ray.cluster_resources()
