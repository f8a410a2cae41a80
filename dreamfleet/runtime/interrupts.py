"""The signals that end a run: the first one in order, the second one at once."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, Final

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
_SET_CHILD_SUBREAPER: Final = 36  # sys/prctl.h


class Interrupts:
    """Listens to Ctrl-C and SIGTERM, in the main thread; in any other thread it hears nothing."""

    def __init__(self) -> None:
        self.number: int | None = None  # of the first signal
        self.since = 0.0  # when the first signal came, on the monotonic clock
        self.at_once = False  # a second signal came
        self._before: dict[int, Any] = {}

    @property
    def name(self) -> str:
        return signal.Signals(self.number).name if self.number is not None else ""

    @property
    def exit_code(self) -> int:
        return 128 + (self.number or 0)

    def open(self) -> None:
        """Begins to listen."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.getsignal(number) for number in SIGNALS}
        self.listen()

    def close(self) -> None:
        """Gives the signals back to the handlers that had them before `open`."""
        if self._before:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def listen(self) -> None:
        """Takes the signals once more from whoever took them since, and ends a `hold`."""
        for number in self._before:
            signal.signal(number, self._interrupt)
        if self._before:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})

    def hold(self) -> None:
        """Keeps a Ctrl-C waiting for `heard`; processes that start now ignore it for good."""
        if self._before:
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            signal.signal(signal.SIGINT, signal.SIG_IGN)

    def heard(self, seconds: float) -> bool:
        """Waits for so long during a `hold` → whether a signal came."""
        if not self._before:
            time.sleep(seconds)
        elif self.number is None and signal.sigtimedwait([signal.SIGINT], seconds):
            self._note(signal.SIGINT)
        return self.number is not None

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self.at_once:
            return  # it is leaving
        if self.number is None:
            self._note(number)  # no more than this: a handler may interrupt a print
            return
        self.at_once = True
        raise KeyboardInterrupt

    def _note(self, number: int) -> None:
        self.number, self.since = int(number), time.monotonic()


def adopt_orphans(wanted: bool) -> None:
    """Has processes that lose their parent become children of this one, or no longer so.

    Where Ray's `raylet` dies, its own children would otherwise live on for a minute, out of sight.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, int(wanted), 0, 0, 0)


def kill_descendants(but: Collection[int]) -> None:
    """Kills the processes that descend from this one, but some; first stops what could fork."""
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in descendants():
            if pid not in but:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)


def descendants() -> list[int]:
    """Returns the ids of the processes that descend from this one, parents first."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:  # it ended meanwhile
            continue
        children.setdefault(parent, []).append(int(stat.parent.name))
    found = [os.getpid()]
    for pid in found:
        found += children.get(pid, [])
    return found[1:]
