"""Watches how long the environment calls of a thread take, because a call may never return."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

from dreamfleet.core.types import Array, Batch, VectorEnv

CHECK_EVERY_S: Final = 0.1  # between two checks of the watchdog


class EnvCall(NamedTuple):
    """A call to environments, such as `step`, that has not returned yet."""

    worker: str  # the worker that makes the call
    seconds: float  # since the call began
    environments: int  # that the call steps, resets or builds, one after another


class EnvCalls:
    """Records the environment calls in progress in one thread: by which worker and since when.

    While another thread is in a `with current()` block, a recorded call cannot return.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        # Worker, start time, number of environments; a nested call is last.
        self._calls: list[tuple[str, float, int]] = []

    @contextmanager
    def record(self, worker: str, environments: int = 1) -> Iterator[None]:
        """A context manager around an environment call. Records the call until its block ends.

        worker: the worker that makes the call. environments: how many environments the call steps,
        resets or builds.
        """
        self._calls.append((worker, time.monotonic(), environments))
        try:
            yield
        finally:
            with self._lock:
                self._calls.pop()

    @contextmanager
    def current(self) -> Iterator[EnvCall | None]:
        """A context manager that yields the environment call in progress, or None.

        The environment call cannot return before the `with` block ends.
        """
        with self._lock:
            if self._calls:
                worker, since, environments = self._calls[-1]
                yield EnvCall(worker, time.monotonic() - since, environments)
            else:
                yield None


class WatchedEnv:
    """N environments whose calls are recorded, so that a watchdog sees how long each call takes."""

    def __init__(self, env: VectorEnv, worker: str, calls: EnvCalls) -> None:
        self._env, self._worker, self._calls = env, worker, calls
        self.spec, self.num_envs, self.info = env.spec, env.num_envs, env.info

    def reset(self, seeds: Sequence[int] | None = None) -> Batch:
        with self._calls.record(self._worker, self.num_envs):
            rows = self._env.reset(seeds)
        self.info = self._env.info
        return rows

    def step(self, action: Array) -> Batch:
        with self._calls.record(self._worker, self.num_envs):
            rows = self._env.step(action)
        self.info = self._env.info
        return rows

    def state(self) -> dict[str, Any]:
        return self._env.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        self._env.restore(state)

    def close(self) -> None:
        with self._calls.record(self._worker, self.num_envs):
            self._env.close()


class Watchdog:
    """A thread that calls `check` ten times a second, to see if an environment call takes too long.

    check: a function that gets the environment call in progress, or None. The environment call
    cannot return while `check` runs.
    """

    def __init__(self, calls: EnvCalls, check: Callable[[EnvCall | None], None]) -> None:
        self._calls, self._check = calls, check
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(CHECK_EVERY_S):
            with self._calls.current() as call:
                self._check(call)
