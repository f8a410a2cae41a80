"""Replay workloads across processes: our replay on Ray, and Reverb in a separate interpreter.

A workload (work to be timed) has three processes. One process stores the rows, one adds rows, and
one samples.
"""

from __future__ import annotations

import itertools
import json
import os
import selectors
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, Final, Self

from benchmarks.processes import ROOT
from benchmarks.replay.rows import (
    ADDED,
    BATCH,
    LOW,
    PIXELS,
    PRIORITIZED,
    STREAMS,
    columns,
    endless,
)
from benchmarks.replay.workloads import FRAMES, SEQUENCES, Scale
from benchmarks.timing import Workload
from dreamfleet.core.config import RunConfig
from dreamfleet.core.errors import UserError, WorkerFailed
from dreamfleet.core.types import ChunkId, Consumer, Space, TableSpec
from dreamfleet.runtime.hosts import AwaitableReplay
from dreamfleet.runtime.proxies import ReplayProxy

WAIT_S: Final = 0.2  # longest wait before a refused call is repeated
TIMEOUT_S: Final = 120.0  # for an answer of a Reverb process
BATCHES: Final = ADDED // BATCH  # sampled per call of `add`: as many transitions as are added
MIN_ROWS: Final = 4 * ADDED  # before the first sample
STORED_FRAMES: Final = 8192
Repetitions = Callable[[int], None]  # a function of n that adds or samples n times

# ------------------------------------------------------------------------------------- ours


