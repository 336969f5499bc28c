"""Marking an object as one that programs of either floating-point calling convention may link.

Nothing that crosses its functions' borders is a float, only pointers are; linkers would refuse it beside code that is
compiled for the other convention. Encoding: Arm IHI 0045, Addenda to the ABI for the Arm Architecture.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

TAG_CPU_RAW_NAME, TAG_CPU_NAME, TAG_COMPATIBILITY, TAG_ABI_VFP_ARGS = 4, 5, 32, 28
EITHER = 3
"""Of Tag_ABI_VFP_args: compatible with both conventions."""
FILE = 1


def take_either_convention(library: Path) -> None:
    """Change the attribute of an object file that has it; others, such as those without floats, are left alone."""
    from elftools.elf.elffile import ELFFile

    with library.open("r+b") as file:
        section: Any = ELFFile(file).get_section_by_name(".ARM.attributes")
        if section is None:
            return
        place = _place_of_value(section.data())
        if place is not None:
            file.seek(section["sh_offset"] + place)
            file.write(bytes([EITHER]))


def _place_of_value(data: bytes) -> int | None:
    """Where the value of Tag_ABI_VFP_args is among the attributes of the whole file."""
    at = 1 + 4  # the version of the format, and the length of the first vendor's part
    vendor = data[at : data.index(0, at)]
    at += len(vendor) + 1
    if vendor != b"aeabi" or data[at] != FILE:
        return None
    end = at + int.from_bytes(data[at + 1 : at + 5], "little")
    at += 5
    while at < end:
        tag, at = _uleb128(data, at)
        if tag == TAG_ABI_VFP_ARGS:
            return at
        if tag == TAG_COMPATIBILITY:
            _, at = _uleb128(data, at)
        if tag in (TAG_CPU_RAW_NAME, TAG_CPU_NAME, TAG_COMPATIBILITY) or (tag > TAG_COMPATIBILITY and tag % 2):
            at = data.index(0, at) + 1
        else:
            _, at = _uleb128(data, at)
    return None


def _uleb128(data: bytes, at: int) -> tuple[int, int]:
    """A number, and where what follows it begins."""
    value = shift = 0
    while True:
        value |= (data[at] & 0x7F) << shift
        shift, at = shift + 7, at + 1
        if not data[at - 1] & 0x80:
            return value, at
