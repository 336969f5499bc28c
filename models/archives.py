"""The files of a data set, in a folder or a tar archive, that a reader asks for, each within its limit.

An archive may be packed with gzip, bzip2 or xz. Nothing is extracted to the disk, and nothing that it announces
(sizes, long names, extended headers, an xz dictionary) is believed beyond the limits of `tvmflow.system.limits`.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, cast

from tvmflow.spec import UserError
from tvmflow.system.limits import ARCHIVE, HEADER_BYTES, XZ_MEMORY_BYTES
from tvmflow.system.untrusted import shortened

BLOCK = 1 << 16

UNREADABLE = (tarfile.TarError, OSError, EOFError, ValueError, IndexError, OverflowError, RecursionError, MemoryError)
"""What tarfile and the decoders raise on damaged archives, beside the errors of the decoders' own."""


def read_files(path: Path, limit: Callable[[str], int]) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the plain files in the folder or archive `path` for which `limit(name)`, the most bytes
    that one of this name may have, isn't 0. Raises UserError.
    """
    return _of_folder(path, limit) if path.is_dir() else _of_archive(path, limit)


def files_below(path: Path) -> list[Path]:
    """All plain files in a folder and the folders in it, by name. Raises UserError."""
    found = []
    for file in path.rglob("*"):
        if file.is_file():
            found.append(file)
        if len(found) > ARCHIVE.elements:
            raise UserError(
                f"{path} holds over {ARCHIVE.elements:,} files; give the folder of the data alone "
                f"({ARCHIVE.remedy('elements')})."
            )
    return sorted(found)


def _of_folder(path: Path, limit: Callable[[str], int]) -> Iterator[tuple[str, bytes]]:
    for file in files_below(path):
        name = file.relative_to(path).as_posix()
        if most := limit(name):
            yield name, read_within(file, most)


def read_within(path: Path, most: int) -> bytes:
    """The content of a file of at most `most` bytes. Raises UserError."""
    try:
        with path.open("rb") as file:
            content = file.read(most + 1)
    except (OSError, ValueError) as error:  # ValueError: a name with a zero in it
        raise UserError(f"{shortened(path)} can't be read: {shortened(error)}.") from error
    if len(content) > most:
        raise UserError(f"{shortened(path)} has over {most:,} bytes; no file of this data set is so large.")
    return content


def _of_archive(path: Path, limit: Callable[[str], int]) -> Iterator[tuple[str, bytes]]:
    try:
        with path.open("rb") as file:
            stream = _Bounded(_unpacking(file))
            with tarfile.open(fileobj=cast(Any, stream), mode="r:") as archive:
                count = 0
                while (member := _next(archive, stream)) is not None:
                    count += 1
                    if count > ARCHIVE.elements:
                        raise UserError(
                            f"{path} has over {ARCHIVE.elements:,} members; no data set has so many "
                            f"({ARCHIVE.remedy('elements')})."
                        )
                    most = limit(member.name) if member.isreg() else 0
                    if not most:
                        continue
                    if member.issparse():
                        raise UserError(f"{path} has a sparse member, {shortened(member.name)}; give plain files.")
                    if not 0 <= member.size <= most:
                        raise UserError(
                            f"{path} has a member of {member.size:,} bytes, which none has: {shortened(member.name)}."
                        )
                    stream.seek(member.offset_data)
                    content = stream.read(member.size, of_member=True)
                    if len(content) != member.size:
                        raise EOFError(f"it ends in the middle of {member.name}")
                    yield member.name, content
    except (*UNREADABLE, lzma.LZMAError, zlib.error) as error:
        raise UserError(f"{path} can't be read as an archive ({shortened(error) or type(error).__name__}).") from error


def _next(archive: tarfile.TarFile, stream: _Bounded) -> tarfile.TarInfo | None:
    stream.allowed = HEADER_BYTES
    cast(Any, archive).members.clear()  # tarfile keeps all that it has read
    return archive.next()


class _Bounded:
    """What tarfile reads through: forwards only, `allowed` bytes for a member's headers, and not without end."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream = stream
        self.position = 0
        self.allowed = HEADER_BYTES

    def tell(self) -> int:
        return self.position

    def seek(self, position: int) -> None:
        if position < self.position:
            raise tarfile.ReadError("a member has a negative size")
        while self.position < position and self._take(min(BLOCK, position - self.position)):
            pass

    def read(self, size: int, *, of_member: bool = False) -> bytes:
        if not of_member:
            if not 0 <= size <= self.allowed:
                raise tarfile.ReadError(f"the headers of a member have over {HEADER_BYTES:,} bytes")
            self.allowed -= size
        return self._take(size)

    def _take(self, size: int) -> bytes:
        content = self.stream.read(size)
        self.position += len(content)
        if self.position > ARCHIVE.bytes:
            raise tarfile.ReadError(f"it unpacks to over {ARCHIVE.bytes:,} bytes ({ARCHIVE.remedy('bytes')})")
        return content


def _unpacking(file: IO[bytes]) -> IO[bytes]:
    """What unpacks a file as its first bytes say."""
    start = file.read(6)
    file.seek(0)
    if start.startswith(b"\x1f\x8b"):
        return cast(IO[bytes], gzip.GzipFile(fileobj=file))
    if start.startswith(b"BZh"):
        return cast(IO[bytes], bz2.BZ2File(file))
    return io.BufferedReader(_Xz(file), BLOCK) if start == b"\xfd7zXZ\0" else file


class _Xz(io.RawIOBase):
    """An .xz file unpacked. `lzma.LZMAFile` can't be given a limit of memory, and the file may ask for 4 GiB."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.decoder = _xz_decoder()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            if self.decoder.eof:  # another stream may follow, after padding of zeros
                packed = self.decoder.unused_data or self.file.read(BLOCK)
                if not packed:
                    return 0
                while packed and not (packed := packed.lstrip(b"\0")):
                    packed = self.file.read(BLOCK)
                if not packed:
                    return 0
                self.decoder = _xz_decoder()
            else:
                packed = self.file.read(BLOCK) if self.decoder.needs_input else b""
                if self.decoder.needs_input and not packed:
                    raise EOFError("it ends in the middle of an xz stream")
            content = self.decoder.decompress(packed, len(buffer))
            if content:
                buffer[: len(content)] = content
                return len(content)


def _xz_decoder() -> lzma.LZMADecompressor:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY_BYTES)
