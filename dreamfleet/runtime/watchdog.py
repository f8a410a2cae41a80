"""Environment calls of one thread, watched from another: one that hangs would hang the run."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

from dreamfleet.core.types import Array, Batch, VectorEnv

LOOK_S: Final = 0.1  # between two looks of the watchdog


class EnvCall(NamedTuple):
    """A call that has not returned yet."""

    worker: str  # whose environments are called
    seconds: float  # since the call began
    environments: int  # that the call steps, resets or builds, one after another


class EnvCalls:
    """Knows since when an environment is being called, and for which worker.

    A call that returns while somebody acts on it (`held`) waits until that is done.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        # Worker, since when, how many environments; inner calls last.
        self._under_way: list[tuple[str, float, int]] = []

    @contextmanager
    def by(self, worker: str, environments: int = 1) -> Iterator[None]:
        """Marks what happens inside as a call of so many environments of this worker."""
        self._under_way.append((worker, time.monotonic(), environments))
        try:
            yield
        finally:
            with self._lock:
                self._under_way.pop()

    @contextmanager
    def held(self) -> Iterator[EnvCall | None]:
        """Yields the call under way, or nothing. No call ends before the context does."""
        with self._lock:
            if self._under_way:
                worker, since, environments = self._under_way[-1]
                yield EnvCall(worker, time.monotonic() - since, environments)
            else:
                yield None


class WatchedEnv:
    """A `VectorEnv` whose calls are known to `EnvCalls`."""

    def __init__(self, env: VectorEnv, worker: str, calls: EnvCalls) -> None:
        self._env, self._worker, self._calls = env, worker, calls
        self.spec, self.num_envs, self.info = env.spec, env.num_envs, env.info

    def reset(self, seeds: Sequence[int] | None = None) -> Batch:
        with self._calls.by(self._worker, self.num_envs):
            rows = self._env.reset(seeds)
        self.info = self._env.info
        return rows

    def step(self, action: Array) -> Batch:
        with self._calls.by(self._worker, self.num_envs):
            rows = self._env.step(action)
        self.info = self._env.info
        return rows

    def state(self) -> dict[str, Any]:
        return self._env.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        self._env.restore(state)

    def close(self) -> None:
        with self._calls.by(self._worker, self.num_envs):
            self._env.close()


class Watchdog:
    """A thread that looks at the calls under way; use as a context.

    look: gets the call under way, or nothing, a few times a second. No call ends while `look` runs.
    """

    def __init__(self, calls: EnvCalls, look: Callable[[EnvCall | None], None]) -> None:
        self._calls, self._look = calls, look
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(LOOK_S):
            with self._calls.held() as call:
                self._look(call)
