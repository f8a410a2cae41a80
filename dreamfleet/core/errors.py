"""Exceptions for failures that are not bugs of this package."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Raised for a mistake of the user. One line says what is wrong and what to do. Exit code 2."""


class EnvironmentFault(Exception):
    """Raised when an environment returns bad data (NaN, a wrong shape). Its actor is restarted."""


class WorkerFailed(Exception):
    """Raised when a worker of a run has failed for good. Exit code 1.

    The message begins with the traceback of the worker.
    """


class Gone(Exception):
    """Raised when another process of the run has died or does not answer."""


class Diverged(Exception):
    """Raised when learning cannot continue, as numbers are NaN or infinite. Exit code 1.

    The message is one line.
    """


def nearest(word: str, known: Iterable[str]) -> str:
    """Returns " Nearest: X.", with the word X of `known` that is most similar to `word`.

    Returns "" if no word is similar.
    """
    known = list(known)
    lowered = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), lowered, n=1, cutoff=0.5)
    return f" Nearest: {lowered[close[0]]}." if close else ""
