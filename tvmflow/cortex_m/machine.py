"""Running a network's library under qemu-system-arm, on a machine with the board's core, by semihosting.

The firmware compares with the expected outputs itself, on the device. A plugin counts executed instructions, function
by function. Neither says anything of time.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tvmflow import toolchain
from tvmflow.cortex_m.options import STACK_BYTES, compiler_options
from tvmflow.spec import MissingDependencyError, Target, TensorSpec, UserError, VerificationError
from tvmflow.verify import tolerance

HERE = Path(__file__).parent
QEMU = "qemu-system-arm"
INSTALL = "`apt-get install qemu-system-arm` (tools/install-system-packages.sh --tests) brings it."
SECONDS_PER_INFERENCE = 60
ELEMENTS = {"int8": "int8_t", "float32": "float"}
"""What networks read and write, in C."""
MIB = 1 << 20


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
    if path := shutil.which(QEMU):
        return path
    raise MissingDependencyError(f"Running microcontroller code here needs {QEMU}, which is not installed: {INSTALL}")


def run(
    library: Path,
    target: Target,
    name: str,
    inputs: np.ndarray,
    outputs: TensorSpec,
    *,
    expected: np.ndarray | None = None,
    counted: bool = False,
) -> Run:
    """Run the network `name` of `library` on inputs N×…, with `counted` under the plugin that counts.

    Inputs are of the outputs' dtype. Raises MissingDependencyError, and VerificationError if the firmware doesn't come
    to its end.
    """
    assert target.mcu is not None
    qemu = find_qemu()
    with tempfile.TemporaryDirectory(prefix="tvmflow-") as scratch:
        folder = Path(scratch)
        size = int(np.prod(outputs.shape))
        defines = {
            "NETWORK": name,
            "ELEMENT": ELEMENTS[outputs.dtype],
            "TOLERANCE": f"{tolerance(outputs.dtype):.9f}f",
            "INPUT_SIZE": inputs[0].size,
            "OUTPUT_SIZE": size,
            "STACK_BYTES": STACK_BYTES,
        }
        firmware = link_firmware(
            folder,
            target,
            [HERE / "run_vectors.c", library],
            [f"-D{macro}={value}" for macro, value in defines.items()],
        )
        inputs.tofile(folder / "input.raw")
        if expected is not None:
            expected.tofile(folder / "expected.raw")
        plugin = ["-plugin", f"{counting_plugin()},out={folder / 'counts'}"] if counted else []
        done = start(qemu, target.mcu.machine, firmware, folder, plugin, SECONDS_PER_INFERENCE * len(inputs))
        said = done.stdout.split() + done.stderr.split()
        numbers = dict(zip(said[-8::2], said[-7::2], strict=False))
        if done.returncode not in (0, 1) or "wrong" not in numbers or int(numbers["inputs"]) != len(inputs):
            last = (done.stderr or done.stdout).strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
            raise VerificationError(f"{library.name} for {target.name} failed under {QEMU}: {last[0]}.")
        return Run(
            outputs=np.fromfile(folder / "output.raw", outputs.dtype).reshape(-1, *outputs.shape[1:]),
            wrong=int(numbers["wrong"]),
            stack_bytes=int(numbers["stack"]),
            instructions=_read_counts(folder / "counts") if counted else {},
        )


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
            [*command, *options, "-kernel", str(firmware)],
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


def counting_plugin() -> Path:
    """The plugin, in the cache, compiled for this computer unless it is there. Raises MissingDependencyError."""
    from tvmflow.targets import TARGETS

    source = HERE / "count_symbols.c"
    linker = toolchain.select_linker(TARGETS["host"])
    key = hashlib.sha256(source.read_bytes() + f"{linker.name} {linker.version}".encode()).hexdigest()[:16]
    plugin = toolchain.cache_folder() / f"count_symbols-{key}.so"
    if plugin.exists():
        return plugin
    try:
        plugin.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="plugin-", dir=plugin.parent) as scratch:
            made = Path(scratch, plugin.name)
            toolchain.link(linker, made, [source], ("-O2", "-shared", "-fPIC"))
            made.replace(plugin)
    except (UserError, OSError) as error:
        raise MissingDependencyError(f"The plugin that counts instructions can't be made: {error}") from error
    return plugin


def _read_counts(path: Path) -> dict[str, int]:
    if not path.exists():
        raise MissingDependencyError(f"This {QEMU} runs no plugins of version 1, so nothing was counted.")
    lines = [line.split(maxsplit=1) for line in path.read_text().splitlines()]
    return {name: int(count) for count, name in lines}
