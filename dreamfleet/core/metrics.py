"""Writes `metrics.jsonl`, the file with the events of a run, one JSON object per line."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from dreamfleet.core.own_files import append, open_own
from dreamfleet.core.types import Event


class MetricsWriter:
    """Appends events to a file. Other processes can read an event as soon as it is written.

    Every event must have `kind` and `env_steps`. NaN and infinity are written as null. An existing
    file is continued. Raises UserError if the file is a link.
    """

    def __init__(self, path: Path) -> None:
        self._file = open_own(path, os.O_RDWR | os.O_APPEND)
        _drop_incomplete_line(self._file)

    def write(self, event: Event) -> None:
        """Appends one event as one line.

        If the disk is full, appends nothing and raises OSError.
        """
        assert "kind" in event and "env_steps" in event, event
        line = json.dumps({key: _plain(value) for key, value in event.items()}, allow_nan=False)
        append(self._file, line.encode() + b"\n")

    def close(self) -> None:
        os.close(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()


def _plain(value: Any) -> Any:
    """Converts `value`, which may be of numpy or torch, to types that JSON has.

    NaN and infinity become None.
    """
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray) and value.ndim:
        return _plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _drop_incomplete_line(file: int) -> None:
    """Truncates a file after its last newline. file: a descriptor."""
    end = os.fstat(file).st_size
    while end:
        begin = max(0, end - 65_536)
        newline = os.pread(file, end - begin, begin).rfind(b"\n")
        if newline >= 0:
            end = begin + newline + 1
            break
        end = begin
    os.ftruncate(file, end)
