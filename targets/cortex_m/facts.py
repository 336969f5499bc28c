"""The facts of a microcontroller."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tvmflow.spec import Facts


@dataclass(frozen=True, kw_only=True)
class Mcu(Facts):
    """What a microcontroller has: `ram_bytes` in one piece, `flash_bytes` that it executes from, inside or outside.

    `inner_flash_bytes` is what the chip has inside besides an `external_flash`: the faster place for what fits there.
    `core` is what its instructions can, of `tvmflow.schedules.cortex_m.CORES`. `machine` is the model of
    qemu-system-arm with the same core. `unverified` names figures that were not looked up in the data sheet.
    """

    NAME: ClassVar[str] = "mcu"

    core: str
    flash_bytes: int
    ram_bytes: int
    machine: str
    external_flash: bool = False
    inner_flash_bytes: int = 0
    unverified: tuple[str, ...] = ()
