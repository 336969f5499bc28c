"""How deep the stack of a network becomes at most, from the machine code of its object file and who calls whom there.

Each function's frame is what its instructions take from the stack pointer, all of them added, which is exact for code
whose stack pointer moves at the beginning and at the end only, as compilers make it. Encodings: Armv8-M Architecture
Reference Manual, Arm DDI 0553, C2.4.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tvmflow.spec import VerificationError

OUTSIDE_BYTES = 128
"""What is set aside for a function of the C library or of the compiler, which the object doesn't have.

Of zig's and of GCC's own functions that kernels call, none takes more than 72.
"""
ALIGNMENT = 8
"""Of the stack, at the beginning of each function, by Arm's procedure call standard."""

R_ARM_THM_CALL, R_ARM_THM_JUMP24 = 10, 30
SP = 13


@dataclass(frozen=True, kw_only=True)
class Bound:
    """Bytes of the stack that a function takes with all that it calls, of which `outside` aren't in the file."""

    bytes: int
    outside: tuple[str, ...]


@dataclass(kw_only=True)
class _Function:
    frame: int = 0
    calls: set[str] = field(default_factory=set)


def stack_bound(file: Path, name: str, outside_bytes: int = OUTSIDE_BYTES) -> Bound:
    """Of the function `name` in an object file or a program. Raises VerificationError where there is no bound."""
    found = _functions(file)
    outside: set[str] = set()
    depths: dict[str, int] = {}

    def depth(function: str, callers: tuple[str, ...]) -> int:
        if function in callers:
            raise VerificationError(f"{function} in {file.name} calls itself, so that its stack has no bound.")
        if function not in found:
            outside.add(function)
            return outside_bytes
        if function not in depths:
            own = found[function]
            below = max((depth(called, (*callers, function)) for called in sorted(own.calls)), default=0)
            depths[function] = -(-own.frame // ALIGNMENT) * ALIGNMENT + below
        return depths[function]

    return Bound(bytes=depth(name, ()), outside=tuple(sorted(outside)))


def _functions(file: Path) -> dict[str, _Function]:
    """The functions of a file by name, each with its frame and with the names of what it calls."""
    from elftools.elf.elffile import ELFFile

    with file.open("rb") as opened:
        elf: Any = ELFFile(opened)
        table = elf.get_section_by_name(".symtab")
        symbols = list(table.iter_symbols()) if table else []
        relocations = _relocations(elf)
        found: dict[str, _Function] = {}
        for number, section in enumerate(elf.iter_sections()):
            if section["sh_flags"] & 4 and section["sh_type"] == "SHT_PROGBITS":
                code = _Section(number=number, base=section["sh_addr"], data=section.data(), symbols=symbols)
                found |= code.functions(relocations.get(number, {}), symbols)
        return found


def _relocations(elf: Any) -> dict[int, dict[int, int]]:
    """Section → place in it → number of the symbol that a call or jump there is to."""
    found: dict[int, dict[int, int]] = {}
    for section in elf.iter_sections():
        if section["sh_type"] == "SHT_REL":
            calls = found.setdefault(section["sh_info"], {})
            for entry in section.iter_relocations():
                if entry["r_info_type"] in (R_ARM_THM_CALL, R_ARM_THM_JUMP24):
                    calls[entry["r_offset"]] = entry["r_info_sym"]
    return found


@dataclass(kw_only=True)
class _Section:
    """Code with the symbols of its file: places are counted from the section's beginning."""

    number: int
    base: int
    data: bytes
    symbols: list[Any]

    def __post_init__(self) -> None:
        own = [symbol for symbol in self.symbols if symbol["st_shndx"] == self.number]
        starts: dict[int, str] = {}
        for symbol in own:
            if symbol["st_info"]["type"] == "STT_FUNC":
                starts.setdefault((symbol["st_value"] & ~1) - self.base, symbol.name)
        self.starts = sorted(starts)
        self.names = [starts[start] for start in self.starts]
        kinds = {symbol["st_value"] - self.base: symbol.name[:2] for symbol in own if symbol.name[:2] in ("$t", "$d")}
        self.kinds = sorted(kinds.items())

    def function_at(self, place: int) -> str | None:
        index = bisect.bisect_right(self.starts, place) - 1
        return self.names[index] if index >= 0 else None

    def functions(self, relocations: Mapping[int, int], symbols: list[Any]) -> dict[str, _Function]:
        """What the functions of the section do. Two names of one place are of one function."""
        found = {name: _Function() for name in self.names}
        constants: dict[int, int] = {}
        for place, first, second in self.instructions():
            name = self.function_at(place)
            if name is None:
                continue
            if place in self.starts:
                constants = {}
            function = found[name]
            if called := self.called(place, first, second, relocations, symbols):
                function.calls.add(called)
            elif second is None and first & 0xFF87 == 0x4780:
                raise VerificationError(f"{name} calls a function by its address, so that its stack has no bound.")
            taken = taken_bytes(first, second, constants)
            if taken is None:
                raise VerificationError(
                    f"{name} moves its stack pointer at {place:#x} by what isn't a constant, so that it has no bound."
                )
            function.frame += taken
            self.remember(place, first, second, constants)
        aliases = {symbol.name for symbol in self.symbols if symbol["st_shndx"] == self.number} - set(found)
        for symbol in self.symbols:
            if symbol.name in aliases and symbol["st_info"]["type"] == "STT_FUNC":
                found[symbol.name] = found[self.function_at((symbol["st_value"] & ~1) - self.base) or ""]
        return found

    def instructions(self) -> Iterator[tuple[int, int, int | None]]:
        """Places of instructions, with one or two halfwords; what lies between them as data is left out."""
        ends = [*(place for place, _ in self.kinds[1:]), len(self.data)]
        for (place, kind), end in zip(self.kinds, ends, strict=True):
            while kind == "$t" and place + 2 <= end:
                first = int.from_bytes(self.data[place : place + 2], "little")
                wide = first >> 11 >= 0b11101
                second = int.from_bytes(self.data[place + 2 : place + 4], "little") if wide else None
                yield place, first, second
                place += 4 if wide else 2

    def called(
        self, place: int, first: int, second: int | None, relocations: Mapping[int, int], symbols: list[Any]
    ) -> str | None:
        """The function that an instruction calls or goes to, by BL or a jump; None if it stays in its own.

        Armv6-M has no other far jump than BL, also within a function.
        """
        if second is None or first >> 11 != 0b11110 or second & 0x9000 != 0x9000:
            return None
        target = place + 4 + _offset(first, second)
        if place in relocations:
            symbol = symbols[relocations[place]]
            if symbol["st_info"]["type"] != "STT_SECTION":
                return str(symbol.name)
            if symbol["st_shndx"] != self.number:
                raise VerificationError(
                    f"{self.function_at(place)} calls a function of another section without a name."
                )
            target = 4 + _offset(first, second)
        elif not 0 <= target < len(self.data):
            return self.outside(target + self.base)
        called = self.function_at(target)
        return None if called == self.function_at(place) and target not in self.starts else called

    def outside(self, address: int) -> str | None:
        """The function of a program that lies in another section."""
        for symbol in self.symbols:
            if symbol["st_info"]["type"] == "STT_FUNC" and symbol["st_value"] & ~1 == address:
                return str(symbol.name)
        return None

    def remember(self, place: int, first: int, second: int | None, constants: dict[int, int]) -> None:
        """Constants that registers hold, as far as they may be added to the stack pointer."""
        if second is None and first >> 11 == 0b01001:  # LDR Rt, [PC, #…]
            at = (place + 4 & ~3) + 4 * (first & 0xFF)
            constants[first >> 8 & 7] = int.from_bytes(self.data[at : at + 4], "little", signed=True)
        elif second is None and first >> 11 == 0b00100:  # MOVS
            constants[first >> 8 & 7] = first & 0xFF
        elif second is not None and first & 0xFBF0 == 0xF240:  # MOVW
            constants[second >> 8 & 15] = (first & 15) << 12 | _immediate12(first, second)
        elif second is not None and first & 0xFBF0 == 0xF2C0:  # MOVT
            register = second >> 8 & 15
            upper = (first & 15) << 12 | _immediate12(first, second)
            constants[register] = upper << 16 | constants.get(register, 0) & 0xFFFF
        elif second is not None and first & 0xFBEF == 0xF04F:  # MOV.W
            constants[second >> 8 & 15] = _expanded(_immediate12(first, second))


def taken_bytes(first: int, second: int | None, constants: Mapping[int, int]) -> int | None:
    """What an instruction takes from the stack pointer; 0 where it gives back, None where that isn't known."""
    if second is None:
        if first & 0xFE00 == 0xB400:  # PUSH
            return 4 * (first & 0x1FF).bit_count()
        if first & 0xFF80 == 0xB080:  # SUB SP, #…
            return 4 * (first & 0x7F)
        if first & 0xFF87 == 0x4485:  # ADD SP, Rm
            added = constants.get(first >> 3 & 15)
            return None if added is None else max(-added, 0)
        return None if first & 0xFF87 == 0x4685 else 0  # MOV SP, Rm
    base, writes_back = first & 15, bool(first & 0x20)
    if first == 0xE92D:  # PUSH.W
        return 4 * second.bit_count()
    if first & 0xFFBF == 0xED2D and second & 0x0E00 == 0x0A00:  # VPUSH, of single or of double registers
        return 4 * (second & 0xFF)
    if first & 0xFF50 == 0xE940 and writes_back and base == SP:  # STRD with SP changed first
        return 0 if first & 0x80 else 4 * (second & 0xFF)
    if first & 0xFE10 == 0xEC00 and writes_back and base == SP:  # other stores of vectors that move it
        return None
    if first & 0xFF9F == 0xF80D and second & 0x0900 == 0x0900:  # STR, STRB, STRH that move it
        return 0 if second & 0x0200 else second & 0xFF
    return _computed(first, second, constants)


def _computed(first: int, second: int, constants: Mapping[int, int]) -> int | None:
    """`taken_bytes` of what computes a new stack pointer, or loads it."""
    base, result = first & 15, second >> 8 & 15
    if first & 0xFFE0 == 0xF380 and second & 0xD000 == 0x8000:  # MSR: MSP and PSP
        return None if second & 0xFF in (8, 9) else 0
    if first & 0xFFF0 in (0xF8D0, 0xF850) and second >> 12 == SP:  # LDR SP, …
        return None
    if second & 0x8000 or result != SP:
        return 0
    if first & 0xFBEF == 0xF1AD:  # SUB.W SP, SP, #…
        return _expanded(_immediate12(first, second))
    if first & 0xFBFF == 0xF2AD:  # SUBW SP, SP, #…
        return _immediate12(first, second)
    if first & 0xFBEF == 0xF10D or first & 0xFBFF == 0xF20D:  # ADD.W, ADDW SP, SP, #…
        return 0
    if first & 0xFFEF == 0xEBAD and second & 0x70F0 == 0:  # SUB.W SP, SP, Rm
        return constants.get(second & 15)
    computes = first & 0xFA00 == 0xF000 or first & 0xFE00 == 0xEA00
    return None if computes and base != 15 else 0


def _offset(first: int, second: int) -> int:
    """How far BL or B.W goes."""
    sign = first >> 10 & 1
    upper, lower = (~((second >> place & 1) ^ sign) & 1 for place in (13, 11))
    value = sign << 24 | upper << 23 | lower << 22 | (first & 0x3FF) << 12 | (second & 0x7FF) << 1
    return value - (sign << 25)


def _immediate12(first: int, second: int) -> int:
    return (first >> 10 & 1) << 11 | (second >> 12 & 7) << 8 | second & 0xFF


def _expanded(immediate: int) -> int:
    """A modified immediate of Thumb."""
    low = immediate & 0xFF
    if immediate >> 10:
        number, shift = 0x80 | immediate & 0x7F, immediate >> 7
        return (number >> shift | number << (32 - shift)) & 0xFFFF_FFFF
    return (low, low << 16 | low, low << 24 | low << 8, low * 0x0101_0101)[immediate >> 8]
