"""The backend of FPGA boards with a VTA: a static program for the accelerator, run and timed on the simulator here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tvmflow import __version__
from tvmflow.network.agreement import Runner, in_turn
from tvmflow.network.vectors import vector_names
from tvmflow.spec import Built, Layer, Measurement, Program, Roof, Target, TensorSpec, Tile, UserError
from tvmflow.system import interrupt, toolchain
from tvmflow.targets.kind import (
    Arrays,
    Artifacts,
    Left,
    Part,
    Parts,
    RunStages,
    Timing,
    check_graph,
    check_whole,
    other_kernels,
    verify_by_running,
    whole_memory,
)
from tvmflow.targets.vta import apart, cpu, timing
from tvmflow.targets.vta import program as programs
from tvmflow.targets.vta.compile import prepare, regions_of
from tvmflow.targets.vta.cpu import board_library
from tvmflow.targets.vta.driver import make_runner, vta_driver
from tvmflow.targets.vta.facts import Vta
from tvmflow.targets.vta.simulate import Machine
from tvmflow.targets.vta.stages import PROCESSOR, compiled_of, configuration
from tvmflow.targets.vta.timeline import occupancy

if TYPE_CHECKING:
    from tvmflow.integer.network import IntegerNetwork

PROGRAM, MEMORY, LAYOUT = programs.FILES


def check(target: Target, linker: str = "auto", *, runner: bool = False) -> None:
    """Raise what compiling would raise before a network is imported: UserError."""
    configuration(target)
    if linker != "auto":
        raise UserError(f"Nothing is linked for {target.name}: leave --linker out.")
    if runner:
        raise UserError("A bundle for VTA has its driver, in Python and in C, already: leave --runner out.")


verify = verify_by_running


def check_network(program: Program, target: Target) -> None:
    """What `check_graph` raises, and of a quantised network what compiling it would."""
    check_whole(program, target)
    if program.integer is not None:
        prepare(program.integer, configuration(target))
    else:
        check_graph(program, target)


def compile(  # noqa: A001 (a kind's functions are called by its name)
    program: Program,
    target: Target,
    folder: Path,
    *,
    linker: toolchain.Linker | None,
    run_stages: RunStages,
    dump_dir: Path | None = None,
    verify: bool = True,
    source: bool = False,
) -> Artifacts:
    """The static program of a quantised network. Raises UserError.

    `Program.records` are tilings that a search found, by task.
    """
    if program.integer is None:
        raise UserError(f"VTA computes in int8: {program.name} has to be quantised, in the scheme power-of-two.")
    compiled = run_stages(program, target, dump_dir)
    executable = compiled_of(compiled).executable
    programs.save(executable, folder, facts={"model": program.name, "board": target.name})
    extras, notes = {name: folder / name for name in (MEMORY, LAYOUT)}, []
    if executable.source:
        board_library(folder / programs.SOURCE, target, folder / cpu.LIBRARY)
        extras |= {name: folder / name for name in (programs.SOURCE, cpu.LIBRARY)}
        notes.append(f"{program.name}: {_on_the_processor(compiled.layers, target)}")
    return Artifacts(
        program=compiled,
        library=folder / PROGRAM,
        memory=compiled.memory,
        versions={"tvmflow": __version__, "numpy": np.__version__},
        extras=extras,
        runner=make_runner(folder, executable.config),
        usage=_usage(compiled, target),
        notes=notes,
    )


def _on_the_processor(layers: Sequence[Layer], target: Target) -> str:
    """Which layers the accelerator leaves to the board's processor, and how much they are, in a sentence."""
    own = [layer for layer in layers if layer.schedule == PROCESSOR]
    names = ", ".join((layer.modules or (layer.kernel,))[0] for layer in own)
    share = sum(layer.details["processor_share"] for layer in own)
    return (
        f"{len(own)} of {len(layers)} layers, which give {share:.1%} of the elements and do none of the multiply-adds, "
        f"run on the {target.cpu.model}, for VTA has no instructions for them: {names}."
    )


