"""The backend of boards with a CPU. How a network is delivered decides which module compiles, verifies and times it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from tvmflow.network.agreement import Runner
from tvmflow.spec import Built, Program, Roof, Target, TensorSpec, Vector
from tvmflow.system import toolchain
from tvmflow.targets.kind import (
    Arrays,
    Artifacts,
    Backend,
    Left,
    RunStages,
    Timing,
    check_graph,
    stated_in,
    whole_memory,
)

if TYPE_CHECKING:
    from tvmflow.integer.network import IntegerNetwork

DELIVERIES: Mapping[str, str] = {
    "module": "tvmflow.targets.cpu.module",
    "library": "tvmflow.targets.cpu.library.backend",
}
"""By `Target.delivery`, the module that compiles, verifies and times what is delivered so."""

check_network = check_graph
parts = whole_memory


def _of(target: Target) -> Backend:
    return cast(Backend, import_module(DELIVERIES[target.delivery]))


def check(target: Target, linker: str = "auto", *, runner: bool = False) -> toolchain.Linker | None:
    """The linker; also whether there can be a runner. Raises UserError, MissingDependencyError."""
    return _of(target).check(target, linker, runner=runner)


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
    return _of(target).compile(
        program,
        target,
        folder,
        linker=linker,
        run_stages=run_stages,
        dump_dir=dump_dir,
        verify=verify,
        source=source,
    )


def verify(made: Artifacts, target: Target, vectors: Sequence[Vector]) -> tuple[dict[str, Any], Artifacts]:
    """The verdict on what was compiled. Raises VerificationError."""
    return _of(target).verify(made, target, vectors)


def find_runner(library: Path, target: Target, outputs: Sequence[TensorSpec]) -> tuple[str, Runner]:
    """ "native", or "emulated" or "emulated kernels" under qemu. Raises MissingDependencyError."""
    return _of(target).find_runner(library, target, outputs)


def capture(
    library: Path, target: Target, network: IntegerNetwork, runs: Sequence[Arrays], kernels: Sequence[str]
) -> tuple[str, Left]:
    """What the kernels leave. Raises UserError where a delivery doesn't show it."""
    return _of(target).capture(library, target, network, runs, kernels)


def time(
    bundle: Built, *, threads: int | None, repeats: int | None, seconds: float, whole: bool, layers: bool
) -> Timing:
    """Measured where this computer runs the bundle's code itself."""
    return _of(bundle.target).time(
        bundle, threads=threads, repeats=repeats, seconds=seconds, whole=whole, layers=layers
    )


WIDTHS = {"float32": 1, "float16": 2, "int8": 4}
"""How many numbers there are in the place of one of float32."""


def roof(target: Target) -> Roof | None:
    cpu = target.cpu
    if not cpu.clock_mhz or not cpu.flops_per_cycle:
        return None
    wide = WIDTHS[target.arithmetic]
    return Roof(
        macs_per_s=cpu.cores * cpu.clock_mhz * 1e6 * cpu.flops_per_cycle * wide / 2,
        bytes_per_s=1e9 * cpu.memory_gbps or None,
        cache_bytes=cpu.l3_bytes + cpu.l2_bytes * (cpu.cores if cpu.l3_bytes else 1),
        source=stated_in(target, cpu.unverified),
        unverified=cpu.unverified,
    )
