"""Running a network's library under qemu-system-arm, on a machine with the board's core, by semihosting.

The firmware compares with the expected outputs itself, on the device. A plugin counts executed instructions, function
by function. Neither says anything of time.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from elftools.elf.elffile import ELFFile

from tvmflow.measure import emulate
from tvmflow.measure.cycles import Traced, disassemble, read_trace, split
from tvmflow.spec import MissingDependencyError, Target, TensorSpec, VerificationError
from tvmflow.system import children, toolchain
from tvmflow.targets.cortex_m.options import STACK_BYTES, compiler_options

HERE = Path(__file__).parent
COUNTING_PLUGIN = HERE / "count_symbols.c"
QEMU = "qemu-system-arm"
PACKAGE = "qemu-system-arm"
SECONDS_PER_INFERENCE = 60
ELEMENTS = {"int8": "int8_t", "float32": "float"}
"""What networks read and write, in C."""
MIB = 1 << 20
HELPERS = ("memcpy", "memset")
"""What kernels call that is no part of the library."""


@dataclass(frozen=True, kw_only=True)
class Region:
    origin: int
    length: int


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where qemu's machine has memory: what it starts from, what stands for the flash with the weights, and RAM."""

    code: Region
    weights: Region | None  # None: with the code
    ram: Region


