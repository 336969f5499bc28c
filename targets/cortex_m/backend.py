"""The backend of microcontrollers: an object file, a header and an example instead of a library for TVM's runtime."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmflow.measure.cycles import Traced
from tvmflow.network.agreement import Runner, compare, tolerances, unverified
from tvmflow.spec import (
    Built,
    Layer,
    MissingDependencyError,
    Program,
    Roof,
    Target,
    TensorSpec,
    Tile,
    UserError,
    Vector,
    VerificationError,
)
from tvmflow.system import toolchain
from tvmflow.system.toolchain import Linker
from tvmflow.targets.cortex_m import example, integration, machine, memory_map
from tvmflow.targets.cortex_m.facts import Mcu
from tvmflow.targets.cortex_m.fit import CODE_BYTES_OF_A_KERNEL, check_fit
from tvmflow.targets.cortex_m.options import STACK_BYTES
from tvmflow.targets.cortex_m.stack import stack_bound
from tvmflow.targets.kind import (
    Arrays,
    Artifacts,
    Gap,
    Left,
    Part,
    Parts,
    RunStages,
    Timing,
    check_graph,
    check_whole,
    other_kernels,
    stated_in,
    versions,
)

if TYPE_CHECKING:
    from tvmflow.integer.network import IntegerNetwork

log = logging.getLogger(__name__)

NO_LATENCY = "this computer is no microcontroller, and an emulator counts instructions, whose time it doesn't know."
SOURCE, EXAMPLE, LINKER_SCRIPT = "source", "example", "link.ld"


def check(target: Target, linker: str = "auto", *, runner: bool = False) -> Linker:
    """The linker. Raises UserError, MissingDependencyError."""
    if runner:
        raise UserError(f"--runner is for boards with an operating system; a bundle for {target.name} has an example.")
    return toolchain.select_linker(target, linker)


def check_network(program: Program, target: Target) -> None:
    """What has an integer form, or needs no C library. Raises UserError, UnsupportedOperatorError."""
    from tvmflow.targets.cortex_m.stages import graph_of

    check_whole(program, target)
    if target.arithmetic == "float32":
        graph_of(program)
    else:
        check_graph(program, target)


def compile(  # noqa: A001 (a kind's functions are called by its name)
    program: Program,
    target: Target,
    folder: Path,
    *,
    linker: Linker | None,
    run_stages: RunStages,
    dump_dir: Path | None = None,
    verify: bool = True,
    source: bool = False,
) -> Artifacts:
    """An object file, a header and an example; with `source` also portable C99.

    What doesn't fit the board raises UserError before it is compiled; also raised is MissingDependencyError.
    """
    import tvm

    from tvmflow.network.c_interface import c_name
    from tvmflow.targets.cortex_m.compile import compile_object, write_source

    assert linker is not None
    if (program.integer is None) != (target.arithmetic == "float32"):
        raise UserError(f"{program.name} isn't {target.arithmetic}, which {target.name} is to compute in; see --dtype.")
    with tvm.target.Target(toolchain.tvm_target_dict(target)):
        compiled = run_stages(program, target, dump_dir)
    check_fit(compiled, target)
    name = c_name(program.name)
    library = compile_object(compiled, target, folder, linker)
    toolchain.check_elf(library, target.elf, target.name)
    extras = {f"{name}.h": folder / f"{name}.h", EXAMPLE: folder / EXAMPLE}
    example.write(folder / EXAMPLE, program, target, name)
    if source:
        extras[SOURCE] = folder / SOURCE
        extras[SOURCE].mkdir()
        plain = replace(target, facts=replace(Mcu.of(target), core="plain"))
        with tvm.target.Target("c"):
            write_source(run_stages(program, plain), plain, extras[SOURCE])
    extras |= integration.write(folder, name, program, target, library, source=source)
    memory = check_fit(compiled, target, library, stack_bound(library, f"{name}_run"))
    placed = memory_map.place(Mcu.of(target), memory["flash_bytes"], memory["activations_bytes"])
    if placed is not None:
        extras[LINKER_SCRIPT] = folder / LINKER_SCRIPT
        extras[LINKER_SCRIPT].write_text(memory_map.script(target, placed, name))
    return Artifacts(
        program=compiled,
        library=library,
        memory=memory,
        versions=versions(linker),
        extras=extras,
        usage=example.usage(name, compiled, target, memory["flash_bytes"]),
    )


def verify(made: Artifacts, target: Target, vectors: Sequence[Vector]) -> tuple[dict[str, Any], Artifacts]:
    """Run under emulation of the board's core, which also counts the instructions of layers and finds the stack used.

    Raises VerificationError.
    """
    inputs, expected = ([getattr(vector, side) for vector in vectors] for side in ("inputs", "outputs"))
    name, allowed = network_name(made.library), tolerances(vectors)
    program = made.program
    try:
        done = machine.run(made.library, target, name, inputs, program.outputs, expected=expected, allowed=allowed)
    except MissingDependencyError as error:
        return unverified(error), made
    verdict = {"method": "emulated", **compare(vectors, done.outputs)}
    if not verdict["passed"]:
        return verdict, made
    if done.wrong:
        raise VerificationError(
            f"{program.name} compiled for {target.name} finds {done.wrong} of its own outputs wrong, which aren't."
        )
    if done.stack_bytes > made.memory["stack_bytes"]:
        raise VerificationError(
            f"{program.name} compiled for {target.name} takes {done.stack_bytes} bytes of the stack or more, "
            f"which were to be {made.memory['stack_bytes']} at most."
        )
    made = replace(made, memory={**made.memory, "stack_used_bytes": done.stack_bytes})
    try:
        details = count(made.library, target, program.layers, inputs[0], program.outputs).details
    except MissingDependencyError as error:
        log.info(str(error))
        return verdict, made
    pairs = zip(program.layers, details, strict=True)
    layers = tuple(replace(layer, details={**layer.details, **found}) for layer, found in pairs)
    return verdict, replace(made, program=replace(program, layers=layers))


@dataclass(frozen=True, kw_only=True)
class Count:
    """Executed instructions of one inference: of all, and what `Layer.details` is to have of each layer."""

    total: int
    details: Sequence[Mapping[str, Any]]


def count(
    library: Path, target: Target, layers: Sequence[Layer], inputs: machine.Arrays, outputs: Sequence[TensorSpec]
) -> Count:
    """Instructions of one inference, exactly, under emulation. Those of functions that a kernel calls are the kernel's.

    Raises MissingDependencyError, VerificationError.
    """
    name = network_name(library)
    found = machine.run(library, target, name, [inputs], outputs, counted=True).instructions
    return Count(
        total=sum(count for function, count in found.items() if function.startswith(f"{name}_")),
        details=[
            {"instructions": found.get(f"{name}_{layer.kernel}", 0), "instructions_basis": "emulated"}
            for layer in layers
        ],
    )


def trace_calls(bundle: Built) -> Traced:
    """What one inference executes, layer by layer, for `tvmflow.measure.cycles`. Raises as `count` does."""
    kernels, inputs = [layer.kernel for layer in bundle.layers], bundle.vectors()[0].inputs
    return machine.trace(bundle.library, bundle.target, network_name(bundle.library), inputs, bundle.outputs, kernels)


def network_name(library: Path) -> str:
    """The C name of the network in an object file: what comes before _run. Raises UserError if there is none."""
    from elftools.elf.elffile import ELFFile

    with library.open("rb") as file:
        table: Any = ELFFile(file).get_section_by_name(".symtab")
        symbols = {symbol.name for symbol in table.iter_symbols()} if table else set()
    for symbol in symbols:
        name = symbol.removesuffix("_run")
        if name != symbol and f"{name}_weights" in symbols:
            return name
    raise UserError(f"{library.name} has no function NAME_run.")


MACS_PER_CYCLE = {
    "plain": {"int8": 1, "float32": 1},
    "dsp": {"int8": 2, "float32": 1},
    "mve": {"int8": 8, "float32": 2},
}
"""Of a microcontroller's core, at most: MULS does one product, SMLAD two; in two beats of a Cortex-M55 VMLADAVA does
sixteen and VFMA four."""


def roof(target: Target) -> Roof | None:
    mcu = Mcu.of(target)
    return Roof(
        macs_per_s=MACS_PER_CYCLE[mcu.core][target.arithmetic] * target.cpu.clock_mhz * 1e6,
        bytes_per_s=None,
        cache_bytes=0,
        source=stated_in(target, mcu.unverified),
        unverified=mcu.unverified,
    )


def parts(memory: Mapping[str, int], target: Target, tiles: Sequence[Tile]) -> Parts:
    """Flash also holds code, by a guess, and RAM the stack."""
    board, code = Mcu.of(target), CODE_BYTES_OF_A_KERNEL * len(tiles)
    flash = {"weights": memory["weights_bytes"], "code": code}
    ram = {"arena": memory["activations_bytes"], "stack": STACK_BYTES}
    return {
        "flash": Part(sum(flash.values()), board.room_bytes, flash),
        "RAM": Part(sum(ram.values()), board.ram_bytes, ram),
    }


def find_runner(library: Path, target: Target, outputs: Sequence[TensorSpec]) -> tuple[str, Runner]:
    """ "emulated", under qemu-system-arm's model of the core."""
    machine.find_qemu()
    name = network_name(library)

    def run(inputs: Sequence[machine.Arrays], kept: Sequence[tuple[int, int]] = ()) -> list[machine.Arrays]:
        return machine.run(library, target, name, inputs, outputs, kept=kept).outputs

    return "emulated", run


