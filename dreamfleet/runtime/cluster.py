"""Trains on Ray, with each part of a run in a process of its own.

`runtime/fleet.py` supervises the processes without importing Ray. This module starts and calls the
processes with Ray.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, TypeVar

import ray
from ray.actor import ActorHandle
from ray.exceptions import ActorDiedError, ActorUnavailableError, GetTimeoutError, RayError

from dreamfleet.core.config import RunConfig
from dreamfleet.core.errors import Gone, UserError
from dreamfleet.core.own_files import open_own
from dreamfleet.runtime.blueprint import Blueprint
from dreamfleet.runtime.display import Display
from dreamfleet.runtime.fleet import Fleet
from dreamfleet.runtime.hosts import build_problem
from dreamfleet.runtime.processes import NoAnswer
from dreamfleet.runtime.proxies import Unreachable
from dreamfleet.runtime.ray_start import dead_services, in_thread, running_ray
from dreamfleet.runtime.run_folder import RunFolder
from dreamfleet.runtime.session import Session
from dreamfleet.runtime.watchdog import EnvCalls, Watchdog

T = TypeVar("T")

BUILD_S: Final = 120.0  # how long a machine of a joined cluster may take to build the environment


def train(
    config: RunConfig, folder: RunFolder, resumed: dict[str, Any] | None, display: Display
) -> int:
    """Trains on Ray until all steps are taken or a signal interrupts. Returns the exit code.

    resumed: the state of the checkpoint from which the run continues; None for a new run. Raises
    WorkerFailed when a process fails and a restart cannot help.
    """
    blueprint = Blueprint.of(config)
    build = partial(blueprint.agent, "driver", "cpu")  # imports torch, while Ray starts
    with (
        Session(config, folder, display, resumed) as session,
        os.fdopen(open_own(folder.log, os.O_WRONLY | os.O_APPEND), "a") as log,
        redirect_stdout(log),  # for the warnings that Ray prints
        started_ray(session, blueprint.agent_path, meanwhile=build) as agent,
        # Shows an interrupt also while the run is being saved.
        Watchdog(EnvCalls(), lambda call: session.announce()),
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
def started_ray(session: Session, agent_path: str, meanwhile: Callable[[], T]) -> Iterator[T]:
    """A context manager that starts or joins Ray while a thread calls `meanwhile`.

    Yields the result of `meanwhile`. Ctrl-C during the start kills Ray's processes and ends this
    process. agent_path: `module:Class` of the agent.
    """
    session.interrupts.block()
    result = in_thread(meanwhile)
    with running_ray(session.config, agent_path, session.folder.path) as startup:
        while not (result.done() and startup.dashboard.done()):
            if session.interrupts.wait(0.1):
                startup.abandon()
                line = f"{session.interrupts.name}: left while Ray was starting, nothing to save."
                session.leave(f"{line} {session.go_on}", session.interrupts.exit_code)
        built, dashboard = result.result(), startup.dashboard.result()
        session.interrupts.listen()
        if dashboard:
            token = "token: run `ray get-auth-token`"
            session.display.note(f"dashboard http://{dashboard} ({token})")
        yield built


def check_environment(session: Session, blueprint: Blueprint) -> None:
    """Raises UserError unless the Ray cluster can build the run's environment and agent.

    Returns without an error after Ctrl-C or SIGTERM, and after `BUILD_S` seconds.
    """
    config = blueprint.config
    call = ray.remote(num_cpus=0, max_retries=0)(build_problem).remote(blueprint)
    try:
        waited = 0.0
        while not ray.wait([call], timeout=0.25)[0]:
            session.refresh()
            waited += 0.25
            if session.interrupted or waited > BUILD_S:
                return
        problem = ray.get(call)
    except RayError as error:
        problem = _message(error).splitlines()[-1].strip()
    if problem:
        raise UserError(f"--address {config.address}: on that cluster {problem}")


@dataclass(frozen=True)
class RayHandle:
    """A connection to a Ray actor (a process). It implements the protocol `ProcessHandle`.

    groups: method name → name of the group of threads in which the process executes the method.
    """

    actor: ActorHandle
    groups: Mapping[str, str] = field(default_factory=dict)

    def call(self, method: str, *args: Any) -> ray.ObjectRef:
        remote = getattr(self.actor, method)
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
        return self.actor.__ray_ready__.remote()

    def stop(self) -> None:
        ray.kill(self.actor)


class RayCluster:
    """Starts processes as Ray actors and collects their answers. Implements the protocol `Cluster`.

    Ray must be started or joined before.
    """

    def __init__(self, config: RunConfig) -> None:
        self._config = config

    def start(
        self,
        kind: type,
        *args: Any,
        cpus: float = 0.0,
        gpus: float = 0.0,
        threads: Mapping[str, int] | None = None,
        groups: Mapping[str, str] | None = None,
        **options: str,
    ) -> RayHandle:
        """Starts a process (a Ray actor) that holds the object `kind(*args)`. Returns its handle.

        cpus, gpus: the amounts that the process asks for. threads: name of a thread group → number
        of its threads. groups: method name → thread group. options: `name` and `namespace` of the
        process in Ray.
        """
        remote = ray.remote(concurrency_groups=dict(threads)) if threads else ray.remote
        process = remote(kind).options(num_cpus=cpus, num_gpus=gpus, **options)
        return RayHandle(process.remote(*args), groups or {})

    def share(self, value: Any) -> Any:
        return ray.put(value)

    def wait(
        self, calls: Collection[ray.ObjectRef], seconds: float, every: bool = False
    ) -> list[ray.ObjectRef]:
        if not calls:
            return []
        done, _ = ray.wait(list(calls), num_returns=len(calls) if every else 1, timeout=seconds)
        return list(done)

    def result(self, call: ray.ObjectRef) -> Any:
        try:
            return ray.get(call, timeout=1.0)
        except GetTimeoutError as error:
            raise NoAnswer("its answer did not arrive", died=False) from error
        except ActorDiedError as error:
            text = _message(error)
            raise NoAnswer(text, died="creation task" not in text) from error
        except RayError as error:
            raise NoAnswer(_message(error), died=False) from error

    def dead_services(self) -> list[str]:
        return dead_services()

    def resources(self) -> Mapping[str, float]:
        """Returns the amount of each resource ("CPU", "GPU") that this run may use.

        On a Ray cluster that the run has joined, it is the amount that is free at present.
        """
        joined = bool(self._config.address)
        return dict(ray.available_resources() if joined else ray.cluster_resources())


def _message(error: RayError) -> str:
    """Returns the text of a Ray error, without the codes that print colours on a terminal."""
    return re.sub(r"\x1b\[\d*m", "", str(error)).strip() or type(error).__name__
