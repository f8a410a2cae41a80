"""Starts Ray on this machine or joins a running Ray cluster, and leaves Ray at the end of a run.

Only this module and `runtime/cluster.py` import Ray.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Final, TypeVar

import ray
from ray.exceptions import RayError

from dreamfleet.core.config import RunConfig
from dreamfleet.core.errors import UserError, WorkerFailed
from dreamfleet.core.import_guard import importable_path
from dreamfleet.runtime import preflight
from dreamfleet.runtime.interrupts import adopt_orphans, descendants, kill_descendants
from dreamfleet.runtime.run_folder import RUNS
from dreamfleet.runtime.shipping import PACKAGE, runtime_env

T = TypeVar("T")

AUTH_MODE: Final = "RAY_AUTH_MODE"  # environment variable: `token` or `disabled`
HEALTH_S: Final = 10.0  # how long a cluster may take to answer a health check
ESSENTIAL: Final = ("gcs_server", "raylet")  # processes of Ray without which no call is answered


@dataclass
class RayStartup:
    """The start of Ray in a thread.

    `dashboard` is a future that is done when Ray is ready. `abandon` kills what has been started.
    """

    dashboard: Future[str]  # the dashboard's address, or ""; done once Ray is ready
    importable: Path  # the folder from which Ray's processes import dreamfleet
    spared: list[int]  # ids of descendants of this process from before Ray was started

    def abandon(self) -> None:
        """Kills all processes of Ray that were started so far.

        Does not wait for the start to end.
        """
        kill_descendants(self.spared)
        shutil.rmtree(self.importable, ignore_errors=True)


@contextmanager
def running_ray(config: RunConfig, agent_path: str = "", run: Path = RUNS) -> Iterator[RayStartup]:
    """A context manager that starts or joins Ray in a thread, and leaves Ray at the end.

    Yields a `RayStartup`; its future is done when Ray is ready. If this process is connected to Ray
    already, keeps this connection. agent_path: `module:Class` of the agent. run: the run's folder,
    which is not sent to a cluster.
    """
    joined_before, leave, importable = ray.is_initialized(), threading.Event(), only_dreamfleet()

    def start() -> str:
        return "" if joined_before else start_or_join(config, importable, agent_path, run)

    spared, mode = descendants(), os.environ.get(AUTH_MODE)
    adopt_orphans(True)
    # Ray's processes die with the thread that started them, so the thread lives until `leave`.
    startup = RayStartup(in_thread(start, until=leave), importable, spared)
    try:
        yield startup
    finally:
        with suppress(Exception):  # whoever waited for the result has seen the error
            startup.dashboard.result()
        if not joined_before:
            if dead_services():  # Ray's shutdown would wait for these and leave others running
                startup.abandon()
            ray.shutdown()
            if config.address:
                _authenticate(mode)
        leave.set()
        adopt_orphans(False)
        shutil.rmtree(importable, ignore_errors=True)


def dead_services() -> list[str]:
    """Returns the names of Ray's essential processes (`gcs_server`, `raylet`) that have died.

    Considers only processes that this process has started.
    """
    node = ray._private.worker._global_node
    dead = node.dead_processes() if node is not None else []
    return [name for name, _ in dead if name in ESSENTIAL]


def in_thread(call: Callable[[], T], until: threading.Event | None = None) -> Future[T]:
    """Calls a function in a new thread. Returns a future of the function's result.

    until: an event; the thread lives on until the event is set. None: the thread ends after the
    call.
    """
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
    """Makes a folder that contains only the package `dreamfleet`, and returns the folder's path.

    Ray's processes import dreamfleet from this folder.
    """
    # The folders `actors` and `tests` of a checkout could hide a user's packages of these names.
    folder = Path(mkdtemp(prefix="dreamfleet-"))
    (folder / "dreamfleet").symlink_to(PACKAGE)
    return folder


def start_or_join(config: RunConfig, importable: Path, agent_path: str, run: Path) -> str:
    """Starts Ray, or joins the cluster at `--address`.

    Returns the address of Ray's dashboard, or "". importable: the folder from which Ray's processes
    import dreamfleet. agent_path: `module:Class` of the agent. run: the run's folder, which is not
    sent to the cluster. Raises UserError if the cluster cannot be joined, and WorkerFailed if Ray
    does not start.
    """
    if not config.address:
        path = [str(importable), *importable_path()]  # Ray's processes import as this one does
        try:
            with _bound_to_loopback():
                context = _init(
                    address="local",
                    include_dashboard=config.dashboard,
                    runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(path)}},
                )
        except Exception as error:  # Ray raises plain ones, for example on an overloaded machine
            reason = " ".join(str(error).split()).rstrip(".")
            raise WorkerFailed(f"Ray did not start here: {reason}. --local needs no Ray") from error
        return str(context.dashboard_url or "") if config.dashboard else ""
    target = preflight.resolve_address(config.address)
    _authenticate(required_auth_mode(config.address, target))
    try:
        context = _init(address=target, runtime_env=runtime_env(config.env, agent_path, run))
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        if "exceeds the maximum size" in str(error):
            size = str(error)[str(error).index("Package size") :].partition(". ")[0]
            raise UserError(
                f"--address {config.address}: the folder of your code is too large to be sent. "
                f"{size}. Move data out of it, or name it in .gitignore."
            ) from error
        raise UserError(f"--address {config.address}: {' '.join(str(error).split())}") from error
    return str(context.dashboard_url or "") if config.dashboard else ""


def _init(**options: Any) -> Any:
    return ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)


@contextmanager
def _bound_to_loopback() -> Iterator[None]:
    """A context manager: if its block starts Ray, Ray listens on the loopback address only.

    Some of Ray's ports answer without a token, so other machines must not reach them.
    """
    constants = ray._private.ray_constants
    before, constants.ENABLE_RAY_CLUSTER = constants.ENABLE_RAY_CLUSTER, False
    try:
        yield
    finally:
        constants.ENABLE_RAY_CLUSTER = before


def required_auth_mode(address: str, target: str) -> str:
    """Returns `token` if a Ray cluster requires a token (password), otherwise `disabled`.

    Raises UserError if no healthy Ray cluster answers, and if this machine does not have the
    required token. address: the value of `--address`, for messages. target: HOST:PORT of the
    cluster.
    """
    problems = _health(target, "disabled")
    source = preflight.token_source()
    if not any("InvalidAuthToken" in line for line in problems):
        mode = "disabled"
    elif source:
        mode, problems = "token", _health(target, "token")
    if any("InvalidAuthToken" in line for line in problems):
        why = f"the token of {source} is a different one" if source else "there is none here"
        raise UserError(
            f"--address {address}: the cluster requires its token, and {why}. Run `ray "
            "get-auth-token` on its head, and put the token into RAY_AUTH_TOKEN here."
        )
    if problems:
        raise UserError(f"--address {address}: no healthy Ray cluster answers: {problems[-1]}")
    return mode


def _health(target: str, mode: str) -> list[str]:
    """Runs Ray's health check on a cluster. Returns lines about the problem, or [] if healthy.

    target: HOST:PORT of the cluster. mode: `token` to send the token (password), `disabled` not to.
    """
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", target]
    env = {**os.environ, AUTH_MODE: mode}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=HEALTH_S, env=env)
    except subprocess.TimeoutExpired:
        return [f"no answer in {HEALTH_S:g} s"]
    lines = (done.stderr or done.stdout).strip().splitlines()
    return (lines or ["Ray gives no reason"]) if done.returncode else []


def _authenticate(mode: str | None) -> None:
    """Sets whether Ray in this process sends its token (password) to a cluster.

    mode: `token` sends it, `disabled` does not, None leaves the choice to Ray.
    """
    os.environ.pop(AUTH_MODE, None)
    if mode is not None:
        os.environ[AUTH_MODE] = mode
    ray._raylet.Config.initialize("")  # Ray reads the mode only here
