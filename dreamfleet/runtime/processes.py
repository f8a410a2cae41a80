"""The interface through which the driver starts and calls other processes. Imports no Ray.

The driver is the process that the user started. This module also computes how many CPUs and GPUs
each process asks for.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from dreamfleet.core.config import RunConfig
from dreamfleet.core.errors import UserError
from dreamfleet.runtime.hosts import ReplayHost
from dreamfleet.runtime.proxies import PREFETCH, Connection

SAMPLE_THREADS: Final = 4 * PREFETCH  # of a replay, for each process that samples; enough for all
THREAD_GROUPS: Final = {  # method of the replay → group of threads, so that no group delays another
    **dict.fromkeys(("add", "update"), "insert"),
    "sample": "sample",
    **dict.fromkeys(("stats", "state", "newest"), "control"),
}


class NoAnswer(Exception):
    """A call to another process failed: the process died, did not answer, or raised an error."""

    def __init__(self, text: str, died: bool) -> None:
        super().__init__(text)
        self.died = died  # the process is known to be dead

    @property
    def reason(self) -> str:
        """The reason why the call failed, in one line."""
        if self.died:
            return "its process died: killed, out of memory, or ended by its own code"
        lines = str(self).strip().splitlines()
        return lines[-1].strip() if lines else "no answer"


class ProcessHandle(Connection, Protocol):
    """A connection to a process of this run, to call the process's methods and to stop it."""

    def stop(self) -> None:
        """Kills the process."""
        ...

    def alive(self) -> Any:
        """Sends a call whose answer will show that the process is alive. Returns the call.

        A living process answers as soon as it has finished its present work.
        """
        ...


@dataclass
class Process:
    """A process of workers (such as an actor), with its unanswered call and the call's deadline."""

    names: tuple[str, ...]
    handle: ProcessHandle
    turn: Any  # the call whose answer is the reports of the turn
    deadline: float  # of the turn, on the monotonic clock
    started: bool = False  # the process has finished a turn; its first turn takes no time
    silent: bool = False  # the display has shown that the run waits for this process

    @property
    def role(self) -> str:
        return self.names[-1].partition("-")[0]

    @property
    def label(self) -> str:
        return "+".join(self.names)


class Cluster(Protocol):
    """The interface through which processes are started and their answers to calls collected."""

    def start(
        self,
        kind: type,
        *args: Any,
        cpus: float = 0.0,
        gpus: float = 0.0,
        threads: Mapping[str, int] | None = None,
        groups: Mapping[str, str] | None = None,
        name: str,
        namespace: str,
    ) -> ProcessHandle:
        """Starts a process that holds the object `kind(*args)`. Returns a handle to the process.

        kind: a class that the process can import. cpus, gpus: the amounts that the process asks
        for. threads: name of a thread group → number of its threads. groups: method name → thread
        group. name, namespace: names of the process on the cluster.
        """
        ...

    def share(self, value: Any) -> Any:
        """Stores a value once for many processes. Returns a reference that calls can pass on."""
        ...

    def wait(self, calls: Collection[Any], seconds: float, every: bool = False) -> list[Any]:
        """Waits up to `seconds` until one of the calls is answered. Returns the answered calls.

        every: True waits until all calls are answered.
        """
        ...

    def result(self, call: Any) -> Any:
        """Returns the result of an answered call. Raises NoAnswer if the call failed."""
        ...

    def dead_services(self) -> list[str]:
        """Returns the names of the cluster's own processes, such as `raylet`, that have died."""
        ...

    def resources(self) -> Mapping[str, float]:
        """Returns the amount of each resource ("CPU", "GPU") that this run may use."""
        ...


def start_replay(
    cluster: Cluster,
    tables: Mapping[str, Any],
    seed: int,
    samplers: int,
    state: dict[str, Any] | None = None,
    end_at: int | None = None,
    **options: Any,
) -> ProcessHandle:
    """Starts a process that holds one replay shard (a part of the replay). Returns its handle.

    samplers: the number of processes that sample from the shard. state: the saved state; None:
    empty tables. end_at: the number of agent steps (actions taken) after which the shard accepts no
    more rows; None: no limit. options: `cpus`, `name` and `namespace` of the process.
    """
    threads = {"insert": 2, "sample": SAMPLE_THREADS * samplers, "control": 2}
    return cluster.start(
        ReplayHost, tables, seed, state, end_at, threads=threads, groups=THREAD_GROUPS, **options
    )


def resource_shares(config: RunConfig, available: Mapping[str, float]) -> dict[str, Any]:
    """Returns how many CPUs and GPUs each process of a run asks for.

    The result is a dict. Keys such as "actor" hold the number of CPUs for one process of that role.
    "gpu" holds the number of GPUs for one process that trains. "device" is cpu or cuda. If the CPUs
    do not suffice, all numbers of CPUs are reduced by one factor.

    available: resource ("CPU", "GPU") → amount. Raises UserError for `--device cuda` without a GPU.
    """
    trainers = 1 + config.num_dreamers
    wanted = {"actor": 1.0, "learner": 1.0, "dreamer": 1.0, "replay": 0.5, "evaluator": 0.5}
    total = config.num_actors + trainers + 0.5 * config.train.replay_shards + 0.5
    scale = min(1.0, available.get("CPU", 0.0) / total)
    gpus = available.get("GPU", 0.0)
    if config.device == "cuda" and gpus == 0:
        raise UserError("--device cuda: no machine of this cluster has a GPU. Use --device cpu.")
    device = "cuda" if gpus > 0 and config.device != "cpu" else "cpu"
    cpus = {role: int(1000 * scale * share) / 1000 for role, share in wanted.items()}
    return {**cpus, "device": device, "gpu": int(1000 * min(1.0, gpus / trainers)) / 1000}
