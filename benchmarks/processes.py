"""Running `launch.py` as a person does, watching it, and seeing what it leaves behind (Linux)."""

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
RUNS: Final = ROOT / "runs" / "benchmarks"  # git ignores it
MARK: Final = "DREAMFLEET_BENCHMARK"  # every process that a run starts inherits it


class Launched:
    """One `launch.py` process. `began` is on the monotonic clock."""

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

    def wait_for_gradient_step(self, run: Path, seconds: float) -> float:
        """Seconds from the command to the first gradient step; SystemExit if it does not come."""
        while time.monotonic() - self.began < seconds:
            if first_gradient_step(run / "metrics.jsonl"):
                return time.monotonic() - self.began
            if self.process.poll() is not None:
                break
            time.sleep(0.05)
        self.interrupt()
        raise SystemExit(f"no gradient step within {seconds:.0f} s; see {self.log}")

    def finish(self) -> float:
        """Wait for its end → seconds since the command; SystemExit unless it went well."""
        code = self.process.wait()
        if code != 0:
            raise SystemExit(f"exit code {code}; see {self.log}")
        return time.monotonic() - self.began

    def interrupt(self) -> int:
        """Ctrl-C → its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        return self.process.wait(120)

    def left_behind(self, patience_s: float = 10.0) -> list[str]:
        """The command lines of processes it started that still live after `patience_s`."""
        deadline = time.monotonic() + patience_s
        while (alive := marked(self.mark)) and time.monotonic() < deadline:
            time.sleep(0.2)
        return alive


def score(run: Path, episodes: int) -> dict[str, Any]:
    """What `launch.py eval` says of a run over so many episodes, the same for every run."""
    words = ["launch.py", "eval", str(run), "--episodes", str(episodes), "--json"]
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(words)} ended with {done.returncode}: {done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def first_gradient_step(metrics: Path) -> bool:
    """Whether a run has written that it took its first gradient step."""
    if not metrics.is_file():
        return False
    lines = metrics.read_text(encoding="utf-8").splitlines(keepends=True)
    events = (json.loads(line) for line in lines if line.endswith("\n"))
    return any(
        event["kind"] == "milestone" and event["what"] == "first gradient step" for event in events
    )


def marked(mark: str) -> list[str]:
    """The command lines of all processes born with `mark` in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                words = (folder / "cmdline").read_bytes().split(b"\0")
                found.append(b" ".join(words).decode(errors="replace").strip())
        except OSError:  # it ended meanwhile, or is somebody else's
            continue
    return found


def fresh(name: str) -> Path:
    """A run folder of this name that does not exist yet, relative to the checkout."""
    return (RUNS / f"{time.strftime('%Y-%m-%d_%H%M%S')}_{name}").relative_to(ROOT)
