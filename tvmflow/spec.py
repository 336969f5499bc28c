"""The nouns that flow through tvmflow and the errors it raises. Read this file first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

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
    nothing shaped it. `live_macs` are those of `macs` that read the input and not its border, `weight_bytes` those of
    `bytes` that are constants, `live_bytes` what of the planned activations is needed while it runs; None in bundles
    that don't say. `details` is what only one kind of target knows of a layer; docs/report.md has the names.
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
class Gpu:
    """What a schedule or a model may know of an NVIDIA GPU.

    `architecture` is as NVIDIA's compilers call it ("sm_87"); an SM is a multiprocessor. `clock_mhz` is the highest
    that the datasheet promises, `dram_gbps` are 10⁹ bytes a second. `unverified` names the fields that no datasheet was
    at hand for. `runtime_note` says what a bundle needs on this board if TVM's published runtime doesn't serve it.
    `also` are other architectures that a build compiles for, "compute_90" standing for PTX. `cuda_graph` has a build
    make one launch of all that touch neither the network's input nor its output.
    """

    model: str
    architecture: str
    sms: int
    lanes_per_sm: int
    clock_mhz: int
    dram_gbps: float
    l2_bytes: int
    shared_bytes_per_sm: int
    shared_bytes_per_block: int
    threads_per_sm: int
    blocks_per_sm: int
    registers_per_sm: int = 65536
    registers_per_block: int = 65536
    threads_per_block: int = 1024
    unverified: tuple[str, ...] = ()
    runtime_note: str = ""
    also: tuple[str, ...] = ()
    cuda_graph: bool = False

    @property
    def has_dp4a(self) -> bool:
        """Whether all that a build compiles for multiplies four bytes at a time: sm_61 and newer."""
        return all(int(name.partition("_")[2]) >= 61 for name in (self.architecture, *self.also))


@dataclass(frozen=True, kw_only=True)
class Mcu:
    """What a microcontroller has: `ram_bytes` in one piece, `flash_bytes` that it executes from, inside or outside.

    `core` is what its instructions can, of `tvmflow.schedules.cortex_m.CORES`. `machine` is the model of
    qemu-system-arm with the same core. `unverified` names figures that were not looked up in the data sheet.
    """

    core: str
    flash_bytes: int
    ram_bytes: int
    machine: str
    external_flash: bool = False
    unverified: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Vta:
    """The VTA in a board's FPGA: `configuration` has upstream's names, as its JSON files.

    The port to memory carries `bus_bytes` a cycle; `latency_cycles`, from a request to its first data, is an assumption
    for which `latency_band` has what is likely.
    """

    configuration: Mapping[str, Any]
    clock_mhz: int
    bus_bytes: int
    latency_cycles: int
    latency_band: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Target:
    """A board, as pure data. `tvm` is the dict that `tvm.target.Target` takes; `triple` is what the linker is given.

    `elf` is the ELF header's (class in bits, machine as pyelftools names it), or NO_ELF where the library is none;
    `datasheet` cites the figures' source; `schedules` names the rules of `tvmflow.schedules.RULES` to try, first match
    wins. `identity` is how the board's name in its device tree begins, by which it is known when it is measured.
    `arithmetic` is what networks are computed in: float32 ones in float32 or float16, quantised ones in int8. It is one
    of `arithmetics`, those that the board has instructions for. `cpu` and `elf` are those of the computer that holds
    the `gpu`, where the kernels run on one.
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
    gpu: Gpu | None = None
    mcu: Mcu | None = None
    vta: Vta | None = None


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
    """A package, linker, emulator or runtime that the job needs isn't there.

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
