"""A board that isn't there: a register file and a memory, behind them the simulators, for the drivers to run on.

What real hardware does with a wrong program is done here as well, as far as a driver can see it: it never finishes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tvmflow.spec import TvmflowError
from tvmflow.targets.vta import isa, simulate
from tvmflow.targets.vta.check import Core
from tvmflow.targets.vta.config import INSTRUCTION_BYTES, Config, from_json
from tvmflow.targets.vta.cpu import functions_of, library_here
from tvmflow.targets.vta.program import SOURCE, relocate
from tvmflow.targets.vta.semantics import State
from tvmflow.targets.vta.timing import Hardware, time_instructions

PAGE = 4096


class FakeMemory:
    """Contiguous memory of a FakeBoard, as the drivers see it."""

    def __init__(self, board: FakeBoard, start: int, size: int):
        self.data, self.physical = board.memory[start : start + size], board.memory_base + start
        self.flushed = 0

    def flush(self) -> None:
        self.flushed += 1

    def invalidate(self) -> None:
        pass

    def close(self) -> None:
        pass


class FakeBoard:
    """A VTA of `core` and `config` with its registers at `base` and `memory_bytes` of memory at `memory_base`.

    A run ends `delay` looks at the registers after its start. Until then the flag of the run before stays, and forever
    if compute's first instruction waits for a token that never comes, as it does with HLS. `stuck` never ends;
    `misaligned` memory begins that many bytes beyond a page.
    """

    def __init__(
        self,
        config: Config,
        core: Core,
        base: int,
        *,
        memory_base: int = 0x1680_0000,
        memory_bytes: int = 1 << 23,
        delay: int = 3,
        stuck: bool = False,
        misaligned: int = 0,
    ):
        self.config, self.core, self.base = config, core, base
        self.memory_base, self.memory = memory_base, np.zeros(memory_bytes, np.uint8)
        self.delay, self.stuck, self.misaligned = delay, stuck, misaligned
        self.registers: dict[int, int] = {}
        self.launches = self.used = self.cycles = 0
        self._left: int | None = None
        self._done = False
        # Buffers keep what they hold from run to run.
        self._state = State(config=config, dram=self.memory)

    # What a driver uses

    def window(self, base: int) -> FakeWindow:
        """Registers at a physical address."""
        return FakeWindow(self, base)

    def allocate(self, size: int) -> FakeMemory:
        """Contiguous memory, on a page of its own."""
        start = self.used + self.misaligned
        self.used += -(-(size + self.misaligned) // PAGE) * PAGE
        if self.used > self.memory.size:
            raise MemoryError(f"The fake board has no {size} bytes left.")
        return FakeMemory(self, start, size)

    # Registers

    def read(self, address: int) -> int:
        """A register's word. Looking at one is what makes time pass."""
        self._pass()
        offset = address - self.base
        if self.core == "hls":
            busy = self._left is not None
            special = {0x0000: 0 if busy else 4, 0x2018: int(self._done)}
        else:
            special = {0x00: 2 if self._done else 0, 0x04: self.cycles}
        return special.get(offset, self.registers.get(offset, 0))

    def write(self, address: int, value: int) -> None:
        """Write a register; the launch comes with the last start bit that the core needs."""
        offset = address - self.base
        self.registers[offset] = value
        if self.core == "hls":
            starts = {0x0000: 1, 0x1000: 0x81, 0x2000: 0x81, 0x3000: 0x81}
            if offset in starts and all(self.registers.get(start) == wanted for start, wanted in starts.items()):
                self.registers[0x0000] = 0
                self._left = self.delay
        elif offset == 0 and value & 1:
            self._done = False
            self._left = self.delay

    def _pass(self) -> None:
        if self._left is None or self.stuck:
            return
        self._left -= 1
        if self._left <= 0:
            self._left = None
            self.launches += 1
            if self._run():
                self._done = True
            else:
                self._done, self.stuck = self._done and self._waits_at_once(), True

    def _code(self) -> bytes:
        """The instructions that the registers name."""
        count, address = (0x10, 0x18) if self.core == "hls" else (0x08, 0x0C)
        begin = self.registers[address] - self.memory_base
        return self.memory[begin : begin + self.registers[count] * INSTRUCTION_BYTES].tobytes()

    def _waits_at_once(self) -> bool:
        try:
            instructions = isa.decode_program(self._code(), self.config)
        except TvmflowError:
            return False
        first = next(instruction for instruction in instructions if isa.module_of(instruction) == "compute")
        return first.pop_prev or first.pop_next

    def _run(self) -> bool:
        """Execute what the registers say. Whether FINISH was reached."""
        bases = (0x1010, 0x1018, 0x2020, 0x2028, 0x3010) if self.core == "hls" else (0x10, 0x14, 0x18, 0x1C, 0x20)
        if any(self.registers.get(offset, 1) != 0 for offset in bases):
            return False  # every address would be shifted by it
        try:
            instructions = isa.decode_program(self._code(), self.config)
            self.cycles = time_instructions(instructions, self.config, Hardware(core=self.core)).cycles
            moved = relocate(instructions, -self.memory_base, self.config)
            if any(getattr(instruction, "dram_base", 0) < 0 for instruction in moved):
                return False  # an address that no memory is at
            simulate.run(moved, self._state)
        except TvmflowError:  # what a core can't decode, or waits for forever
            return False
        return bool(instructions) and isinstance(instructions[-1], isa.Finish)


class FakeWindow:
    """A block of a FakeBoard's registers."""

    def __init__(self, board: FakeBoard, base: int):
        self._board, self._base = board, base

    def read(self, offset: int) -> int:
        return self._board.read(self._base + offset)

    def write(self, offset: int, value: int) -> None:
        self._board.write(self._base + offset, value)


def rehearsal(layout: Mapping[str, Any], core: Core, base: int) -> dict[str, Any]:
    """A board for which the program is: VTA_HARDWARE=tvmflow.targets.vta.driver.fake:rehearsal of the driver."""
    room = layout["memory_bytes"] + INSTRUCTION_BYTES * layout["instruction_count"] + (1 << 20)
    board = FakeBoard(from_json(layout["configuration"]), core, base, memory_bytes=room)
    return {"window": board.window, "memory": board.allocate, "functions": functions}


def functions(folder: str) -> Callable[[str], Callable[[int], None]]:
    """What a bundle's steps run on the board's processor, compiled for this computer's."""
    return functions_of(library_here((Path(folder) / SOURCE).read_text(encoding="utf-8")))
