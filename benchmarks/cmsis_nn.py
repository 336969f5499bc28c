"""An integer network by the kernels of CMSIS-NN, Arm's library for Cortex-M, and what they execute under emulation.

It needs a checkout of github.com/ARM-software/CMSIS-NN and `arm-none-eabi-gcc`. The library chooses its kernels itself,
by its wrappers, and gets the same layers, weights and multipliers: layer by layer its integers are the reference's.
What was unsigned is signed with an offset of 128, which is how it takes it. It has no pool that scales: that factor
goes into the classifier, whose input is rounded more coarsely thereby.
"""

from __future__ import annotations

import math
import struct
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from tvmflow.integer.network import IntegerNetwork
from tvmflow.spec import MissingDependencyError, Target, UserError
from tvmflow.targets.cortex_m.facts import Mcu

COMPILER = "arm-none-eabi-gcc"
FOLDERS = ("BasicMath", "Convolution", "FullyConnected", "Pooling", "NNSupport", "Softmax", "Transpose")
OPTIONS = ("-Ofast", "-std=gnu11", "-fno-math-errno", "-w")
"""-Ofast is the library's own default; it asks for no -ffreestanding, as it relies on copies made inline."""
OPTIONS_OF_CORE = {"Cortex-M7": ("-DOPTIONAL_RESTRICT_KEYWORD=__restrict",)}
"""What the library's README recommends for a core."""
ALIGNMENT = 16
SCRATCH = 64 << 10
OFFSETS = {"int8": 0, "uint8": 128}
"""What is taken off, for all of CMSIS-NN's tensors are int8."""


def _nothing() -> np.ndarray:
    return np.empty(0, np.int32)


@dataclass(frozen=True, kw_only=True, eq=False)
class Call:
    """One call of the library. Shapes are rows, columns and channels; offsets are what is added to a tensor's numbers.

    `weight`, `bias`, `multiplier` and `shift` are as the library takes them, in the order of its tensors. Unless they
    are `of_channels`, all of a dense layer have the same factors.
    """

    kind: str
    input_shape: tuple[int, int, int]
    output_shape: tuple[int, int, int]
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    input_offset: int = 0
    second_offset: int = 0
    output_offset: int = 0
    of_channels: bool = True
    least: int = -128
    most: int = 127
    weight: np.ndarray = field(default_factory=_nothing)
    bias: np.ndarray = field(default_factory=_nothing)
    multiplier: np.ndarray = field(default_factory=_nothing)
    shift: np.ndarray = field(default_factory=_nothing)


@dataclass(frozen=True, kw_only=True)
class Library:
    """The kernels and the program that calls them, compiled for a core, all but the table of calls."""

    target: Target
    checkout: Path
    folder: Path
    objects: tuple[Path, ...]

    @classmethod
    def compiled(cls, target: Target, checkout: Path, folder: Path) -> Library:
        """Raises UserError, MissingDependencyError."""
        from tvmflow.targets.cortex_m.machine import HERE, MACHINES, linker_script

        if not (checkout / "Include" / "arm_nnfunctions.h").is_file():
            raise UserError(f"{checkout} is no checkout of CMSIS-NN: it has no Include/arm_nnfunctions.h.")
        folder.mkdir(parents=True, exist_ok=True)
        # gcc's package of Debian has no C library; of it the kernels want two functions, which are in cmsis_nn.c
        (folder / "string.h").write_text(
            "#include <stddef.h>\nvoid *memcpy(void *, const void *, size_t);\nvoid *memset(void *, int, size_t);\n"
        )
        (folder / "link.ld").write_text(linker_script(MACHINES[Mcu.of(target).machine]))
        found = cls(target=target, checkout=checkout, folder=folder, objects=())
        kernels = [path for name in FOLDERS for path in sorted((checkout / "Source" / f"{name}Functions").glob("*.c"))]
        sources = [path for path in kernels if not path.stem.endswith(("_f16", "_f32"))]
        _gcc(*found.options(), "-c", *sources, at=folder)
        # its byte-wise copies are for other programs
        renamed = ("-Dmemcpy=startup_memcpy", "-Dmemset=startup_memset", "-ffreestanding", "-c")
        _gcc(*found.core(), "-O2", f"-I{HERE}", *renamed, HERE / "startup.c", "-o", folder / "startup.o")
        objects = (folder / f"{path.stem}.o" for path in sources)
        return replace(found, objects=(*objects, folder / "startup.o"))

    def core(self) -> tuple[str, ...]:
        return (f"-mcpu={self.target.cpu.model.lower()}", "-mthumb", "-mfloat-abi=hard")

    def options(self) -> tuple[str, ...]:
        from tvmflow.targets.cortex_m.machine import HERE

        include = [f"-I{path}" for path in (self.folder, self.checkout / "Include", HERE)]
        own = OPTIONS_OF_CORE.get(self.target.cpu.model, ())
        return (*self.core(), *OPTIONS, *own, *include, "-ffunction-sections", "-fdata-sections")


