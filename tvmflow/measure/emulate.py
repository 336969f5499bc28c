"""Running code for an ARM board on this computer, under qemu-user, to see that it computes the right thing.

For 64-bit ARM, TVM's own runtime for the board runs the network from a small C program, `emulated_runner.c`, that
stands on the library which devices without Python get (`tvmflow.measure.device`). For 32-bit ARM TVM publishes no
runtime: there the kernels alone are emulated, and TVM's virtual machine for this computer calls them, see
`emulated_kernels`. Time under an emulator says nothing about the board: no latency comes from here.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from tvmflow.measure import device, memory
from tvmflow.measure.cycles import Traced, disassemble, read_trace, split
from tvmflow.spec import MissingDependencyError, Target, TensorSpec, UserError, VerificationError
from tvmflow.system import cache, children, runtime, toolchain
from tvmflow.system.tensors import BFLOAT16

if TYPE_CHECKING:
    from tvmflow.spec import Built


@dataclass(frozen=True, kw_only=True)
class Emulator:
    """What running code of one kind of ARM takes.

    `commands` are qemu's by preference, `packages` Debian's names of all that has to be installed, `libraries` what has
    to be under `root`; `sources` are the C program that runs there, linked for `triple`. It runs `whole` networks or,
    if TVM publishes no runtime, kernels alone.
    """

    machine: str
    commands: tuple[str, ...]
    packages: tuple[str, ...]
    root: Path
    libraries: tuple[str, ...]
    sources: tuple[Path, ...]
    triple: str
    whole: bool


AARCH64 = Emulator(
    machine="64-bit ARM",
    commands=("qemu-aarch64-static", "qemu-aarch64"),
    packages=("qemu-user-static", "libc6-arm64-cross", "libstdc++6-arm64-cross"),
    root=Path("/usr/aarch64-linux-gnu"),
    libraries=("ld-linux-aarch64.so.1", "libc.so.6", "libstdc++.so.6"),
    sources=(Path(__file__).with_name("emulated_runner.c"), device.HERE / "tvmflow.c"),
    triple="aarch64-linux-gnu.2.28",
    whole=True,
)

ARM = Emulator(
    machine="32-bit ARM",
    commands=("qemu-arm-static", "qemu-arm"),
    packages=("qemu-user-static", "libc6-armhf-cross"),
    root=Path("/usr/arm-linux-gnueabihf"),
    libraries=("ld-linux-armhf.so.3", "libc.so.6"),
    sources=(Path(__file__).with_name("emulated_kernels.c"),),
    triple="arm-linux-gnueabihf.2.28",
    whole=False,
)

EMULATORS: dict[tuple[int, str], Emulator] = {(64, "AArch64"): AARCH64, (32, "ARM"): ARM}
"""Emulators by the ELF header of what they run."""

DTYPE_CODES = {"i": 0, "u": 1, "f": 2, "b": 6}
BFLOAT_CODE = 4
"""NumPy's kind → DLPack's type code; bfloat16 has no kind of its own."""

TRACING_PLUGIN = Path(__file__).with_name("trace_blocks.c")
"""Keeps which blocks of code run."""

THREADS = 2  # one would leave the code that splits loops among threads untested
STALL_SECONDS = 300.0
"""How long one inference may take, under emulation, before the run is given up."""


def method(target: Target) -> str:
    """What of a network is emulated: all of it, or its kernels alone."""
    return "emulated" if _find_emulator(target).whole else "emulated kernels"


def available(target: Target) -> str | None:
    """None where code for `target` can be run on this computer, else one sentence why not. Downloads nothing."""
    try:
        emulator = _find_emulator(target)
        _find_qemu(emulator)
        find_root(emulator)
        if emulator.whole and runtime.missing(target.elf) and runtime.offline():
            raise MissingDependencyError(runtime.offline_sentence(target.elf))
        toolchain.select_linker(_program_target(target, emulator))
    except MissingDependencyError as error:
        return str(error)
    return None


def run_vectors(
    library: Path,
    target: Target,
    inputs: Sequence[tuple[np.ndarray, ...]],
    outputs: Sequence[TensorSpec],
    *,
    stall_seconds: float = STALL_SECONDS,
) -> list[tuple[np.ndarray, ...]]:
    """The outputs of `library`, built for `target`, for each tuple of inputs, all computed in one emulated process.

    Raises MissingDependencyError where nothing can be emulated, and VerificationError if the library crashes, fails,
    or computes nothing for `stall_seconds`.
    """
    emulator = _find_emulator(target)
    emulated = [*command(target), str(_build_program(target, emulator))]
    stacks = [np.stack(arrays) for arrays in zip(*inputs, strict=True)]
    what = f"{library.name} for {target.name}"
    with tempfile.TemporaryDirectory(prefix="tvmflow-") as name:
        folder = Path(name)
        for index, stack in enumerate(stacks):
            stack.tofile(folder / f"input-{index}.raw")
        if emulator.whole:
            _describe_bundle(folder, library, [stack[0] for stack in stacks], outputs)
            _run([*emulated, str(len(inputs))], folder, what, stall_seconds)
            described = [(np.dtype(spec.dtype), spec.shape) for spec in outputs]
        else:
            by_kernels = children.python("tvmflow.measure.emulated_kernels", json.dumps(emulated))
            arguments = [str(library.resolve()), str(len(inputs)), *(describe(stack[0]) for stack in stacks)]
            said = _run([*by_kernels, *arguments], folder, what, stall_seconds, environment=children.environment())
            described = [parse_description(line) for line in said]
        if len(described) != len(outputs):
            raise VerificationError(f"{what} has {len(described)} outputs where the network has {len(outputs)}.")
        results = [
            np.fromfile(folder / f"output-{index}.raw", dtype).reshape(-1, *shape)
            for index, (dtype, shape) in enumerate(described)
        ]
    return [tuple(result[index] for result in results) for index in range(len(inputs))]


def capture_kernels(
    library: Path, target: Target, inputs: Sequence[tuple[np.ndarray, ...]], kernels: Sequence[str]
) -> list[np.ndarray]:
    """What each kernel call of a library for `target` leaves in its last argument, for all inputs, in order.

    The kernels are emulated one by one, for 64-bit ARM as well, and TVM's virtual machine for this computer calls
    them. `kernels` are the calls that there should be. Raises what `run_vectors` does.
    """
    from tvmflow.measure.local import check_calls

    emulator = replace(_find_emulator(target), sources=ARM.sources, whole=False)
    emulated = [*command(target), str(_build_program(target, emulator))]
    stacks = [np.stack(arrays) for arrays in zip(*inputs, strict=True)]
    with tempfile.TemporaryDirectory(prefix="tvmflow-") as name:
        folder = Path(name)
        for index, stack in enumerate(stacks):
            stack.tofile(folder / f"input-{index}.raw")
        by_kernels = children.python("tvmflow.measure.emulated_kernels", json.dumps(emulated))
        arguments = [str(library.resolve()), str(len(inputs)), "keep", *(describe(stack[0]) for stack in stacks)]
        what = f"{library.name} for {target.name}"
        said = _run([*by_kernels, *arguments], folder, what, STALL_SECONDS, environment=children.environment())
        calls = [line.split() for line in said if " " in line]
        check_calls([kernel for kernel, _ in calls], kernels)
        shapes = [parse_description(described) for _, described in calls]
        return [
            np.fromfile(folder / f"call-{index}.raw", dtype).reshape(-1, *shape)
            for index, (dtype, shape) in enumerate(shapes)
        ]


def trace_calls(bundle: Built, emulator: Emulator | None = None) -> Traced:
    """What one inference of a bundle executes, kernel call by kernel call, on one thread.

    `emulator` is the board's own unless another is given. Raises MissingDependencyError where it can't be had, and
    VerificationError as `run_vectors` does.
    """
    with tempfile.TemporaryDirectory(prefix="tvmflow-") as name:
        folder = Path(name)
        _run_plugin(bundle, emulator, folder, f"{compile_plugin(TRACING_PLUGIN)},out={folder / 'run'}", "1")
        trace = read_trace(folder / "run", _base(folder / "maps"))
    entries = {address: name for name, address in find_kernels(bundle.library).items()}
    calls = split(trace, entries, [layer.kernel for layer in bundle.layers])
    return Traced(trace=trace, calls=calls, text=disassemble(bundle.library))


def follow(bundle: Built, hierarchy: memory.Hierarchy) -> memory.Followed:
    """One inference of a bundle on one thread, after another that has filled the caches. Raises as `trace_calls`."""
    with tempfile.TemporaryDirectory(prefix="tvmflow-") as name:
        folder = Path(name)
        plugin = compile_plugin(memory.PLUGIN, memory.HEADERS)
        _run_plugin(bundle, None, folder, f"{plugin},{hierarchy.options(folder / 'run')}", "2", "mark")
        return memory.read(folder / "run")


def _run_plugin(bundle: Built, emulator: Emulator | None, folder: Path, plugin: str, runs: str, *marks: str) -> None:
    """Run a bundle's first golden vector so many times in `folder`, on one thread, under a plugin with its options."""
    target = bundle.target
    emulator = emulator or _find_emulator(target)
    if not emulator.whole:
        raise MissingDependencyError(f"{emulator.machine} code isn't traced here: TVM publishes no runtime for it.")
    qemu = children.which(emulator.commands[-1])
    if qemu is None:  # the static emulators know no plugins
        raise MissingDependencyError(
            f"Tracing {emulator.machine} code needs {emulator.commands[-1]}, which is not installed", ["qemu-user"]
        )
    program, inputs = _build_program(target, emulator), bundle.vectors()[0].inputs
    for index, array in enumerate(inputs):
        (folder / f"input-{index}.raw").write_bytes(array.tobytes() * int(runs))
    _describe_bundle(folder, bundle.library, inputs, bundle.outputs)
    emulated = [qemu, "-cpu", cpu_model(qemu, target), "-L", str(find_root(emulator))]
    what = f"{bundle.library.name} for {target.name}"
    _run([*emulated, "-plugin", plugin, str(program), runs, *marks], folder, what, STALL_SECONDS, threads=1)


