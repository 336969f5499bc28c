"""What compiling for a microcontroller takes, wherever it is done."""

from __future__ import annotations

from tvmflow.spec import Target
from tvmflow.system.toolchain import Linker

STACK_BYTES = 2048
"""What the calls may use of the stack; the firmware under emulation measures it."""


def compiler_options(target: Target, linker: Linker) -> tuple[str, ...]:
    """What tells a compiler which core it compiles for, without an operating system."""
    cpu = target.tvm["mcpu"]
    if linker.name == "zig":
        return (f"-mcpu={cpu.replace('-', '_')}+vfp4d16sp", "-ffreestanding")  # zig takes cores to have no FPU
    return (f"-mcpu={cpu}", "-mthumb", "-mfloat-abi=hard", "-ffreestanding")
