"""Runs `launch.py` of a checkout (a copy of this repository), and reads the versions of a run."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any


def launch(checkout: Path, run: Path, args: list[str]) -> str:
    """Runs `launch.py` with the arguments `args` in the folder `checkout`, and returns its output.

    checkout: a copy of this repository. run: the run folder. Raises SystemExit if the command
    fails.
    """
    run.parent.mkdir(parents=True, exist_ok=True)
    with open(run.with_suffix(".log"), "a") as log:
        done = subprocess.run(
            [sys.executable, "launch.py", *args],
            cwd=checkout,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    if done.returncode:
        raise SystemExit(f"launch.py {' '.join(args)} ended with {done.returncode}; see {log.name}")
    return done.stdout


def made_by(run: Path) -> dict[str, str]:
    """Returns the git commit and the versions of Python and torch with which a run was made.

    run: the run folder.
    """
    versions = json.loads((run / "versions.json").read_text())
    return {name: versions[name] for name in ("git", "python", "torch")}


def machine() -> dict[str, Any]:
    """Returns the number of CPUs and the name of the processor of this machine."""
    return {"cpus": os.cpu_count(), "processor": processor()}


def processor() -> str:
    """Returns the name of this machine's processor."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()
