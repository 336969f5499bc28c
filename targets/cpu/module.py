"""Networks as modules: TVM's runtime runs one shared library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tvmflow.measure import device
from tvmflow.measure.local import capture_library, profile_library, run_vectors, time_library
from tvmflow.measure.roof import measure_roof
from tvmflow.network.agreement import Runner, in_turn
from tvmflow.spec import Built, Measurement, Program, Roof, Target, TensorSpec
from tvmflow.system import toolchain
from tvmflow.targets.cpu.boards import HOST
from tvmflow.targets.kind import (
    Arrays,
    Artifacts,
    Left,
    RunStages,
    Timing,
    layer_rows,
    other_kernels,
    verify_by_running,
    versions,
)

if TYPE_CHECKING:
    from tvmflow.integer.network import IntegerNetwork

verify = verify_by_running

LIBRARY = "model.so"


def check(target: Target, linker: str = "auto", *, runner: bool = False) -> toolchain.Linker:
    """The linker; also whether there can be a runner. Raises UserError, MissingDependencyError."""
    if runner:
        device.check(target)
    return toolchain.select_linker(target, linker)


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
    """Run the stages, generate machine code and link it."""
    import tvm
    from tvm import relax

    assert linker is not None
    library = folder / LIBRARY
    tvm_target = tvm.target.Target(toolchain.tvm_target_dict(target))
    with tvm_target:
        compiled = run_stages(program, target, dump_dir)
        executable = relax.build(compiled.module, tvm_target, relax_pipeline=None)
    executable.export_library(
        str(library), fcompile=toolchain.fcompile(linker, target.tvm.get("mtriple", target.triple))
    )
    toolchain.check_elf(library, target.elf, target.name)
    memory = {**compiled.memory, **toolchain.section_bytes(library), "library_bytes": library.stat().st_size}
    return Artifacts(program=compiled, library=library, memory=memory, versions=versions(linker))


def find_runner(library: Path, target: Target, outputs: Sequence[TensorSpec]) -> tuple[str, Runner]:
    """ "native", or "emulated" or "emulated kernels" under qemu."""
    if target.elf == HOST.elf:
        return "native", lambda inputs, kept=(): run_vectors(library, inputs, outputs, kept=kept)
    from tvmflow.measure import emulate

    return emulate.method(target), in_turn(lambda inputs: emulate.run_vectors(library, target, inputs, outputs))


def capture(
    library: Path, target: Target, network: IntegerNetwork, runs: Sequence[Arrays], kernels: Sequence[str]
) -> tuple[str, Left]:
    """ "native" by TVM's virtual machine, or "emulated kernels", one by one, under qemu."""
    from tvmflow.measure import emulate
    from tvmflow.passes.integer_kernels import tensors_between, tensors_of

    made = len(tensors_between(network, target))
    if made != len(kernels) and (network.tail is None or made > len(kernels)):
        raise other_kernels(library, made, kernels)
    if target.elf == HOST.elf:
        return "native", tensors_of(network, target, capture_library(library, runs, kernels))
    return "emulated kernels", tensors_of(network, target, emulate.capture_kernels(library, target, runs, kernels))


def time(
    bundle: Built, *, threads: int | None, repeats: int | None, seconds: float, whole: bool, layers: bool
) -> Timing:
    """Measured where this computer runs the bundle's code itself; each layer in a run of its own."""
    host = HOST
    if bundle.target.elf != host.elf:
        return Timing(note=f"this computer is no {bundle.target.name}, and emulation checks answers, not speed.")
    inputs = bundle.vectors()[0].inputs
    before = measured_roof(bundle, threads)
    measurement: Measurement | None = None
    layer_us: Sequence[Sequence[float]] = ()
    if whole:
        measurement = time_library(bundle.library, inputs, threads=threads, repeats=repeats, seconds=seconds)
        if bundle.target.name != host.name:
            warning = f"Built for {bundle.target.name}, timed on this computer ({host.cpu.model})."
            measurement = replace(measurement, warnings=(*measurement.warnings, warning))
    if layers:
        runs = (None if whole else repeats) or 50
        layer_us = profile_library(bundle.library, inputs, bundle.layers, threads=threads, repeats=runs)
    return Timing(
        measurement=measurement,
        note="" if whole else "only profiled.",
        layers=layer_rows(layer_us),
        roof=higher(before, measured_roof(bundle, threads)),
    )


def measured_roof(bundle: Built, threads: int | None) -> Roof | None:
    """What this computer can do at most now, of multiply-adds as of bytes, on what a network touches."""
    memory, host = bundle.manifest["memory"], HOST.cpu
    touched = memory["weights_bytes"] + memory["activations_bytes"]
    return measure_roof(host, bundle.target.arithmetic, threads or host.cores, touched)


def higher(before: Roof | None, after: Roof | None) -> Roof | None:
    """What was reached before the timed runs or after them: a clock that rose meanwhile rose for both."""
    if before is None or after is None or not before.bytes_per_s or not after.bytes_per_s:
        return after
    return replace(
        after,
        macs_per_s=max(before.macs_per_s, after.macs_per_s),
        bytes_per_s=max(before.bytes_per_s, after.bytes_per_s),
        source=f"{after.source}; before and after the network",
    )
