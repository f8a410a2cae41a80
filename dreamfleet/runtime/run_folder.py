"""Creates, opens and locks the folder of a run. Records each start of the run in `config.yaml`."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import re
import reprlib
import secrets
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import yaml

from dreamfleet.core.config import RunConfig, configure, flatten
from dreamfleet.core.errors import UserError
from dreamfleet.core.import_guard import never_import_from
from dreamfleet.core.own_files import check_own_file, check_own_folder, open_own
from dreamfleet.core.version import VERSION, made_by_older_version

RUNS = Path("runs")
CONFIG: Final = "config.yaml"
VERSIONS: Final = "versions.json"
METRICS: Final = "metrics.jsonl"
LOCK: Final = ".lock"
CHECKPOINTS: Final = "checkpoints"
BEST: Final = "best"
TENSORBOARD: Final = "tensorboard"
FOLDERS: Final = (CHECKPOINTS, BEST, TENSORBOARD)
FILES: Final = (CONFIG, VERSIONS, METRICS, "ray.log", LOCK)
HISTORY: Final = "history"  # the last key of config.yaml: one entry for each start of the run
_PACKAGES = ("torch", "ray", "gymnasium", "numpy", "numba", "ale-py", "redis")


class RunFolder:
    """The folder of a run that is in progress, locked so that no other process uses it.

    `create` makes a new folder, and `reopen` opens the folder of an earlier run. If a UserError
    ends a new run before its first checkpoint, the files of the run are removed.
    """

    def __init__(
        self, path: Path, config: RunConfig, command: str, created: Sequence[Path]
    ) -> None:
        """Locks the folder of a run for this process.

        command: the command line that started the run. created: the folders to remove if a
        UserError ends the run before its first checkpoint.
        """
        self.path = path
        self.config = config
        self._command, self._created = command, created
        self._began = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        for name in FOLDERS:
            check_own_folder(path / name)
        for name in FILES:
            check_own_file(path / name)
        self._lock = _lock(path)
        file = path / CONFIG
        # The text of config.yaml before this start; None: a new run.
        self._earlier_text = _read(file) if file.exists() else None

    @property
    def metrics(self) -> Path:
        return self.path / METRICS

    @property
    def checkpoints(self) -> Path:
        return self.path / CHECKPOINTS

    @property
    def best(self) -> Path:
        """The subfolder with the checkpoint of the policy that had the best evaluation so far."""
        return self.path / BEST

    @property
    def log(self) -> Path:
        """The path of the file to which Ray's warnings are written."""
        return self.path / "ray.log"

    @classmethod
    def create(cls, config: RunConfig, runs: Path = RUNS, command: str = "") -> Self:
        """Creates and locks the folder of a new run, and writes the run's config.yaml.

        The folder is `config.run_dir`; if that is None, a new folder in `runs`. command: the
        command line that started the run. Raises UserError if the folder cannot be created or used.
        """
        path = Path(config.run_dir) if config.run_dir else _free_path(config, runs)
        check_new(path)
        created = [new for new in (path, *path.parents) if not new.exists()]
        try:
            path.mkdir(parents=True, exist_ok=True)
            folder = cls(path, replace(config, run_dir=str(path)), command, created)
        except OSError as error:
            raise _unwritable(path, error) from None
        with contextlib.ExitStack() as on_error:
            on_error.push(folder)  # removes the folder if `record` fails
            folder.record()
            on_error.pop_all()
        return folder

    @classmethod
    def reopen(cls, path: Path, config: RunConfig, command: str = "") -> Self:
        """Locks the folder of an earlier run, in order to continue the run.

        config: the configuration with which the run continues. command: the command line for
        config.yaml. Raises UserError if the folder cannot be written to.
        """
        try:
            return cls(path, replace(config, run_dir=str(path)), command, ())
        except OSError as error:
            raise _unwritable(path, error) from None

    def close(self) -> None:
        """Unlocks the folder, so that another process may resume the run."""
        os.close(self._lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        new = self._earlier_text is None
        if isinstance(error, UserError) and new and not _has_checkpoint(self.path):
            self._remove()
        self.close()

    def record(self, agent_options: Mapping[str, Any] | None = None) -> None:
        """Writes the settings, the versions of packages and the command line to config.yaml.

        For a resumed run, appends an entry with the changed settings. agent_options: all options of
        the agent; None: writes only the options that the user gave.
        """
        file, given = self.path / CONFIG, self.config.agent_options
        options = given if agent_options is None else agent_options
        now = _with_lists({**asdict(self.config), "agent_options": dict(options)})
        entry: dict[str, Any] = {"time": self._began, "command": self._command}
        if self._earlier_text is None:
            text = yaml.safe_dump(now, sort_keys=False) + f"{HISTORY}:\n"
        else:
            text = self._earlier_text
            settings, history = _parse(file, text)
            entry["changed"] = _differences(_latest_settings(settings, history), flatten(now))
            text += "" if text.endswith("\n") else "\n"
        entry["versions"] = versions()
        new_text = text + yaml.safe_dump([entry], sort_keys=False)
        _check_last_entry(file, new_text, entry)
        try:
            _replace(file, new_text)
            _replace(self.path / VERSIONS, json.dumps(entry["versions"], indent=2) + "\n")
        except OSError as error:
            raise _unwritable(self.path, error) from None

    def _remove(self) -> None:
        """Removes the files and folders of this run. Leaves other files in the folder."""
        for name in FOLDERS:
            shutil.rmtree(self.path / name, ignore_errors=True)
        for name in FILES:
            (self.path / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # a folder with other files in it stays
            for folder in self._created:
                folder.rmdir()


def check_new(path: Path) -> None:
    """Raises UserError unless a new run can use the folder `path`.

    The folder must be empty or not exist yet, and the process must be allowed to write there.
    """
    if path.is_dir() and any(path.iterdir()):
        advice = f"Continue it with --resume {path}, or name" if _has_checkpoint(path) else "Name"
        raise UserError(
            f"run folder {path} exists and is not empty. {advice} another with --run-dir."
        )
    if path.exists() and not path.is_dir():
        raise UserError(f"run folder {path} is a file. Name a folder with --run-dir.")
    parent = next(p for p in (path, *path.absolute().parents) if p.exists())
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(f"cannot write in {parent}. Name another folder with --run-dir.")


def read_config(path: Path) -> RunConfig:
    """Returns the configuration of a run from config.yaml, as of the run's last start.

    path: the run's folder. The result has no cluster address. Raises UserError if config.yaml is
    missing or invalid, or if an older version of dreamfleet made the run.

    After this call the process cannot import modules from the run's folder.
    """
    never_import_from(path)
    check_is_run(path)
    if _older_version_made(path):
        raise made_by_older_version(f"run {path}")
    file = path / CONFIG
    settings, history = _parse(file, _read(file))
    values = _latest_settings(settings, history)
    values.pop("address", None)
    return configure(RunConfig(), values, source=str(file))


def check_is_run(path: Path) -> None:
    """Raises UserError unless the folder `path` contains the config.yaml of a run."""
    file = path / CONFIG
    if not file.is_file():
        found = (
            "a folder without one" if path.is_dir() else "a file" if path.exists() else "nothing"
        )
        raise UserError(
            f"no run at {path}: expected {file}, found {found}. Runs are under {RUNS}/."
        )


def _older_version_made(path: Path) -> bool:
    """Returns whether a version of dreamfleet before 0.3 made the run in the folder `path`.

    Versions before 0.3 did not write their own version number to versions.json.
    """
    try:
        made_with = json.loads((path / VERSIONS).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(made_with, dict) and "dreamfleet" not in made_with


def last_address(path: Path) -> str | None:
    """Returns the address of the Ray cluster on which a run was last started.

    path: the run's folder. Returns None if the run was last started without a cluster.
    """
    settings = _latest_settings(*_parse(path / CONFIG, _read(path / CONFIG)))
    address = settings.get("address")
    return address if isinstance(address, str) else None


def latest(runs: Path = RUNS) -> Path:
    """Returns the folder in `runs` whose metrics or config.yaml were written last.

    Considers only runs with a checkpoint. Raises UserError if there are none.
    """
    started = list(runs.glob(f"*/{CONFIG}"))
    found = [file for file in started if _has_checkpoint(file.parent)]
    if not found:
        missing = f" with a checkpoint ({len(started)} without)" if started else ""
        raise UserError(f"no run{missing} under {runs.absolute()}. Name one by its folder.")
    return max(found, key=_last_written).parent


def _has_checkpoint(run: Path) -> bool:
    return any((run / CHECKPOINTS).glob("ckpt-*/manifest.json"))


# ------------------------------------------------------------------------------- config.yaml


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not YAML: {' '.join(str(error).split())}") from None
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}.") from None


def _parse(file: Path, text: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Parses config.yaml. Returns the settings of the run's first start, and a list of all starts.

    file: the path, for messages. text: the content. Raises UserError if the content is not valid.
    """
    try:
        # A run writes no aliases. A few nested aliases can expand beyond any memory.
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
            raise UserError(f"{file} has YAML aliases (*name). Replace each alias by its value.")
        values = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise UserError(f"{file} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise UserError(f"{file} holds {type(values).__name__}, expected settings by name.")
    history = values.get(HISTORY) or []
    if not isinstance(history, list) or not all(isinstance(entry, dict) for entry in history):
        raise UserError(f"{file}: {HISTORY} must be a list of starts; found {_short(history)}.")
    for entry in history:
        changed = entry.get("changed") or {}
        if not isinstance(changed, dict) or not all(isinstance(key, str) for key in changed):
            raise UserError(
                f"{file}: `changed` in {HISTORY} must be settings by name; found {_short(changed)}."
            )
    return values, history


def _short(value: Any) -> str:
    return reprlib.repr(value)


def _latest_settings(
    settings: Mapping[str, Any], history: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Returns all settings of a run as of its last start or resume: dotted name → value.

    settings: the settings of the first start. history: one entry for each start; its key `changed`
    holds the changed settings.
    """
    values = flatten({key: value for key, value in settings.items() if key != HISTORY})
    for entry in history:
        values |= entry.get("changed") or {}
    return values


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    return {key: now[key] for key in now if key not in before or before[key] != now[key]}


def _check_last_entry(file: Path, text: str, entry: Mapping[str, Any]) -> None:
    """Raises UserError unless `entry` is the last entry of the key `history` in config.yaml.

    file: the path of config.yaml, for messages. text: its content with the entry appended. The
    check can fail if a user has edited config.yaml.
    """
    try:
        added = yaml.safe_load(text)[HISTORY][-1] == entry
    except yaml.YAMLError:
        added = False
    if not added:
        raise UserError(f"nothing can be added to {file}: keep {HISTORY} its last key.")


def versions() -> dict[str, Any]:
    """Returns the versions of dreamfleet, Python, operating system, packages and git commit.

    The packages are not imported.
    """
    packages: dict[str, str | None] = {}
    for name in _PACKAGES:
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            packages[name] = None
    return {
        "dreamfleet": VERSION,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "git": _git_commit(),
        **packages,
    }


def _git_commit() -> str | None:
    """Returns the git commit of dreamfleet's code, or None outside a git checkout.

    A `+` at the end means that files were changed since the commit.
    """
    command = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=2
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _last_written(config_file: Path) -> float:
    metrics = config_file.with_name(METRICS)
    return max(file.stat().st_mtime for file in (config_file, metrics) if file.exists())


def _free_path(config: RunConfig, runs: Path) -> Path:
    agent, env = (re.sub(r"[^\w.-]+", "-", name) for name in (config.agent, config.env))
    stem = f"{time.strftime('%Y-%m-%d_%H%M%S')}_{agent}_{env}_s{config.seed}"
    path, n = runs / stem, 1
    while path.exists():
        n += 1
        path = runs / f"{stem}-{n}"
    return path


def _lock(path: Path) -> int:
    """Locks a run's folder. Returns the file descriptor of the lock file.

    The operating system releases the lock when this process ends. Raises UserError if another
    process holds the lock.
    """
    descriptor = open_own(path / LOCK, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, 20).decode() or "unknown"
        os.close(descriptor)
        raise UserError(
            f"run {path} is live: process {holder} holds it. Wait for its end, or stop the process."
        ) from None
    os.ftruncate(descriptor, 0)
    os.write(descriptor, str(os.getpid()).encode())
    return descriptor


def _replace(path: Path, text: str) -> None:
    """Replaces the content of a file by `text` in one step.

    A process that reads the file gets either the old content or the new one, never a mixture.
    """
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    try:
        with os.fdopen(open_own(temporary, os.O_WRONLY | os.O_EXCL), "w", encoding="utf-8") as file:
            file.write(text)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _with_lists(node: Any) -> Any:
    """Returns `node` with tuples replaced by lists, also inside dicts. YAML cannot hold tuples."""
    if isinstance(node, dict):
        return {key: _with_lists(value) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [_with_lists(value) for value in node]
    return node


def _unwritable(path: Path, error: OSError) -> UserError:
    return UserError(f"cannot write the run folder {path}: {error}. Name another with --run-dir.")
