"""Each part in a process of its own, on Ray. The only module that imports it.

`runtime/fleet.py` drives the processes; here is how they start, on a Ray of their own or on one
that runs already, and how their answers are had.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Final, TypeVar

import ray
from ray.actor import ActorHandle
from ray.exceptions import ActorDiedError, ActorUnavailableError, GetTimeoutError, RayError

from dreamfleet.core.config import RunConfig
from dreamfleet.core.errors import Gone, UserError, WorkerFailed
from dreamfleet.core.import_guard import importable_path
from dreamfleet.core.own_files import open_own
from dreamfleet.runtime import preflight
from dreamfleet.runtime.blueprint import Blueprint
from dreamfleet.runtime.display import Display
from dreamfleet.runtime.fleet import Fleet
from dreamfleet.runtime.hosts import try_out
from dreamfleet.runtime.interrupts import adopt_orphans, descendants, kill_descendants
from dreamfleet.runtime.processes import Lost
from dreamfleet.runtime.proxies import Unreachable
from dreamfleet.runtime.run_folder import RUNS, RunFolder
from dreamfleet.runtime.session import Session
from dreamfleet.runtime.shipping import PACKAGE, shipped
from dreamfleet.runtime.watchdog import EnvCalls, Watchdog

T = TypeVar("T")

MODE: Final = "RAY_AUTH_MODE"
HEALTH_S: Final = 10.0  # how long a cluster that is to be joined may take to answer at all
TRY_S: Final = 120.0  # how long a machine of that cluster may take to build the environment
VITAL: Final = ("gcs_server", "raylet")  # of Ray's own processes: without these nothing goes on


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
        cluster(session, blueprint.agent_path, meanwhile=build) as agent,
        Watchdog(EnvCalls(), lambda call: session.announce()),  # while something is saved, too
    ):
        folder.record(blueprint.agent_options(agent))
        if config.address:
            check_environment(session, blueprint)
        display.wait_for("starting the processes")
        fleet = Fleet(RayCluster(config), blueprint, agent, session, resumed or {})
        try:
            fleet.run()
        finally:
            fleet.close()
        return session.finish()


@contextmanager
def cluster(session: Session, agent_path: str, meanwhile: Callable[[], T]) -> Iterator[T]:
    """Starts Ray on this machine, or joins it at `--address` → what `meanwhile` returns.

    No signal reaches Ray while it starts: one would leave it half started, its processes behind.
    An interrupt meanwhile ends this process, and whatever of Ray has started.
    """
    session.interrupts.hold()
    building = _in_thread(meanwhile)
    with joined(session.config, agent_path, session.folder.path) as joining:
        while not (building.done() and joining.dashboard.done()):
            if session.interrupts.heard(0.1):
                joining.abandon()
                line = f"{session.interrupts.name}: left while Ray was starting, nothing to save."
                session.leave(f"{line} {session.go_on}", session.interrupts.exit_code)
        result, dashboard = building.result(), joining.dashboard.result()
        session.interrupts.listen()
        if dashboard:
            how = "token: run `ray get-auth-token`"
            session.display.note(f"dashboard http://{dashboard} ({how})")
        yield result


@dataclass
class Joining:
    """Ray while it starts, or is joined."""

    dashboard: Future[str]  # where it is, if wanted, once Ray is there
    importable: Path  # the folder from which Ray's processes import dreamfleet
    others: list[int]  # processes that this one had started before

    def abandon(self) -> None:
        """Kills what of Ray has started, without waiting for anything."""
        kill_descendants(self.others)
        shutil.rmtree(self.importable, ignore_errors=True)


@contextmanager
def joined(config: RunConfig, agent_path: str = "", run: Path = RUNS) -> Iterator[Joining]:
    """Starts or joins Ray, and leaves it in the end.

    The thread that starts a cluster lives as long as it, as its processes die with that thread.
    What this process has joined before is used as it is, and not left.
    """
    before, left, importable = ray.is_initialized(), threading.Event(), only_dreamfleet()

    def join() -> str:
        return "" if before else _join(config, importable, agent_path, run)

    others, mode = descendants(), os.environ.get(MODE)
    adopt_orphans(True)
    joining = Joining(_in_thread(join, until=left), importable, others)
    try:
        yield joining
    finally:
        with suppress(Exception):  # whoever waited for it has it already
            joining.dashboard.result()
        if not before:
            if dead_services():  # Ray would wait for them, and leave others behind
                joining.abandon()
            ray.shutdown()
            if config.address:
                _authenticate(mode)
        left.set()
        adopt_orphans(False)
        shutil.rmtree(importable, ignore_errors=True)


def dead_services() -> list[str]:
    """Returns which of Ray's own processes, started from here, died that all others need."""
    node = ray._private.worker._global_node
    dead = node.dead_processes() if node is not None else []
    return [name for name, _ in dead if name in VITAL]


