"""Standard output, kept for what a command itself has to say."""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Sends what Python and C code print on standard output to standard error meanwhile."""
    with contextlib.redirect_stdout(sys.stderr), contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError, io.UnsupportedOperation):  # without such a descriptor
            if sys.__stdout__ is not None:
                sys.__stdout__.flush()
            saved = os.dup(1)
            stack.callback(os.close, saved)
            stack.callback(os.dup2, saved, 1)
            stack.callback(_flush_c)  # what C code printed is still in its own buffer
            os.dup2(2, 1)
        yield


def _flush_c() -> None:
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).fflush(None)
