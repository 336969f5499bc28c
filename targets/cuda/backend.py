"""The backend of boards with an NVIDIA GPU: built without one, checked on the stand-in, timed on a real one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from tvmflow.measure import local as measure
from tvmflow.network.agreement import Runner, in_turn
from tvmflow.schedules.gpu import IN_A_GRAPH, Gpu
from tvmflow.spec import (
    Built,
    MissingDependencyError,
    Program,
    Roof,
    Target,
    TensorSpec,
    TvmflowError,
    UserError,
    VerificationError,
)
from tvmflow.system import toolchain
from tvmflow.system.host import COMPUTER
from tvmflow.targets.cuda import cubin, nvrtc, standin
from tvmflow.targets.cuda.generate import Generated, Library, generate
from tvmflow.targets.cuda.occupancy import occupancy
from tvmflow.targets.kind import (
    Arrays,
    Artifacts,
    Left,
    RunStages,
    Timing,
    check_graph,
    layer_rows,
    other_kernels,
    stated_in,
    verify_by_running,
    versions,
    whole_memory,
)

if TYPE_CHECKING:
    from tvmflow.integer.network import IntegerNetwork

Result = TypeVar("Result")

LIBRARY = "model.so"
SOURCE = "kernels.cu"
"""The kernels as CUDA C, beside the library: for people, and for the stand-in, which can't run machine code."""

CHECK = "check"
"""The folder with a library for this computer, where the board has another kind of CPU."""


def check(target: Target, linker: str = "auto", *, runner: bool = False) -> toolchain.Linker:
    """The linker; also the compiler has to be installed and to know the architectures. Raises UserError."""
    if runner:
        raise UserError(f"--runner makes programs for CPUs only, none for a GPU such as that of {target.name}.")
    nvrtc.require()
    unknown = [name for name in architectures(target) if name.partition("_")[2] not in nvrtc.supported()]
    if unknown:
        raise UserError(
            f"NVIDIA's compiler {nvrtc.version()} doesn't know {', '.join(unknown)}; it compiles for "
            f"{', '.join(nvrtc.supported())}, each as sm_ or, for PTX, compute_."
        )
    return toolchain.select_linker(target, linker)


check_network = check_graph
verify = verify_by_running


def architectures(target: Target) -> tuple[str, ...]:
    """What is compiled for: the board's own architecture first."""
    gpu = Gpu.of(target)
    return tuple(dict.fromkeys((gpu.architecture, *gpu.also)))


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
    """Run the stages and make the library; beside it SOURCE and, where the board has another kind of CPU, CHECK.

    Machine code for `gpu.architecture` and for those `also` asked for is embedded. What the board needs besides TVM's
    published runtime is noted. Raises CompileError for a kernel that NVIDIA's compiler refuses.
    """
    import tvm

    assert linker is not None
    library = folder / LIBRARY
    with tvm.target.Target(dict(target.tvm)):
        compiled = run_stages(program, target, dump_dir)
    libraries = [Library(tvm=target.tvm, linker=linker, path=library)]
    if target.elf != COMPUTER.elf:
        (folder / CHECK).mkdir(exist_ok=True)
        tvm_target = {**target.tvm, "host": {"kind": "llvm", "mtriple": COMPUTER.triple}}
        path = folder / CHECK / library.name
        libraries.append(Library(tvm=tvm_target, linker=toolchain.select_linker(COMPUTER), path=path))
    made = standin.call(
        generate,
        tvm.ir.save_json(compiled.module),
        tuple(libraries),
        architectures(target),
        verify=verify,
        architecture=Gpu.of(target).architecture,
    )
    library.with_name(SOURCE).write_text(made.source, encoding="utf-8")
    if made.source:
        cubin.check(library, tuple(name for name in architectures(target) if name.startswith("sm_")), target.name)
    toolchain.check_elf(library, target.elf, target.name)
    note = Gpu.of(target).runtime_note
    return Artifacts(
        program=_with_details(compiled, target, made),
        library=library,
        memory={**compiled.memory, **toolchain.section_bytes(library), "library_bytes": library.stat().st_size},
        versions={**versions(linker), "nvrtc": nvrtc.version()},
        extras={name: folder / name for name in (SOURCE, CHECK) if (folder / name).exists()},
        notes=[f"{target.name}: {note}"] if note else [],
    )


