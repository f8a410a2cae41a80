"""Imports what a person wrote: the module of an environment or an agent."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

from dreamfleet.core.errors import UserError


def import_module(module: str, kind: str) -> ModuleType:
    """Imports a person's `module` from the current folder or the installed packages → the module.

    kind: what the module holds, for messages: `env` or `agent`. Raises UserError when the module
    is not there, needs a package that is not installed, or fails while it is imported.
    """
    if str(Path.cwd()) not in sys.path:  # `python launch.py` has no current folder on the path
        sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as missing:
        if missing.name and f"{module}.".startswith(f"{missing.name}."):
            where = f"neither in {Path.cwd()} nor among the installed packages"
            raise UserError(
                f'{kind} module "{module}" not found: "{missing.name}" is {where}'
            ) from missing
        raise UserError(f'{kind} module "{module}" needs {pip_line(missing)}') from missing
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UserError(f'{kind} module "{module}" failed to import. {reason}') from error


def pip_line(missing: ModuleNotFoundError) -> str:
    """Returns what to install, for the end of a message."""
    package = (missing.name or str(missing)).partition(".")[0]
    return f'"{package}", which is not installed. Run: pip install {package}'