MACHINES: dict[str, Machine] = {
    # The PSRAM of these two stands for an external flash.
    "mps2-an386": Machine(
        code=Region(origin=0x0, length=4 * MIB),
        weights=Region(origin=0x2100_0000, length=16 * MIB),
        ram=Region(origin=0x2000_0000, length=4 * MIB),
    ),
    "mps2-an500": Machine(
        code=Region(origin=0x0, length=4 * MIB),
        weights=Region(origin=0x6000_0000, length=16 * MIB),
        ram=Region(origin=0x2000_0000, length=4 * MIB),
    ),
    # These start in the secure state, in which memory lies 0x1000_0000 higher.
    "mps2-an505": Machine(
        code=Region(origin=0x1000_0000, length=4 * MIB), weights=None, ram=Region(origin=0x3800_0000, length=2 * MIB)
    ),
    # The DDR memory does.
    "mps3-an547": Machine(
        code=Region(origin=0x1000_0000, length=MIB // 2),
        weights=Region(origin=0x7000_0000, length=16 * MIB),
        ram=Region(origin=0x3000_0000, length=MIB // 2),
    ),
}
"""By `qemu -machine`, as its `info mtree` lists them."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """Outputs, in the order of the inputs; how deep the stack became; instructions by function, if counted."""

    outputs: np.ndarray
    wrong: int
    stack_bytes: int
    instructions: Mapping[str, int]


def find_qemu() -> str:
    """Raises MissingDependencyError."""
    if path := children.which(QEMU):
        return path
    raise MissingDependencyError(f"Running microcontroller code here needs {QEMU}, which is not installed", [PACKAGE])


def run(
    library: Path,
    target: Target,
    name: str,
    inputs: np.ndarray,
    outputs: TensorSpec,
    *,
    expected: np.ndarray | None = None,
    allowed: Sequence[float] = (),
    counted: bool = False,
) -> Run:
    """Run the network `name` of `library` on inputs N×…, with `counted` under the plugin that counts.

    Inputs are of the outputs' dtype. Where outputs are `expected`, each vector's may differ by as much as is `allowed`
    of it, by default by nothing. Raises MissingDependencyError, and VerificationError if the firmware doesn't come
    to its end.
    """
    with tempfile.TemporaryDirectory(prefix="tvmflow-") as scratch:
        folder = Path(scratch)
        if expected is not None:
            expected.tofile(folder / "expected.raw")
            np.array(allowed or [0.0] * len(expected), np.float32).tofile(folder / "allowed.raw")
        plugin = (COUNTING_PLUGIN, folder / "counts") if counted else None
        _, said = _run_vectors(folder, library, target, name, inputs, outputs, plugin)
        return Run(
            outputs=np.fromfile(folder / "output.raw", outputs.dtype).reshape(-1, *outputs.shape[1:]),
            wrong=said["wrong"],
            stack_bytes=said["stack"],
            instructions=_read_counts(folder / "counts") if counted else {},
        )


def trace(
    library: Path, target: Target, name: str, inputs: np.ndarray, output: TensorSpec, kernels: Sequence[str]
) -> Traced:
    """What one inference of the network `name` executes, kernel by kernel; `inputs` is 1×…. Raises as `run` does."""
    with tempfile.TemporaryDirectory(prefix="tvmflow-") as scratch:
        folder = Path(scratch)
        plugin = (emulate.TRACING_PLUGIN, folder / "run")
        firmware, _ = _run_vectors(folder, library, target, name, inputs, output, plugin)
        text = disassemble(firmware, f"--triple={target.tvm['mtriple']}", f"--mcpu={target.tvm['mcpu']}")
        found = read_trace(folder / "run")
        functions = _functions(firmware)
    network = [span for function, span in functions.items() if function.startswith(f"{name}_")]
    (inside,) = np.nonzero(np.isin(found.order, [n for n, start in enumerate(found.starts) if _in(network, start)]))
    found = replace(found, order=found.order[: inside[-1] + 1])  # what follows is the firmware's
    names = [*(f"{name}_{kernel}" for kernel in kernels), *(helper for helper in HELPERS if helper in functions)]
    own = [functions[function] for function in names]
    text = {address: line for address, line in text.items() if _in(own, address)}
    entries = {functions[f"{name}_{kernel}"].start: kernel for kernel in kernels}
    return Traced(trace=found, calls=split(found, entries, kernels), text=text)


def _in(spans: Sequence[range], address: int) -> bool:
    return any(address in span for span in spans)


def _functions(firmware: Path) -> dict[str, range]:
    """The addresses of each function. The lowest bit of a symbol's says that its code is Thumb."""
    with firmware.open("rb") as file:
        table: Any = ELFFile(file).get_section_by_name(".symtab")
        found = {symbol.name: symbol for symbol in table.iter_symbols() if symbol["st_info"]["type"] == "STT_FUNC"}
    starts = {name: symbol["st_value"] & ~1 for name, symbol in found.items()}
    return {name: range(start, start + found[name]["st_size"]) for name, start in starts.items()}


def _run_vectors(
    folder: Path,
    library: Path,
    target: Target,
    name: str,
    inputs: np.ndarray,
    outputs: TensorSpec,
    plugin: tuple[Path, Path] | None,
) -> tuple[Path, dict[str, int]]:
    """Link the firmware in `folder` and run it there, under a plugin that writes to a path. What it is and says.

    Raises MissingDependencyError, and VerificationError if it doesn't come to its end.
    """
    assert target.mcu is not None
    qemu = find_qemu()
    defines = {
        "NETWORK": name,
        "ELEMENT": ELEMENTS[outputs.dtype],
        "INPUT_SIZE": inputs[0].size,
        "OUTPUT_SIZE": int(np.prod(outputs.shape)),
        "STACK_BYTES": STACK_BYTES,
    }
    sources = [HERE / "run_vectors.c", library]
    firmware = link_firmware(folder, target, sources, [f"-D{macro}={value}" for macro, value in defines.items()])
    inputs.tofile(folder / "input.raw")
    options = ["-plugin", f"{emulate.compile_plugin(plugin[0])},out={plugin[1]}"] if plugin else []
    done = start(qemu, target.mcu.machine, firmware, folder, options, SECONDS_PER_INFERENCE * len(inputs))
    said = done.stdout.split() + done.stderr.split()
    numbers = dict(zip(said[-8::2], said[-7::2], strict=False))
    if done.returncode not in (0, 1) or "wrong" not in numbers or int(numbers["inputs"]) != len(inputs):
        last = (done.stderr or done.stdout).strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise VerificationError(f"{library.name} for {target.name} failed under {QEMU}: {last[0]}.")
    return firmware, {key: int(number) for key, number in numbers.items()}


def link_firmware(folder: Path, target: Target, sources: Sequence[Path], options: Sequence[str] = ()) -> Path:
    """A program for the machine of `target`, with startup.c. Raises UserError if it doesn't fit there."""
    assert target.mcu is not None
    linker = toolchain.select_linker(target)
    script = folder / "link.ld"
    script.write_text(linker_script(MACHINES[target.mcu.machine]))
    firmware = folder / "firmware.elf"
    language = ("-std=gnu99", "-O2", "-g0", "-Wall", "-Wextra", f"-I{HERE}")
    linking = ("-nostdlib", f"-Wl,-T,{script}", "-Wl,--gc-sections")
    fixed = (*compiler_options(target, linker), *language, *linking)
    toolchain.link(linker, firmware, [*sources, HERE / "startup.c"], (*fixed, *options))
    return firmware


def start(
    qemu: str, machine: str, firmware: Path, folder: Path, options: Sequence[str], seconds: float
) -> subprocess.CompletedProcess[str]:
    """Run a firmware to its end, in `folder`, where it finds its files. Raises VerificationError if it doesn't end."""
    semihosting = ["-semihosting-config", "enable=on,target=native"]
    command = [qemu, "-machine", machine, "-nographic", "-monitor", "none", "-serial", "none", *semihosting]
    try:
        return subprocess.run(
            children.ending_with_us([*command, *options, "-kernel", str(firmware)]),
            capture_output=True,
            text=True,
            cwd=folder,
            timeout=seconds,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        raise VerificationError(f"The firmware for {machine} was stopped: it wasn't done in {seconds:g} s.") from None
    except OSError as error:
        raise MissingDependencyError(f"{qemu} can't be run: {error}.") from error


def linker_script(machine: Machine) -> str:
    """For GNU ld and lld."""
    regions = {"CODE": machine.code, "RAM": machine.ram, **({"WEIGHTS": machine.weights} if machine.weights else {})}
    listed = "\n".join(
        f"  {name} (rwx) : ORIGIN = {region.origin:#x}, LENGTH = {region.length:#x}" for name, region in regions.items()
    )
    constants = "WEIGHTS" if machine.weights else "CODE"
    return f"""ENTRY(vectors)
MEMORY {{
{listed}
}}
SECTIONS {{
  .text : {{ KEEP(*(.vectors)) *(.text .text.*) }} > CODE
  .rodata : {{ *(.rodata .rodata.*) }} > {constants}
  .data : {{ data_begin = .; *(.data .data.*) . = ALIGN(4); data_end = .; }} > RAM AT > CODE
  data_load = LOADADDR(.data);
  .bss (NOLOAD) : {{ bss_begin = .; *(.bss .bss.* COMMON) . = ALIGN(8); bss_end = .; }} > RAM
  stack_top = ORIGIN(RAM) + LENGTH(RAM);
  /DISCARD/ : {{ *(.ARM.exidx* .ARM.extab* .comment) }}
}}
"""


def _read_counts(path: Path) -> dict[str, int]:
    if not path.exists():
        raise MissingDependencyError(f"This {QEMU} runs no plugins of version 1, so nothing was counted.")
    lines = [line.split(maxsplit=1) for line in path.read_text().splitlines()]
    return {name: int(count) for count, name in lines}
