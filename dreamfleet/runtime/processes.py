"""What starts the processes of a run, free of Ray, and how much of the machines each asks for."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final, Protocol

from dreamfleet.core.config import RunConfig
from dreamfleet.core.errors import UserError
from dreamfleet.runtime.hosts import ReplayHost
from dreamfleet.runtime.proxies import AHEAD, Line

ASKING: Final = 4 * AHEAD  # threads for what one process samples; more would find no use
SERVED_BY: Final = {  # method of the replay → threads, so that no kind of call holds up another
    **dict.fromkeys(("add", "update"), "insert"),
    "sample": "sample",
    **dict.fromkeys(("stats", "state", "newest"), "control"),
}


class Lost(Exception):
    """A call was not answered: `died` where its process is known to be dead."""

    def __init__(self, text: str, died: bool) -> None:
        super().__init__(text)
        self.died = died


class ProcessLine(Line, Protocol):
    """A Line to a process of this run."""

    def stop(self) -> None:
        """Kills the process."""
        ...

    def alive(self) -> Any:
        """Sends a call that any living process answers, once it has the time."""
        ...


class Cluster(Protocol):
    """Starts processes, and hands over their answers."""

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
    ) -> ProcessLine:
        """Starts a process for `kind(*args)`, which must be importable there → a line to it.

        threads: how many in each group of them. groups: method → the group that serves it.
        """
        ...

    def share(self, value: Any) -> Any:
        """Returns what stands for a value that many processes are given."""
        ...

    def answered(self, calls: Collection[Any], seconds: float, every: bool = False) -> list[Any]:
        """Waits until one call, or every call, is answered, or time is up → the answered ones."""
        ...

    def answer(self, call: Any) -> Any:
        """Returns the answer that has come. Raises Lost."""
        ...

    def dead_services(self) -> list[str]:
        """Returns the names of the cluster's own processes that died, where that is known."""
        ...

    def resources(self) -> Mapping[str, float]:
        """Returns how much of each resource there is for this run."""
        ...


def start_replay(
    cluster: Cluster,
    tables: Mapping[str, Any],
    seed: int,
    consuming: int,
    state: dict[str, Any] | None = None,
    end_at: int | None = None,
    **about: Any,
) -> ProcessLine:
    """Starts a replay's process for tables that `consuming` other processes sample → its line.

    state: what it goes on from. end_at: agent steps it takes in all. about: as of `Cluster.start`.
    """
    threads = {"insert": 2, "sample": ASKING * consuming, "control": 2}
    return cluster.start(
        ReplayHost, tables, seed, state, end_at, threads=threads, groups=SERVED_BY, **about
    )


def shares(config: RunConfig, found: Mapping[str, float]) -> dict[str, Any]:
    """Returns how much of the machines each process asks for, and where networks are trained.

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
