"""Whether a network fits a microcontroller, said with what takes the room."""

from __future__ import annotations

from pathlib import Path

from tvmflow.spec import Program, Target, UserError
from tvmflow.system import toolchain
from tvmflow.targets.cortex_m.facts import Mcu
from tvmflow.targets.cortex_m.options import STACK_BYTES
from tvmflow.targets.cortex_m.stack import Bound

CODE_BYTES_OF_A_KERNEL = 4096
"""What a kernel takes before it is compiled, by a guess on the safe side: those of the paper's network take 2,900."""


def check_fit(
    program: Program, target: Target, library: Path | None = None, stack: Bound | None = None
) -> dict[str, int]:
    """Bytes of flash and RAM by what takes them; code and stack are guessed until there is a `library` with its bound.

    Raises UserError with all figures if there is less on the board.
    """
    board = Mcu.of(target)
    weights, arena = program.memory["weights_bytes"], program.memory["activations_bytes"]
    code = toolchain.section_bytes(library)["code_bytes"] if library else CODE_BYTES_OF_A_KERNEL * len(program.layers)
    depth = stack.bytes if stack else STACK_BYTES
    memory = {
        **program.memory,
        "code_bytes": code,
        "stack_bytes": depth,
        "flash_bytes": weights + code,
        "flash_available_bytes": board.room_bytes,
        "ram_bytes": arena + depth,
        "ram_available_bytes": board.ram_bytes,
        "library_bytes": library.stat().st_size if library else 0,
    }
    about = "" if library else "about "
    if memory["flash_bytes"] > board.room_bytes:
        raise UserError(
            f"{program.name} doesn't fit the flash of {target.name}: it needs {_kib(weights)} for weights and "
            f"{about}{_kib(code)} for code, {_kib(memory['flash_bytes'])} in all, and there are "
            f"{_kib(board.room_bytes)}."
        )
    if memory["ram_bytes"] > board.ram_bytes:
        raise UserError(
            f"{program.name} doesn't fit the RAM of {target.name}: it needs {_kib(arena)} for the arena of activations "
            f"and {_kib(depth)} of stack, {_kib(memory['ram_bytes'])} in all, and there are "
            f"{_kib(board.ram_bytes)} in one piece."
        )
    return memory


def _kib(count: int) -> str:
    return f"{count / 1024:,.0f} KiB"
