"""Opens the files that a run writes. Refuses to write to links and special files."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from dreamfleet.core.errors import UserError


def open_own(path: Path, flags: int) -> int:
    """Opens a file for writing, and creates it if it is missing. Returns its descriptor.

    flags: passed to `os.open`. Raises UserError for a symbolic link, a hard link, or anything else
    that is not a plain file.
    """
    flags |= os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, 0o644)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            raise _foreign(path) from None
        raise
    about = os.fstat(descriptor)
    if not stat.S_ISREG(about.st_mode) or about.st_nlink > 1:
        os.close(descriptor)
        raise _foreign(path)
    return descriptor


def append(descriptor: int, content: bytes) -> None:
    """Appends `content` to a file. If the disk is full, appends nothing and raises OSError."""
    begin = os.fstat(descriptor).st_size
    try:
        while content:
            content = content[os.write(descriptor, content) :]
    except OSError:
        os.ftruncate(descriptor, begin)  # half a record would make the next one unreadable
        raise


def check_own_file(path: Path) -> None:
    """Raises UserError if `path` exists and is a link or a special file, not a plain file."""
    if path.is_symlink() or path.exists():
        about = path.lstat()
        if not stat.S_ISREG(about.st_mode) or about.st_nlink > 1:
            raise _foreign(path)


def check_own_folder(path: Path) -> None:
    """Raises UserError if `path` exists and is a link or a file, not a folder."""
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise _foreign(path)


def _foreign(path: Path) -> UserError:
    if path.is_symlink():
        found = f"a link to {path.readlink()}"
    elif path.is_dir():
        found = "a folder"
    else:
        found = "a link or a special file" if path.is_file() or path.exists() else "no file"
    return UserError(
        f"{path} is {found}, which is left alone. Move it away, or use another run folder."
    )