class Peer:
    """A firmware with calls of the library, for a board's emulator. Raises UserError."""

    def __init__(self, library: Library, calls: Sequence[Call], folder: Path) -> None:
        self.library, self.calls, self.folder = library, tuple(calls), folder
        write_tables(calls, folder)
        sources = (Path(__file__).with_suffix(".c"), folder / "constants.S", *library.objects)
        script = library.folder / "link.ld"
        _gcc(
            *(f"-I{folder}", *library.options(), *sources, "-nostdlib", "-lgcc"),
            *("-Wl,--gc-sections", f"-Wl,-T,{script}", "-o", folder / "peer.elf"),
        )

    def run(self, given: bytes, first: int, count: int) -> tuple[bytes, int]:
        """`count` calls from the `first`, each on what the one before gave; the first on what is `given`, int8.

        Gives what the last one made, and all instructions that the firmware executed, its start included.
        """
        from tvmflow.measure import emulate
        from tvmflow.targets.cortex_m import machine

        (self.folder / "input.raw").write_bytes(given)
        (self.folder / "calls.raw").write_bytes(struct.pack("<2i", first, count))
        plugin = ["-plugin", f"{emulate.compile_plugin(machine.COUNTING_PLUGIN)},out={self.folder / 'counts'}"]
        target = self.library.target
        qemu, board = machine.find_qemu(), Mcu.of(target).machine
        done = machine.start(qemu, board, self.folder / "peer.elf", self.folder, plugin, 600)
        if done.returncode:
            raise UserError(f"CMSIS-NN's firmware for {target.name} failed: {done.stderr or done.stdout}")
        executed = sum(int(line.split()[0]) for line in (self.folder / "counts").read_text().splitlines())
        return (self.folder / "output.raw").read_bytes() if count else given, executed

    def executed(self, number: int, given: bytes) -> tuple[bytes, int]:
        """What one call makes of what is `given`, and the instructions that it takes."""
        made, executed = self.run(given, number, 1)
        return made, executed - self.run(given, number, 0)[1]


def calls_for(network: IntegerNetwork) -> Iterator[Call]:
    """The layers as CMSIS-NN can have them: a pool keeps its scale, the dense layer behind it makes up for that.

    All its tensors are int8: what is unsigned here has an offset of 128 there.
    """
    factor, dtype = 1.0, "int8"
    for layer in network.layers:
        assert layer.multiplier is not None
        if layer.kind == "pool":
            factor = float(layer.multiplier[0]) * layer.weight[0].size / 2**32
        elif factor != 1:
            multiplier = 2 * np.rint(layer.multiplier * factor / 2).astype(np.int32)
            bias = np.rint(layer.bias / factor).astype(np.int32)
            layer, factor = replace(layer, multiplier=multiplier, bias=bias), 1.0
        offset, alone = OFFSETS[layer.dtype], layer.groups > 1
        assert layer.multiplier is not None
        yield Call(
            kind={"pool": "POOL", "dense": "DENSE"}.get(layer.kind, "DEPTHWISE" if alone else "CONVOLUTION"),
            input_shape=(*layer.input_shape[2:], layer.input_shape[1]),
            output_shape=(*layer.output_shape[2:], layer.output_shape[1]),
            kernel=layer.weight.shape[2:],
            stride=layer.stride,
            padding=layer.padding[:2],
            dilation=layer.dilation,
            input_offset=OFFSETS[dtype],
            output_offset=-offset,
            least=layer.minimum - offset,
            most=layer.maximum - offset,
            weight=layer.weight.transpose(1, 2, 3, 0) if alone else layer.weight.transpose(0, 2, 3, 1),
            bias=layer.bias,
            # (acc · multiplier/2 + 2³⁰) >> 31 is what the reference computes
            multiplier=layer.multiplier // 2,
            shift=np.zeros_like(layer.multiplier),
        )
        dtype = layer.dtype


