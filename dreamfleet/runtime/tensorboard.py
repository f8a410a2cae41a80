"""Writes the metrics of a run to a file that TensorBoard reads."""

from __future__ import annotations

import os
import socket
import struct
import time
from numbers import Real
from pathlib import Path
from typing import Any, Final

from dreamfleet.core.own_files import append, open_own
from dreamfleet.core.types import Event

LEFT_OUT: Final = ("kind", "env_steps", "wall_s", "actor", "resumes")  # keys that are no curve
COUNTERS: Final = ("replay/", "fault/")  # most counters stay constant for the whole run


class TensorBoard:
    """Writes the metrics of events as TensorBoard scalars over env steps.

    An event is a line of metrics.jsonl. Names without a slash get the kind of the event in front,
    such as `episode/return`. A counter of the replay or of faults is written only if its value has
    changed.
    """

    def __init__(self, folder: Path) -> None:
        # tensorboardX's own writer writes in a thread. If the disk is full, this thread ends
        # without an error, and the caller then waits for ever.
        self._folder = folder
        self._file: int | None = None
        self._counters: dict[str, float] = {}  # name → value in the last event

    def write(self, event: Event) -> None:
        """Appends an event (a line of metrics) to TensorBoard's file, completely or not at all.

        Raises OSError when the disk is full.
        """
        from tensorboardX.proto.event_pb2 import Event as Record  # over a second: not at the start

        now = time.time()
        if self._file is None:
            self._folder.mkdir(exist_ok=True)
            name = f"events.out.tfevents.{now:.0f}.{socket.gethostname()}.{os.getpid()}"
            self._file = open_own(self._folder / name, os.O_WRONLY | os.O_APPEND)
            append(self._file, framed(Record(wall_time=now, file_version="brain.Event:2")))
        values = [{"tag": name, "simple_value": value} for name, value in self._news(event).items()]
        if values:
            record = Record(wall_time=now, step=int(event["env_steps"]), summary={"value": values})
            append(self._file, framed(record))

    def _news(self, event: Event) -> dict[str, float]:
        """Returns the scalars of an event, without counters whose value has not changed.

        event: a line of metrics: name → value.
        """
        found = scalars(event)
        counters = {name: value for name, value in found.items() if name.startswith(COUNTERS)}
        constant = {
            name for name in counters if self._counters.get(name, counters[name]) == counters[name]
        }
        self._counters |= counters
        return {name: value for name, value in found.items() if name not in constant}

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)


def framed(record: Any) -> bytes:
    """Returns a record as the bytes of TensorBoard's file format, which have checksums."""
    from tensorboardX.record_writer import masked_crc32c

    content = record.SerializeToString()
    length = struct.pack("<Q", len(content))
    checks = [struct.pack("<I", masked_crc32c(part)) for part in (length, content)]
    return b"".join((length, checks[0], content, checks[1]))


def scalars(event: Event) -> dict[str, float]:
    """Returns the numbers in an event (a line of metrics) as TensorBoard scalars, by name."""
    return {
        key if "/" in key else f"{event['kind']}/{key}": float(value)
        for key, value in event.items()
        if key not in LEFT_OUT and isinstance(value, Real)
    }
