"""Checkpoints: a folder of one manifest (JSON) and one archive of arrays (NumPy), never a pickle.

A checkpoint is written beside its place, flushed to the disk and renamed into it, so one that has
its name is whole. The manifest carries the digest of the arrays, so one that was damaged later is
recognised.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from dreamfleet.core.errors import UserError

FORMAT: Final = "dreamfleet-checkpoint"
VERSION: Final = 1
KEPT: Final = 2  # the one just written and the one before it

_ARRAY: Final = "$array"  # {"$array": name} stands in the manifest for an array of the archive
_LOG: Final = logging.getLogger(__name__)


def save(folder: Path, env_steps: int, state: Mapping[str, Any], *, agent: str, env: str) -> Path:
    """Write `state` as the newest checkpoint of `folder` → its path.

    `state`: nested dicts (str keys) of arrays, numbers, strings, bools, None and lists of these.
    Raises TypeError for anything else and OSError when the disk refuses; older ones then stay.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(".staging-*"):  # of a process that died while saving
        shutil.rmtree(leftover)
    staging = folder / f".staging-{os.getpid()}"
    staging.mkdir()
    try:
        arrays: dict[str, np.ndarray] = {}
        tree = _encode(state, arrays, "state")
        with open(staging / "arrays.npz", "wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
            _flush(file.fileno())
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "agent": agent,
            "env": env,
            "env_steps": env_steps,
            "sha256": _digest(staging / "arrays.npz"),
            "state": tree,
        }
        with open(staging / "manifest.json", "w", encoding="utf-8") as file:
            json.dump(manifest, file)
            _flush(file.fileno())
        _flush_folder(staging)
        path = _free_name(folder, env_steps)
        staging.rename(path)
        _flush_folder(folder)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    _prune(folder, path)
    return path


def load(path: Path, *, agent: str | None = None, env: str | None = None) -> dict[str, Any]:
    """The state saved at `path`, checked whole and of `agent` and `env` where they are given.

    Tuples come back as lists. Raises UserError saying what was found and what was expected.
    """
    about = manifest(path)
    for kind, wanted in (("agent", agent), ("env", env)):
        if wanted is not None and about[kind] != wanted:
            raise UserError(f"checkpoint {path} is of {kind} {about[kind]!r}, expected {wanted!r}.")
    archive = path / "arrays.npz"
    found = _digest(archive) if archive.is_file() else "no such file"
    if found != about["sha256"]:
        raise UserError(
            f"checkpoint {path} is damaged: sha256 of arrays.npz is {found[:12]}, expected "
            f"{about['sha256'][:12]}. Resume from another checkpoint or start a new run."
        )
    try:
        with np.load(archive, allow_pickle=False) as arrays:
            state: dict[str, Any] = _decode(about["state"], arrays)
    except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
        raise UserError(f"checkpoint {path} is damaged: {archive.name}: {error}") from None
    return state


def manifest(path: Path) -> dict[str, Any]:
    """What a checkpoint says of itself: format, version, agent, env, env_steps, sha256, state.

    Raises UserError when `path` holds no checkpoint of this format.
    """
    file = path / "manifest.json"
    if not file.is_file():
        found = "nothing" if not path.exists() else "a file" if path.is_file() else "no manifest"
        raise UserError(f"no checkpoint at {path}: found {found}, expected {file.name} in it.")
    try:
        about = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"checkpoint {path} is damaged: {file.name}: {error}.") from None
    form = about.get("format") if isinstance(about, dict) else None
    if form != FORMAT:
        raise UserError(f"{path} is not ours: found format {form!r}, expected {FORMAT!r}.")
    if about.get("version") != VERSION:
        raise UserError(
            f"checkpoint {path} has version {about.get('version')!r}; this program reads {VERSION}."
        )
    missing = {"agent", "env", "env_steps", "sha256", "state"} - about.keys()
    if missing:
        raise UserError(f"checkpoint {path} is damaged: {file.name} lacks {sorted(missing)}.")
    whole: dict[str, Any] = about
    return whole


def newest(folder: Path, *, agent: str | None = None, env: str | None = None) -> Path | None:
    """The newest whole checkpoint of `folder`; a damaged one is passed over with a warning.

    None when there is none at all; UserError when there are some and none can be read.
    """
    problem: UserError | None = None
    for path in reversed(_all(folder)):
        try:
            load(path, agent=agent, env=env)
        except UserError as error:
            _LOG.warning("%s Trying the one before it.", error)
            problem = problem or error
        else:
            return path
    if problem:
        raise problem
    return None


# ------------------------------------------------------------------------------ the state tree


def _encode(node: Any, arrays: dict[str, np.ndarray], where: str) -> Any:
    """`node` as JSON, its arrays moved to `arrays`."""
    if isinstance(node, np.generic):
        node = node.item()
    if node is None or isinstance(node, (bool, int, float, str)):
        return node
    if isinstance(node, np.ndarray):
        if node.dtype.kind not in "biuf":
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


def _decode(node: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    if isinstance(node, dict):
        if _ARRAY in node:
            return arrays[node[_ARRAY]]
        return {key: _decode(value, arrays) for key, value in node.items()}
    if isinstance(node, list):
        return [_decode(value, arrays) for value in node]
    return node


# --------------------------------------------------------------------------------- the folder


def _all(folder: Path) -> list[Path]:
    """Checkpoints, oldest first."""
    return sorted(folder.glob("ckpt-*"))


def _free_name(folder: Path, env_steps: int) -> Path:
    """ckpt-<env steps>.<n>: two saves may lie at one env step, with gradient steps between."""
    stem = f"ckpt-{env_steps:012d}"
    taken = [int(path.suffix[1:]) for path in folder.glob(f"{stem}.*")]
    return folder / f"{stem}.{max(taken, default=-1) + 1:03d}"


def _prune(folder: Path, path: Path) -> None:
    """Keep `path` and the one before it; later ones are of a future that was given up."""
    paths = _all(folder)
    at = paths.index(path)
    for other in paths[: max(0, at + 1 - KEPT)] + paths[at + 1 :]:
        shutil.rmtree(other)


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
