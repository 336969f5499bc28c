"""Kernels, weights and calls → an archive, a shared library, their header and sources, and a program to test them."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tvm

from tvmflow.measure import device
from tvmflow.network.agreement import tolerances
from tvmflow.network.vectors import vector_names
from tvmflow.passes import portable_c
from tvmflow.spec import Program, Target, UserError
from tvmflow.system import toolchain
from tvmflow.system.toolchain import Linker
from tvmflow.targets.cpu.library import bindings, objects, program
from tvmflow.targets.cpu.library.calls import Calls, calls_of, kernels_of
from tvmflow.targets.cpu.library.places import ALIGNMENT
from tvmflow.targets.cpu.library.source import POOL, caller, header, interface_of, weight_offsets
from tvmflow.targets.cpu.library.systems import program_linkers, system_of

log = logging.getLogger(__name__)

SOURCE = "source"
"""The folder of a bundle with the calls as C."""

COMPILE = ("-std=c99", "-O2", "-g0", "-Wall", "-Wextra", "-Werror", "-fPIC", "-fvisibility=hidden", "-c")
"""Of the calls. What is said of stacks and atomics keeps helpers of compilers' own libraries out."""
WITHOUT_HELPERS = ("-fno-stack-protector", "-fno-unwind-tables", "-fno-asynchronous-unwind-tables")
UNWINDING = ("__aeabi_unwind_cpp_pr0", "__aeabi_unwind_cpp_pr1")
"""What tables for unwinding name on 32-bit ARM, and what nothing calls in a network."""
LINK = ("-shared", "-fPIC", "-s")


@dataclass(frozen=True, kw_only=True)
class Library:
    """What was made, in a folder: the `archive`, the `shared` library or None, `undefined` symbols of the archive.

    `facts` are for the manifest.
    """

    archive: Path
    shared: Path | None
    header: Path
    source: Path
    runner: Path | None
    facts: Mapping[str, Any]


def make(compiled: Program, target: Target, folder: Path, linker: Linker) -> Library:
    """Compile and link everything in `folder`. Raises UserError, also for kernels that need TVM's runtime."""
    interface, calls = interface_of(compiled), calls_of(compiled)
    name, system = interface.name, system_of(target)
    kernels = _kernels(compiled, target, name, folder, linker)
    weights = _weights(calls, folder, name)
    text = caller(compiled)
    digest = _digest([kernels, weights], text)
    made_header, source = folder / f"{name}.h", folder / SOURCE
    made_header.write_text(header(compiled, target, digest), encoding="utf-8")
    source.mkdir(exist_ok=True)
    (source / f"{name}.c").write_text(text, encoding="utf-8")
    shutil.copyfile(POOL, source / POOL.name)
    members = [folder / f"{name}.o", kernels]
    options = (*COMPILE, *WITHOUT_HELPERS, *_processor(target, linker), *system.options, f"-I{folder}")
    toolchain.link(linker, members[0], [source / f"{name}.c"], options)
    if calls.constants:
        members.append(folder / f"{name}_weights.o")
        toolchain.link(linker, members[-1], [folder / "weights.S"], ("-c",))
    undefined = objects.lacking(members)
    if strange := objects.strangers(undefined):
        raise UserError(
            f"{compiled.name} can't be a library without TVM's runtime: its kernels call {', '.join(strange)}; "
            "build it with --format module."
        )
    made = folder / f"lib{name}.a"
    objects.archive(made, members)
    toolchain.check_elf(kernels, target.elf, target.name)
    shared = _shared(members, target, folder, linker, name) if system.shared else None
    facts = {
        "name": name,
        "hash": digest,
        "undefined": undefined,
        "math": sorted(objects.LIBM.intersection(undefined)),
        "code_bytes": toolchain.section_bytes(kernels)["code_bytes"],
        "kernels": len(calls.steps),
        "parallel_loops": sum(phase.extent is not None for step in calls.steps for phase in calls.phases[step.kernel]),
        "serial_loops": sum(calls.serial.get(step.kernel, 0) for step in calls.steps),
        "system": system.name,
        "shared": None if shared is None else {"file": shared.name, **objects.shared_facts(shared)},
    }
    bindings.write(folder / bindings.FOLDER, interface)
    runner = _runner(compiled, target, folder, linker, made)
    return Library(archive=made, shared=shared, header=made_header, source=source, runner=runner, facts=facts)


def _kernels(compiled: Program, target: Target, name: str, folder: Path, linker: Linker) -> Path:
    """The kernels' object, without what LLVM says for debuggers."""
    functions = {f"{name}_{symbol}": func for symbol, func in kernels_of(compiled).items()}
    described = tvm.target.Target(toolchain.tvm_target_dict(target))
    raw, made = folder / "raw.o", folder / f"{name}_kernels.o"
    portable_c.generate(functions, "llvm", described).write_to_file(str(raw), "o")
    objects.weaken(raw, UNWINDING)
    toolchain.link(linker, made, [raw], ("-r", "-nostdlib", "-Wl,-S"))
    return made


