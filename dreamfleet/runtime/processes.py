"""The interface through which the driver starts and calls processes, without importing Ray.

Also computes the CPUs and GPUs that each process asks for.
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
    """A call failed: its process is dead, its answer did not come, or the call raised an error."""

    def __init__(self, text: str, died: bool) -> None:
        super().__init__(text)
        self.died = died  # the process is known to be dead

    @property
    def reason(self) -> str:
        """Returns the reason in one line."""
        if self.died:
            return "its process died: killed, out of memory, or ended by its own code"
        lines = str(self).strip().splitlines()
        return lines[-1].strip() if lines else "no answer"


class ProcessHandle(Connection, Protocol):
    """A connection to a process of this run, which can also stop the process."""

    def stop(self) -> None:
        """Kills the process."""
        ...

    def alive(self) -> Any:
        """Sends a call that every living process answers once it is free. Returns the call."""
        ...


@dataclass
class Process:
    """A process of workers and the turn that it is working on."""

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
    """Starts processes and returns the answers to calls."""

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

        The process must be able to import `kind`. threads: thread group → number of threads.
        groups: method → the thread group that executes it.
        """
        ...

    def share(self, value: Any) -> Any:
        """Stores a value once for many processes. Returns a reference to pass as an argument."""
        ...

    def wait(self, calls: Collection[Any], seconds: float, every: bool = False) -> list[Any]:
        """Waits until one call is answered, or `every` call, or time is up.

        Returns the answered calls.
        """
        ...

    def result(self, call: Any) -> Any:
        """Returns the result of an answered call. Raises NoAnswer if the call failed."""
        ...

    def dead_services(self) -> list[str]:
        """Returns the names of the cluster's own processes that died, as far as they are known."""
        ...

    def resources(self) -> Mapping[str, float]:
        """Returns resource → the amount that is available to this run."""
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
    """Starts the process of a replay shard and returns its handle.

    samplers: the number of processes that sample the tables. state: the saved state to continue
    from. end_at: the agent steps after which the shard stores nothing. options: `cpus`, `name`
    and `namespace` of `Cluster.start`.
    """
    threads = {"insert": 2, "sample": SAMPLE_THREADS * samplers, "control": 2}
    return cluster.start(
        ReplayHost, tables, seed, state, end_at, threads=threads, groups=THREAD_GROUPS, **options
    )


def resource_shares(config: RunConfig, available: Mapping[str, float]) -> dict[str, Any]:
    """Returns role → CPUs that a process asks for, "gpu" → GPUs, and "device" → cpu or cuda.

    A process asks for one CPU if there are enough. Otherwise the CPUs are divided in proportion, so
    that 16 actors start on 2 cores. Raises UserError for `--device cuda` without a GPU.

    available: resource → amount, with Ray's names "CPU" and "GPU".
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
