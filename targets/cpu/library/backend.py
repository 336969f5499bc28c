"""Building, verifying and timing networks that are delivered as a library for C."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tvmflow.measure import device
from tvmflow.measure.noise import disturbances
from tvmflow.network.agreement import Arrays, Runner, in_turn
from tvmflow.spec import (
    Built,
    Measurement,
    MissingDependencyError,
    Program,
    Target,
    TensorSpec,
    UserError,
    Vector,
    VerificationError,
)
from tvmflow.system import children, toolchain
from tvmflow.system.toolchain import Linker
from tvmflow.targets.cpu.boards import HOST
from tvmflow.targets.cpu.library import usage
from tvmflow.targets.cpu.library.systems import compiled_for
from tvmflow.targets.kind import (
    Artifacts,
    Left,
    RunStages,
    Timing,
    digest_of,
    layer_rows,
    other_kernels,
    verify_library,
    versions,
)

if TYPE_CHECKING:
    from tvmflow.integer.network import IntegerNetwork

log = logging.getLogger(__name__)

MODULE = "for-the-runtime"
"""Beside a library that was just built: the same kernels as a module for TVM's runtime, to be compared with."""

SECONDS = 600.0


def check(target: Target, linker: str = "auto", *, runner: bool = False) -> Linker:
    """The compiler of the calls, which links as well. Raises UserError, MissingDependencyError."""
    if runner:
        raise UserError(f"--runner is for modules of TVM's runtime; a library for {target.name} has a runner anyway.")
    return toolchain.select_linker(compiled_for(target), linker)


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
    """Run the stages; compile kernels, weights and calls; link. Raises UserError, MissingDependencyError."""
    import tvm

    from tvmflow.targets.cpu.library import link

    assert linker is not None
    with tvm.target.Target(toolchain.tvm_target_dict(target)):
        compiled = run_stages(program, target, dump_dir)
        made = link.make(compiled, target, folder, linker)
        if verify:
            _make_module(compiled, target, folder / MODULE)
    sizes = {"library_bytes": made.archive.stat().st_size, "code_bytes": made.facts["code_bytes"]}
    extras = {made.header.name: made.header, made.source.name: made.source, "bindings": folder / "bindings"}
    if made.shared is not None:
        extras[made.shared.name] = made.shared
    return Artifacts(
        program=replace(compiled, made=None),
        library=made.archive,
        memory={**compiled.memory, **sizes},
        versions=versions(linker),
        extras=extras,
        runner=made.runner,
        usage=usage.readme(compiled, target, made.facts),
        c_library=made.facts,
    )


def _make_module(compiled: Program, target: Target, folder: Path) -> None:
    """The same kernels for TVM's runtime, linked as far as this computer can run it; left out where it can't."""
    from tvm import relax

    from tvmflow.passes.lower import lower, plan_memory
    from tvmflow.targets.cpu.library.calls import calls_of

    runs_on = _with_runtime(target)
    folder.mkdir()
    planned = replace(compiled, module=calls_of(compiled).origin, made=None)
    for stage in (plan_memory, lower):
        planned = stage(planned, runs_on)
    try:
        linker = toolchain.select_linker(runs_on)
    except MissingDependencyError:
        return
    executable = relax.build(planned.module, relax_pipeline=None)
    executable.export_library(
        str(folder / "model.so"), fcompile=toolchain.fcompile(linker, runs_on.tvm.get("mtriple", runs_on.triple))
    )


GLIBC: Mapping[tuple[int, str], str] = {
    (64, "AArch64"): "aarch64-linux-gnu.2.28",
    (32, "ARM"): "arm-linux-gnueabihf.2.28",
    HOST.elf: HOST.triple,
}
"""What TVM's runtime, or what stands in for it here, is linked for."""


def _with_runtime(target: Target) -> Target:
    """The board as one that has TVM's runtime, for its processor."""
    return replace(target, delivery="module", triple=GLIBC.get(target.elf, target.triple), kind=_kind(target))


def _kind(target: Target) -> str:
    return HOST.kind if target.elf == HOST.elf else target.kind