def _usage(program: Program, target: Target) -> str:
    config, first = compiled_of(program).executable.config, vector_names(program)[0]
    base = "" if target.name in vta_driver.BOARDS else " --core CORE --base ADDRESS-OF-ITS-REGISTERS"
    on_the_board = f"""
On the board, as root, with the bitstream {config.bitstream} of HW_VER {config.version}:

    runner/run --self-test --bitstream vta.bit{base}     # the golden vectors, to the bit
    runner/run vectors/{first}/input-0.npy{base}
    cd runner && cc -O2 vta_run.c vta_driver.c vta_linux.c -ldl -o vta_run     # the same in C
"""
    split = f"""- `{programs.SOURCE}`: layers that the accelerator has no instructions for, as functions of the memory;
  they run between parts of the program, on the {target.cpu.model}.
- `{cpu.LIBRARY}`: the same, compiled.
"""
    with_cpu = split if compiled_of(program).executable.source else ""
    return f"""- `{PROGRAM}`: the instructions, 16 bytes each, little-endian.
- `{MEMORY}`: the memory image that they work in: weights as tiles, micro-ops.
- `{LAYOUT}`: how much memory is needed, its alignment, where input and output lie in it, and the configuration.
{with_cpu}- `runner`: the driver, in Python and in C, and programs that show whether a bitstream speaks this set.
- `vectors`: golden inputs and outputs.

Addresses in instructions are relative to the image, in units of the element that is moved.
{on_the_board}"""


def import_network(model: str) -> Program:
    """A quantised network: a name of the registry, or a .safetensors file of `tvmflow.integer.network.save`.

    Raises UserError. There is no graph of TVM's in it: the stages take the integer network itself.
    """
    from tvmflow import models
    from tvmflow.integer.frontend import graphless_program

    return graphless_program(models.quantized(model, "power-of-two"), model)


def roof(target: Target) -> Roof | None:
    vta = Vta.of(target)
    block, batch = (1 << vta.configuration[key] for key in ("LOG_BLOCK", "LOG_BATCH"))
    return Roof(
        macs_per_s=block * block * batch * vta.clock_mhz * 1e6,
        bytes_per_s=vta.bus_bytes * vta.clock_mhz * 1e6,
        cache_bytes=0,
        source=target.datasheet,
    )


def parts(memory: Mapping[str, int], target: Target, tiles: Sequence[Tile]) -> Parts:
    """Its buffers have to hold the smallest tile of each layer."""
    config = configuration(target)
    return {
        **whole_memory(memory, target, tiles),
        "input buffer": Part(
            config.inp_bytes * max(tile.inputs for tile in tiles), config.inp_bytes * config.inp_depth
        ),
        "weight buffer": Part(config.wgt_bytes * max(tile.taps for tile in tiles), config.wgt_bytes * config.wgt_depth),
        "accumulators": Part(
            config.acc_bytes * max(tile.outputs for tile in tiles), config.acc_bytes * config.acc_depth
        ),
    }


def find_runner(library: Path, target: Target, outputs: Sequence[TensorSpec]) -> tuple[str, Runner]:
    """ "simulated": the functional simulator, bit for bit what the instructions mean."""
    executable = programs.read(library.parent)
    sources, results = executable.inputs, executable.outputs
    if executable.source:
        return "simulated", in_turn(lambda inputs: _run_apart(library.parent, executable, inputs, outputs))
    machine = Machine(executable)

    def run(inputs: Sequence[tuple[np.ndarray, ...]]) -> list[tuple[np.ndarray, ...]]:
        answers: list[tuple[np.ndarray, ...]] = []
        for arrays in inputs:
            interrupt.check()
            given = zip(sources, arrays, strict=True)
            found = machine.run({source.name: array.reshape(source.shape) for source, array in given})
            shaped = zip(results, outputs, strict=True)
            answers.append(tuple(found[result.name].reshape(output.shape) for result, output in shaped))
        return answers

    return "simulated", in_turn(run)


def _run_apart(
    folder: Path, executable: programs.Executable, runs: Sequence[Arrays], outputs: Sequence[TensorSpec]
) -> list[Arrays]:
    found = apart.run(folder, executable, [(apart.END, region) for region in executable.outputs], runs)
    shaped = [[array.reshape(output.shape) for array in stack] for stack, output in zip(found, outputs, strict=True)]
    return list(zip(*shaped, strict=True))


