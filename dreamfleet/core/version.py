"""The version of this package, and the error for runs that are too old for it."""

from __future__ import annotations

from typing import Final

from dreamfleet.core.errors import UserError

VERSION: Final = "0.4.0"  # pyproject.toml takes it from here
LAST_UNREADABLE: Final = "0.2.0"  # the newest version whose runs cannot be read


def made_by_older_version(what: str) -> UserError:
    """Returns the error for a run or checkpoint that version 0.2.0 or an older version has made.

    what: names the run or the checkpoint in the error's message.
    """
    return UserError(
        f"{what} was made by dreamfleet {LAST_UNREADABLE} or an older version, in which settings "
        f"and networks have other names; dreamfleet {VERSION} cannot read it. Use dreamfleet "
        f"{LAST_UNREADABLE} for it, or train it again."
    )
