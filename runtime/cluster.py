"""Each part in a process of its own, on Ray. The only module that imports it.

The driver starts the processes and gives the workers turns of a second; what a turn returns is its
report. So nothing runs that nobody asked for, a process that dies or hangs is noticed by the turn
it does not finish, and stopping is not asking again. Rows, samples and weights never pass through
the driver.
"""

from __future__ import annotations

import itertools
import logging
import math
import re
import subprocess
import sys
import time
import uuid
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import numpy as np
import ray
from ray.actor import ActorHandle
from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayError

from core.config import RunConfig
from core.errors import UserError, WorkerFailed
from core.types import Agent, Array, Batch, Origin, QueueSpec, TableSpec, Weights
from learner.weight_store import LocalWeights
from replay_server.shards import (
    Part,
    ShardedReplay,
    join_states,
    merged_stats,
    shard_tables,
    split_state,
)
from runtime.blueprint import Blueprint, weight_groups
from runtime.display import Display
from runtime.hosts import AGAIN_S, Reader, Receipt, ReplayHost, WorkerHost
from runtime.packed import Packed
from runtime.run_folder import RunFolder
from runtime.session import Session
from runtime.turns import Fault

T = TypeVar("T")

ROOT: Final = Path(__file__).parent.parent
TURN_S: Final = 1.0  # how long a worker works between two reports
EARLY_TURN_S: Final = 0.2  # the same before the first gradient step, so that it is seen at once
WAIT_S: Final = 5.0  # how long a call may wait in the replay for rows
TOGETHER: Final = 16  # chunks of an actor that may travel as one, when they come that fast
AHEAD: Final = 2  # samples that a process has asked for before it wants them, of each kind
ASKING: Final = 4 * AHEAD  # threads for those of one process; more would find no use
ASK_EVERY_S: Final = 0.2  # between two looks for newer weights of a group
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
        open(folder.path / "ray.log", "a") as log,
        redirect_stdout(log),  # Ray prints warnings of its own
        cluster(session, meanwhile=build) as agent,
    ):
        fleet = Fleet(blueprint, agent, session, resumed or {})
        try:
            fleet.run()
        finally:
            fleet.close()
        return session.finish()


@contextmanager
def cluster(session: Session, meanwhile: Callable[[], T]) -> Iterator[T]:
    """A Ray cluster on this machine, or the running one at `--address`; → what `meanwhile` gives.

    No signal reaches Ray while it starts, as one would leave it half started and its processes
    behind. The thread that starts it lives as long as the cluster, whose processes die with it.
    A cluster that this process has joined before is used as it is, and not left.
    """
    joined_before = ray.is_initialized()
    with ThreadPoolExecutor(1) as thread:
        session.hold()
        joining = thread.submit(lambda: "" if joined_before else _join(session.config))
        try:
            result = meanwhile()
            dashboard = joining.result()
            session.listen()
            if dashboard:
                how = "token: run `ray get-auth-token`"
                session.display.note(f"dashboard http://{dashboard} ({how})")
            yield result
        finally:
            wait([joining])
            if not joined_before:
                ray.shutdown()


def _join(config: RunConfig) -> str:
    """Start or join Ray → where its dashboard is, if wanted. Raises UserError for `--address`."""
    joined: dict[str, Any] = {
        "address": config.address,
        "runtime_env": {"working_dir": str(ROOT), "excludes": ["/runs/", "/.venv/", ".git/"]},
    }
    started: dict[str, Any] = {"address": "local", "include_dashboard": config.dashboard}
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


# --------------------------------------------------------------------------------- the fleet


