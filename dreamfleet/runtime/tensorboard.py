"""The metrics once more, as TensorBoard reads them."""

from __future__ import annotations

from numbers import Real
from pathlib import Path
from typing import Any

from dreamfleet.core.types import Event


class TensorBoard:
    """Mirrors the numbers of events as scalars `group/name` against env steps.

    A key that names no group gets the event's kind: `return` of an episode is `episode/return`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: Any = None

    def write(self, event: Event) -> None:
        if self._writer is None:
            from tensorboardX import SummaryWriter  # over a second; not while starting a run

            self._writer = SummaryWriter(str(self._folder))
        for name, value in scalars(event).items():
            self._writer.add_scalar(name, value, int(event["env_steps"]))

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def scalars(event: Event) -> dict[str, float]:
    """The numbers of an event by `group/name`."""
    return {
        key if "/" in key else f"{event['kind']}/{key}": float(value)
        for key, value in event.items()
        if key not in ("kind", "env_steps") and isinstance(value, Real)
    }
