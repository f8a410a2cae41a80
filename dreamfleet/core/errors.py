"""Exceptions for failures that are not bugs of this package."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake of the user. One line says what is wrong and what to do. Exit code 2."""


class EnvironmentFault(Exception):
    """An environment returned bad data (NaN, a wrong shape). Its actor is restarted."""


class WorkerFailed(Exception):
    """A part of a run failed for good. The message begins with its traceback. Exit code 1."""


class Gone(Exception):
    """Another process of the run has died, or does not answer."""


class Diverged(Exception):
    """Learning cannot continue, as numbers became NaN or infinite. One line. Exit code 1."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Returns " Nearest: X.", X the known word most similar to `word`; "" if none is similar."""
    known = list(known)
    lowered = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), lowered, n=1, cutoff=0.5)
    return f" Nearest: {lowered[close[0]]}." if close else ""
