"""The ways a run goes wrong that are told from bugs of ours."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """The person's mistake: one line on what was wrong, what was found, what to do. Exit code 2."""


class EnvironmentFault(Exception):
    """An environment broke its contract (NaN, wrong shape). The actor that owns it is restarted."""


class WorkerFailed(Exception):
    """A part of a run broke for good; the text opens with its own traceback. Exit code 1."""


class Gone(Exception):
    """Another process of the run is dead, or does not answer."""


class Diverged(Exception):
    """Learning cannot go on: one line on which part failed and what to look at. Exit code 1."""


def nearest(word: str, known: Iterable[str]) -> str:
    """`" Nearest: X."` for a mistyped `word`, or nothing when no known one resembles it."""
    known = list(known)
    lowered = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), lowered, n=1, cutoff=0.5)
    return f" Nearest: {lowered[close[0]]}." if close else ""
