"""What a cluster needs of this machine's code: dreamfleet, and what a person wrote."""

from __future__ import annotations

import importlib.util
import sysconfig
from pathlib import Path
from typing import Any, Final

from dreamfleet.core.errors import UserError

PACKAGE: Final = Path(__file__).parent.parent
EXCLUDED: Final = ("runs/", ".venv/", ".git/", "__pycache__/")  # of the folder of a person's code


def shipped(env_id: str, agent_path: str, run: Path) -> dict[str, Any]:
    """Returns what Ray sends to a cluster's machines, as its `runtime_env`.

    run: the run's folder, which stays. Raises UserError where a person's code lies in two folders.
    """
    about: dict[str, Any] = {"py_modules": [str(PACKAGE)]}
    modules = (env_id.rpartition(":")[0], agent_path.rpartition(":")[0])
    folders = {folder: name for name in modules if (folder := folder_of(name))}
    if len(folders) > 1:
        names, places = " and ".join(folders.values()), " and ".join(map(str, folders))
        raise UserError(
            f"--address: {names} are in {places}; only one folder of your code can be sent. "
            "Put both into one, or install one of them."
        )
    for folder in folders:
        excludes = list(EXCLUDED)
        if run.resolve().is_relative_to(folder):
            excludes.append(f"/{run.resolve().relative_to(folder)}/")
        about |= {"working_dir": str(folder), "excludes": excludes}
    return about


def folder_of(module: str) -> Path | None:
    """Returns the folder from which a person's `module` is imported.

    None for dreamfleet's own and installed ones, which each machine of a cluster has for itself.
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