def _with_details(program: Program, target: Target, made: Generated) -> Program:
    """Each layer with what its kernels take of the board's GPU."""
    from tvmflow.passes.fuse_operators import kernels
    from tvmflow.targets.cuda.passes.bind_threads import launches

    resources = made.resources.get(Gpu.of(target).architecture, {})
    functions = kernels(program.module)
    layers = []
    for layer in program.layers:
        rows = []
        for number, axes in enumerate(launches(functions[layer.kernel])):
            name = f"{layer.kernel}_kernel" + (f"_{number}" if number else "")
            if name in resources:
                rows.append(_kernel_row(Gpu.of(target), name, axes, resources[name]))
        layers.append(replace(layer, details={**layer.details, "kernels": rows}))
    return replace(program, layers=tuple(layers))


def _kernel_row(gpu: Gpu, name: str, axes: Mapping[str, int], taken: nvrtc.Resources) -> dict[str, Any]:
    blocks = int(np.prod([axes.get(f"blockIdx.{axis}", 1) for axis in "xyz"]))
    threads = int(np.prod([axes.get(f"threadIdx.{axis}", 1) for axis in "xyz"]))
    held = occupancy(gpu, threads=threads, registers=taken.registers, shared_bytes=taken.shared_bytes)
    return {
        "name": name,
        "blocks": blocks,
        "threads": threads,
        **asdict(taken),
        "blocks_per_sm": held.blocks_per_sm,
        "occupancy": round(held.fraction, 3),
        "limit": held.limit,
    }


def roof(target: Target) -> Roof | None:
    gpu = Gpu.of(target)
    each = 4 if target.arithmetic == "int8" and gpu.has_dp4a else 1
    return Roof(
        macs_per_s=gpu.sms * gpu.lanes_per_sm * gpu.clock_mhz * 1e6 * each,
        bytes_per_s=1e9 * gpu.dram_gbps,
        cache_bytes=gpu.l2_bytes,
        source=stated_in(target, gpu.unverified),
        unverified=gpu.unverified,
    )


parts = whole_memory


def find_runner(library: Path, target: Target, outputs: Sequence[TensorSpec]) -> tuple[str, Runner]:
    """ "native" where a GPU of the board's architecture answers, else "stand-in".

    There it is the library itself that runs or, where the board has another kind of CPU, that made for this computer.
    """
    if target.elf == COMPUTER.elf and missing_device(target) is None:
        return "native", lambda inputs, kept=(): measure.run_vectors(library, inputs, outputs, device="cuda", kept=kept)
    _runnable(library, target)  # raises what is missing

    def run(inputs: Sequence[Arrays]) -> list[Arrays]:
        return _on_the_stand_in(library, target, run_vectors, inputs)

    return "stand-in", in_turn(run)


def _runnable(library: Path, target: Target) -> tuple[Path, str]:
    """What this computer can run on the stand-in, and its kernels' source. Raises MissingDependencyError."""
    source = library.with_name(SOURCE)
    runnable = library if target.elf == COMPUTER.elf else library.with_name(CHECK) / library.name
    if not source.exists() or not runnable.exists():
        raise MissingDependencyError(
            f"{library.name} for {target.name} can't be run on this computer: it has no {SOURCE} beside it, or no "
            f"{CHECK}/{library.name} for this kind of CPU."
        )
    text = source.read_text(encoding="utf-8")
    if text:
        cubin.check(library, (Gpu.of(target).architecture,), target.name)
    return runnable, text


def _on_the_stand_in(
    library: Path, target: Target, function: Callable[..., Result], inputs: Sequence[Arrays], *more: Any
) -> Result:
    """`function` of the library, of the inputs and of `more`, in a process with the stand-in."""
    runnable, text = _runnable(library, target)
    how: dict[str, Any] = {"architecture": Gpu.of(target).architecture, "kernels": standin.compile_kernels(text)}
    try:
        return standin.call(function, runnable, list(inputs), *more, **how)
    except TvmflowError:
        raise
    except Exception as error:  # TVM's own, many lines long
        lines = str(error).splitlines() or [type(error).__name__]
        said = next((line for line in lines if "stand-in: " in line), lines[0])
        raise VerificationError(f"{library.name} for {target.name} can't be run: {said.strip()}.") from error


