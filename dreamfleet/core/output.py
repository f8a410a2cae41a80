"""Redirects output of libraries to standard error, so that standard output stays clean.

A command writes its own result to standard output, where no other text may appear.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Redirects standard output of Python and C code to standard error during a `with` block."""
    with contextlib.redirect_stdout(sys.stderr), contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError, io.UnsupportedOperation):  # there is no such descriptor
            if sys.__stdout__ is not None:
                sys.__stdout__.flush()
            saved = os.dup(1)
            stack.callback(os.close, saved)
            stack.callback(os.dup2, saved, 1)
            stack.callback(_flush_c)  # output of C code may still be in C's buffer
            os.dup2(2, 1)
        yield


def _flush_c() -> None:
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).fflush(None)
