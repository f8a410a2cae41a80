"""Prevents imports of code from the folder of a run.

The folder may come from a stranger, and its file config.yaml names modules to import.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType


def never_import_from(folder: Path) -> None:
    """Prevents this process from importing any module inside `folder`."""
    _guard.folders.add(str(folder.absolute()))
    _guard.folders.add(str(folder.resolve()))
    if _guard not in sys.meta_path:
        sys.meta_path.insert(0, _guard)


def importable_path() -> list[str]:
    """Returns `sys.path` without run folders, from which no code may be imported.

    New processes of the run use this path.
    """
    entries = [entry or str(Path.cwd()) for entry in sys.path]
    return [entry for entry in entries if not _guard.covers(entry)]


class _Guard:
    """An import finder that prevents imports from guarded folders: the folders of runs."""

    def __init__(self) -> None:
        self.folders: set[str] = set()

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Finds a module in other folders, if Python would import it from a guarded folder.

        Returns None if Python would not import the module from a guarded folder. Raises ImportError
        if the module is only in guarded folders. path: the folders to search; None for `sys.path`.
        """
        if not self._inside(PathFinder.find_spec(name, path)):
            return None
        entries = [entry for entry in (sys.path if path is None else path) if entry is not None]
        outside = [entry for entry in entries if not self.covers(entry)]
        elsewhere = PathFinder.find_spec(name, outside)
        if elsewhere is None or self._inside(elsewhere):
            raise ImportError(f"{name} lies in a run's folder, from which no code is imported")
        return elsewhere

    def covers(self, place: str) -> bool:
        """Returns whether path `place` is in a guarded folder, directly or through links."""
        paths = {str(Path(place).absolute()), str(Path(place).resolve())}
        return any(
            path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)
            for path in paths
            for folder in self.folders
        )

    def _inside(self, spec: ModuleSpec | None) -> bool:
        if spec is None:
            return False
        places = [spec.origin] if spec.has_location and spec.origin else []
        places += [spec.cached] if spec.cached else []
        return any(
            self.covers(place) for place in [*places, *(spec.submodule_search_locations or ())]
        )


_guard = _Guard()