def _base(maps: Path) -> int:
    """Where a run had its library, of the lines that Linux has on a process's memory: the first of it is its start."""
    line = next(line for line in maps.read_text().splitlines() if line.endswith("/model.so"))
    return int(line.partition("-")[0], 16)


def command(target: Target) -> list[str]:
    """What to put before a program for `target`, to run it here. Raises MissingDependencyError."""
    emulator = _find_emulator(target)
    qemu = _find_qemu(emulator)
    return [qemu, "-cpu", cpu_model(qemu, target), "-L", str(find_root(emulator))]


def alone(target: Target) -> list[str]:
    """What to put before a program that needs no library of the board's. Raises MissingDependencyError."""
    qemu = _find_qemu(_find_emulator(target))
    return [qemu, "-cpu", cpu_model(qemu, target)]


def run_program(command: Sequence[str], folder: Path, what: str, *, stall_seconds: float = STALL_SECONDS) -> None:
    """Run a program that leaves output-0.raw, … in `folder`; `what` says to people what it runs.

    Raises VerificationError if it crashes, fails, or leaves nothing more for `stall_seconds`, and
    MissingDependencyError if it can't be run.
    """
    _run(command, folder, what, stall_seconds)


def _describe_bundle(folder: Path, library: Path, inputs: Sequence[np.ndarray], outputs: Sequence[TensorSpec]) -> None:
    """Make `folder` as much of a bundle as libtvmflow.so has to see."""
    shutil.copyfile(library, folder / "model.so")
    described = [
        TensorSpec(name=f"input{index}", shape=array.shape, dtype=str(array.dtype))
        for index, array in enumerate(inputs)
    ]
    (folder / device.FOLDER).mkdir()
    (folder / device.FOLDER / "network.txt").write_text(device.describe_network("model.so", described, outputs))


