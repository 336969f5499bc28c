"""The GPU code in a library: which architectures and kernels it is for, read from the ELF files themselves."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from pathlib import Path

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

from tvmflow.spec import UserError

EM_CUDA = 190
NEW_ABI = 8
"""From this version of the ELF file's ABI on, the architecture stands in the second byte of its flags."""


def cubins(content: bytes) -> Iterator[tuple[str, ELFFile]]:
    """The machine code for GPUs in a file, by architecture ("sm_87")."""
    start = content.find(b"\x7fELF\x02\x01", 1 if content[:4] == b"\x7fELF" and _machine(content, 0) != EM_CUDA else 0)
    while start >= 0:
        if _machine(content, start) == EM_CUDA:
            try:
                elf = ELFFile(io.BytesIO(content[start:]))
            except ELFError as error:
                raise UserError(f"The machine code for a GPU at byte {start} can't be read: {error}.") from error
            flags = elf["e_flags"]
            number = (flags >> 8 if elf["e_ident"]["EI_ABIVERSION"] >= NEW_ABI else flags) & 0xFF
            yield f"sm_{number}", elf
        start = content.find(b"\x7fELF\x02\x01", start + 1)


def _machine(content: bytes, start: int) -> int:
    header = content[start + 18 : start + 20]
    return struct.unpack("<H", header)[0] if len(header) == 2 else 0


def architectures(library: Path) -> tuple[str, ...]:
    """The architectures that `library` has machine code for, in order."""
    return tuple(dict.fromkeys(name for name, _ in cubins(library.read_bytes())))


def kernels(library: Path, architecture: str) -> tuple[str, ...]:
    """The kernels that `library` has machine code of, for one architecture."""
    return tuple(
        section.name.removeprefix(".text.")
        for name, elf in cubins(library.read_bytes())
        if name == architecture
        for section in elf.iter_sections()
        if section.name.startswith(".text.")
    )


def check(library: Path, wanted: tuple[str, ...], wanted_by: str) -> None:
    """Raises UserError unless `library` has machine code for each of the architectures."""
    found = architectures(library)
    for name in wanted:
        if name not in found:
            raise UserError(f"{library.name} has GPU code for {', '.join(found) or 'none'}; {wanted_by} needs {name}.")
