"""The replay across processes: ours on Ray, and Reverb in an interpreter of its own.

On both sides one process holds the rows, one adds and one samples.
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
from benchmarks.timing import Side
from dreamfleet.core.config import RunConfig
from dreamfleet.core.errors import UserError, WorkerFailed
from dreamfleet.core.types import ChunkId, Consumer, Space, TableSpec
from dreamfleet.runtime.hosts import AwaitableReplay
from dreamfleet.runtime.proxies import ReplayProxy

WAIT_S: Final = 0.2  # between two looks for an answer that is late
PATIENCE_S: Final = 120.0  # with a process of Reverb's
BATCHES: Final = ADDED // BATCH  # of transitions that one add makes room for, at ratio 1
LEAST: Final = 4 * ADDED  # rows before the first sample
HELD: Final = 8192  # frames
Work = Callable[[int], None]

# ------------------------------------------------------------------------------------- ours


@contextmanager
def transitions_on_ray(scale: Scale) -> Iterator[Side]:
    """One add of 16 × 64 rows and the 4 prioritized batches of 256 that are due for it."""
    consumer = Consumer(
        batch=BATCH,
        window=2,
        selector=PRIORITIZED,
        samples_per_step=1 / BATCH,
        min_steps=LEAST,
    )
    spec = TableSpec(100_000, columns(LOW), {"learner": consumer}, slack=16)
    with on_ray(spec, LOW) as work:
        work((LEAST // ADDED, 0))
        yield Side("ours", lambda n: work((n, n * BATCHES)), 2 * ADDED)


@contextmanager
def sequences_on_ray(scale: Scale) -> Iterator[Side]:
    """A batch of 16 × 64 frames."""
    spec = TableSpec(HELD, columns(PIXELS), {"learner": SEQUENCES})
    with on_ray(spec, PIXELS) as work:
        work((HELD // ADDED, 0))
        yield Side("ours", lambda n: work((0, n)), FRAMES)


@contextmanager
def on_ray(spec: TableSpec, obs: Space) -> Iterator[Callable[[Sequence[int]], None]]:
    """→ what has so many chunks added and so many samples taken, at the same time."""
    from dreamfleet.runtime.cluster import RayCluster, joined
    from dreamfleet.runtime.fleet import ANSWER_S
    from dreamfleet.runtime.processes import start_replay

    config = RunConfig(dashboard=False)
    cluster = RayCluster(config)
    jobs, tables = (partial(adding, obs), sampling), {"real": spec}
    with (
        redirect_stdout(sys.stderr),  # Ray prints warnings of its own
        joined(config) as joining,
    ):
        joining.dashboard.result()
        replay = start_replay(cluster, tables, 0, consuming=1)
        crew = [cluster.start(Job, job, ReplayProxy([replay], tables, 0)) for job in jobs]

        def work(amounts: Sequence[int]) -> None:
            done = [job.call("work", n) for job, n in zip(crew, amounts, strict=True)]
            cluster.answered(done, ANSWER_S, every=True)
            for call in done:
                cluster.answer(call)

        yield work
        for line in (*crew, replay):
            line.stop()


class Job:
    """Work with the replay, in a process of its own."""

    def __init__(self, make: Callable[[AwaitableReplay], Work], replay: AwaitableReplay) -> None:
        self._work = make(replay)

    def work(self, amount: int) -> None:
        self._work(amount)


def adding(obs: Space, replay: AwaitableReplay) -> Work:
    feed, chunk_ids = endless(obs, 1), (ChunkId(0, 0, n) for n in itertools.count())

    def work(n: int) -> None:
        for _ in range(n):
            chunk, chunk_id = next(feed), next(chunk_ids)
            while not replay.add("real", chunk, STREAMS, chunk_id):
                replay.wait(WAIT_S)
        while not replay.flush():
            replay.wait(WAIT_S)

    return work


def sampling(replay: AwaitableReplay) -> Work:
    def work(n: int) -> None:
        for _ in range(n):
            while replay.sample("real", "learner") is None:
                replay.wait(WAIT_S)

    return work


# ----------------------------------------------------------------------------------- Reverb


def check_reverb(python: Path) -> str:
    """The version of Reverb that this interpreter has. Raises UserError without any."""
    code = (
        "from importlib.util import find_spec; from importlib.metadata import version;"
        "assert find_spec('reverb') and find_spec('tensorflow');"
        "print(version('dm-reverb'))"
    )
    try:
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=60)
    except OSError as error:
        raise UserError(
            f"--reverb-python {python}: {error.strerror}. Name a Python interpreter."
        ) from None
    if done.returncode:
        raise UserError(
            f"--reverb-python {python}: no Reverb with TensorFlow there. "
            f"Install them: {python} -m pip install dm-reverb==0.14.0 tensorflow-cpu~=2.15.0"
        )
    return done.stdout.strip()


@contextmanager
def transitions_on_reverb(scale: Scale, python: Path) -> Iterator[Side]:
    """256 inserts and the batch that is due for them."""
    with reverb(python, "transitions") as (writer, sampler):
        together([writer], [LEAST // BATCH])
        run = lambda n: together([writer, sampler], [n, n])  # noqa: E731
        yield Side("Reverb", run, 2 * BATCH)


@contextmanager
def sequences_on_reverb(scale: Scale, python: Path) -> Iterator[Side]:
    with reverb(python, "sequences") as (writer, sampler):
        together([writer], [HELD // SEQUENCES.window])
        yield Side("Reverb", lambda n: together([sampler], [n]), FRAMES)


@contextmanager
def reverb(python: Path, kind: str) -> Iterator[tuple[Peer, Peer]]:
    """A server and its (writer, sampler)."""
    with ExitStack() as stack:
        port = str(stack.enter_context(Peer(python, kind, "server")).hear())
        roles = [
            stack.enter_context(Peer(python, kind, role, port)) for role in ("writer", "sampler")
        ]
        for peer in roles:
            peer.hear()  # that it is ready
        writer, sampler = roles
        yield writer, sampler


class Peer:
    """A process of `benchmarks/replay/reverb_process.py`, told things and heard line by line."""

    def __init__(self, python: Path, *words: str) -> None:
        self._name = f"Reverb's {words[1]}"
        self._said: IO[bytes] = TemporaryFile()  # noqa: SIM115  closed on leaving
        environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
        self._process = subprocess.Popen(
            [python, "benchmarks/replay/reverb_process.py", *words],
            cwd=ROOT,
            env={**environment, "TF_CPP_MIN_LOG_LEVEL": "3"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
        )
        assert self._process.stdin and self._process.stdout
        self._in, self._out = self._process.stdin, self._process.stdout

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End of its input, and of it."""
        self._process.kill()
        self._process.wait()
        self._in.close()
        self._out.close()
        self._said.close()

    def tell(self, what: int) -> None:
        self._in.write(f"{what}\n")
        self._in.flush()

    def hear(self) -> Any:
        """Its next line. Raises WorkerFailed when it died or says nothing."""
        with selectors.DefaultSelector() as ready:
            ready.register(self._out, selectors.EVENT_READ)
            line = self._out.readline() if ready.select(PATIENCE_S) else ""
        if not line:
            self._said.seek(0)
            last = self._said.read().decode(errors="replace")[-2000:]
            raise WorkerFailed(f"{last}\n{self._name} broke, or was silent for {PATIENCE_S:g} s")
        return json.loads(line)


def together(peers: Sequence[Peer], amounts: Sequence[int]) -> None:
    """Each does its amount at the same time; wait for all."""
    for peer, amount in zip(peers, amounts, strict=True):
        peer.tell(amount)
    for peer in peers:
        peer.hear()
