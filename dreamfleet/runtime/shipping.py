"""Finds the code that a run sends from this machine to a Ray cluster.

The code is the package dreamfleet, and the folder with the user's own environment and agent.
"""

from __future__ import annotations

import importlib.util
import sysconfig
from pathlib import Path
from typing import Any, Final

from dreamfleet.core.errors import UserError

PACKAGE: Final = Path(__file__).parent.parent
EXCLUDED: Final = ("runs/", ".venv/", ".git/", "__pycache__/")  # subfolders that are not sent


def runtime_env(env_id: str, agent_path: str, run: Path) -> dict[str, Any]:
    """Returns Ray's option `runtime_env`, which names the folders of code to send to a cluster.

    env_id, agent_path: `module:name`. run: the run's folder, which is not sent. Raises UserError if
    a user's own environment and agent lie in two folders.
    """
    sent: dict[str, Any] = {"py_modules": [str(PACKAGE)]}
    modules = (env_id.rpartition(":")[0], agent_path.rpartition(":")[0])
    folders = {folder: name for name in modules if (folder := source_folder(name))}
    if len(folders) > 1:
        names, places = " and ".join(folders.values()), " and ".join(map(str, folders))
        raise UserError(
            f"--address: {names} are in {places}; only one folder of your code can be sent. "
            "Put both into one folder, or install one of them."
        )
    for folder in folders:
        excludes = list(EXCLUDED)
        if run.resolve().is_relative_to(folder):
            excludes.append(f"/{run.resolve().relative_to(folder)}/")
        sent |= {"working_dir": str(folder), "excludes": excludes}
    return sent


def source_folder(module: str) -> Path | None:
    """Returns the folder from which a user's own module is imported, or None for other modules.

    Other modules are those of dreamfleet and installed modules.
    """
    top = module.partition(".")[0]
    if top in ("", "__main__", "dreamfleet"):
        return None
    found = importlib.util.find_spec(top)
    if found is None or (found.origin is None and not found.submodule_search_locations):
        return None
    if found.submodule_search_locations:
        folder = Path(next(iter(found.submodule_search_locations))).parent.resolve()
    else:
        folder = Path(str(found.origin)).parent.resolve()
    paths = sysconfig.get_paths()
    installed = {Path(paths[kind]).resolve() for kind in ("stdlib", "purelib", "platlib")}
    return None if any(folder.is_relative_to(path) for path in installed) else folder
