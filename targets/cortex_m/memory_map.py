"""The linker script of a real board: where the chip has memory, and where in it a network lies best."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tvmflow.spec import Target
from tvmflow.targets.cortex_m.facts import Mcu

FLASH, EXTERNAL_FLASH, RAM, COUPLED = "FLASH", "EXTERNAL_FLASH", "RAM", "DTCM"
"""Regions: what the chip starts from, a second flash outside of it, the main RAM, and data RAM coupled to the core."""


@dataclass(frozen=True, kw_only=True)
class Region:
    """`length` bytes from the address `origin` on."""

    origin: int
    length: int


@dataclass(frozen=True, kw_only=True)
class Placed:
    """The memories of a board by name, and in which of them weights and arena lie."""

    regions: Mapping[str, Region]
    weights: str
    arena: str


def fits_inside(board: Mcu, flash_bytes: int) -> bool:
    """Whether the chip's own flash has room for so much, if it has one."""
    return not board.external_flash or flash_bytes <= board.inner_flash_bytes


def place(board: Mcu, flash_bytes: int, arena_bytes: int) -> Placed | None:
    """Where weights and code of `flash_bytes`, and the arena, lie; None if nobody said where the board has memory.

    What fits the chip's own flash stays there, and an arena that fits the coupled memory lies in that.
    """
    if not board.has_map:
        return None
    outer = Region(origin=board.flash_origin, length=board.flash_bytes)
    regions = {FLASH: outer}
    weights = FLASH
    if board.inner_flash_bytes:
        inner = Region(origin=board.inner_flash_origin, length=board.inner_flash_bytes)
        regions = {FLASH: inner, EXTERNAL_FLASH: outer}
        weights = FLASH if fits_inside(board, flash_bytes) else EXTERNAL_FLASH
    started = regions[FLASH]
    regions[FLASH] = Region(origin=started.origin + board.boot_bytes, length=started.length - board.boot_bytes)
    regions[RAM] = Region(origin=board.ram_origin, length=board.ram_bytes)
    regions |= {name: Region(origin=origin, length=length) for name, (origin, length) in board.other_memory.items()}
    coupled = COUPLED in board.other_memory and arena_bytes <= regions[COUPLED].length
    return Placed(regions=regions, weights=weights, arena=COUPLED if coupled else RAM)


def script(target: Target, placed: Placed, name: str) -> str:
    """For GNU ld and lld. The names of sections and symbols are those of CMSIS' and ST's start-up code."""
    board = Mcu.of(target)
    unverified = [key for key in board.unverified if key.endswith(("_bytes", "_origin", "_memory"))]
    doubts = f"\n * Not looked up there: {', '.join(unverified)}." if unverified else ""
    boot = ""
    if board.boot_bytes:
        boot = f"\n * The first {board.boot_bytes} bytes of the flash are for its boot loader and come from its SDK."
    listed = "\n".join(
        f"  {region} ({'rx' if 'FLASH' in region else 'rwx'}) : "
        f"ORIGIN = {span.origin:#010x}, LENGTH = {span.length // 1024}K{_rest(span.length)}"
        for region, span in placed.regions.items()
    )
    return f"""/* Memory of {target.name}: {target.description}.
 * Sources: {target.datasheet}.{doubts}{boot}
 *
 * {name}'s constants lie in {placed.weights}, its arena in {placed.arena}. The arena needs no first value. In a linker
 * script of your own, the two sections that are named after {name} come before the general ones.
 */
MEMORY {{
{listed}
}}
SECTIONS {{
  .vectors : {{ KEEP(*(.vectors .isr_vector)) }} > FLASH
  .{name}_weights : ALIGN(16) {{ *(.rodata.{name}_weights) }} > {placed.weights}
  .{name}_arena (NOLOAD) : ALIGN(16) {{ *(.bss.{name}_arena) }} > {placed.arena}
  .text : {{ *(.text .text.*) KEEP(*(.init)) KEEP(*(.fini)) }} > FLASH
  .rodata : {{ *(.rodata .rodata.*) }} > FLASH
  .ARM.extab : {{ *(.ARM.extab*) }} > FLASH
  .ARM.exidx : {{ *(.ARM.exidx*) }} > FLASH
  .data : {{
    _sdata = .; data_begin = .;
    *(.data .data.*)
    . = ALIGN(4); _edata = .; data_end = .;
  }} > RAM AT > FLASH
  _sidata = LOADADDR(.data); data_load = LOADADDR(.data);
  .bss (NOLOAD) : {{
    _sbss = .; __bss_start__ = .; bss_begin = .;
    *(.bss .bss.* COMMON)
    . = ALIGN(8); _ebss = .; __bss_end__ = .; bss_end = .;
    end = .; _end = .;
  }} > RAM
  _estack = ORIGIN(RAM) + LENGTH(RAM); stack_top = _estack;
}}
"""


def _rest(length: int) -> str:
    """What is left of a length in KiB, for a script."""
    return f" + {length % 1024}" if length % 1024 else ""
