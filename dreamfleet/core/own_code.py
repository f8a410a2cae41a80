"""Imports code that the user wrote: the module of an environment or of an agent."""

from __future__ import annotations

import importlib
import signal
import sys
from pathlib import Path
from types import ModuleType

import numpy as np

from dreamfleet.core.errors import UserError


def import_module(module: str, kind: str) -> ModuleType:
    """Imports a user's module by name, from the current folder or from installed packages.

    kind: `env` or `agent`, for messages. Raises UserError if the module is not found, needs a
    package that is not installed, or fails while it is imported.
    """
    if any(not part or "/" in part for part in module.split(".")):
        raise UserError(
            f'{kind} module "{module}" is no name of a module. Write it as in an import: pkg.module'
        )
    if str(Path.cwd()) not in sys.path:  # `python launch.py` has the folder of launch.py there
        sys.path.insert(0, str(Path.cwd()))
    try:
        with np.errstate():  # undoes np.seterr of the module
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
    """Returns the end of a message: the name of the missing package, and the pip command for it.

    missing: the error that the import of the package raised.
    """
    package = (missing.name or str(missing)).partition(".")[0]
    return f'"{package}", which is not installed. Run: pip install {package}'


def in_line(error: BaseException) -> str:
    """Returns the type and the message of an exception as one line."""
    text, _, _ = str(error).partition(" was raised from the environment creator")  # gymnasium's
    return f"{type(error).__name__}: {' '.join(text.split())}".removesuffix(": ")


def interrupts(error: BaseException) -> bool:
    """Returns whether an exception was caused by Ctrl-C, and not raised by an environment.

    With Python's default signal handler, every KeyboardInterrupt counts as Ctrl-C. With the signal
    handler of a run, only an exception that code of this package raised counts as Ctrl-C.
    """
    default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if isinstance(error, KeyboardInterrupt) and default:
        return True
    module, _ = raised_in(error)
    return module.startswith("dreamfleet.") and not module.startswith("dreamfleet.envs")


def raised_in(error: BaseException) -> tuple[str, str]:
    """Returns the names of the module and of the function in which an exception was raised."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return "", ""
    return str(trace.tb_frame.f_globals.get("__name__", "")), trace.tb_frame.f_code.co_name