def capture(
    library: Path, target: Target, network: IntegerNetwork, runs: Sequence[Arrays], kernels: Sequence[str]
) -> tuple[str, Left]:
    """ "emulated": the firmware that runs is stopped after each kernel, whose result is then looked at.

    A copy of an output that is given twice is a kernel, too, and of no layer.
    """
    from tvmflow.integer.frontend import graphless_program
    from tvmflow.targets.cortex_m import capture as looking

    program = graphless_program(network)
    calls = looking.calls_of(program, target)
    if [call.kernel for call in calls] != list(kernels):
        raise other_kernels(library, len(calls), kernels)
    left = looking.capture(library, target, network_name(library), program, calls, runs)
    shapes, dtypes = network.shapes, network.dtypes
    return "emulated", [
        (call.layers, looking.tensor_of(stack, shapes.get(last, ()), dtypes.get(last, "int8")))
        for call, stack in zip(calls, left, strict=True)
        for last in call.layers[-1:]
    ]


def time(
    bundle: Built, *, threads: int | None, repeats: int | None, seconds: float, whole: bool, layers: bool
) -> Timing:
    """No latency; if `layers` are asked for, the instructions of each, where they can be counted."""
    if not layers:
        return Timing(note=NO_LATENCY)
    try:
        counted = count(bundle.library, bundle.target, bundle.layers, bundle.vectors()[0].inputs, bundle.outputs)
    except MissingDependencyError as error:
        gap = Gap(what="instructions", reason=str(error), packages=error.packages)
        return Timing(note=f"{NO_LATENCY} {error}", gaps=[gap])
    macs = sum(layer.macs for layer in bundle.layers)
    each = f", {counted.total / macs:.3f} for each multiply-add" if macs else ""
    note = f"{NO_LATENCY} It takes {counted.total:,}{each}."
    return Timing(note=note, details=counted.details)
