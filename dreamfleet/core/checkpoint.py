"""Writes and reads checkpoints: folders with a manifest (JSON) and an archive of arrays (NumPy).

A checkpoint is written to a temporary folder, flushed to the disk, and renamed when it is complete.
Checkpoints are read as untrusted data. Damage of any kind raises a UserError that names the
checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import secrets
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from dreamfleet.core.archive import KINDS, Archive
from dreamfleet.core.errors import UserError
from dreamfleet.core.version import made_by_older_version

FORMAT: Final = "dreamfleet-checkpoint"
VERSION: Final = 3
READABLE: Final = (3,)
KEPT: Final = 2  # checkpoints in a folder: the newest and the one before
LEARNED: Final = ("agent", "weights")  # parts of a state that must not hold NaN

_ARRAY: Final = "$array"  # {"$array": name} stands in the manifest for an array of the archive
_MANIFEST: Final = "manifest.json"
_ARCHIVE: Final = "arrays.npz"
_MANIFEST_BYTES: Final = 16 << 20  # the largest manifest; large data belongs into arrays
_NAME: Final = re.compile(
    r"ckpt-(\d{12,})\.(\d{3,})"
)  # agent steps, number among checkpoints of these steps
_STAGING: Final = re.compile(r"\.staging-[0-9a-f-]+")
_LOG: Final = logging.getLogger(__name__)

Check = Callable[[dict[str, Any]], None]  # raises UserError for a state that cannot be used


class NotFinite(ArithmeticError):
    """Raised when networks or optimizers hold NaN or infinity: no checkpoint is written then."""


@dataclass(frozen=True)
class Saved:
    """The path, the agent steps and the state of a checkpoint that was read and is not damaged."""

    path: Path
    env_steps: int
    state: dict[str, Any]


# ----------------------------------------------------------------------------------- writing


def save(
    folder: Path,
    env_steps: int,
    state: Mapping[str, Any],
    *,
    agent: str,
    env: str,
    kept: int = KEPT,
) -> Path:
    """Writes `state` as the newest checkpoint in `folder`. Returns the path of the checkpoint.

    env_steps: agent steps of the run so far. state: nested dicts (str keys) of arrays, numbers,
    strings, bools, None and lists of these. agent, env: the names of the agent and the environment.
    kept: how many checkpoints stay in the folder.

    Raises TypeError if `state` has values of other types. Raises NotFinite if networks or
    optimizers hold NaN or infinity. Raises OSError if the disk is full.
    """
    if problem := not_finite(state):
        raise NotFinite(problem)
    folder.mkdir(parents=True, exist_ok=True)
    for entry in folder.iterdir():
        if _STAGING.fullmatch(entry.name):  # left by a process that died while saving
            _remove(entry)
    staging = folder / f".staging-{os.getpid()}-{secrets.token_hex(4)}"
    staging.mkdir()
    try:
        _write(staging, env_steps, state, agent, env)
        path = _free_name(folder, env_steps)
        staging.rename(path)
        _flush_folder(folder)
    except BaseException:
        _remove(staging)
        raise
    _prune(folder, path, kept)
    return path


def not_finite(state: Mapping[str, Any]) -> str:
    """Describes the first number that is NaN or infinite in the networks or optimizers of `state`.

    Returns "" if all these numbers are finite. An array filled with one infinity is allowed.
    """
    for part in LEARNED:
        for where, leaf in _leaves(state.get(part), part):
            if isinstance(leaf, (float, np.floating)) and np.isnan(leaf):
                return f"{where} is NaN"
            if isinstance(leaf, np.ndarray) and leaf.dtype.kind == "f":
                finite = np.isfinite(leaf)
                if not finite.all() and not _no_data(leaf):
                    bad = leaf[~finite].flat[0]
                    return f"{where} holds {bad} ({(~finite).sum()} of {leaf.size} numbers)"
    return ""


def _no_data(array: np.ndarray) -> bool:
    first = array.flat[0]
    return bool(np.isinf(first) and (array == first).all())


def _leaves(node: Any, where: str) -> Iterator[tuple[str, Any]]:
    """Yields the values of a nested state, each with its dotted name, which begins with `where`."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _leaves(value, f"{where}.{key}")
    elif isinstance(node, (list, tuple)):
        for i, value in enumerate(node):
            yield from _leaves(value, f"{where}[{i}]")
    else:
        yield where, node


