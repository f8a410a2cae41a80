"""A run's folder: config.yaml, versions.json, metrics.jsonl, checkpoints/, and who holds it."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import re
import subprocess
import time
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from dreamfleet.core.config import RunConfig, configure, flatten
from dreamfleet.core.errors import UserError

RUNS = Path("runs")
_PACKAGES = ("torch", "ray", "gymnasium", "numpy", "numba", "ale-py", "redis")


class RunFolder:
    """The folder of one live run, locked against a second one until closed.

    Made by `create` or `reopen`; both raise UserError when the folder cannot serve.
    """

    def __init__(self, path: Path, config: RunConfig) -> None:
        self.path = path
        self.config = config
        self._lock = _lock(path)

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @classmethod
    def create(cls, config: RunConfig, runs: Path = RUNS) -> Self:
        """A new folder at `config.run_dir` or, without one, a dated one under `runs`."""
        path = Path(config.run_dir) if config.run_dir else _free_path(config, runs)
        check_new(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            folder = cls(path, replace(config, run_dir=str(path)))
            folder.record()
        except OSError as error:
            raise _unwritable(path, error) from None
        return folder

    @classmethod
    def reopen(cls, path: Path, config: RunConfig) -> Self:
        """The folder of an earlier run, to go on with `config`; nothing in it changes yet."""
        try:
            folder = cls(path, replace(config, run_dir=str(path)))
        except OSError as error:
            raise _unwritable(path, error) from None
        return folder

    def close(self) -> None:
        """Give the folder up; others may resume it."""
        os.close(self._lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()

    def record(self) -> None:
        """Write down what the run is and what it runs on."""
        text = yaml.safe_dump(_as_yaml(asdict(self.config)), sort_keys=False)
        _replace(self.path / "config.yaml", text)
        _replace(self.path / "versions.json", json.dumps(versions(), indent=2) + "\n")


def check_new(path: Path) -> None:
    """UserError unless a run may start in `path`: new, or an empty folder, and writable."""
    if path.is_dir() and any(path.iterdir()):
        raise UserError(
            f"run folder {path} exists and is not empty. Continue it with --resume {path}, "
            "or name another with --run-dir."
        )
    if path.exists() and not path.is_dir():
        raise UserError(f"run folder {path} is a file. Name a folder with --run-dir.")
    parent = next(p for p in (path, *path.absolute().parents) if p.exists())
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(f"cannot write in {parent}. Name another folder with --run-dir.")


def read_config(path: Path) -> RunConfig:
    """The config of the run in `path`. Raises UserError when there is none, or a broken one."""
    file = path / "config.yaml"
    if not file.is_file():
        found = (
            "a folder without one" if path.is_dir() else "a file" if path.exists() else "nothing"
        )
        raise UserError(
            f"no run at {path}: expected {file}, found {found}. Runs are under {RUNS}/."
        )
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"{file} holds {type(values).__name__}, expected settings by name.")
    return configure(RunConfig(), flatten(values), source=str(file))


def latest(runs: Path = RUNS) -> Path:
    """The run under `runs` that was last written to. Raises UserError when there is none."""
    found = list(runs.glob("*/config.yaml"))
    if not found:
        raise UserError(f"no run under {runs.absolute()} to resume. Name one: --resume PATH.")
    return max(found, key=_last_written).parent


def versions() -> dict[str, Any]:
    """What this program runs on: Python, platform, git commit, packages. Imports none of them."""
    packages: dict[str, str | None] = {}
    for name in _PACKAGES:
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            packages[name] = None
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "git": _git_commit(),
        **packages,
    }


def _git_commit() -> str | None:
    """The commit of this checkout, `+` when files differ from it; None outside a checkout."""
    command = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=2
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _last_written(config_file: Path) -> float:
    metrics = config_file.with_name("metrics.jsonl")
    return max(file.stat().st_mtime for file in (config_file, metrics) if file.exists())


def _free_path(config: RunConfig, runs: Path) -> Path:
    env = re.sub(r"[^\w.-]+", "-", config.env)
    stem = f"{time.strftime('%Y-%m-%d_%H%M%S')}_{config.agent}_{env}_s{config.seed}"
    path, n = runs / stem, 1
    while path.exists():
        n += 1
        path = runs / f"{stem}-{n}"
    return path


def _lock(path: Path) -> int:
    """An exclusive hold on `path` that ends with this process, however it ends."""
    descriptor = os.open(path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, 20).decode() or "unknown"
        os.close(descriptor)
        raise UserError(
            f"run {path} is live: process {holder} holds it. Wait for it or stop it first."
        ) from None
    os.ftruncate(descriptor, 0)
    os.write(descriptor, str(os.getpid()).encode())
    return descriptor


def _replace(path: Path, text: str) -> None:
    staging = path.with_name(f".{path.name}")
    staging.write_text(text, encoding="utf-8")
    staging.replace(path)


def _as_yaml(node: Any) -> Any:
    """YAML has lists, not tuples."""
    if isinstance(node, dict):
        return {key: _as_yaml(value) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [_as_yaml(value) for value in node]
    return node


def _unwritable(path: Path, error: OSError) -> UserError:
    return UserError(f"cannot write the run folder {path}: {error}. Name another with --run-dir.")