def write_tables(calls: Sequence[Call], folder: Path) -> None:
    """calls.h and the constants that it points to."""
    blob = bytearray()

    def place(array: np.ndarray) -> str:
        blob.extend(bytes(-len(blob) % ALIGNMENT))
        at = len(blob)
        blob.extend(np.ascontiguousarray(array).tobytes())
        return f"(void *)(constants + {at})"

    rows, sums = [], 0
    for call in calls:
        numbers: list[object] = [
            call.kind,
            *map(_braces, (call.input_shape, call.output_shape, call.kernel, call.stride, call.padding, call.dilation)),
            *(
                call.input_offset,
                call.second_offset,
                call.output_offset,
                call.least,
                call.most,
                int(call.of_channels),
                sums,
            ),
            *map(place, (call.weight, call.bias, call.multiplier, call.shift)),
        ]
        rows.append(f"  {{{', '.join(map(str, numbers))}}},")
        sums += call.output_shape[2] if call.kind == "DENSE" else 0
    shapes = [shape for call in calls for shape in (call.input_shape, call.output_shape)]
    sizes = {
        "CALLS": len(calls),
        "LARGEST": 2 * max(math.prod(shape) for shape in shapes),
        "SCRATCH": SCRATCH,
        "SUMS": max(sums, 1),
    }
    defines = [f"#define {name} {value}" for name, value in sizes.items()]
    (folder / "calls.h").write_text("\n".join([*defines, "static const struct call calls[] = {", *rows, "};", ""]))
    (folder / "constants.bin").write_bytes(blob)
    (folder / "constants.S").write_text(
        f'.section .rodata.constants, "a", %progbits\n.balign {ALIGNMENT}\n.global constants\nconstants:\n'
        f'.incbin "{folder / "constants.bin"}"\n'
    )


def _braces(values: Sequence[int]) -> str:
    return f"{{{', '.join(map(str, values))}}}"


def _gcc(*arguments: str | Path, at: Path | None = None) -> None:
    try:
        done = subprocess.run([COMPILER, *map(str, arguments)], capture_output=True, text=True, check=False, cwd=at)
    except OSError as error:
        raise MissingDependencyError(f"{COMPILER} can't be run: {error}.") from error
    if done.returncode:
        said = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip())
        raise UserError(f"{COMPILER} refuses: {said}")


def measure(network: IntegerNetwork, target: Target, checkout: Path, images: np.ndarray) -> dict[str, Any]:
    """Instructions of each layer, whether each makes the reference's integers of its input, and how logits differ."""
    with tempfile.TemporaryDirectory(prefix="tvmflow-") as scratch:
        library = Library.compiled(target, checkout.resolve(), Path(scratch, "library"))
        peer = Peer(library, list(calls_for(network)), Path(scratch))
        logits, kept = network.run(images, keep=True)
        instructions, exact = [], []
        for index, layer in enumerate(network.layers):
            (read,) = layer.inputs
            made, executed = peer.executed(index, in_library(kept[read][:1]))
            instructions.append(executed)
            exact.append(made == in_library(kept[layer.name][:1]))
        whole = peer.run(in_library(images), 0, len(network.layers))[0]
    ended = (np.frombuffer(whole, np.int8).astype(int) + OFFSETS[network.layers[-1].dtype]).reshape(logits.shape)
    return {
        "instructions": instructions,
        "exact": exact,
        "largest_difference_of_logits": int(np.abs(ended - logits).max()),
        "same_class": int((ended.argmax(1) == logits.argmax(1)).sum()),
    }


def in_library(values: np.ndarray) -> bytes:
    """N×C×H×W, int8 or uint8, as the library has it: int8 with channels last."""
    signed = (values.astype(np.int16) - OFFSETS[str(values.dtype)]).astype(np.int8)
    return np.ascontiguousarray(signed.transpose(0, 2, 3, 1)).tobytes()
