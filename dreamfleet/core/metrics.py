"""`metrics.jsonl`: what happened, one JSON object a line."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from dreamfleet.core.types import Event


class MetricsWriter:
    """Appends events to a file, each readable by others as soon as it is written.

    Every event has at least `kind` and `env_steps`. NaN and infinities become null: JSON has none.
    Opening an existing file continues it; a last line that a crash tore is dropped first.
    """

    def __init__(self, path: Path) -> None:
        if path.exists():
            _drop_torn_line(path)
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - lives as long as the writer

    def write(self, event: Event) -> None:
        assert "kind" in event and "env_steps" in event, event
        line = json.dumps({key: _plain(value) for key, value in event.items()}, allow_nan=False)
        self._file.write(line + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()

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
    """`value` in JSON's own types; anything with `.item()` is a number."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray) and value.ndim:
        return _plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _drop_torn_line(path: Path) -> None:
    with open(path, "rb+") as file:
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)