def _write(staging: Path, env_steps: int, state: Mapping[str, Any], agent: str, env: str) -> None:
    arrays: dict[str, np.ndarray] = {}
    tree = _encode(state, arrays, "state")
    with open(staging / _ARCHIVE, "wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
        _flush(file.fileno())
    about: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "agent": agent,
        "env": env,
        "env_steps": env_steps,
        "sha256": _digest(staging / _ARCHIVE),
        "state": tree,
    }
    text = json.dumps(about | {"manifest_sha256": _manifest_digest(about)})
    if len(text) > _MANIFEST_BYTES:
        raise TypeError(
            f"state: {len(text):,} bytes of numbers and text are more than a checkpoint takes "
            f"({_MANIFEST_BYTES:,}); keep long lists in arrays"
        )
    with open(staging / _MANIFEST, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        _flush(file.fileno())
    _flush_folder(staging)


# ----------------------------------------------------------------------------------- reading


def load(
    path: Path,
    *,
    agent: str | None = None,
    env: str | None = None,
    parts: Collection[str] | None = None,
    check: Check | None = None,
) -> dict[str, Any]:
    """Returns the state of the checkpoint at `path`. Tuples come back as lists.

    agent, env: the required agent and environment; None allows any. parts: the keys of the state to
    read; None for all. check: called with the state; it raises UserError if the caller cannot use
    the state. Raises UserError if the checkpoint is damaged or unsuitable.
    """
    return read(path, agent=agent, env=env, parts=parts, check=check).state


def read(
    path: Path,
    *,
    agent: str | None = None,
    env: str | None = None,
    parts: Collection[str] | None = None,
    check: Check | None = None,
) -> Saved:
    """Returns the path, the agent steps and the state of the checkpoint at `path`.

    agent, env: the required agent and environment; None allows any. parts: the keys of the state to
    read; None for all. check: called with the state; it raises UserError if the caller cannot use
    the state. Raises UserError if the checkpoint is damaged or unsuitable.
    """
    about = manifest(path)
    for kind, wanted in (("agent", agent), ("env", env)):
        if wanted is not None and about[kind] != wanted:
            raise UserError(f"checkpoint {path} is of {kind} {about[kind]!r}, expected {wanted!r}.")
    archive = path / _ARCHIVE
    if not archive.is_file():
        raise _damaged(path, f"{_ARCHIVE}: no such file")
    with _reading(path, _ARCHIVE):
        if parts is None:
            _check_digest(archive, about["sha256"])
        tree = {key: node for key, node in about["state"].items() if parts is None or key in parts}
        with Archive(archive) as arrays:
            state = {key: _decode(node, arrays) for key, node in tree.items()}
    if problem := not_finite(state):
        raise _damaged(path, problem)
    if check is not None:
        try:
            check(state)
        except UserError as error:
            raise UserError(f"checkpoint {path} cannot be used: {error}") from None
    return Saved(path, about["env_steps"], state)


def manifest(path: Path) -> dict[str, Any]:
    """Returns a checkpoint's manifest: format, version, agent, env, env_steps, sha256, state.

    The manifest is the JSON file that describes the checkpoint. Raises UserError if `path` holds no
    checkpoint of this format, or if the manifest is damaged.
    """
    file = path / _MANIFEST
    with _reading(path, _MANIFEST):
        if not file.is_file():
            found = (
                "nothing" if not path.exists() else "a file" if path.is_file() else "no manifest"
            )
            raise UserError(f"no checkpoint at {path}: found {found}, expected {_MANIFEST} in it.")
        if file.stat().st_size > _MANIFEST_BYTES:
            raise ValueError(f"longer than {_MANIFEST_BYTES:,} bytes")
        about = json.loads(file.read_text(encoding="utf-8"))
        form = about.get("format") if isinstance(about, dict) else None
        if form != FORMAT:
            raise UserError(f"{path} is not ours: found format {form!r}, expected {FORMAT!r}.")
        version = about.get("version")
        if version in (1, 2):
            raise made_by_older_version(f"checkpoint {path}")
        if version not in READABLE:
            readable = " and ".join(map(str, READABLE))
            raise UserError(
                f"checkpoint {path} has format version {version!r}; this program reads {readable}."
            )
        _check_fields(about)
    whole: dict[str, Any] = about
    return whole


def newest(folder: Path, *, agent: str | None = None, env: str | None = None) -> Path | None:
    """Returns the path of the newest undamaged checkpoint in `folder`; None if there is none.

    agent, env: the required agent and environment; None allows any. Raises UserError if all
    checkpoints are damaged or unsuitable.
    """
    saved = read_newest(folder, agent=agent, env=env)
    return saved.path if saved else None


def read_newest(
    folder: Path,
    *,
    agent: str | None = None,
    env: str | None = None,
    parts: Collection[str] | None = None,
    check: Check | None = None,
) -> Saved | None:
    """Returns the newest undamaged checkpoint in `folder`; None if there is no checkpoint.

    Damaged or unsuitable checkpoints are skipped. Raises UserError if all checkpoints were skipped.
    agent, env: the required agent and environment; None allows any. parts: the keys of the state to
    read; None for all. check: called with the state; it raises UserError if the caller cannot use
    the state.
    """
    paths = _all(folder)
    while paths:
        problems: list[UserError] = []
        for path in reversed(paths):
            try:
                saved = read(path, agent=agent, env=env, parts=parts, check=check)
            except UserError as error:
                problems.append(error)
            else:
                for problem in problems:
                    _LOG.warning("%s Taking %s instead.", problem, path.name)
                return saved
        if (now := _all(folder)) == paths:
            raise problems[0]
        paths = now
    return None


def _check_fields(about: Mapping[str, Any]) -> None:
    """Raises ValueError unless a manifest has all fields, right types and a right digest.

    about: the manifest (the JSON data that describe the checkpoint).
    """
    expected = {"agent", "env", "env_steps", "sha256", "state", "manifest_sha256"}
    if missing := expected - about.keys():
        raise ValueError(f"lacks {sorted(missing)}")
    kinds = {"agent": str, "env": str, "env_steps": int, "sha256": str, "state": dict}
    for name, kind in kinds.items():
        value = about[name]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(f"{name} is {type(value).__name__}, expected {kind.__name__}")
    if not 0 <= about["env_steps"] < 2**63:
        raise ValueError(f"env_steps is {about['env_steps']}")
    rest = {key: value for key, value in about.items() if key != "manifest_sha256"}
    if about["manifest_sha256"] != _manifest_digest(rest):
        raise ValueError("its sha256 is not the one that was written")


@contextmanager
def _reading(path: Path, name: str) -> Iterator[None]:
    """A context manager: turns any exception while a checkpoint's file is read into a UserError.

    name: the file's name in the checkpoint's folder. A damaged file may raise any exception, even
    RecursionError and MemoryError.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise _damaged(path, f"{name}: {text}") from None


def _damaged(path: Path, what: str) -> UserError:
    return UserError(
        f"checkpoint {path} is damaged: {what}. Use another checkpoint or start a new run."
    )


def _check_digest(archive: Path, expected: str) -> None:
    found = _digest(archive)
    if found != expected:
        raise ValueError(f"its sha256 is {found[:12]}, expected {expected[:12]}")


# ------------------------------------------------------------------------------ the state tree


def _encode(node: Any, arrays: dict[str, np.ndarray], where: str) -> Any:
    """Returns a nested state as JSON values, with the name of each array in place of the array.

    The arrays are added to `arrays`. where: the dotted name of `node` in the whole state, for error
    messages.
    """
    if isinstance(node, np.generic):
        node = node.item()
    if node is None or isinstance(node, (bool, int, float, str)):
        return node
    if isinstance(node, np.ndarray):
        if node.dtype.kind not in KINDS:
            raise TypeError(f"{where}: a checkpoint holds no arrays of {node.dtype}")
        name = f"a{len(arrays)}"
        arrays[name] = node
        return {_ARRAY: name}
    if isinstance(node, Mapping):
        for key in node:
            if not isinstance(key, str) or key == _ARRAY:
                raise TypeError(f"{where}: a checkpoint holds no key {key!r}")
        return {key: _encode(value, arrays, f"{where}.{key}") for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [_encode(value, arrays, f"{where}[{i}]") for i, value in enumerate(node)]
    raise TypeError(f"{where}: a checkpoint holds no {type(node).__name__}")


def _decode(node: Any, arrays: Archive) -> Any:
    if isinstance(node, dict):
        if _ARRAY in node:
            name = node[_ARRAY]
            if len(node) > 1 or not isinstance(name, str):
                raise ValueError(f"{_MANIFEST} names an array {name!r}")
            return arrays.read(name)
        return {key: _decode(value, arrays) for key, value in node.items()}
    if isinstance(node, list):
        return [_decode(value, arrays) for value in node]
    return node


# --------------------------------------------------------------------------------- the folder


def _all(folder: Path) -> list[Path]:
    """Returns the paths of all checkpoints in `folder`, oldest first.

    Raises UserError if the folder cannot be read.
    """
    try:
        names = [entry.name for entry in folder.iterdir()] if folder.exists() else []
    except OSError as error:
        raise UserError(f"cannot read the checkpoints in {folder}: {error.strerror}.") from None
    found = [(match, name) for name in names if (match := _NAME.fullmatch(name))]
    found.sort(key=lambda pair: (int(pair[0][1]), int(pair[0][2])))
    return [folder / name for _, name in found]


def _steps(path: Path) -> int:
    return int(path.name.partition("-")[2].partition(".")[0])


def _free_name(folder: Path, env_steps: int) -> Path:
    """Returns the path ckpt-<env_steps>.<n> for a new checkpoint.

    n is 0 for the first checkpoint with this number of agent steps, and 1 more than the largest n
    so far for each later one.
    """
    taken = [int(path.suffix[1:]) for path in _all(folder) if _steps(path) == env_steps]
    return folder / f"ckpt-{env_steps:012d}.{max(taken, default=-1) + 1:03d}"


def _prune(folder: Path, path: Path, kept: int) -> None:
    """Removes all checkpoints in `folder` except the newest one, `path`, and some older ones.

    At most `kept` checkpoints stay in the folder. Checkpoints without a readable manifest and
    checkpoints of later agent steps are removed.
    """
    keep, steps = {path}, {_steps(path)}
    for other in reversed(_all(folder)):
        if len(steps) < kept and _steps(other) < min(steps) and _has_manifest(other):
            keep.add(other)
            steps.add(_steps(other))
    for other in _all(folder):
        if other not in keep:
            _remove(other)


def _has_manifest(path: Path) -> bool:
    try:
        manifest(path)
    except UserError:
        return False
    return True


def _remove(path: Path) -> None:
    """Removes the folder of a checkpoint, unless it is a link or contains other files."""
    if path.is_symlink() or not path.is_dir():
        return
    files = list(path.iterdir())
    if all(file.name in (_MANIFEST, _ARCHIVE) and not file.is_dir() for file in files):
        for file in files:
            file.unlink()
        path.rmdir()


def _manifest_digest(about: Mapping[str, Any]) -> str:
    """Returns the sha256 digest of a checkpoint's manifest. The order of keys does not matter.

    about: the manifest without the field that holds this digest.
    """
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(descriptor: int) -> None:
    os.fsync(descriptor)


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _flush(descriptor)
    finally:
        os.close(descriptor)
