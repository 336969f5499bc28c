"""What a kind of target is to the commands: how a network is built for it, run on this computer, and timed there.

A new kind is one folder, with the functions of Backend in its `backend` and what it says of itself beside its boards
(`tvmflow.targets.about`), one line in FAMILIES of `tvmflow.targets`, and its list of stages in `tvmflow.pipeline`.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, cast

import numpy as np

from tvmflow import __version__
from tvmflow.measure.cycles import Traced
from tvmflow.measure.noise import median_interval
from tvmflow.network.agreement import Arrays, Runner, compare, unverified
from tvmflow.spec import (
    Built,
    Measurement,
    MissingDependencyError,
    Program,
    Roof,
    Target,
    TensorSpec,
    Tile,
    UserError,
    Vector,
)
from tvmflow.system import toolchain
from tvmflow.targets.about import KINDS

if TYPE_CHECKING:
    from tvmflow.integer.network import IntegerNetwork


@dataclass(frozen=True, kw_only=True)
class Gap:
    """What a report can't say because something isn't installed: of what, why, and Debian's packages that bring it."""

    what: Literal["answers", "instructions", "cycles"]
    reason: str
    packages: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Timing:
    """What is known of a bundle's latency here: a measurement, or a note that says why there is none.

    `layers` has for each layer its latency as the report gives it, {"basis", "unit", "p50", …}, or is empty. `details`
    has what else was found of each layer, merged into `Layer.details`, or is empty. `roof` is this computer's, where it
    was measured. `timeline` is what the queues of an accelerator did, as `timeline` in docs/report.schema.json, and
    `cycles` are modelled ones of the whole, as docs/report.md has them. `gaps` are what could be told elsewhere.
    """

    measurement: Measurement | None = None
    note: str = ""
    layers: Sequence[Mapping[str, Any]] = ()
    details: Sequence[Mapping[str, Any]] = ()
    roof: Roof | None = None
    timeline: Mapping[str, Any] | None = None
    cycles: Mapping[str, Any] | None = None
    gaps: Sequence[Gap] = ()


def layer_rows(times_us: Sequence[Sequence[float]]) -> list[dict[str, Any]]:
    """Measured times of layers in µs, of each inference, as `Timing.layers` has them."""
    return [
        {
            "basis": "measured",
            "unit": "us",
            "p50": statistics.median(times),
            "min": min(times),
            "interval": median_interval(times),
        }
        for times in times_us
    ]


@dataclass(frozen=True, kw_only=True)
class Artifacts:
    """What compiling has left in a folder, for a bundle: `library`, and `program` as the stages left it.

    `memory` are bytes by what they are for, `versions` what the library was made with, and `extras` other files and
    folders by their names in the bundle. `runner` is the folder of a runner that belongs to every bundle of the kind,
    `usage` the words of the bundle's README on how the library is used, if not by TVM's runtime in Python, and `notes`
    are to be said to whoever builds. `c_library` are facts of a library for C, for the manifest.
    """

    program: Program
    library: Path
    memory: Mapping[str, int]
    versions: Mapping[str, str]
    extras: Mapping[str, Path] = field(default_factory=dict)
    runner: Path | None = None
    usage: str | None = None
    notes: Sequence[str] = ()
    c_library: Mapping[str, Any] | None = None


Left = list[tuple[tuple[str, ...], np.ndarray]]
"""What each kernel of a quantised network's library has left, in their order: the names of its layers, and the tensor
of the last of them, int64 N×C×H×W of the network's values."""


class Part(NamedTuple):
    """Bytes of a board's memory that a network needs, those that there are, and what the former are `of`, if known."""

    needed: int
    available: int
    of: Mapping[str, int] = MappingProxyType({})


Parts = dict[str, Part]
"""By the names of a board's memories."""


class RunStages(Protocol):
    """`tvmflow.pipeline.run_stages`, which compiling is handed: the list of stages is above the kinds."""

    def __call__(self, program: Program, target: Target, dump_dir: Path | None = None) -> Program: ...