def _in_thread(call: Callable[[], T], until: threading.Event | None = None) -> Future[T]:
    """Calls in a thread of its own, which lives on until `until` is set → the result to come."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)
        if until is not None:
            until.wait()

    threading.Thread(target=run, daemon=True).start()
    return future


def only_dreamfleet() -> Path:
    """Makes a folder from which `dreamfleet` can be imported, and nothing else.

    A checkout's own folder would do, but a person's `actors` or `tests` must win over ours.
    """
    folder = Path(mkdtemp(prefix="dreamfleet-"))
    (folder / "dreamfleet").symlink_to(PACKAGE)
    return folder


def _join(config: RunConfig, importable: Path, agent_path: str, run: Path) -> str:
    """Starts or joins Ray → where its dashboard is, if wanted.

    Raises UserError for `--address`, and WorkerFailed where Ray does not start.
    """
    if not config.address:
        path = [str(importable), *importable_path()]  # as this process imports
        try:
            with _bound_to_loopback():
                context = _init(
                    address="local",
                    include_dashboard=config.dashboard,
                    runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(path)}},
                )
        except Exception as error:  # Ray raises plain ones, as of a machine that is too busy
            said = " ".join(str(error).split()).rstrip(".")
            raise WorkerFailed(f"Ray did not start here: {said}. --local needs no Ray") from error
        return str(context.dashboard_url or "") if config.dashboard else ""
    target = preflight.target_of(config.address)
    _authenticate(wanted_mode(config.address, target))
    try:
        context = _init(address=target, runtime_env=shipped(config.env, agent_path, run))
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        if "exceeds the maximum size" in str(error):
            size = str(error)[str(error).index("Package size") :].partition(". ")[0]
            raise UserError(
                f"--address {config.address}: the folder of your code is too large to be sent. "
                f"{size}. Move data out of it, or name it in .gitignore."
            ) from error
        raise UserError(f"--address {config.address}: {' '.join(str(error).split())}") from error
    return str(context.dashboard_url or "") if config.dashboard else ""


def _init(**about: Any) -> Any:
    return ray.init(log_to_driver=False, logging_level=logging.ERROR, **about)


@contextmanager
def _bound_to_loopback() -> Iterator[None]:
    """Has every port of a Ray that starts inside bound to the loopback address.

    Some of them answer without a token. Ray takes this address where it starts no clusters of
    several machines, which it has a switch for.
    """
    constants = ray._private.ray_constants
    before, constants.ENABLE_RAY_CLUSTER = constants.ENABLE_RAY_CLUSTER, False
    try:
        yield
    finally:
        constants.ENABLE_RAY_CLUSTER = before


def wanted_mode(address: str, target: str) -> str:
    """Returns how a cluster is to be joined: `token` where it asks for one, else `disabled`.

    Raises UserError unless a Ray cluster answers, where joining would wait for ever, and where its
    token is not here.
    """
    problems = _health(target, "disabled")
    found = preflight.token_source()
    if not any("InvalidAuthToken" in line for line in problems):
        mode = "disabled"
    elif found:
        mode, problems = "token", _health(target, "token")
    if any("InvalidAuthToken" in line for line in problems):
        why = f"the token of {found} is another one" if found else "none was found here"
        raise UserError(
            f"--address {address}: the cluster there asks for its token, and {why}. Run `ray "
            "get-auth-token` on its head, and put the token into RAY_AUTH_TOKEN here."
        )
    if problems:
        raise UserError(f"--address {address}: no Ray cluster is well there: {problems[-1]}")
    return mode


def _health(target: str, mode: str) -> list[str]:
    """Returns what Ray says is wrong with a cluster, in lines; none where it is well."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", target]
    env = {**os.environ, MODE: mode}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=HEALTH_S, env=env)
    except subprocess.TimeoutExpired:
        return [f"no answer in {HEALTH_S:g} s"]
    lines = (done.stderr or done.stdout).strip().splitlines()
    return (lines or ["it does not say why"]) if done.returncode else []


