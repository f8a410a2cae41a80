"""Handles the signals that end a run, and kills processes that a run leaves behind.

After the first Ctrl-C or SIGTERM the run saves a checkpoint and ends. After the second it ends at
once, without saving.
"""

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
    """Records Ctrl-C (SIGINT) and SIGTERM. Outside the main thread it records nothing."""

    def __init__(self) -> None:
        self.number: int | None = None  # of the first signal
        self.first_at = 0.0  # time of the first signal, on the monotonic clock
        self.twice = False  # a second signal came: leave at once
        self._previous: dict[int, Any] = {}  # the signal handlers before `open`

    @property
    def name(self) -> str:
        """The name of the first signal that was received, such as SIGINT; "" before any signal."""
        return signal.Signals(self.number).name if self.number is not None else ""

    @property
    def exit_code(self) -> int:
        """The exit code after an interrupt: 128 plus the number of the first signal received."""
        return 128 + (self.number or 0)

    def open(self) -> None:
        """Installs handlers for Ctrl-C and SIGTERM. Remembers the previous handlers for `close`."""
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.getsignal(number) for number in SIGNALS}
        self.listen()

    def close(self) -> None:
        """Restores the signal handlers that were there before `open` installed its own."""
        if self._previous:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def listen(self) -> None:
        """Installs the handlers for Ctrl-C and SIGTERM again. Ends the delay of Ctrl-C by `block`.

        Called often, because other code, such as an environment, may have replaced the handlers.
        """
        for number in self._previous:
            signal.signal(number, self._handle)
        if self._previous:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})

    def block(self) -> None:
        """Delays Ctrl-C: until `listen` is called, only `wait` notices the signal.

        Processes that are started before `listen` ignore Ctrl-C as long as they live.
        """
        if self._previous:
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            signal.signal(signal.SIGINT, signal.SIG_IGN)

    def wait(self, seconds: float) -> bool:
        """Waits up to `seconds` for Ctrl-C. Called between `block` and `listen`.

        Returns whether Ctrl-C or SIGTERM has been received since `open`.
        """
        if not self._previous:
            time.sleep(seconds)
        elif self.number is None and signal.sigtimedwait([signal.SIGINT], seconds):
            self._note(signal.SIGINT)
        return self.number is not None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.twice:
            return  # the program is already leaving
        if self.number is None:
            self._note(number)  # and nothing else: a handler may run in the middle of a print
            return
        self.twice = True
        raise KeyboardInterrupt

    def _note(self, number: int) -> None:
        self.number, self.first_at = int(number), time.monotonic()


def adopt_orphans(wanted: bool) -> None:
    """Makes this process the parent of its descendants whose own parent dies. Linux only.

    wanted: True turns this on, False turns this off.
    """
    # If Ray's process `raylet` dies, its children live on for a minute. `descendants` finds them
    # only as children of this process.
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, int(wanted), 0, 0, 0)


def kill_descendants(spare: Collection[int]) -> None:
    """Kills all descendants of this process (children, grandchildren, …) except those in `spare`.

    spare: ids of processes to leave alone.
    """
    for number in (signal.SIGSTOP, signal.SIGKILL):  # a stopped process starts no other process
        for pid in descendants():
            if pid not in spare:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)


def descendants() -> list[int]:
    """Returns the process ids of the children, grandchildren, … of this process, parents first."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:  # the process has ended
            continue
        children.setdefault(parent, []).append(int(stat.parent.name))
    found = [os.getpid()]
    for pid in found:
        found += children.get(pid, [])
    return found[1:]