def _weights(calls: Calls, folder: Path, name: str) -> Path:
    """The weights as bytes, and the assembler's file that takes them into an object."""
    offsets, size = weight_offsets(calls)
    path = folder / "weights.bin"
    with path.open("wb") as file:
        for place, array in calls.constants.items():
            file.write(bytes(offsets[place] - file.tell()))
            file.write(np.ascontiguousarray(array).tobytes())
        file.write(bytes(size - file.tell()))
    (folder / "weights.S").write_text(_WEIGHTS.format(name=name, file=path, align=ALIGNMENT))
    return path


def _digest(paths: Sequence[Path], text: str) -> str:
    found = hashlib.sha256(text.encode())
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                found.update(block)
    return found.hexdigest()


def _processor(target: Target, linker: Linker) -> tuple[str, ...]:
    """On ARM compilers call a library of theirs for atomics or divisions, unless they are told of the processor."""
    if target.elf == (64, "AArch64"):
        return ("-mno-outline-atomics",)
    if target.elf == (32, "ARM"):
        cpu = target.tvm["mcpu"]
        return (f"-mcpu={cpu.replace('-', '_') if linker.name == 'zig' else cpu}",)
    return ()


def _shared(members: Sequence[Path], target: Target, folder: Path, linker: Linker, name: str) -> Path:
    """The shared library, which shows nothing but its interface."""
    system, made, listed = system_of(target), folder / f"lib{name}.so", folder / "exports.map"
    api = ("big_cores", "free", "hash", "init", "memory_bytes", "reset", "run", "run_timed", "step", "version")
    defined, _ = objects.symbols(members[0])
    symbols = " ".join(f"{name}_{function};" for function in api if f"{name}_{function}" in defined)
    listed.write_text(f"{{ global: {symbols} local: *; }};\n")
    options = [*LINK, f"-Wl,-soname,{made.name}", f"-Wl,--version-script={listed}"]
    options += [f"-Wl,-z,max-page-size={system.page_bytes}"] if system.page_bytes > 4096 else []
    files: list[Path | str] = [*members]
    if system.stubs:
        stubs = [_stub(folder, stub, objects.lacking(members), linker) for stub in system.stubs]
        options += ["-nostdlib", "-Wl,--no-as-needed"]
        files += stubs
    else:
        files += ["-lm", "-pthread"]
    toolchain.link(linker, made, files, options)
    objects.check_pages(made, system.page_bytes)
    if system.stubs and (strange := objects.strangers(objects.symbols(made)[1], compiler=False)):
        raise UserError(f"{made.name} needs {', '.join(strange)}, which {system.name} has not.")
    return made


def _stub(folder: Path, name: str, undefined: Sequence[str], linker: Linker) -> Path:
    """A library of that name with the symbols that the board's own has: linkers ask for no more."""
    place = folder / "stubs"
    place.mkdir(exist_ok=True)
    of_math = name.startswith("libm.")
    wanted = [symbol for symbol in undefined if (symbol in objects.LIBM) == of_math]
    lines = [f".globl {symbol}\n.type {symbol}, %function\n{symbol}:\n" for symbol in wanted]
    (place / f"{name}.S").write_text(".text\n" + "".join(lines))
    toolchain.link(
        linker, place / name, [place / f"{name}.S"], ("-shared", "-fPIC", "-nostdlib", f"-Wl,-soname,{name}")
    )
    return place / name


def _runner(compiled: Program, target: Target, folder: Path, linker: Linker, archive: Path) -> Path:
    """The folder "runner" of a bundle, whose program needs nothing but Linux: it tests and times the archive."""
    made = folder / device.FOLDER
    made.mkdir(exist_ok=True)
    allowed = tolerances(compiled.vectors, target.arithmetic)
    (made / "network.c").write_text(program.adapter(compiled, vector_names(compiled), allowed), encoding="utf-8")
    shutil.copyfile(device.HERE / "tvmflow.h", made / "tvmflow.h")
    link_program(device.HERE / "run.c", made.parent / device.PROGRAM, target, linker, archive)
    return made


def link_program(source: Path, made: Path, target: Target, linker: Linker, archive: Path) -> None:
    """A program over `tvmflow.h` with the network of an archive, whose bundle is the folder that it lies in."""
    root = archive.parent
    include = (f"-I{root}", f"-I{device.HERE}")
    math = not objects.LIBM.isdisjoint(objects.lacking_of(archive))
    *others, last = program_linkers(target, linker, math)
    files: list[str | Path] = [source, root / device.FOLDER / "network.c", archive, "-lm"]
    options = ("-std=gnu11", "-O2", "-s", *include)
    for other, own in others:
        try:
            toolchain.link(other, made, files, (*options, *own))
        except UserError:
            log.info(f"{other.name} links no static programs here.")
        else:
            return
    toolchain.link(last[0], made, files, (*options, *last[1]))


_WEIGHTS = """    .section .rodata.{name}_weights, "a", %progbits
    .balign {align}
    .global {name}_weights
    .hidden {name}_weights
    .type {name}_weights, %object
{name}_weights:
    .incbin "{file}"
    .size {name}_weights, . - {name}_weights
    .section .note.GNU-stack, "", %progbits
"""
