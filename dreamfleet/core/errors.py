"""Exceptions for failures that are not bugs of this package."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Raised for a mistake of the user. The program ends with exit code 2.

    The message says in one line what is wrong and what to do.
    """


class EnvironmentFault(Exception):
    """Raised when an environment returns bad data, such as NaN or an array of a wrong shape.

    The actor that steps this environment is restarted.
    """


class WorkerFailed(Exception):
    """Raised when a worker of a run has failed and is not restarted. Exit code 1.

    The message begins with the traceback of the worker.
    """


class Gone(Exception):
    """Raised when another process of the run has died or does not answer."""


class Diverged(Exception):
    """Raised when learning cannot continue, as losses, weights or actions are NaN or infinite.

    The message is one line. The program ends with exit code 1.
    """


def nearest(word: str, known: Iterable[str]) -> str:
    """Returns " Nearest: X.", with the word X of `known` that is most similar to `word`.

    Returns "" if no word is similar.
    """
    known = list(known)
    lowered = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), lowered, n=1, cutoff=0.5)
    return f" Nearest: {lowered[close[0]]}." if close else ""