class Backend(Protocol):
    """The functions of a kind's module."""

    def check(self, target: Target, linker: str = "auto", *, runner: bool = False) -> toolchain.Linker | None:
        """The linker. Raises what compiling would raise before a network is imported."""

    def check_network(self, program: Program, target: Target) -> None:
        """Raise what a build, or quantising before it, says of a float32 network that can't be had on the board."""

    def compile(
        self,
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
        """Run the stages and make the library in `folder`, which may hold what an earlier call made.

        With `source` also the network's source, where the kind has one that is for people. Without `verify`, kernels
        aren't checked either. Raises UserError, MissingDependencyError, VerificationError.
        """

    def verify(self, made: Artifacts, target: Target, vectors: Sequence[Vector]) -> tuple[dict[str, Any], Artifacts]:
        """The verdict on what was compiled, as `verify_library` has it, and the artifacts with what running showed."""

    def find_runner(self, library: Path, target: Target, outputs: Sequence[TensorSpec]) -> tuple[str, Runner]:
        """How `library` is run on this computer, in a word, and the function. Raises MissingDependencyError."""

    def capture(
        self, library: Path, target: Target, network: IntegerNetwork, runs: Sequence[Arrays], kernels: Sequence[str]
    ) -> tuple[str, Left]:
        """How `library` is run on this computer, in a word, and what its kernels leave for each tuple of inputs.

        It was built from `network`, and `kernels` are the calls that there should be. Raises UserError,
        MissingDependencyError, VerificationError.
        """

    def roof(self, target: Target) -> Roof | None:
        """What a board can do at most, by its data sheet; None where its figures aren't known."""

    def parts(self, memory: Mapping[str, int], target: Target, tiles: Sequence[Tile]) -> Parts:
        """What a network needs of each memory of a board, and what there is; `tiles` are its layers'."""

    def time(
        self, bundle: Built, *, threads: int | None, repeats: int | None, seconds: float, whole: bool, layers: bool
    ) -> Timing:
        """What this computer can say of the latency of the `whole` and of the `layers` of a bundle that is right."""


def of(target: Target) -> Backend:
    """The backend of a board's kind."""
    return cast(Backend, import_module(KINDS[target.kind].backend))


def tracing(target: Target) -> tuple[Callable[[Built], Traced], tuple[str, str]]:
    """What `tvmflow.measure.cycles.profile` asks of a kind: how an inference is traced, and by which emulator.

    Raises UserError for kinds whose cycles nobody models, MissingDependencyError for code that they can't trace.
    """
    tracer, bits = KINDS[target.kind].tracer, target.elf[0]
    if tracer is None:
        traced = " and ".join(kind.name for kind in KINDS.values() if kind.tracer is not None)
        raise UserError(f"Cycles are modelled for boards of {traced}; {target.name} is none.")
    if bits not in tracer.emulators:
        raise MissingDependencyError(f"Cycles of {bits}-bit code of {target.kind} boards can't be modelled.")
    return import_module(tracer.module).trace_calls, tracer.emulators[bits]


def find_runner(library: Path, target: Target, outputs: Sequence[TensorSpec]) -> tuple[str, Runner]:
    """How code for `target` is run on this computer ("native", "emulated", …), and the function.

    Raises MissingDependencyError where it can't be.
    """
    return of(target).find_runner(library, target, outputs)


def verify_library(
    library: Path,
    target: Target,
    vectors: Sequence[Vector],
    outputs: Sequence[TensorSpec],
    allowed: Sequence[Sequence[float]] | None = None,
) -> dict[str, Any]:
    """Run the vectors where `library` can run (here, or under emulation) and compare, as `compare` does.

    `passed` is None where it can't run, `reason` says why and `packages` what to install. Raises VerificationError if
    it crashes.
    """
    try:
        method, runner = find_runner(library, target, outputs)
        results = runner([vector.inputs for vector in vectors])
    except MissingDependencyError as error:
        return unverified(error)
    bits = {"bits": digest_of(results)} if target.delivery == "library" else {}
    return {"method": method, **compare(vectors, results, target.arithmetic, allowed), **bits}


def digest_of(results: Sequence[Arrays]) -> str:
    """The SHA-256 of all outputs, one after the other: the same bits give the same digest.

    All NaN count as one: which sign and payload one gets depends on the order of operands, which compilers choose.
    """
    found = hashlib.sha256()
    for output in (output for outputs in results for output in outputs):
        if output.dtype.kind == "f" or output.dtype.name == "bfloat16":
            output = np.where(np.isnan(output), output.dtype.type(np.nan), output)
        found.update(np.ascontiguousarray(output).tobytes())
    return found.hexdigest()


def verify_by_running(made: Artifacts, target: Target, vectors: Sequence[Vector]) -> tuple[dict[str, Any], Artifacts]:
    """`Backend.verify` where running the library shows no more than its outputs."""
    return verify_library(made.library, target, vectors, made.program.outputs), made


def other_kernels(library: Path, found: int, kernels: Sequence[str]) -> UserError:
    """What is raised where a library was built by a version that made other kernels of its network."""
    return UserError(
        f"{library.name} has {len(kernels)} kernels where this version of tvmflow makes {found}; build it again."
    )


def versions(linker: toolchain.Linker) -> dict[str, str]:
    """What a library of TVM's was made with: enough to make it again."""
    import tvm

    return {
        "tvmflow": __version__,
        "tvm": importlib.metadata.version("apache-tvm"),
        "tvm_ffi": importlib.metadata.version("apache-tvm-ffi"),
        "torch": importlib.metadata.version("torch"),
        "llvm": str(tvm.target.codegen.llvm_version_major()),
        "linker": f"{linker.name} {linker.version}".strip(),
    }


def check_graph(program: Program, target: Target) -> None:
    """In float32 and float16 everything is taken that can be imported, in int8 what has an integer form.

    Of a float network whatever stands in the way is named at once, before anything is compiled. Raises UserError,
    UnsupportedOperatorError.
    """
    if target.arithmetic == "int8" and program.integer is None:
        from tvmflow.integer.reader import float_graph

        float_graph(program)


def check_whole(program: Program, target: Target) -> None:
    """Raises UserError for a quantised network that ends in float32, on boards that have no place for that."""
    if program.integer is not None and program.integer.tail is not None:
        named = ", ".join(program.integer.tail.layers)
        raise UserError(
            f"{program.name} can't be built for {target.name}, which computes quantised networks in integers alone, "
            f"and these of its layers stay in float32: {named}; quantise it without --keep-float."
        )


def whole_memory(memory: Mapping[str, int], target: Target, tiles: Sequence[Tile]) -> Parts:
    """`Backend.parts` of a board with one memory for everything."""
    return {"memory": Part(sum(memory.values()), target.memory_bytes)}


def stated_in(target: Target, unverified: Sequence[str]) -> str:
    """Whose figures those of a roof are, and which of them nobody has looked up there."""
    return target.datasheet + (f" (not looked up: {', '.join(unverified)})" if unverified else "")
