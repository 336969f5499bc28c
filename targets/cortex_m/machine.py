"""Running a network's library under qemu-system-arm, on a machine with the board's core, by semihosting.

The firmware compares with the expected outputs itself, on the device. A plugin counts executed instructions, function
by function. Neither says anything of time.
"""

from __future__ import annotations

import math
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
from tvmflow.network.agreement import Arrays
from tvmflow.spec import MissingDependencyError, Target, TensorSpec, VerificationError
from tvmflow.system import children, toolchain
from tvmflow.targets.cortex_m.boards import EMULATOR
from tvmflow.targets.cortex_m.facts import Mcu
from tvmflow.targets.cortex_m.memory_map import Region
from tvmflow.targets.cortex_m.options import STACK_BYTES, arithmetic_library, compiler_options
from tvmflow.targets.cortex_m.stack import stack_bound

HERE = Path(__file__).parent
COUNTING_PLUGIN = HERE / "count_symbols.c"
QEMU, PACKAGE = EMULATOR
SECONDS_PER_INFERENCE = 60
ELEMENTS = {"int8": "int8_t", "uint8": "uint8_t", "float32": "float"}
"""What networks read and write, in C."""
KINDS = {"int8": "INT8", "uint8": "UINT8", "float32": "FLOAT32"}
"""What agrees.h calls these."""
BEYOND_THE_BOUND = 256
"""Bytes of the stack that are looked at below the bound."""
MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where qemu's machine has memory: what it starts from, what stands for the flash with the weights, and RAM.

    `options` are those of qemu that make it so.
    """

    code: Region
    weights: Region | None  # None: with the code
    ram: Region
    options: tuple[str, ...] = ()


MACHINES: dict[str, Machine] = {
    # A chip with as much memory as the largest that are like it: its own are 256 KiB of flash and 16 KiB of RAM.
    "microbit": Machine(
        code=Region(origin=0x0, length=16 * MIB),
        weights=None,
        ram=Region(origin=0x2000_0000, length=4 * MIB),
        options=(
            *("-global", f"nrf51-soc.flash-size={16 * MIB}"),
            *("-global", f"nrf51-soc.sram-size={4 * MIB}"),
        ),
    ),
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
    """Outputs of each vector, how many of them were wrong, how deep the stack became, instructions by function."""

    outputs: list[Arrays]
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
    inputs: Sequence[Arrays],
    outputs: Sequence[TensorSpec],
    *,
    expected: Sequence[Arrays] | None = None,
    allowed: Sequence[Sequence[float]] = (),
    counted: bool = False,
    kept: Sequence[tuple[int, int]] = (),
) -> Run:
    """Run the network `name` of `library` on the inputs of each vector, with `counted` under the plugin that counts.

    `kept` are pairs of an input and the output of the run before that the device puts there at all runs but the first.
    Where outputs are `expected`, each may differ by as much as is `allowed` of it, by default by nothing. Raises
    MissingDependencyError, and VerificationError if the firmware doesn't come to its end.
    """
    with tempfile.TemporaryDirectory(prefix="tvmflow-") as scratch:
        folder = Path(scratch)
        if expected is not None:
            (folder / "expected.raw").write_bytes(_bytes(expected))
            np.array(allowed or [[0.0] * len(outputs)] * len(expected), np.float32).tofile(folder / "allowed.raw")
        plugin = (COUNTING_PLUGIN, f"out={folder / 'counts'},of={name}_") if counted else None
        _, said = _run_vectors(folder, library, target, name, inputs, outputs, plugin, kept)
        return Run(
            outputs=_arrays((folder / "output.raw").read_bytes(), outputs),
            wrong=said["wrong"],
            stack_bytes=said["stack"],
            instructions=_read_counts(folder / "counts") if counted else {},
        )


def _bytes(vectors: Sequence[Arrays]) -> bytes:
    """One tensor of one vector after the other."""
    return b"".join(array.tobytes() for arrays in vectors for array in arrays)


def _arrays(found: bytes, specs: Sequence[TensorSpec]) -> list[Arrays]:
    """The tensors of each vector, written one after the other."""
    vectors, at = [], 0
    while at < len(found):
        arrays = []
        for spec in specs:
            count = math.prod(spec.shape)
            arrays.append(np.frombuffer(found, spec.dtype, count, at).reshape(spec.shape))
            at += arrays[-1].nbytes
        vectors.append(tuple(arrays))
    return vectors


def trace(
    library: Path, target: Target, name: str, inputs: Arrays, outputs: Sequence[TensorSpec], kernels: Sequence[str]
) -> Traced:
    """What one inference of the network `name` executes, kernel by kernel. Raises as `run` does."""
    with tempfile.TemporaryDirectory(prefix="tvmflow-") as scratch:
        folder = Path(scratch)
        plugin = (emulate.TRACING_PLUGIN, f"out={folder / 'run'}")
        firmware, _ = _run_vectors(folder, library, target, name, [inputs], outputs, plugin)
        text = disassemble(firmware, f"--triple={target.tvm['mtriple']}", f"--mcpu={target.tvm['mcpu']}")
        found = read_trace(folder / "run")
        functions = functions_of(firmware)
    network = [span for function, span in functions.items() if function.startswith(f"{name}_")]
    (inside,) = np.nonzero(np.isin(found.order, [n for n, start in enumerate(found.starts) if _in(network, start)]))
    found = replace(found, order=found.order[: inside[-1] + 1])  # what follows is the firmware's
    own = [span for function, span in functions.items() if function not in (f"{name}_run", f"{name}_run_in")]
    text = {address: line for address, line in text.items() if _in(own, address)}
    entries = {functions[f"{name}_{kernel}"].start: kernel for kernel in kernels}
    return Traced(trace=found, calls=split(found, entries, kernels), text=text)


def _in(spans: Sequence[range], address: int) -> bool:
    return any(address in span for span in spans)


def functions_of(firmware: Path) -> dict[str, range]:
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
    inputs: Sequence[Arrays],
    outputs: Sequence[TensorSpec],
    plugin: tuple[Path, str] | None,
    kept: Sequence[tuple[int, int]] = (),
) -> tuple[Path, dict[str, int]]:
    """Link the firmware in `folder` and run it there, under a plugin with its options. What it is and says.

    Raises MissingDependencyError, and VerificationError if it doesn't come to its end.
    """
    qemu = find_qemu()
    firmware = prepare(folder, library, target, name, inputs, outputs, kept)
    options = ["-plugin", f"{emulate.compile_plugin(plugin[0])},{plugin[1]}"] if plugin else []
    done = start(qemu, Mcu.of(target).machine, firmware, folder, options, SECONDS_PER_INFERENCE * len(inputs))
    said = done.stdout.split() + done.stderr.split()
    numbers = dict(zip(said[-8::2], said[-7::2], strict=False))
    if done.returncode not in (0, 1) or "wrong" not in numbers or int(numbers["inputs"]) != len(inputs):
        last = (done.stderr or done.stdout).strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise VerificationError(f"{library.name} for {target.name} failed under {QEMU}: {last[0]}.")
    return firmware, {key: int(number) for key, number in numbers.items()}


def prepare(
    folder: Path,
    library: Path,
    target: Target,
    name: str,
    inputs: Sequence[Arrays],
    outputs: Sequence[TensorSpec],
    kept: Sequence[tuple[int, int]] = (),
) -> Path:
    """The firmware that runs a network on these inputs, in `folder`, and what it reads there."""
    (folder / "tensors.h").write_text(_tensors(name, inputs[0], outputs, kept))
    (folder / "input.raw").write_bytes(_bytes(inputs))
    sources = [HERE / "run_vectors.c", library]
    painted = max(STACK_BYTES, stack_bound(library, f"{name}_run").bytes + BEYOND_THE_BOUND)
    return link_firmware(folder, target, sources, [f"-I{folder}", f"-DSTACK_BYTES={painted}"])


def _tensors(name: str, inputs: Arrays, outputs: Sequence[TensorSpec], kept: Sequence[tuple[int, int]]) -> str:
    """For run_vectors.c: a buffer for each tensor, their tables, the call of the network, and what is kept."""
    types = [(ELEMENTS[str(array.dtype)], array.size) for array in inputs]
    given = [f"const {kind} *" for kind, _ in types] + [f"{ELEMENTS[spec.dtype]} *" for spec in outputs]
    lines = [f"void {name}_run({', '.join(given)});", ""]
    lines += [f"static {kind} input{number}[{count}];" for number, (kind, count) in enumerate(types)]
    for number, spec in enumerate(outputs):
        kind, count = ELEMENTS[spec.dtype], math.prod(spec.shape)
        lines.append(f"static {kind} output{number}[{count}], expected{number}[{count}];")
    inside = [f"{{input{number}, 0, sizeof input{number}, 0, 0}}" for number in range(len(inputs))]
    outside = [
        f"{{output{number}, expected{number}, sizeof output{number}, {KINDS[spec.dtype]}, {math.prod(spec.shape)}}}"
        for number, spec in enumerate(outputs)
    ]
    names = [*(f"input{number}" for number in range(len(inputs))), *(f"output{n}" for n in range(len(outputs)))]
    copies = [f"memcpy(input{before}, output{after}, sizeof input{before});" for before, after in kept]
    lines += [
        f"static const struct tensor input_tensors[{len(inside)}] = {{{', '.join(inside)}}};",
        f"static const struct tensor output_tensors[{len(outside)}] = {{{', '.join(outside)}}};",
        f"#define RUN_NETWORK() {name}_run({', '.join(names)})",
        f"#define KEEP_STATE() {{ {' '.join(copies)} }}",
        f"enum {{ INPUTS = {len(inside)}, OUTPUTS = {len(outside)} }};",
        "",
    ]
    return "\n".join(lines)


def link_firmware(
    folder: Path, target: Target, sources: Sequence[Path], options: Sequence[str] = (), memory: str = ""
) -> Path:
    """A program with startup.c for the machine of `target`, or for the `memory` of a linker script.

    Raises UserError if it doesn't fit there.
    """
    linker = toolchain.select_linker(target)
    script = folder / "link.ld"
    script.write_text(memory or linker_script(MACHINES[Mcu.of(target).machine]))
    firmware = folder / "firmware.elf"
    language = ("-std=gnu99", "-O2", "-g0", "-Wall", "-Wextra", f"-I{HERE}")
    linking = ("-nostdlib", f"-Wl,-T,{script}", "-Wl,--gc-sections")
    fixed = (*compiler_options(target, linker), *language, *linking)
    toolchain.link(linker, firmware, [*sources, HERE / "startup.c", *arithmetic_library(linker)], (*fixed, *options))
    return firmware


def start(
    qemu: str, machine: str, firmware: Path, folder: Path, options: Sequence[str], seconds: float
) -> subprocess.CompletedProcess[str]:
    """Run a firmware to its end, in `folder`, where it finds its files. Raises VerificationError if it doesn't end."""
    try:
        return subprocess.run(
            children.ending_with_us([*command(qemu, machine, firmware), *options]),
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


def command(qemu: str, machine: str, firmware: Path) -> list[str]:
    """Of a machine that starts a firmware, which finds the files of the folder that qemu is started in."""
    semihosting = ["-semihosting-config", "enable=on,target=native"]
    nothing = ["-nographic", "-monitor", "none", "-serial", "none"]
    return [qemu, "-machine", machine, *MACHINES[machine].options, *nothing, *semihosting, "-kernel", str(firmware)]


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