# ------------------------------------------------------------------------------------------- what has to be installed


def _find_emulator(target: Target) -> Emulator:
    if target.elf in EMULATORS:
        return EMULATORS[target.elf]
    raise MissingDependencyError(
        f"Code for {target.name} was not run: this computer has no emulator for {target.elf[0]}-bit {target.elf[1]}."
    )


def _find_qemu(emulator: Emulator) -> str:
    for command in emulator.commands:
        if path := children.which(command):
            return path
    raise MissingDependencyError(
        f"Running {emulator.machine} code here needs {emulator.commands[0]}, which is not installed", emulator.packages
    )


def find_root(emulator: Emulator) -> Path:
    """The folder with the board's libraries: $QEMU_LD_PREFIX or Debian's. Raises MissingDependencyError."""
    absent = ""
    for root in (Path(os.environ.get("QEMU_LD_PREFIX") or emulator.root), emulator.root):
        absent = next((name for name in emulator.libraries if not _holds(root, name)), "")
        if not absent:
            return root
    raise MissingDependencyError(
        f"Running {emulator.machine} code here needs its C library, but {emulator.root} has no {absent}",
        emulator.packages,
    )


def _holds(root: Path, name: str) -> bool:
    return any(next(root.glob(f"{folder}/{name}"), None) for folder in ("lib*", "lib/*", "usr/lib*", "usr/lib/*"))


