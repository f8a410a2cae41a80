"""Imports and calls what a person wrote: the module of an environment or an agent."""

from __future__ import annotations

import importlib
import signal
import sys
from pathlib import Path
from types import ModuleType

import numpy as np

from dreamfleet.core.errors import UserError


def import_module(module: str, kind: str) -> ModuleType:
    """Imports a person's `module` from the current folder or the installed packages → the module.

    kind: what the module holds, for messages: `env` or `agent`. Raises UserError when the module
    is not there, needs a package that is not installed, or fails while it is imported.
    """
    if any(not part or "/" in part for part in module.split(".")):
        raise UserError(
            f'{kind} module "{module}" is no name of a module. Give it as `import` would take it: '
            "pkg.module"
        )
    if str(Path.cwd()) not in sys.path:  # `python launch.py` has no current folder on the path
        sys.path.insert(0, str(Path.cwd()))
    try:
        with np.errstate():  # a module's np.seterr ends here
            return importlib.import_module(module)
    except ModuleNotFoundError as missing:
        if missing.name and f"{module}.".startswith(f"{missing.name}."):
            where = f"neither in {Path.cwd()} nor among the installed packages"
            hint = ". A module has no ending: leave out .py" if module.endswith(".py") else ""
            raise UserError(
                f'{kind} module "{module}" not found: "{missing.name}" is {where}{hint}'
            ) from missing
        raise UserError(f'{kind} module "{module}" needs {pip_line(missing)}') from missing
    except BaseException as error:
        if not isinstance(error, Exception) and interrupts(error):
            raise
        raise UserError(f'{kind} module "{module}" failed to import. {in_line(error)}') from error


def pip_line(missing: ModuleNotFoundError) -> str:
    """Returns what to install, for the end of a message."""
    package = (missing.name or str(missing)).partition(".")[0]
    return f'"{package}", which is not installed. Run: pip install {package}'


def in_line(error: BaseException) -> str:
    """Returns the kind of an exception and what it says, on one line."""
    text, _, _ = str(error).partition(" was raised from the environment creator")  # gymnasium's
    return f"{type(error).__name__}: {' '.join(text.split())}".removesuffix(": ")


def interrupts(error: BaseException) -> bool:
    """Tells a person's Ctrl-C from a KeyboardInterrupt or SystemExit that an environment raised.

    A run's own handler raises from a frame of this package. Python's own handler raises from
    anywhere: while it is in place, every KeyboardInterrupt is taken for the person's.
    """
    pythons = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if isinstance(error, KeyboardInterrupt) and pythons:
        return True
    within, _ = raised_in(error)
    return within.startswith("dreamfleet.") and not within.startswith("dreamfleet.envs")


def raised_in(error: BaseException) -> tuple[str, str]:
    """Returns the module and the function that raised an exception."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return "", ""
    return str(trace.tb_frame.f_globals.get("__name__", "")), trace.tb_frame.f_code.co_name