def verify(made: Artifacts, target: Target, vectors: Sequence[Vector]) -> tuple[dict[str, Any], Artifacts]:
    """The verdict, which also says whether the outputs have the bits that TVM's runtime gives.

    Raises VerificationError where they have others and no function of the mathematical library explains it.
    """
    verdict = verify_library(made.library, target, vectors, made.program.outputs)
    if not verdict["passed"]:
        return verdict, made
    return {**verdict, **_beside_the_runtime(made, target, vectors, verdict["bits"])}, made


def _beside_the_runtime(made: Artifacts, target: Target, vectors: Sequence[Vector], bits: str) -> Mapping[str, Any]:
    """`same_bits`, or why that isn't known as `runtime_reason`."""
    from tvmflow.targets.cpu import module as of_runtime

    module, runs_on = made.library.parent / MODULE / "model.so", _with_runtime(target)
    if not module.exists():
        return {"same_bits": None, "runtime_reason": "There is no linker for a module of TVM's runtime."}
    try:
        _, run = of_runtime.find_runner(module, runs_on, made.program.outputs)
        results = run([vector.inputs for vector in vectors])
    except MissingDependencyError as error:
        return {"same_bits": None, "runtime_reason": str(error)}
    same = digest_of(results) == bits
    assert made.c_library is not None
    math = made.c_library["math"]
    if not same and not math:
        raise VerificationError(
            f"{made.program.name} as a library for {target.name} gives other bits than by TVM's runtime."
        )
    reason = {} if same else {"runtime_reason": f"The C libraries differ in {', '.join(math)}."}
    return {"same_bits": same, **reason}


def find_runner(library: Path, target: Target, outputs: Sequence[TensorSpec]) -> tuple[str, Runner]:
    """ "native", or "emulated" under qemu: a program that is linked with the archive. Raises MissingDependencyError."""
    method, command = _way_to_run(target)
    return method, in_turn(lambda inputs: _run(library, target, command, inputs, outputs))


def _way_to_run(target: Target) -> tuple[str, Sequence[str]]:
    if target.elf == HOST.elf:
        return "native", ()
    from tvmflow.measure import emulate

    return "emulated", emulate.alone(target)


def _run(
    library: Path, target: Target, command: Sequence[str], inputs: Sequence[Arrays], outputs: Sequence[TensorSpec]
) -> list[Arrays]:
    with tempfile.TemporaryDirectory(prefix="tvmflow-") as name:
        folder = Path(name)
        _run_program(library, target, command, inputs, folder)
        stacks = [
            np.fromfile(folder / f"output-{index}.raw", np.dtype(spec.dtype)).reshape(-1, *spec.shape)
            for index, spec in enumerate(outputs)
        ]
    return [tuple(stack[index] for stack in stacks) for index in range(len(inputs))]


def _run_program(
    library: Path, target: Target, command: Sequence[str], inputs: Sequence[Arrays], folder: Path, *words: str
) -> None:
    """Link emulated_runner.c with the archive and run it in a folder, where it leaves what it says of itself."""
    from tvmflow.measure import emulate
    from tvmflow.targets.cpu.library.link import link_program

    program = folder / "program"
    try:
        linker = toolchain.select_linker(compiled_for(target))
        link_program(Path(emulate.__file__).with_name("emulated_runner.c"), program, target, linker, library)
    except UserError as error:
        raise MissingDependencyError(f"The program that runs the library can't be made: {error}") from error
    for index, arrays in enumerate(zip(*inputs, strict=True)):
        np.stack(arrays).tofile(folder / f"input-{index}.raw")
    words = (str(program), str(len(inputs)), *words)
    emulate.run_program([*command, *words], folder, f"{library.name} for {target.name}")


def capture(
    library: Path, target: Target, network: IntegerNetwork, runs: Sequence[Arrays], kernels: Sequence[str]
) -> tuple[str, Left]:
    """ "native", or "emulated program" under qemu: one linked with the archive looks at the arena after each kernel."""
    from tvmflow.passes.integer_kernels import tensors_between, tensors_of

    forms = tensors_between(network, target)
    if len(forms) != len(kernels) and (network.tail is None or len(forms) > len(kernels)):
        raise other_kernels(library, len(forms), kernels)
    method, command = _way_to_run(target)
    with tempfile.TemporaryDirectory(prefix="tvmflow-") as name:
        folder = Path(name)
        _run_program(library, target, command, runs, folder, "keep")
        stacks = [
            np.fromfile(folder / f"kernel-{number}.raw", form.memory_dtype).reshape(len(runs), -1)
            for number, (_, form) in enumerate(forms)
        ]
    return "native" if method == "native" else "emulated program", tensors_of(network, target, stacks)


