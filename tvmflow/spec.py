"""The nouns that flow through tvmflow and the errors it raises. Read this file first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeVar

if TYPE_CHECKING:  # importing the nouns must cost nothing: tvm takes 4 s to import, torch 2 s
    import numpy as np
    import tvm


Basis = Literal["measured", "simulated", "emulated", "modelled"]

NO_ELF = (0, "")
"""`Target.elf` of boards whose library is no ELF file."""


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """One input or output of a network: shape in elements, dtype as NumPy spells it."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How an image becomes the input: RGB, of the input's H×W, `(pixel / 255 − mean) / std` per channel, NCHW."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def apply(self, images: np.ndarray) -> np.ndarray:
        """uint8 N×H×W×C → float32 N×C×H×W."""
        import numpy as np

        scaled = (images / np.float32(255) - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


@dataclass(frozen=True, kw_only=True)
class Vector:
    """A golden vector: inputs and the outputs that the original network gave for them, in the order of the specs.

    `rounding` is how far each output moves, absolutely, if the original's values are rounded otherwise
    (`tvmflow.network.rounding`); empty where that isn't known, and of vectors of a bundle, which has tolerances made
    from it.
    """

    name: str
    inputs: tuple[np.ndarray, ...]
    outputs: tuple[np.ndarray, ...]
    rounding: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One kernel call of the compiled network, in execution order.

    `modules` are the paths of the PyTorch modules (or ONNX nodes) whose work it does; `macs` counts multiply-adds;
    `bytes` is the tensor traffic if every operand is read and every result written once; `schedule` is the rule of
    `tvmflow.schedules.RULES` that shaped the kernel, with ", searched" and the knobs if a search chose them, "searched"
    if it is MetaSchedule's own ("modelled choice" in place of "searched" if nothing was measured), "default" where
    nothing shaped it. `live_macs` are those of `macs` that read the input and not its border, or what a shorter
    algorithm (Winograd's) multiplies in their place, `weight_bytes` those of `bytes` that are constants, `live_bytes`
    what of the planned activations is needed while it runs; None in bundles that don't say. `details` is what only one
    kind of target knows of a layer; docs/report.md has the names.
    """

    kernel: str
    modules: tuple[str, ...]
    macs: int
    bytes: int
    schedule: str = "default"
    live_macs: int | None = None
    weight_bytes: int | None = None
    live_bytes: int | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


class Listing(Protocol):
    """What can be looked at as text, as a Relax module can."""

    def text(self) -> str:
        """For --dump-dir."""
        ...


@dataclass(frozen=True, kw_only=True)
class Program:
    """A network on its way to a device: the Relax module (entry `main`), its interface and its reference vectors.

    Stages add what they learn: `layers`, in `memory` the bytes of weights and activations, and in `folded` what is now
    done by other bindings of `main`: the name of each of those → the names of the folded ones and their multiply-adds.
    `records` are the schedules that a search found, by task; after scheduling, those that were used. A quantised
    network has `integer`, its exact arithmetic; `made` is what a kind's own stages have made of it, where that is no
    Relax module. `accuracy` is what is known of its weights (`tvmflow.models.accuracy`). `reference` says whose
    arithmetic the vectors' outputs are, and `original` is what gave them: arrays of the inputs → those of the outputs;
    None of a quantised network, whose original is its `integer`.
    """

    name: str
    source: str
    module: tvm.IRModule
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    vectors: tuple[Vector, ...]
    parameters: int
    labels: tuple[str, ...] = ()
    preprocessing: Preprocessing | None = None
    layers: tuple[Layer, ...] = ()
    folded: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    memory: Mapping[str, int] = field(default_factory=dict)
    records: Mapping[str, Best] = field(default_factory=dict)
    integer: Any = None
    made: Listing | None = None
    accuracy: Mapping[str, Any] | None = None
    reference: str = "PyTorch"
    original: Callable[..., tuple[np.ndarray, ...]] | None = None


@dataclass(frozen=True, kw_only=True)
class Cpu:
    """What a schedule may know of a CPU. `cache_note` says which caches are shared.

    `flops_per_cycle` are the float32 operations that a core can begin in a cycle, a fused multiply-add being two, and
    `memory_gbps` what the board's memory can deliver, 10⁹ bytes a second; 0 where that isn't known. `unverified` names
    the fields that no document was at hand for.
    """

    model: str
    cores: int
    clock_mhz: int
    l1d_bytes: int
    l2_bytes: int
    l3_bytes: int = 0
    cache_note: str = ""
    flops_per_cycle: int = 0
    memory_gbps: float = 0.0
    unverified: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Processor:
    """What computes networks on a board: a CPU with its cores, or a GPU with its multiprocessors."""

    model: str
    cores: int
    clock_mhz: int


OfKind = TypeVar("OfKind", bound="Facts")


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What only the boards of one kind have. Boards that are a CPU with memory have nothing more.

    A kind with facts of its own has a class of its own, which is named beside its boards. `NAME` is what these facts
    are called in .toml files and manifests. `DEVICE` is TVM's name of what kernels run on.
    """

    NAME: ClassVar[str] = ""
    DEVICE: ClassVar[str] = "cpu"

    @classmethod
    def of(cls: type[OfKind], target: Target) -> OfKind:
        """Those of a board that is of their kind."""
        assert isinstance(target.facts, cls), f"{target.name} is of kind {target.kind}"
        return target.facts

    def check(self, board: str) -> None:
        """Raise UserError for figures that no board of the kind can have; `board` is whose they are, for people."""

    def processor(self, cpu: Cpu) -> Processor:
        """What computes networks on a board with that CPU."""
        return Processor(model=cpu.model, cores=cpu.cores, clock_mhz=cpu.clock_mhz)

    def in_words(self, cpu: Cpu) -> str:
        """The same for a bundle's README."""
        return cpu.model

    def note(self) -> str:
        """What else whoever runs a bundle on the board has to know, as sentences."""
        return ""

    def why_whole(self) -> str:
        """Why the kernels of a network can't be timed one by one, as a sentence; "" where they can."""
        return ""


@dataclass(frozen=True, kw_only=True)
class Target:
    """A board, as pure data. `tvm` is the dict that `tvm.target.Target` takes; `triple` is what the linker is given.

    `elf` is the ELF header's (class in bits, machine as pyelftools names it), or NO_ELF where the library is none;
    `datasheet` cites the figures' source; `schedules` names the rules of `tvmflow.schedules.RULES` to try, first match
    wins. `identity` is how the board's name in its device tree begins, by which it is known when it is measured.
    `arithmetic` is what networks are computed in: float32 ones in float32 or float16, quantised ones in int8. It is one
    of `arithmetics`, those that the board has instructions for. `delivery` is how a network is delivered, one of
    `deliveries`, of which the first is what commands take by default: a "module" for TVM's runtime, or a "library" for
    C that needs none. `facts` are those that only its kind has. Where kernels run on something beside a CPU, `cpu` and
    `elf` are those of the computer that it belongs to.
    """

    name: str
    kind: str
    description: str
    tvm: Mapping[str, Any]
    triple: str
    elf: tuple[int, str]
    cpu: Cpu
    memory_bytes: int
    datasheet: str
    schedules: tuple[str, ...] = ()
    identity: str = ""
    arithmetic: str = "float32"
    arithmetics: tuple[str, ...] = ("float32",)
    delivery: str = "module"
    deliveries: tuple[str, ...] = ("module",)
    facts: Facts = Facts()

    @property
    def processor(self) -> Processor:
        """What computes networks."""
        return self.facts.processor(self.cpu)


class Built(Protocol):
    """A bundle that was opened, as whoever runs or times its library sees it."""

    @property
    def target(self) -> Target: ...
    @property
    def library(self) -> Path: ...
    @property
    def layers(self) -> tuple[Layer, ...]: ...
    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...
    @property
    def manifest(self) -> Mapping[str, Any]: ...
    def vectors(self) -> tuple[Vector, ...]: ...


@dataclass(frozen=True, kw_only=True)
class Best:
    """The schedule to use for a task: the winner of a comparison (`compared`), or the fastest record so far.

    With `modelled` a model has chosen it, its times are no times, and it was found to compute what it should.
    """

    task: str
    name: str
    candidate: str
    record: list[Any]
    ms: float
    default_ms: float | None
    compared: bool
    modelled: bool = False


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One row of outputs: its pixels, the input's pixels that it reads, and the weights of each pair of channels."""

    outputs: int = 1
    inputs: int = 1
    taps: int = 1


@dataclass(frozen=True, kw_only=True)
class Roof:
    """What a board can do at most: multiply-adds a second, and bytes a second from memory or None where unknown.

    `cache_bytes` is what it can keep between layers and inferences. `source` says whose figures these are: "stated" in
    documents, or "measured" on the computer itself. `unverified` names the figures that were stated without one, and
    `note` says where layers showed that the roof is too low.
    """

    macs_per_s: float
    bytes_per_s: float | None
    cache_bytes: int
    source: str
    basis: Literal["stated", "measured"] = "stated"
    unverified: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Latencies of one network on one device, made only by `tvmflow.measure`. Samples in ms, one per inference.

    `windows` are the parts of a sustained run: when each began, its figures, and what the board said after it.
    """

    basis: Basis
    samples_ms: tuple[float, ...]
    threads: int
    setup_ms: float
    first_ms: float
    warmup_ms: tuple[float, ...] = ()
    windows: tuple[Mapping[str, Any], ...] = ()
    warnings: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)


class TvmflowError(Exception):
    """Everything tvmflow raises on purpose. The message is one sentence for a person; `exit_code` is the command's."""

    exit_code = 1


class UserError(TvmflowError):
    """A file, name or value that was given can't be used."""

    exit_code = 4


class VerificationError(TvmflowError):
    """A compiled network doesn't compute what the original computes."""

    exit_code = 3


class MissingDependencyError(TvmflowError):
    """A package, linker, emulator, runtime or device that the job needs isn't there.

    `packages` are Debian's that bring it; then the message ends in the command that installs them.
    """

    exit_code = 5

    def __init__(self, message: str, packages: Sequence[str] = ()):
        super().__init__(f"{message}: {install_sentence(packages)}" if packages else message)
        self.packages = tuple(packages)


def install_command(packages: Sequence[str]) -> str:
    """What installs Debian's packages, and nothing that they merely recommend."""
    return f"apt-get install --no-install-recommends {' '.join(packages)}"


def install_sentence(packages: Sequence[str]) -> str:
    """How Debian's packages come onto this computer. The script is the checkout's and installs all that there are."""
    return f"`{install_command(packages)}` (tools/install-system-packages.sh) brings it."


class RegressionError(TvmflowError):
    """A report says that a network became slower than is allowed."""

    exit_code = 6


class InconclusiveError(TvmflowError):
    """Two reports are too noisy to say whether a network became slower than is allowed."""

    exit_code = 9


class DeviceError(TvmflowError):
    """A board can't be reached, refuses, or is lost. `kind` says which."""

    exit_code = 7

    def __init__(self, message: str, kind: Literal["unreachable", "auth", "upload", "timeout", "lost"]):
        super().__init__(message)
        self.kind = kind


class UnsupportedOperatorError(TvmflowError):
    """The network has operators that the importer can't take. `operators` maps each to the modules that use it."""

    exit_code = 8

    def __init__(self, message: str, operators: Mapping[str, tuple[str, ...]]):
        super().__init__(message)
        self.operators = operators
