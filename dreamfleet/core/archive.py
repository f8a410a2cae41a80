"""Reads archives of arrays (`.npz` files) that may come from an untrusted source."""

from __future__ import annotations

import math
import zipfile
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
from numpy.lib import format as npy

KINDS: Final = "biuf"  # of dtypes: bool, whole numbers, floats
_HEADERS: Final = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


class Archive:
    """An archive of arrays, as `np.savez` writes it, opened for reading.

    Use the archive in a `with` statement. Sizes are checked before memory is allocated, and
    checksums when an array is read. Raises ValueError, or an error of `zipfile`, if a check fails.
    """

    def __init__(self, path: Path) -> None:
        self._zip = zipfile.ZipFile(path)
        try:
            self._members = self._checked(path.stat().st_size)
        except BaseException:
            self._zip.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._zip.close()

    def read(self, name: str) -> np.ndarray:
        """Returns the array called `name`. Raises ValueError if it is missing or damaged."""
        member = self._members.get(f"{name}.npy")
        if member is None:
            raise ValueError(f"array {name!r} is missing")
        self._check_header(member)
        with self._zip.open(member) as file:
            array: np.ndarray = npy.read_array(file, allow_pickle=False)
            if file.read(1):  # reading to the end compares the checksum
                raise ValueError(f"{member.filename} is longer than its array")
        return array

    def _checked(self, file_size: int) -> dict[str, zipfile.ZipInfo]:
        members = self._zip.infolist()
        for member in members:
            if member.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{member.filename} is compressed, which checkpoints never are")
            if member.file_size != member.compress_size:
                raise ValueError(f"{member.filename} has two different sizes")
        claimed = sum(member.file_size for member in members)
        if claimed > file_size:
            raise ValueError(f"its members claim {claimed:,} bytes, but the file has {file_size:,}")
        twice = [name for name, n in Counter(m.filename for m in members).items() if n > 1]
        if twice:
            raise ValueError(f"{twice[0]} is in it twice")
        return {member.filename: member for member in members}

    def _check_header(self, member: zipfile.ZipInfo) -> None:
        """Raises ValueError unless an array's shape and dtype fit the size of its file.

        member: this file inside the zip archive.
        """
        with self._zip.open(member) as file:
            version = npy.read_magic(file)
            if version not in _HEADERS:
                raise ValueError(f"{member.filename} is of NumPy format {version}")
            header: tuple[tuple[int, ...], bool, np.dtype[Any]] = _HEADERS[version](file)
            shape, _, dtype = header
            room = member.file_size - file.tell()
        if dtype.kind not in KINDS:
            raise ValueError(f"{member.filename} holds {dtype}")
        claimed = math.prod(shape) * dtype.itemsize
        if min(shape, default=0) < 0 or claimed != room:
            raise ValueError(f"{member.filename} claims {claimed:,} bytes, but has {room:,}")
