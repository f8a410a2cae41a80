"""Changes a setting of the terminal while the display redraws its live panel."""

from __future__ import annotations

import contextlib
import io
import os
import termios
from collections.abc import Callable
from typing import IO, Any


def without_echo_of_control_keys(file: IO[str]) -> Callable[[], None]:
    """Stops the terminal from printing `^C` when the user presses Ctrl-C.

    Returns a function that restores the terminal.
    """
    terminal: Any = None
    try:
        terminal = file.fileno()
        if os.tcgetpgrp(terminal) != os.getpgrp():  # a background job may not change the terminal
            return lambda: None
        before = termios.tcgetattr(terminal)
        changed = [*before]
        changed[3] = before[3] & ~termios.ECHOCTL
        termios.tcsetattr(terminal, termios.TCSANOW, changed)
    except (OSError, ValueError, io.UnsupportedOperation, termios.error):
        return lambda: None

    def restore() -> None:
        with contextlib.suppress(termios.error):
            termios.tcsetattr(terminal, termios.TCSANOW, before)

    return restore