def cpu_model(qemu: str, target: Target) -> str:
    """qemu's model of the board's CPU, so that an instruction which that CPU lacks fails, or its fullest model."""
    try:
        known = subprocess.run([qemu, "-cpu", "help"], capture_output=True, text=True, timeout=60, check=False).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MissingDependencyError(f"{qemu} can't be run: {error}.") from error
    return target.tvm["mcpu"] if target.tvm.get("mcpu") in known.split() else "max"


KERNEL_PREFIX, RESERVED_PREFIX = "__tvm_ffi_", "__tvm_ffi__"


def find_kernels(library: Path) -> dict[str, int]:
    """Where the kernels of a library for TVM's runtime begin, by their names."""
    from elftools.elf.elffile import ELFFile

    with library.open("rb") as file:
        table: Any = ELFFile(file).get_section_by_name(".dynsym")
        symbols = {symbol.name: symbol["st_value"] for symbol in table.iter_symbols()}
    return {
        name.removeprefix(KERNEL_PREFIX): address
        for name, address in symbols.items()
        if name.startswith(KERNEL_PREFIX) and not name.startswith(RESERVED_PREFIX)
    }


# ------------------------------------------------------------------------------------------------------- the C program


def _program_target(target: Target, emulator: Emulator) -> Target:
    """The program is at home in the emulator's C library, whatever C library the board has."""
    return replace(target, triple=emulator.triple)


def _build_program(target: Target, emulator: Emulator) -> Path:
    """The executable of the emulator's C program, in the cache with the runtime, compiled unless it is there."""
    linker = toolchain.select_linker(_program_target(target, emulator))
    libraries = runtime.fetch(target.elf) if emulator.whole else ()
    options = ("-std=gnu11", "-O1", "-rdynamic", f"-I{runtime.include_folder()}", f"-I{device.HERE}")
    described = f"{linker.name} {linker.version} {emulator.triple} {options} {runtime.folder(target.elf).name}".encode()
    texts = [*emulator.sources, device.HERE / "tvmflow.h"]
    key = hashlib.sha256(b"".join(path.read_bytes() for path in texts) + described).hexdigest()

    def make(folder: Path) -> None:
        for library in libraries:
            shutil.copy(library, folder)
        toolchain.link(linker, folder / "program", [*emulator.sources, *libraries[:1], *device.LINK, "-ldl"], options)

    files = ["program", *(library.name for library in libraries)]
    try:
        return cache.entry("emulated", f"{emulator.sources[0].stem}-{key[:16]}", files, make) / "program"
    except (UserError, OSError) as error:
        raise MissingDependencyError(f"The program that runs emulated code can't be made: {error}") from error