@dataclass
class Process:
    """A host of workers and the turn it is taking."""

    names: tuple[str, ...]
    host: ActorHandle
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
        self._groups = weight_groups(agent)
        self._namespace = f"{session.folder.path.name}-{uuid.uuid4().hex[:8]}"
        self._shares = shares(blueprint.config, _resources(blueprint.config))
        self._processes: dict[tuple[str, ...], Process] = {}
        crew = blueprint.crew(self._groups)
        self._tables = blueprint.tables(agent)
        self._replays = self._start_replays(resumed.get("replay"))
        self._weights = self._actor(LocalWeights, "weights", 0.0).remote()
        states = resumed.get("agent", {})
        for group, state in states.items():  # so that nobody acts or dreams on anything older
            agent.restore(group, state)
            self._weights.publish.remote(group, agent.weights(group))
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
        self.save()
        self._score()

    def save(self) -> None:
        """Have the session write a checkpoint."""
        hosts = {group: self._processes[self._owners[group]].host for group in self._groups}
        asked = {group: host.state.remote(group) for group, host in hosts.items()}
        states = [
            replay.state.options(concurrency_group="control").remote() for replay in self._replays
        ]
        agent = {
            group: _answer(state, "+".join(self._owners[group])) for group, state in asked.items()
        }
        replay = join_states([_answer(state, "replay") for state in states])
        self._session.save(agent, replay)

    def close(self) -> None:
        """Stop every process of this run; others in the cluster stay."""
        hosts = [process.host for process in self._processes.values()]
        for handle in (*hosts, *self._replays, self._weights):
            ray.kill(handle)

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
                ray.kill(process.host)
                if then_s is not None:
                    self._start(process.names)
                continue
            process.up = True
            for report in reports:
                self._session.take(report, stats)
            if then_s is not None:
                broken = [report.worker for report in reports if report.fault]
                restarts = {name: self._session.progress(name) for name in broken}
                process.turn = process.host.turn.remote(then_s, restarts)
                process.deadline = time.monotonic() + then_s + self._patience(process.role)

    def _stats(self) -> dict[str, float]:
        """The counters of the whole replay."""
        asked = [
            replay.stats.options(concurrency_group="control").remote() for replay in self._replays
        ]
        return merged_stats([_answer(stats, "replay") for stats in asked])

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

    def _score(self) -> None:
        """Await the evaluation under way, and the one that the last steps made due."""
        for then_s in (EARLY_TURN_S, None):
            evaluator = self._processes.get(("evaluator",))
            if evaluator and self._over(evaluator):
                self._take([evaluator], then_s)

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

    def _start_replays(self, state: Mapping[str, Any] | None) -> list[ActorHandle]:
        """A process for each shard, going on from what a checkpoint holds of it."""
        seeds = self._blueprint.shard_seeds()
        tables = shard_tables(self._tables, len(seeds))
        states = split_state(state, len(seeds)) if state else [None] * len(seeds)
        consuming = 1 + self._blueprint.config.num_dreamers
        threads = {"insert": 2, "sample": ASKING * consuming, "control": 2}
        names = ["replay" if len(seeds) == 1 else f"replay-{i}" for i in range(len(seeds))]
        return [
            self._actor(ReplayHost, name, self._shares["replay"], **threads).remote(
                tables, seed, part
            )
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
        host = self._actor(WorkerHost, label, self._shares[role], gpus).remote(
            names,
            self._blueprint,
            device,
            ReplayProxy(self._replays, self._tables, self._blueprint.seed("shares-" + label)),
            WeightsProxy(self._weights),
            progress,
            self._states if trains else {},
        )
        turn, deadline = host.turn.remote(0.0, {}), time.monotonic() + START_S
        self._processes[names] = Process(names, host, turn, deadline)

    def _actor(self, kind: type, name: str, cpus: float, gpus: float = 0.0, **threads: int) -> Any:
        """An actor class ready to be started. threads: how many, by the group of calls."""
        options = {"name": name, "namespace": self._namespace}
        remote = ray.remote(concurrency_groups=threads) if threads else ray.remote
        return remote(kind).options(num_cpus=cpus, num_gpus=gpus, **options)


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


def _answer(ref: ray.ObjectRef, whom: str) -> Any:
    """What a process answers to the driver. Raises WorkerFailed when it is dead or silent."""
    try:
        return ray.get(ref, timeout=ANSWER_S)
    except GetTimeoutError:
        raise WorkerFailed(f"{whom} broke: no answer in {ANSWER_S:g} s") from None
    except RayError as error:
        raise WorkerFailed(f"{error}\n{whom} broke: {type(error).__name__}") from error


# ----------------------------------------------------------------------------- the replay alone


@contextmanager
def hosted(
    tables: Mapping[str, TableSpec | QueueSpec],
    jobs: Sequence[Callable[[ReplayProxy], Callable[[int], None]]],
) -> Iterator[Callable[[Sequence[int]], None]]:
    """A replay on Ray and nothing else of a run: for measurements.

    Each job is made in a process of its own from a proxy of the replay, and must be importable
    there. → what has each job do its amount at the same time, and waits for all.
    """
    joined_before = ray.is_initialized()
    if not joined_before:
        _join(RunConfig(dashboard=False))
    try:
        groups = {"insert": 2, "sample": ASKING * len(jobs), "control": 2}
        host = ray.remote(concurrency_groups=groups)(ReplayHost).options(num_cpus=0)
        replay = host.remote(tables, 0)
        worker = ray.remote(num_cpus=0)(Job)
        crew = [worker.remote(job, ReplayProxy([replay], tables, 0)) for job in jobs]

        def work(amounts: Sequence[int]) -> None:
            done = [job.work.remote(n) for job, n in zip(crew, amounts, strict=True)]
            for answer in done:
                _answer(answer, "a job")

        yield work
        for handle in (*crew, replay):
            ray.kill(handle)
    finally:
        if not joined_before:
            ray.shutdown()


class Job:
    """A job of `hosted` in its process."""

    def __init__(
        self, make: Callable[[ReplayProxy], Callable[[int], None]], replay: ReplayProxy
    ) -> None:
        self._work = make(replay)

    def work(self, amount: int) -> None:
        self._work(amount)


# ------------------------------------------------------------------------------- the proxies


@dataclass
class _Parcel:
    """Rows, or a queue's batch, for the replay."""

    rows: Batch
    streams: Array | None
    origin: Origin | None
    steps: int  # of agents; 1 for a queue's batch

    @classmethod
    def of(cls, parcels: Sequence[_Parcel]) -> _Parcel:
        """Chunks that one actor handed over one after another, as one."""
        first, last = parcels[0], parcels[-1]
        if len(parcels) == 1:
            return first
        rows = {
            name: np.concatenate([parcel.rows[name] for parcel in parcels], axis=1)
            for name in first.rows
        }
        return cls(rows, last.streams, last.origin, sum(parcel.steps for parcel in parcels))


@dataclass
class _Outbox:
    """What goes to one table, in order: one parcel under way, the next one growing meanwhile."""

    under_way: _Parcel | None = None
    call: ray.ObjectRef | None = None  # none: it was refused
    due: float = 0.0  # when to offer it again then
    then: list[_Parcel] = field(default_factory=list)
    awaited: bool = False  # the caller offers his rows again until they are taken; or has gone on
    credit: int = 0  # steps, or batches, as the last answer said

    @property
    def steps(self) -> int:
        return sum(parcel.steps for parcel in (self.under_way, *self.then) if parcel)


@dataclass
class _Asked:
    """A sample that was asked for."""

    table: str
    consumer: str
    count: int | None
    number: int  # of samples of this consumer that were asked for before
    call: ray.ObjectRef | None = None


class ShardProxy:
    """A shard of the replay from another process; it never blocks, and hands over what has come.

    One parcel a table is under way at a time, so that chunks arrive in order. Within the credit
    that the last answer gave, the caller goes on meanwhile, and what he adds until that parcel has
    arrived travels together as the next. Without credit he awaits the answer.
    """

    def __init__(self, host: ActorHandle) -> None:
        self._host, self._name = host, uuid.uuid4().hex
        self._outboxes: dict[str, _Outbox] = defaultdict(_Outbox)  # by table
        self._asked: Counter[tuple[str, str]] = Counter()  # table, consumer → samples
        self._received: Counter[tuple[str, str]] = Counter()
        self._update: ray.ObjectRef | None = None
        self.missed: set[ray.ObjectRef] = set()  # looked for in vain since this was cleared

    def add(
        self, table: str, rows: Batch, streams: Array | None = None, origin: Origin | None = None
    ) -> bool:
        box = self._outboxes[table]
        self._deliver(table, box)
        taken = self._accept(table, box, rows, streams, origin)
        if not taken and box.call is not None:
            self.missed.add(box.call)
        return taken

    def _accept(
        self,
        table: str,
        box: _Outbox,
        rows: Batch,
        streams: Array | None,
        origin: Origin | None,
    ) -> bool:
        """Whether the caller need not offer these rows again."""
        if box.awaited:
            box.awaited = box.under_way is not None
            return not box.awaited
        steps = 1 if streams is None else rows["last"].size - int(np.count_nonzero(rows["last"]))
        parcel = _Parcel(rows, streams, origin, steps)
        covered = box.steps + steps <= box.credit
        if box.under_way is None:
            box.under_way, box.awaited = parcel, not covered
            self._send(table, box)
            return covered
        before = box.then[-1] if box.then else box.under_way
        if not covered or len(box.then) == TOGETHER or not _continues(parcel, before):
            return False
        box.then.append(parcel)
        return True

    def ask(self, table: str, consumer: str, count: int | None) -> _Asked:
        asked = _Asked(table, consumer, count, self._asked[table, consumer])
        self._asked[table, consumer] += 1
        self._sample(asked)
        return asked

    def answer(self, asked: _Asked) -> Part | Batch | None:
        if not self._here(asked.call):
            return None
        answer = ray.get(asked.call)
        if answer is None:  # no rows came while it could be waited for
            self._sample(asked)
            self.missed.add(asked.call)
            return None
        self._received[asked.table, asked.consumer] += 1
        if isinstance(answer, Packed):
            return answer.owned()
        return Part(answer.owned(), answer.mass)

    def update(self, table: str, keys: Array, priorities: Array) -> None:
        """Sent without awaiting it; what goes wrong is raised by the next one."""
        if self._update is not None:
            ray.get(self._update)
        update = self._host.update.options(concurrency_group="insert")
        self._update = update.remote(table, keys, priorities)

    def stats(self) -> dict[str, float]:
        stats = self._host.stats.options(concurrency_group="control")
        return cast(dict[str, float], ray.get(stats.remote()))

    def flush(self) -> bool:
        """Send on what had to wait. → whether all that was added has arrived"""
        for table, box in list(self._outboxes.items()):
            self._deliver(table, box)
            if box.call is not None:
                self.missed.add(box.call)
        return all(box.under_way is None for box in self._outboxes.values())

    def due(self) -> float:
        """When to offer again what was refused."""
        boxes = self._outboxes.values()
        return min((box.due for box in boxes if box.under_way and not box.call), default=math.inf)

    def _sample(self, asked: _Asked) -> None:
        table, consumer = asked.table, asked.consumer
        reader = Reader(self._name, asked.number, self._received[table, consumer])
        sample = self._host.sample.options(concurrency_group="sample")
        asked.call = sample.remote(table, consumer, WAIT_S, asked.count, reader)

    def _deliver(self, table: str, box: _Outbox) -> None:
        """Hear whether the parcel under way was taken; send the next one, or the same when due.

        Raises what the replay says of it, and then drops it and all that was to follow.
        """
        parcel = box.under_way
        if parcel is None:
            return
        if box.call is None:
            if time.monotonic() < box.due:
                return
            self._send(table, box)
        if not self._here(box.call):
            return
        del self._outboxes[table]
        try:
            receipt = ray.get(box.call)
        except ActorUnavailableError:  # taken or not: who has an origin may offer it again
            if parcel.origin is None:
                raise
            receipt = Receipt(False, 0, AGAIN_S[1])
        self._outboxes[table] = box
        box.call, box.credit = None, receipt.credit
        if not receipt.taken:
            box.due = time.monotonic() + receipt.again_s
            return
        box.under_way = None
        if box.then:
            box.under_way, box.then = _Parcel.of(box.then), []
            self._send(table, box)

    def _send(self, table: str, box: _Outbox) -> None:
        parcel = box.under_way
        assert parcel is not None
        add = self._host.add.options(concurrency_group="insert")
        box.call = add.remote(table, Packed.of(parcel.rows), parcel.streams, parcel.origin)

    def _here(self, call: ray.ObjectRef) -> bool:
        here = bool(ray.wait([call], timeout=0)[0])
        (self.missed.discard if here else self.missed.add)(call)
        return here


class ReplayProxy(ShardedReplay):
    """The replay from another process, which can be waited for."""

    def __init__(
        self,
        hosts: Sequence[ActorHandle],
        tables: Mapping[str, TableSpec | QueueSpec],
        seed: int,
    ) -> None:
        self._proxies = [ShardProxy(host) for host in hosts]
        super().__init__(self._proxies, tables, seed, AHEAD)

    def flush(self) -> bool:
        """Send on what had to wait. → whether all that was added has arrived"""
        return all(proxy.flush() for proxy in self._proxies)

    def wait(self, seconds: float) -> None:
        """Until something comes that was looked for in vain since the last wait, or time is up."""
        missed = [call for proxy in self._proxies for call in proxy.missed]
        for proxy in self._proxies:
            proxy.missed.clear()
        until_due = min(proxy.due() for proxy in self._proxies) - time.monotonic()
        seconds = min(seconds, max(until_due, 0.0))
        if missed:
            ray.wait(missed, timeout=seconds)
        else:
            time.sleep(seconds)


def _continues(after: _Parcel, before: _Parcel) -> bool:
    """Whether two parcels in a row come from one incarnation of an actor."""
    ours, theirs = after.origin, before.origin
    return bool(
        ours and theirs and (ours.actor, ours.incarnation) == (theirs.actor, theirs.incarnation)
    )


@dataclass
class WeightsProxy:
    """The weight store from another process: looks for newer ones a few times a second at most."""

    host: ActorHandle
    _again: dict[str, float] = field(default_factory=dict)  # group → when to ask for it again

    def publish(self, group: str, weights: Weights) -> int:
        return cast(int, ray.get(self.host.publish.remote(group, weights)))

    def latest(self, group: str, have: int) -> tuple[int, Weights] | None:
        if time.monotonic() < self._again.get(group, 0.0):
            return None
        newer = ray.get(self.host.latest.remote(group, have))
        self._again[group] = time.monotonic() + ASK_EVERY_S
        return cast(tuple[int, Weights] | None, newer)
