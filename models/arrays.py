"""Arrays of a user's own in .npy and .npz files, whose headers are held against the file before anything is read."""

from __future__ import annotations

import math
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from tvmflow.spec import UserError
from tvmflow.system.limits import ARRAY, DIRECTORY_BYTES
from tvmflow.system.untrusted import shortened

ARRAY_SUFFIXES = (".npy", ".npz")

UNREADABLE = (
    *(OSError, ValueError, EOFError, KeyError, TypeError, SyntaxError, RecursionError, MemoryError),
    *(OverflowError, NotImplementedError, RuntimeError, tokenize.TokenError, zipfile.BadZipFile, zlib.error),
)
"""What numpy's parser of headers and zipfile raise on damaged, packed and encrypted files."""

END_BYTES, COMMENT_BYTES = 22, (1 << 16) - 1


class StoredArray:
    """One array of a .npy or .npz file: its `shape` and `dtype`, and on request its values. Raises UserError.

    `member` is the file in a .npz file that has it; None stands for a .npy file.
    """

    def __init__(self, path: Path, member: str | None = None) -> None:
        self.path, self.member = path, member
        with self._open() as (file, size):
            self.shape, self.dtype = _header(file)
            if self.dtype.hasobject:
                raise ValueError("it holds objects of Python, and loading those runs code")
            self.nbytes = math.prod(self.shape) * self.dtype.itemsize
            _check_bytes(self.nbytes, "its array has")
            if self.nbytes != size - file.tell():
                raise ValueError(f"its header announces {self.nbytes:,} bytes, and {size - file.tell():,} follow")

    def __str__(self) -> str:
        return f"{shortened(self.dtype)} {shortened('×'.join(map(str, self.shape)) or 'scalar')}"

    def read(self) -> np.ndarray:
        """The values. Raises UserError."""
        with self._open() as (file, _):
            return np.lib.format.read_array(file, allow_pickle=False)

    @contextmanager
    def _open(self) -> Iterator[tuple[IO[bytes], int]]:
        """The .npy file, or the member of a .npz file that is one, and how many bytes it has."""
        with _opened(self.path) as (file, size):
            if self.member is None:
                yield file, size
                return
            with zipfile.ZipFile(file) as archive, archive.open(self.member) as member:
                yield member, archive.getinfo(self.member).file_size


def stored_arrays(path: Path) -> dict[str, StoredArray]:
    """The arrays of a .npz file by their names, or that of a .npy file by an empty one. Raises UserError."""
    with _opened(path) as (file, size):
        packed = file.read(4) == b"PK\3\4"
        members = []
        if packed:
            _check_directory(file, size)
            with zipfile.ZipFile(file) as archive:
                members = [member.filename for member in archive.infolist()]
            if len(set(members)) != len(members) or not members:
                raise ValueError("it has no arrays, or several of a name")
            if len(members) > MOST_ARRAYS:
                raise ValueError(f"it has {len(members)} arrays, and {MOST_ARRAYS} are the most")
    if not packed:
        return {"": StoredArray(path)}
    found = {member.removesuffix(".npy"): StoredArray(path, member) for member in members}
    with _opened(path):
        _check_bytes(sum(array.nbytes for array in found.values()), "its arrays together have")
    return found


MOST_ARRAYS = 100
"""In a .npz file: no network takes as many inputs, and each is looked into before anything is said."""


def _check_bytes(announced: int, words: str) -> None:
    if announced > ARRAY.bytes:
        raise ValueError(f"{words} {announced:,} bytes, and {ARRAY.bytes:,} are the most ({ARRAY.remedy('bytes')})")


@contextmanager
def _opened(path: Path) -> Iterator[tuple[IO[bytes], int]]:
    """The file and its size. Raises UserError for whatever the block finds wrong with it."""
    try:
        with path.open("rb") as file:
            yield file, path.stat().st_size
    except UNREADABLE as error:
        raise UserError(
            f"{path} can't be read as a .npy or .npz file: {shortened(error) or type(error).__name__}."
        ) from error


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"its format is {version[0]}.{version[1]}, which no array of numbers needs")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    if not all(type(side) is int and side >= 0 for side in shape):
        raise ValueError("its shape has a side that is no length")
    return shape, dtype


def _check_directory(file: IO[bytes], size: int) -> None:
    """Raises ValueError where zipfile would be told to read a long list of members."""
    file.seek(max(0, size - END_BYTES - COMMENT_BYTES))
    end = file.read()
    at = end.rfind(b"PK\5\6")
    length = int.from_bytes(end[at + 12 : at + 16], "little") if at >= 0 else 0
    if length > DIRECTORY_BYTES or b"PK\6\7" in end[max(0, at - 20) : at]:
        raise ValueError("its list of members is longer than that of an array for each input")
    file.seek(0)
