"""A side of a comparison in a process of its own, as its users run it: what one sets up for itself
(C library, PyTorch, garbage) is not there for others.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection

import torch

from benchmarks.rounds import Side
from benchmarks.updates_race import Work


@contextmanager
def apart(name: str, build: Callable[[], Work]) -> Iterator[Side]:
    """→ a side whose work `build` makes over there (it is pickled), in processor seconds there."""
    spawning = multiprocessing.get_context("spawn")
    here, there = spawning.Pipe()
    process = spawning.Process(target=serve, args=(build, there), daemon=True)
    process.start()
    there.close()
    spent = 0.0

    def work(updates: int) -> None:
        nonlocal spent
        try:
            here.send(updates)
            spent += here.recv()
        except (EOFError, ConnectionError):
            raise SystemExit(f"{name}: its process ended; what it said is above.") from None

    try:
        yield Side(name, work, 1, lambda: spent)
    finally:
        here.close()
        process.join()


def serve(build: Callable[[], Work], told: Connection) -> None:
    """Work on one thread as often as is told, and say how many processor seconds it took."""
    torch.set_num_threads(1)
    work = build()
    with suppress(EOFError):
        while True:
            updates = told.recv()
            began = time.process_time()
            work(updates)
            told.send(time.process_time() - began)
