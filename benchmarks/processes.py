"""Starts `launch.py` as a process, and finds processes that it left behind (Linux only)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parent.parent
RESULTS: Final = ROOT / "benchmarks" / "results"  # records of measurements, kept in git
RUNS: Final = ROOT / "runs" / "benchmarks"  # run folders, ignored by git
MARK: Final = "DREAMFLEET_BENCHMARK"  # environment variable that all processes of a run inherit


class LaunchedRun:
    """A process of `launch.py`, started with the arguments `args`.

    log: the file for its output. began: start time in seconds of the monotonic clock. mark: a
    random value in the environment of all processes of the run.
    """

    def __init__(self, args: Sequence[str], log: Path) -> None:
        self.mark, self.log = uuid.uuid4().hex, log
        log.parent.mkdir(parents=True, exist_ok=True)
        self.began = time.monotonic()
        with open(log, "ab") as file:
            self.process = subprocess.Popen(
                [sys.executable, "launch.py", *args],
                cwd=ROOT,
                env={**os.environ, MARK: self.mark},
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    def wait_for_gradient_step(self, run: Path, timeout_s: float) -> float:
        """Waits for the first gradient step, and returns the seconds since the process was started.

        Stops the run and raises SystemExit if the process ends without a gradient step, or if no
        gradient step is taken within `timeout_s` seconds.
        """
        while time.monotonic() - self.began < timeout_s:
            if first_gradient_step(run / "metrics.jsonl"):
                return time.monotonic() - self.began
            if self.process.poll() is not None:
                break
            time.sleep(0.05)
        self.interrupt()
        raise SystemExit(f"no gradient step within {timeout_s:.0f} s; see {self.log}")

    def finish(self) -> float:
        """Waits for the end of the process of `launch.py`, and returns the seconds since its start.

        Raises SystemExit if the exit code is not 0.
        """
        code = self.process.wait()
        if code != 0:
            raise SystemExit(f"launch.py ended with exit code {code}; see {self.log}")
        return time.monotonic() - self.began

    def interrupt(self) -> int:
        """Sends Ctrl-C (SIGINT) to the process, waits for its end and returns the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        return self.process.wait(120)

    def leftover(self, timeout_s: float = 10.0) -> list[str]:
        """Waits until all processes of the run have ended, for at most `timeout_s` seconds.

        Returns the command lines of the processes that are still alive.
        """
        deadline = time.monotonic() + timeout_s
        while (alive := processes_with(self.mark)) and time.monotonic() < deadline:
            time.sleep(0.2)
        return alive


def evaluate(run: Path, episodes: int, max_steps: int | None = None) -> dict[str, Any]:
    """Evaluates the run in the folder `run` with `launch.py eval`, and returns the printed JSON.

    All runs of an environment are evaluated on the same episodes. max_steps: steps after which an
    episode is truncated; None: the setting of the run. Raises SystemExit if the command fails.
    """
    words = ["launch.py", "eval", str(run), "--episodes", str(episodes), "--json"]
    words += [] if max_steps is None else ["--max-steps", str(max_steps)]
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(words)} ended with {done.returncode}: {done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def first_gradient_step(metrics: Path) -> bool:
    """Returns whether a run has taken its first gradient step.

    metrics: the file `metrics.jsonl` of the run.
    """
    if not metrics.is_file():
        return False
    lines = metrics.read_text(encoding="utf-8").splitlines(keepends=True)
    events = (json.loads(line) for line in lines if line.endswith("\n"))
    return any(
        event["kind"] == "milestone" and event["what"] == "first gradient step" for event in events
    )


def processes_with(mark: str) -> list[str]:
    """Returns the command lines of all processes that belong to the run with the value `mark`.

    Every benchmarked run has its own value. All processes of the run inherit it in the environment
    variable that MARK names.
    """
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                words = (folder / "cmdline").read_bytes().split(b"\0")
                found.append(b" ".join(words).decode(errors="replace").strip())
        except OSError:  # the process has ended, or belongs to another user
            continue
    return found


def new_run_folder(name: str) -> Path:
    """Returns the path for a new run folder, named by the time and `name`; the folder is not made.

    The path is relative to the root of this repository.
    """
    return (RUNS / f"{time.strftime('%Y-%m-%d_%H%M%S')}_{name}").relative_to(ROOT)
