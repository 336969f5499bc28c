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


class FloatArray:
    """The one array of a .npy or .npz file: its `shape` and `dtype`, and on request its values. Raises UserError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._open() as (file, size):
            self.shape, self.dtype = _header(file)
            if self.dtype.hasobject:
                raise ValueError("it holds objects of Python, and loading those runs code")
            announced = math.prod(self.shape) * self.dtype.itemsize
            if announced > ARRAY.bytes:
                raise ValueError(
                    f"its array has {announced:,} bytes, and {ARRAY.bytes:,} are the most ({ARRAY.remedy('bytes')})"
                )
            if announced != size - file.tell():
                raise ValueError(f"its header announces {announced:,} bytes, and {size - file.tell():,} follow")

    def __str__(self) -> str:
        return f"{shortened(self.dtype)} {shortened('×'.join(map(str, self.shape)) or 'scalar')}"

    def read(self) -> np.ndarray:
        """The values. Raises UserError."""
        with self._open() as (file, _):
            return np.lib.format.read_array(file, allow_pickle=False)

    @contextmanager
    def _open(self) -> Iterator[tuple[IO[bytes], int]]:
        """The .npy file, or the member of a .npz file that is one, and how many bytes it has."""
        try:
            with self.path.open("rb") as file:
                size = self.path.stat().st_size
                if file.read(4) != b"PK\3\4":
                    file.seek(0)
                    yield file, size
                    return
                _check_directory(file, size)
                with zipfile.ZipFile(file) as archive:
                    names = [member.filename for member in archive.infolist()]
                    if len(names) != 1:
                        raise UserError(
                            f"{self.path} has {len(names)} arrays ({shortened(', '.join(names[:100]))}); one is "
                            "needed, N×C×H×W."
                        )
                    with archive.open(names[0]) as member:
                        yield member, archive.getinfo(names[0]).file_size
        except UNREADABLE as error:
            raise UserError(
                f"{self.path} can't be read as a .npy or .npz file: {shortened(error) or type(error).__name__}."
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
        raise ValueError("its list of members is longer than that of one array")
    file.seek(0)