def capture(
    library: Path, target: Target, network: IntegerNetwork, runs: Sequence[Arrays], kernels: Sequence[str]
) -> tuple[str, Left]:
    """ "simulated": a layer's instructions one after the other, and behind each layer what memory has in its place.

    That is looked at before the next layer begins, so that it's right whatever is written there later.
    """
    executable = programs.read(library.parent)
    marks, layers = executable.layers, network.layers
    if [mark.name for mark in marks] != [layer.name for layer in layers] or len(marks) != len(kernels):
        raise other_kernels(library, len(layers), kernels)
    regions = regions_of(network, executable)
    if any(regions[region.name] != region for region in (*executable.inputs, *executable.outputs)):
        raise UserError(f"{library.name} has its tensors elsewhere than this version of tvmflow; build it again.")
    names = [layer.name for layer in layers]
    if executable.source:
        found = apart.run(library.parent, executable, [(n, regions[name]) for n, name in enumerate(names)], runs)
    else:
        found = [[] for _ in names]
        for arrays in runs:
            interrupt.check()
            machine, given = Machine(executable), zip(executable.inputs, arrays, strict=True)
            marks_run = machine.run_layers({port.name: array.reshape(port.shape) for port, array in given})
            for stack, mark in zip(found, marks_run, strict=True):
                stack.append(regions[mark.name].read(machine.state.dram, executable.config))
    stacks = zip(names, found, strict=True)
    return "simulated", [((name,), np.concatenate(stack).astype(np.int64)) for name, stack in stacks]


def hardware(target: Target) -> timing.Hardware:
    """The clock, bus and memory of a board's VTA."""
    vta = Vta.of(target)
    made = timing.Hardware(clock_mhz=vta.clock_mhz, bus_bytes=vta.bus_bytes, burst_beats=vta.burst_beats)
    return made.with_latency(vta.latency_cycles)


def band(target: Target) -> tuple[timing.Hardware, timing.Hardware]:
    """The same with what is likely to be the best and the worst memory, which splits bursts where its port does."""
    vta, board = Vta.of(target), hardware(target)
    low, high = (board.with_latency(cycles) for cycles in vta.latency_band)
    return low, replace(high, burst_beats=min(vta.burst_beats, vta.port_burst_beats))


def time(
    bundle: Built, *, threads: int | None, repeats: int | None, seconds: float, whole: bool, layers: bool
) -> Timing:
    """Simulated, cycle by cycle; every run takes the same, so one is enough."""
    board = hardware(bundle.target)
    executable = programs.read(bundle.library.parent)
    timed = timing.simulate(executable, board)
    details = [_details(layer, known.details) for layer, known in zip(timed.layers, bundle.layers, strict=True)]
    if executable.source:
        target = bundle.target
        note = (
            f"this computer is no {target.name}: the accelerator's part takes {timed.latency_ms:.4g} ms (simulated); "
            f"what the processor's takes, and so the sum, isn't known. {_on_the_processor(bundle.layers, target)}"
        )
        return Timing(note=note, details=details, timeline=occupancy(timed))
    ends = band(bundle.target)
    modelled = replace(board, core="hls")  # what the published bitstreams are, with no RTL to hold the model against
    facts = {
        "core": board.core,
        "cycles": timed.cycles,
        "clock_mhz": board.clock_mhz,
        "memory_latency_cycles": board.read_latency,
        "band_latency_cycles": [end.read_latency for end in ends],
        "band_burst_beats": [end.burst_beats for end in ends],
        "band_ms": [timing.simulate(executable, end).latency_ms for end in ends],
        "hls_ms": timing.simulate(executable, modelled).latency_ms,
        "accelerator_share": 1.0,
    }
    measurement = Measurement(
        basis="simulated",
        samples_ms=(timed.latency_ms,),
        threads=1,
        setup_ms=0.0,
        first_ms=timed.latency_ms,
        facts={"simulation": facts},
    )
    rows = [
        {"basis": "simulated", "unit": "us", "p50": us, "min": us, "interval": [us, us]}
        for us in (layer.cycles / board.clock_mhz for layer in timed.layers)
    ]
    return Timing(
        measurement=measurement if whole else None,
        note="" if whole else "only profiled.",
        layers=rows if layers else (),
        details=details,
        timeline=occupancy(timed),
    )


def _details(layer: timing.LayerTiming, known: Mapping[str, Any]) -> dict[str, Any]:
    """What a run tells of a layer, beside its bounds.

    `cycles` add up to the whole, as those in which the layer before is still at work count for that one. The bound
    is of all that a layer does, so it is held against `span_cycles`, which overlap.
    """
    if "bound_cycles" not in known:  # the processor's
        return {}
    span = max(0, layer.end - layer.begin)
    told = {
        "cycles": layer.cycles,
        "span_cycles": span,
        "busy_cycles": dict(layer.busy),
        "read_bytes": layer.read_bytes,
        "written_bytes": layer.written_bytes,
    }
    if known["bound_cycles"]:  # what lies in its place already takes nothing
        told["times_bound"] = span / known["bound_cycles"]
    return told
