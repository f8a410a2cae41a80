"""Each part in a process of its own, on Ray. The only module that imports it.

The driver starts the processes and gives the workers turns of a second; what a turn returns is its
report. So nothing runs that nobody asked for, a process that dies or hangs is noticed by the turn
it does not finish, and stopping is not asking again. Rows, samples and weights never pass through
the driver.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

import ray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayError

from core.config import RunConfig
from core.errors import UserError
from core.types import Array, Batch, Sample, Weights
from learner.weight_store import LocalWeights
from runtime.blueprint import Blueprint, weight_groups
from runtime.display import Display
from runtime.hosts import ReplayHost, WorkerHost
from runtime.run_folder import RunFolder
from runtime.session import Session
from runtime.turns import Fault

ROOT: Final = Path(__file__).parent.parent
TURN_S: Final = 1.0  # how long a worker works between two reports
WAIT_S: Final = 5.0  # how long a call may wait in the replay for room, or for rows
ASK_EVERY_S: Final = 0.2  # between two looks for newer weights of a group
START_S: Final = 180.0  # how long a process may take to start, all packages imported
ANSWER_S: Final = 600.0  # how long a turn of any worker but an actor may take
ALONE_S: Final = 10.0  # how long the first actor may work alone before the next is started
STARTING: Final = 2  # processes that may be starting at once, once learning has begun


def train(
    config: RunConfig, folder: RunFolder, resumed: dict[str, Any] | None, display: Display
) -> int:
    """Train until the steps are done or somebody interrupts → exit code.

    `resumed`: the state of the checkpoint to go on from. Raises WorkerFailed.
    """
    blueprint = Blueprint.of(config)
    with cluster(config, folder, display), Session(config, folder, display, resumed) as session:
        fleet = Fleet(blueprint, session, resumed)
        try:
            fleet.run()
        finally:
            fleet.close()
        return session.finish()


@contextmanager
def cluster(config: RunConfig, folder: RunFolder, display: Display) -> Iterator[None]:
    """A Ray cluster on this machine, or the running one at `--address`."""
    running = config.address is not None
    started: dict[str, Any] = {"include_dashboard": config.dashboard}
    joined = {
        "address": config.address,
        "runtime_env": {"working_dir": str(ROOT), "excludes": ["/runs/", "/.venv/", ".git/"]},
    }
    try:
        context = ray.init(
            namespace=folder.path.name,
            log_to_driver=False,
            logging_level=logging.ERROR,
            **(joined if running else started),
        )
    except (ConnectionError, RuntimeError) as error:
        if not running:
            raise
        raise UserError(f"--address {config.address}: {error}") from error
    try:
        if config.dashboard and context.dashboard_url:
            display.note(
                f"dashboard http://{context.dashboard_url} (token: run `ray get-auth-token`)"
            )
        yield
    finally:
        ray.shutdown()


# --------------------------------------------------------------------------------- the fleet


@dataclass
class Process:
    """A host of workers and the turn it is taking."""

    names: tuple[str, ...]
    host: ActorHandle
    turn: ray.ObjectRef
    deadline: float  # of that turn, on the monotonic clock
    reported: bool = False


class Fleet:
    """All processes of a run, and the loop of their driver."""

    def __init__(
        self, blueprint: Blueprint, session: Session, resumed: Mapping[str, Any] | None
    ) -> None:
        self._blueprint, self._session = blueprint, session
        self._resumed = resumed or {}
        agent = blueprint.agent("driver", "cpu")  # for its tables alone
        self._groups = weight_groups(agent)
        crew = blueprint.crew(self._groups)
        self._shares = shares(blueprint.config, ray.cluster_resources())
        self._replay = _remote(
            ReplayHost,
            "replay",
            {"num_cpus": self._shares["replay"]},
            {"insert": len(crew), "sample": 2 * len(crew)},
        ).remote(agent.tables, blueprint.seed("replay"), self._resumed.get("replay"))
        self._weights = _remote(LocalWeights, "weights", {"num_cpus": 0}, {}).remote()
        self._processes: dict[tuple[str, ...], Process] = {}
        self._learning_due = float("inf")  # when to stop waiting for the first gradient step
        trainers = tuple(name for name in crew if name.startswith(("dreamer", "learner")))
        apart = blueprint.config.num_dreamers > 0
        first = [(name,) for name in trainers] if apart else [trainers]
        self._owners = {"policy": first[-1], "world": first[0]}
        for names in (*first, (crew[0],)):
            self._start(names)
        rest = [(name,) for name in crew[1:] if name not in trainers]
        self._to_start = deque(sorted(rest, key=lambda names: names != ("evaluator",)))

    def run(self) -> None:
        """Until the session is over; then what is under way is awaited, scored and saved."""
        session = self._session
        while not session.over:
            self._take(self._ready(0.25), again=True)
            self._stage()
            session.refresh()
            if session.save_due:
                self.save()
        self._take(self._ready(4 * TURN_S, all_of_them=True), again=False)
        evaluator = self._processes.get(("evaluator",))
        if evaluator and session.interrupted_by is None and evaluator.reported:
            self._give_turn(evaluator)  # the steps may just have made an evaluation due
            ray.wait([evaluator.turn], timeout=ANSWER_S)
            self._take([evaluator], again=False)
        self.save()

    def save(self) -> None:
        state = {
            group: self._processes[self._owners[group]].host.state.remote(group)
            for group in self._groups
        }
        agent = {group: ray.get(ref, timeout=ANSWER_S) for group, ref in state.items()}
        self._session.save(agent, ray.get(self._replay.state.remote(), timeout=ANSWER_S))

    def close(self) -> None:
        """Stop every process of this run; others in the cluster stay."""
        hosts = [process.host for process in self._processes.values()]
        for handle in (*hosts, self._replay, self._weights):
            ray.kill(handle)

    # ------------------------------------------------------------------------------- turns

    def _ready(self, seconds: float, all_of_them: bool = False) -> list[Process]:
        """The processes whose turn is over, once there is one (or all), or the time is up."""
        by_turn = {process.turn: process for process in self._processes.values()}
        wanted = len(by_turn) if all_of_them else 1
        done, pending = ray.wait(list(by_turn), num_returns=wanted, timeout=seconds)
        now = time.monotonic()
        overdue = [by_turn[ref] for ref in pending if now > by_turn[ref].deadline]
        return [by_turn[ref] for ref in done] + overdue

    def _take(self, processes: list[Process], again: bool) -> None:
        """Hear the reports of finished turns, restart what broke, and give the next turns."""
        if not processes:
            return
        stats = ray.get(self._replay.stats.remote(), timeout=ANSWER_S)
        for process in processes:
            broken = False
            try:
                for report in ray.get(process.turn, timeout=0):
                    broken |= report.fault is not None
                    self._session.take(report, stats)
            except RayError as error:
                broken = True
                for name in process.names:
                    self._session.broke(name, _death(error))
            if broken:
                ray.kill(process.host)
                self._start(process.names)
                continue
            process.reported = True
            if again:
                self._give_turn(process)

    def _give_turn(self, process: Process) -> None:
        process.turn = process.host.turn.remote(TURN_S)
        process.deadline = time.monotonic() + TURN_S + self._patience(process.names)

    def _patience(self, names: tuple[str, ...]) -> float:
        actor = names[0].startswith("actor")
        return self._blueprint.config.train.env_timeout_s if actor else ANSWER_S

    # ------------------------------------------------------------------------------ starting

    def _stage(self) -> None:
        """Start more processes, without slowing the first gradient step down for them."""
        starting = sum(not process.reported for process in self._processes.values())
        if not self._to_start or starting >= STARTING:
            return
        if self._session.updates["learner"] == 0:
            if starting == 0 and self._learning_due == float("inf"):
                self._learning_due = time.monotonic() + ALONE_S
            if time.monotonic() < self._learning_due:
                return
        self._start(self._to_start.popleft())

    def _start(self, names: tuple[str, ...]) -> None:
        progress = self._session.progress(names[-1])
        role = names[-1].partition("-")[0]
        trains = role in ("learner", "dreamer")
        device = self._shares["device"] if trains else "cpu"
        resources = {"num_cpus": self._shares[role]}
        if device == "cuda":
            resources["num_gpus"] = self._shares["gpu"]
        label = "+".join(names) + (f" (start {progress.starts + 1})" if progress.starts else "")
        host = _remote(WorkerHost, label, resources, {}).remote(
            names,
            self._blueprint,
            device,
            ReplayProxy(self._replay),
            WeightsProxy(self._weights),
            progress,
            self._resumed.get("agent", {}) if trains else {},
        )
        turn = host.turn.remote(TURN_S)
        deadline = time.monotonic() + START_S + self._patience(names)
        self._processes[names] = Process(names, host, turn, deadline)


def shares(config: RunConfig, found: Mapping[str, float]) -> dict[str, Any]:
    """How much of the machines each process asks for, and where networks are trained.

    `found`: the cluster's resources by name. One CPU each where there are enough, else equal parts
    of what there is, so that 16 actors start on 2 cores. Raises UserError without a GPU for `cuda`.
    """
    trainers = 1 + config.num_dreamers
    wanted = {"actor": 1.0, "learner": 1.0, "dreamer": 1.0, "replay": 0.5, "evaluator": 0.5}
    total = config.num_actors + trainers + 1.0
    part = min(1.0, found.get("CPU", 1.0) / total)
    gpus = found.get("GPU", 0.0)
    if config.device == "cuda" and gpus == 0:
        raise UserError("--device cuda: no machine of this cluster has a GPU. Use --device cpu.")
    device = "cuda" if gpus > 0 and config.device != "cpu" else "cpu"
    cpus = {role: int(1000 * part * share) / 1000 for role, share in wanted.items()}
    return {**cpus, "device": device, "gpu": int(1000 * min(1.0, gpus / trainers)) / 1000}


def _remote(kind: type, name: str, resources: dict[str, float], groups: dict[str, int]) -> Any:
    """An actor class ready to be started: `groups` are threads by the name of their work."""
    actor = ray.remote(concurrency_groups=groups)(kind) if groups else ray.remote(kind)
    return actor.options(name=name, **resources)


def _death(error: RayError) -> Fault:
    """What is known of a process that did not finish its turn."""
    if isinstance(error, GetTimeoutError):
        return Fault("no answer in time: killed", "It did not finish its turn in time.", False)
    text = str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return Fault(lines[-1] if lines else type(error).__name__, text, False)


# ------------------------------------------------------------------------------- the proxies


@dataclass
class ReplayProxy:
    """The replay from another process, never blocking: it asks, and hands over what has come.

    A sample is asked for ahead of time. A batch that `add` did not take at once stays on its way;
    the caller, who offers it again as it must, then learns that it was taken.
    """

    host: ActorHandle
    _adding: dict[str, ray.ObjectRef] = field(default_factory=dict)
    _sampling: dict[tuple[str, str], ray.ObjectRef] = field(default_factory=dict)

    def add(self, table: str, rows: Batch, streams: Array | None = None) -> bool:
        if table not in self._adding:
            call = self.host.add.options(concurrency_group="insert")
            self._adding[table] = call.remote(table, _on_host(rows), streams, WAIT_S)
        if not _here(self._adding[table]):
            return False
        return cast(bool, ray.get(self._adding.pop(table)))

    def sample(self, table: str, consumer: str) -> Sample | Batch | None:
        asked = self._sampling.get((table, consumer))
        if asked is None:
            asked = self._sampling[table, consumer] = self._ask(table, consumer)
        if not _here(asked):
            return None
        self._sampling[table, consumer] = self._ask(table, consumer)
        sample = ray.get(asked)
        if isinstance(sample, Sample):
            sample.data = _owned(sample.data)
            return sample
        return None if sample is None else _owned(sample)

    def update(self, table: str, keys: Array, priorities: Array) -> None:
        ray.get(self.host.update.remote(table, keys, priorities))

    def stats(self) -> dict[str, float]:
        return cast(dict[str, float], ray.get(self.host.stats.remote()))

    def wait(self, seconds: float) -> None:
        """Until something asked for has come, or the time is up."""
        asked = [*self._adding.values(), *self._sampling.values()]
        if asked:
            ray.wait(asked, timeout=seconds)
        else:
            time.sleep(seconds)

    def _ask(self, table: str, consumer: str) -> ray.ObjectRef:
        call = self.host.sample.options(concurrency_group="sample")
        return call.remote(table, consumer, WAIT_S)


@dataclass
class WeightsProxy:
    """The weight store from another process: looks for newer ones a few times a second at most."""

    host: ActorHandle
    _asked: dict[str, float] = field(default_factory=dict)

    def publish(self, group: str, weights: Weights) -> int:
        return cast(int, ray.get(self.host.publish.remote(group, weights)))

    def latest(self, group: str, have: int) -> tuple[int, Weights] | None:
        now = time.monotonic()
        if now < self._asked.get(group, 0.0):
            return None
        self._asked[group] = now + ASK_EVERY_S
        return cast(tuple[int, Weights] | None, ray.get(self.host.latest.remote(group, have)))


def _here(ref: ray.ObjectRef) -> bool:
    return bool(ray.wait([ref], timeout=0)[0])


def _on_host(batch: Batch) -> Batch:
    """Arrays stay, tensors become arrays."""
    return {
        name: value.cpu().numpy() if hasattr(value, "cpu") else value
        for name, value in batch.items()
    }


def _owned(batch: Batch) -> Batch:
    """Copies: what Ray hands out is read-only, and a view of it would pin the object store."""
    return {name: value.copy() for name, value in batch.items()}