def compile_plugin(source: Path, headers: Sequence[Path] = ()) -> Path:
    """A plugin of qemu, in the cache, compiled for this computer unless it is there. Raises MissingDependencyError."""
    try:
        return toolchain.native_library(source, ("-O2", "-shared", "-fPIC"), headers)
    except (UserError, OSError) as error:
        raise MissingDependencyError(f"The plugin {source.stem} of qemu can't be made: {error}") from error


# ------------------------------------------------------------------------------------------------------------- running


def describe(array: np.ndarray) -> str:
    """An array as the emulated programs read and write it: `code,bits,dim,…`. Raises MissingDependencyError."""
    code = BFLOAT_CODE if array.dtype == BFLOAT16 else DTYPE_CODES.get(array.dtype.kind)
    if code is None:
        raise MissingDependencyError(f"Tensors of {array.dtype} can't be given to emulated code.")
    return ",".join(map(str, (code, 8 * array.dtype.itemsize, *array.shape)))


def parse_description(description: str) -> tuple[np.dtype, tuple[int, ...]]:
    """The dtype and shape that `describe` has written. Raises VerificationError."""
    code, bits, *shape = map(int, description.split(","))
    kinds = {code: kind for kind, code in DTYPE_CODES.items()}
    if code == BFLOAT_CODE:
        return BFLOAT16, tuple(shape)
    if code not in kinds:
        raise VerificationError(f"An output has the DLPack type {code}, which NumPy can't hold.")
    return np.dtype(f"{kinds[code]}{bits // 8}"), tuple(shape)


def _run(
    command: Sequence[str],
    folder: Path,
    what: str,
    stall_seconds: float,
    threads: int = THREADS,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> list[str]:
    """Run an emulated program in `folder`. Returns what it says of each output.

    Nothing of this computer's environment is meant for the board's code: LD_PRELOAD would even break it.
    """
    try:
        process = subprocess.Popen(
            children.ending_with_us(command),
            cwd=folder,
            env={"TVM_NUM_THREADS": str(threads), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # so that whatever it has started can be ended with it
        )
    except OSError as error:
        raise MissingDependencyError(f"{command[0]} can't be run: {error}.") from error
    with process:
        try:
            shown, errors = _wait(process, folder, what, stall_seconds)
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
    lines = errors.strip().splitlines() or ["no message"]
    if process.returncode < 0:
        name = signal.Signals(-process.returncode).name
        raise VerificationError(f"{what} crashed with {name} when it was run under emulation.")
    if process.returncode == 1:
        raise VerificationError(f"{what} can't be run under emulation: {lines[-1]}")
    if process.returncode != 0:  # 127 is the loader's, 2 our programs' own: nothing is known of the library then
        raise MissingDependencyError(f"{what} was not run, for what should emulate it failed: {lines[-1]}")
    return shown.splitlines()


def _wait(process: subprocess.Popen[str], folder: Path, what: str, stall_seconds: float) -> tuple[str, str]:
    done = 0
    while True:
        try:
            return process.communicate(timeout=stall_seconds)
        except subprocess.TimeoutExpired:
            before, done = done, sum(path.stat().st_size for path in folder.glob("output-*.raw"))
            if done == before:
                raise VerificationError(
                    f"{what} was stopped: it computed nothing in {stall_seconds:g} s under emulation."
                ) from None
