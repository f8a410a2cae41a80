"""The metrics once more, as TensorBoard reads them."""

from __future__ import annotations

import os
import socket
import struct
import time
from numbers import Real
from pathlib import Path
from typing import Any

from dreamfleet.core.own_files import append, open_own
from dreamfleet.core.types import Event


class TensorBoard:
    """Mirrors the numbers of events as scalars `group/name` against env steps.

    A key that names no group gets the event's kind: `return` of an episode is `episode/return`.
    Each event is one record of the file, written at once: tensorboardX's own writer does so in a
    thread, which ends without a word when the disk is full, and then blocks whoever writes.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: int | None = None

    def write(self, event: Event) -> None:
        """Append one record, or none at all. Raises OSError when the disk refuses."""
        from tensorboardX.proto.event_pb2 import Event as Record  # over a second: not at the start

        now = time.time()
        if self._file is None:
            self._folder.mkdir(exist_ok=True)
            name = f"events.out.tfevents.{now:.0f}.{socket.gethostname()}.{os.getpid()}"
            self._file = open_own(self._folder / name, os.O_WRONLY | os.O_APPEND)
            append(self._file, framed(Record(wall_time=now, file_version="brain.Event:2")))
        values = [{"tag": name, "simple_value": value} for name, value in scalars(event).items()]
        record = Record(wall_time=now, step=int(event["env_steps"]), summary={"value": values})
        append(self._file, framed(record))

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)


def framed(record: Any) -> bytes:
    """Returns a record of the file: its length and its content, each with its checksum."""
    from tensorboardX.record_writer import masked_crc32c

    content = record.SerializeToString()
    length = struct.pack("<Q", len(content))
    checks = [struct.pack("<I", masked_crc32c(part)) for part in (length, content)]
    return b"".join((length, checks[0], content, checks[1]))


def scalars(event: Event) -> dict[str, float]:
    """Returns the numbers of an event by `group/name`."""
    return {
        key if "/" in key else f"{event['kind']}/{key}": float(value)
        for key, value in event.items()
        if key not in ("kind", "env_steps") and isinstance(value, Real)
    }