@contextmanager
def transitions_on_ray(scale: Scale) -> Iterator[Workload]:
    """Yields a workload in which our replay on Ray adds 1,024 transitions and samples 1,024.

    The workload adds 64 rows of each of 16 environments, and samples 4 prioritized batches of 256
    transitions. scale: not used.
    """
    consumer = Consumer(
        batch=BATCH,
        window=2,
        selector=PRIORITIZED,
        samples_per_step=1 / BATCH,
        min_steps=MIN_ROWS,
    )
    spec = TableSpec(100_000, columns(LOW), {"learner": consumer}, slack=16)
    with on_ray(spec, LOW) as add_and_sample:
        add_and_sample((MIN_ROWS // ADDED, 0))
        yield Workload("ours", lambda n: add_and_sample((n, n * BATCHES)), 2 * ADDED)


@contextmanager
def sequences_on_ray(scale: Scale) -> Iterator[Workload]:
    """Yields a workload (work to be timed): our replay on Ray samples 16 sequences of 64 frames.

    scale: not used.
    """
    spec = TableSpec(STORED_FRAMES, columns(PIXELS), {"learner": SEQUENCES})
    with on_ray(spec, PIXELS) as add_and_sample:
        add_and_sample((STORED_FRAMES // ADDED, 0))
        yield Workload("ours", lambda n: add_and_sample((0, n)), FRAMES)


@contextmanager
def on_ray(spec: TableSpec, obs: Space) -> Iterator[Callable[[Sequence[int]], None]]:
    """Starts our replay on Ray, and yields a function that adds and samples at the same time.

    The argument of the function is [number of chunks to add, number of batches to sample]. A chunk
    is 64 rows of each of 16 environments. obs: shape and data type of an observation.
    """
    from dreamfleet.runtime.cluster import RayCluster
    from dreamfleet.runtime.fleet import ANSWER_S
    from dreamfleet.runtime.processes import start_replay
    from dreamfleet.runtime.ray_start import running_ray

    config = RunConfig(dashboard=False)
    cluster = RayCluster(config)
    jobs, tables = (partial(adding, obs), sampling), {"real": spec}
    with (
        redirect_stdout(sys.stderr),  # Ray prints warnings; stdout is for the table
        running_ray(config) as startup,
    ):
        startup.dashboard.result()
        replay = start_replay(cluster, tables, 0, samplers=1)
        workers = [cluster.start(Worker, job, ReplayProxy([replay], tables, 0)) for job in jobs]

        def add_and_sample(amounts: Sequence[int]) -> None:
            calls = [worker.call("work", n) for worker, n in zip(workers, amounts, strict=True)]
            cluster.wait(calls, ANSWER_S, every=True)
            for call in calls:
                cluster.result(call)

        yield add_and_sample
        for process in (*workers, replay):
            process.stop()


class Worker:
    """A process that repeats work on a replay: it adds rows, or samples batches.

    make: a function that takes the replay. It returns a function of n that does the work n times.
    """

    def __init__(
        self, make: Callable[[AwaitableReplay], Repetitions], replay: AwaitableReplay
    ) -> None:
        self._work = make(replay)

    def work(self, amount: int) -> None:
        self._work(amount)


def adding(obs: Space, replay: AwaitableReplay) -> Repetitions:
    """Returns a function of n that adds n chunks of random rows to a replay.

    A chunk is 64 rows of each of 16 environments. obs: shape and data type of an observation.
    """
    feed, chunk_ids = endless(obs, 1), (ChunkId(0, 0, n) for n in itertools.count())

    def work(n: int) -> None:
        for _ in range(n):
            chunk, chunk_id = next(feed), next(chunk_ids)
            while not replay.add("real", chunk, STREAMS, chunk_id):
                replay.wait(WAIT_S)
        while not replay.flush():
            replay.wait(WAIT_S)

    return work


def sampling(replay: AwaitableReplay) -> Repetitions:
    """Returns a function of n that samples n batches from a replay."""

    def work(n: int) -> None:
        for _ in range(n):
            while replay.sample("real", "learner") is None:
                replay.wait(WAIT_S)

    return work


# ----------------------------------------------------------------------------------- Reverb


def check_reverb(python: Path) -> str:
    """Returns the version of Reverb that is installed for the Python interpreter `python`.

    Raises UserError if the interpreter cannot be started, or lacks Reverb or TensorFlow.
    """
    code = (
        "from importlib.util import find_spec; from importlib.metadata import version;"
        "assert find_spec('reverb') and find_spec('tensorflow');"
        "print(version('dm-reverb'))"
    )
    try:
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=60)
    except OSError as error:
        raise UserError(
            f"--reverb-python {python}: {error.strerror}. Give the path of a Python interpreter."
        ) from None
    if done.returncode:
        raise UserError(
            f"--reverb-python {python}: no Reverb with TensorFlow there. "
            f"Install them: {python} -m pip install dm-reverb==0.14.0 tensorflow-cpu~=2.15.0"
        )
    return done.stdout.strip()


@contextmanager
def transitions_on_reverb(scale: Scale, python: Path) -> Iterator[Workload]:
    """Yields a workload in which Reverb inserts 256 transitions and samples a batch of 256.

    Two processes insert and sample at the same time. scale: not used. python: path of an
    interpreter that has Reverb.
    """
    with reverb(python, "transitions") as (writer, sampler):
        together([writer], [MIN_ROWS // BATCH])
        yield Workload("Reverb", lambda n: together([writer, sampler], [n, n]), 2 * BATCH)


@contextmanager
def sequences_on_reverb(scale: Scale, python: Path) -> Iterator[Workload]:
    """Yields a workload (work to be timed): Reverb samples 16 sequences of 64 frames.

    scale: not used. python: path of an interpreter that has Reverb.
    """
    with reverb(python, "sequences") as (writer, sampler):
        together([writer], [STORED_FRAMES // SEQUENCES.window])
        yield Workload("Reverb", lambda n: together([sampler], [n]), FRAMES)


@contextmanager
def reverb(python: Path, kind: str) -> Iterator[tuple[ReverbProcess, ReverbProcess]]:
    """Starts a Reverb server and its two client processes. Yields the clients (writer, sampler).

    python: path of an interpreter that has Reverb. kind: what is stored, `transitions` or
    `sequences`.
    """
    with ExitStack() as stack:
        port = str(stack.enter_context(ReverbProcess(python, kind, "server")).receive())
        writer, sampler = (
            stack.enter_context(ReverbProcess(python, kind, role, port))
            for role in ("writer", "sampler")
        )
        for process in (writer, sampler):
            process.receive()  # "ready"
        yield writer, sampler


class ReverbProcess:
    """A process that runs `reverb_process.py` as a server, writer or sampler of Reverb.

    python: path of an interpreter that has Reverb. words: command-line arguments of the script.
    Requests to the process and its answers are lines of text.
    """

    def __init__(self, python: Path, *words: str) -> None:
        self._name = f"the Reverb {words[1]}"
        self._stderr: IO[bytes] = TemporaryFile()  # noqa: SIM115  closed in __exit__
        environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
        self._process = subprocess.Popen(
            [python, "benchmarks/replay/reverb_process.py", *words],
            cwd=ROOT,
            env={**environment, "TF_CPP_MIN_LOG_LEVEL": "3"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
        )
        assert self._process.stdin and self._process.stdout
        self._in, self._out = self._process.stdin, self._process.stdout

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Kills the Reverb process, and closes its input and output."""
        self._process.kill()
        self._process.wait()
        self._in.close()
        self._out.close()
        self._stderr.close()

    def send(self, amount: int) -> None:
        """Asks the Reverb process to repeat its work (writing or sampling) `amount` times."""
        self._in.write(f"{amount}\n")
        self._in.flush()

    def receive(self) -> Any:
        """Waits for the next answer of the Reverb process, and returns it.

        Raises WorkerFailed if the process has died, or does not answer within TIMEOUT_S seconds.
        """
        with selectors.DefaultSelector() as ready:
            ready.register(self._out, selectors.EVENT_READ)
            line = self._out.readline() if ready.select(TIMEOUT_S) else ""
        if not line:
            self._stderr.seek(0)
            errors = self._stderr.read().decode(errors="replace")[-2000:]
            raise WorkerFailed(
                f"{errors}\n{self._name} broke, or did not answer within {TIMEOUT_S:g} s"
            )
        return json.loads(line)


def together(processes: Sequence[ReverbProcess], amounts: Sequence[int]) -> None:
    """Lets several Reverb processes work at the same time, and waits until all have finished.

    amounts: how often each process repeats its work.
    """
    for process, amount in zip(processes, amounts, strict=True):
        process.send(amount)
    for process in processes:
        process.receive()
