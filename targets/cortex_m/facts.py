"""The facts of a microcontroller."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from tvmflow.spec import Facts, UserError


@dataclass(frozen=True, kw_only=True)
class Mcu(Facts):
    """What a microcontroller has: `ram_bytes` in one piece, `flash_bytes` that it executes from, inside or outside.

    `inner_flash_bytes` is what the chip has inside besides an `external_flash`: the faster place for what fits there.
    The three begin at the addresses `ram_origin`, `flash_origin` and `inner_flash_origin`, all 0 where the map isn't
    known; the first `boot_bytes` of what the chip starts from belong to its boot loader. `other_memory` has name →
    [origin, bytes] of RAM besides, such as what is coupled tightly to the core. `core` is what its instructions can, of
    `tvmflow.schedules.cortex_m.CORES`. `machine` is the model of qemu-system-arm with the same core. `unverified` names
    figures that were not looked up in the data sheet.
    """

    NAME: ClassVar[str] = "mcu"

    core: str
    flash_bytes: int
    ram_bytes: int
    machine: str
    external_flash: bool = False
    inner_flash_bytes: int = 0
    flash_origin: int = 0
    ram_origin: int = 0
    inner_flash_origin: int = 0
    boot_bytes: int = 0
    other_memory: Mapping[str, Any] = field(default_factory=dict)
    unverified: tuple[str, ...] = ()

    def check(self, board: str) -> None:
        """Raise UserError where `other_memory` has something else than regions."""
        for name, region in self.other_memory.items():
            whole = isinstance(region, list | tuple) and len(region) == 2 and all(type(part) is int for part in region)
            if not whole or not name.isidentifier():
                raise UserError(f"{board} gives mcu.other_memory.{name} as {region}, where [origin, bytes] belongs.")

    @property
    def room_bytes(self) -> int:
        """What of the flash is there for a network: the boot loader's part is in the chip's own, if it has one."""
        return self.flash_bytes - (0 if self.inner_flash_bytes else self.boot_bytes)

    @property
    def has_map(self) -> bool:
        """Whether it is known at which addresses the memories begin. No chip has its RAM at 0."""
        return self.ram_origin > 0