def time(
    bundle: Built, *, threads: int | None, repeats: int | None, seconds: float, whole: bool, layers: bool
) -> Timing:
    """Measured by the bundle's own runner, where this computer runs its code itself; each layer in a run of its own."""
    from tvmflow.targets.cpu import module as of_runtime

    if bundle.target.elf != HOST.elf:
        return Timing(note=f"no {bundle.target.name} was at hand, and emulation checks answers, never speed.")
    threads = threads or len(os.sched_getaffinity(0))
    before = of_runtime.measured_roof(bundle, threads)
    measurement = _measured(bundle, threads, repeats, seconds) if whole else None
    layer_us = _layers(bundle, threads, (None if whole else repeats) or 50) if layers else ()
    return Timing(
        measurement=measurement,
        note="" if whole else "only profiled.",
        layers=layer_rows(layer_us),
        roof=of_runtime.higher(before, of_runtime.measured_roof(bundle, threads)),
    )


def _measured(bundle: Built, threads: int, repeats: int | None, seconds: float) -> Measurement:
    if repeats is not None:
        log.info("A library's runner takes --seconds and makes as many runs as fit; --repeats is left out.")
    load = os.getloadavg()[0]
    found = _ask(bundle, threads, "--samples", repr(seconds), seconds=seconds)
    samples = found["samples"]
    p50, p90 = np.percentile(samples, [50, 90])
    warnings = [f"The machine was busy: load {load:.1f} before the run."] if load > 0.5 * (os.cpu_count() or 1) else []
    if bundle.target.name != HOST.name:
        warnings.append(f"Built for {bundle.target.name}, timed on this computer ({HOST.cpu.model}).")
    return Measurement(
        basis="measured",
        samples_ms=tuple(samples),
        threads=threads,
        setup_ms=found["setup"],
        first_ms=found["first"],
        warmup_ms=tuple(found["warmup"]),
        warnings=(*warnings, *disturbances(p50, p90, min(samples), len(samples))),
        facts={"load_before": round(load, 2), "attempts": 1},
    )


def _layers(bundle: Built, threads: int, repeats: int) -> list[list[float]]:
    """Of each layer its times in µs. Raises UserError for a bundle of an earlier version."""
    if "kernels" not in bundle.manifest["c_library"]:
        raise UserError(f"{bundle.library.name} can't time its layers apart; build it again, with this version.")
    found = _ask(bundle, threads, "--profile", str(repeats), seconds=0)["kernels"]
    if len(found) != len(bundle.layers):
        raise other_kernels(bundle.library, len(bundle.layers), [kernel["name"] for kernel in found])
    return [kernel["samples"] for kernel in found]


def _ask(bundle: Built, threads: int, *words: str, seconds: float) -> Mapping[str, Any]:
    """What the runner says to these words within so many seconds, run from a copy that may be executed."""
    with tempfile.TemporaryDirectory(prefix="tvmflow-") as name:
        root = bundle.library.parent
        runner = Path(name) / device.PROGRAM
        runner.parent.mkdir()
        runner.write_bytes((root / device.PROGRAM).read_bytes())
        runner.chmod(0o700)
        (Path(name) / "vectors").symlink_to((root / "vectors").resolve())
        environment = {**children.environment(), "TVM_NUM_THREADS": str(threads)}
        try:
            done = subprocess.run(
                [str(runner), *words],
                capture_output=True, text=True, check=False, timeout=SECONDS + seconds, env=environment,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise VerificationError(
                f"The runner of {bundle.library.name} didn't end in {error.timeout:g} s."
            ) from error
    if done.returncode != 0:
        raise VerificationError(f"The runner of {bundle.library.name} failed: {done.stderr.strip() or 'no message'}")
    return json.loads(done.stdout)