def _authenticate(mode: str | None) -> None:
    """Has Ray in this process show its token, or not; nothing: as it finds best."""
    os.environ.pop(MODE, None)
    if mode is not None:
        os.environ[MODE] = mode
    ray._raylet.Config.initialize("")  # it reads the mode once


def check_environment(session: Session, blueprint: Blueprint) -> None:
    """UserError unless a machine of the joined cluster can build the environment and the agent."""
    config = blueprint.config
    call = ray.remote(num_cpus=0, max_retries=0)(try_out).remote(blueprint)
    try:
        waited = 0.0
        while not ray.wait([call], timeout=0.25)[0]:
            session.refresh()
            waited += 0.25
            if session.interrupted or waited > TRY_S:
                return  # what is wrong with it will show
        problem = ray.get(call)
    except RayError as error:
        problem = _plain(error).splitlines()[-1].strip()
    if problem:
        raise UserError(f"--address {config.address}: on that cluster {problem}")


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
        except ActorDiedError as error:
            raise Gone("a process that this one needs died") from error

    def alive(self) -> ray.ObjectRef:
        """Sends a call that any living process answers, once it has the time."""
        return self.handle.__ray_ready__.remote()

    def stop(self) -> None:
        """Kills the process."""
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
    """As `Cluster.start`. about: Ray's `name` and `namespace`."""
    remote = ray.remote(concurrency_groups=dict(threads)) if threads else ray.remote
    process = remote(kind).options(num_cpus=cpus, num_gpus=gpus, **about)
    return RayLine(process.remote(*args), groups or {})


class RayCluster:
    """The `Cluster` of this process: Ray, once it was joined."""

    start = staticmethod(start)

    def __init__(self, config: RunConfig) -> None:
        self._config = config

    def share(self, value: Any) -> Any:
        return ray.put(value)

    def answered(
        self, calls: Collection[ray.ObjectRef], seconds: float, every: bool = False
    ) -> list[ray.ObjectRef]:
        if not calls:
            return []
        done, _ = ray.wait(list(calls), num_returns=len(calls) if every else 1, timeout=seconds)
        return list(done)

    def answer(self, call: ray.ObjectRef) -> Any:
        try:
            return ray.get(call, timeout=1.0)
        except GetTimeoutError as error:
            raise Lost("its answer did not arrive", died=False) from error
        except ActorDiedError as error:
            text = _plain(error)
            raise Lost(text, died="creation task" not in text) from error
        except RayError as error:
            raise Lost(_plain(error), died=False) from error

    def dead_services(self) -> list[str]:
        return dead_services()

    def resources(self) -> Mapping[str, float]:
        """Returns what there is for this run: of a cluster that ran before, what others leave."""
        shared = bool(self._config.address)
        return dict(ray.available_resources() if shared else ray.cluster_resources())


def _plain(error: RayError) -> str:
    """Returns what an error of Ray says, without colours."""
    return re.sub(r"\x1b\[\d*m", "", str(error)).strip() or type(error).__name__
