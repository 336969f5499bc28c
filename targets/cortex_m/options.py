"""What compiling for a microcontroller takes, wherever it is done."""

from __future__ import annotations

from tvmflow.spec import Target
from tvmflow.system.toolchain import Linker

STACK_BYTES = 2048
"""What the calls are taken to use of the stack until there is an object file whose bound is known."""


def compiler_options(target: Target, linker: Linker) -> tuple[str, ...]:
    """What tells a compiler which core it compiles for, without an operating system."""
    cpu, floating = target.tvm["mcpu"], target.tvm["mfloat-abi"]
    if linker.name == "zig":
        fpu = "+vfp4d16sp" if floating == "hard" else ""  # zig takes cores to have no FPU
        return (f"-mcpu={cpu.replace('-', '_')}{fpu}", "-ffreestanding")
    return (f"-mcpu={cpu}", "-mthumb", f"-mfloat-abi={floating}", "-ffreestanding")


def arithmetic_library(linker: Linker) -> tuple[str, ...]:
    """What to link last: the compiler's own functions for what a core has no instruction for."""
    return ("-lcompiler_rt",) if linker.name == "zig" else ("-lgcc",)