def run_vectors(library: Path, inputs: Sequence[Arrays]) -> list[Arrays]:
    """Run `library` on tvm.cuda(0), whatever that is in this process."""
    import tvm
    from tvm import relax

    device = tvm.cuda(0)
    # one allocation for each tensor of the plan, none pooled: the stand-in watches their ends
    vm = relax.VirtualMachine(tvm.runtime.load_module(str(library)), device, memory_cfg="naive")
    results = []
    for arrays in inputs:
        given = [tvm.runtime.tensor(np.asarray(array, order="C"), device) for array in arrays]
        result = vm["main"](*given)
        outputs = [result] if isinstance(result, tvm.runtime.Tensor) else list(result)
        results.append(tuple(output.numpy() for output in outputs))
    return results


def capture(
    library: Path, target: Target, network: IntegerNetwork, runs: Sequence[Arrays], kernels: Sequence[str]
) -> tuple[str, Left]:
    """ "native" where a GPU of the board's architecture answers, else "stand-in", each by TVM's virtual machine."""
    from tvmflow.passes.integer_kernels import tensors_between, tensors_of

    if Gpu.of(target).cuda_graph:
        raise UserError("The kernels in a CUDA graph can't be looked at one by one; build it without --cuda-graph.")
    made = len(tensors_between(network, target))
    if made != len(kernels) and (network.tail is None or made > len(kernels)):
        raise other_kernels(library, made, kernels)
    if target.elf == COMPUTER.elf and missing_device(target) is None:
        return "native", tensors_of(network, target, measure.capture_library(library, runs, kernels, device="cuda"))
    found = _on_the_stand_in(library, target, capture_runs, runs, kernels)
    measure.check_calls([name for name, _ in found[0]], kernels)
    stacks = [np.stack([array for _, array in calls]) for calls in zip(*found, strict=True)]
    return "stand-in", tensors_of(network, target, stacks)


def capture_runs(library: Path, inputs: Sequence[Arrays], kernels: Sequence[str]) -> list[list[tuple[str, np.ndarray]]]:
    """Of each run the calls of `kernels` and what they leave, on tvm.cuda(0), whatever that is in this process."""
    import tvm
    from tvm import relax

    from tvmflow.measure import worker

    device = tvm.cuda(0)
    vm = relax.VirtualMachine(tvm.runtime.load_module(str(library)), device, memory_cfg="naive")
    return worker.capture_runs(vm, device, [np.stack(arrays) for arrays in zip(*inputs, strict=True)], kernels)


def missing_device(target: Target) -> str | None:
    """None if TVM finds a GPU that runs the board's machine code here, else what is missing, in a sentence's words."""
    import ctypes

    import tvm

    for name, what in (
        ("libcuda.so.1", "NVIDIA's driver"),
        ("libcudart.so.13", "the CUDA 13 runtime that TVM's wheel is linked to"),
    ):
        try:
            ctypes.CDLL(name)
        except OSError:
            return f"there is no {name}, so {what} is not installed"
    device = tvm.cuda(0)
    if not device.exist:
        return "TVM's CUDA runtime finds no GPU, though there is a driver"
    if device.device_name.startswith("stand-in"):
        return "what answers in its place is tvmflow's stand-in"
    found = "sm_" + device.compute_version.replace(".", "")
    if found not in architectures(target):
        return f"the GPU here ({device.device_name}) is {found}, and the bundle has {', '.join(architectures(target))}"
    return None


def time(
    bundle: Built, *, threads: int | None, repeats: int | None, seconds: float, whole: bool, layers: bool
) -> Timing:
    """Measured where a GPU of the bundle's architecture answers; the stand-in is never timed."""
    target = bundle.target
    if target.elf != COMPUTER.elf:
        return Timing(note=f"this computer has no {target.name}, and the stand-in for one checks answers, not speed.")
    if missing := missing_device(target):
        return Timing(note=f"{missing}; the stand-in checks answers, never speed.")
    if layers and not whole and Gpu.of(target).cuda_graph:
        return Timing(note=IN_A_GRAPH)
    inputs = bundle.vectors()[0].inputs
    how: dict[str, Any] = {"threads": threads, "device": "cuda"}
    measurement = layer_us = None
    if whole:
        measurement = measure.time_library(bundle.library, inputs, repeats=repeats, seconds=seconds, **how)
    if layers and not Gpu.of(target).cuda_graph:
        runs = (None if whole else repeats) or 50
        layer_us = measure.profile_library(bundle.library, inputs, bundle.layers, repeats=runs, **how)
    return Timing(measurement=measurement, note="" if whole else "only profiled.", layers=layer_rows(layer_us or ()))
