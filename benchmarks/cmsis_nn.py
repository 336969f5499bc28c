"""An integer network by the kernels of CMSIS-NN, Arm's library for Cortex-M, and what they execute under emulation.

It needs a checkout of github.com/ARM-software/CMSIS-NN and `arm-none-eabi-gcc`. The library chooses its kernels itself,
by its wrappers, and gets the same layers, weights and multipliers: layer by layer its integers are the reference's.
What was unsigned is signed with an offset of 128, which is how it takes it. It has no pool that scales: that factor
goes into the classifier, whose input is rounded more coarsely thereby.
"""

from __future__ import annotations

import struct
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tvmflow.integer.network import IntegerLayer, IntegerNetwork
from tvmflow.spec import MissingDependencyError, Target, UserError
from tvmflow.targets.cortex_m.facts import Mcu

COMPILER = "arm-none-eabi-gcc"
FOLDERS = ("Convolution", "FullyConnected", "Pooling", "NNSupport", "Transpose")
OPTIONS = ("-Ofast", "-std=gnu11", "-fno-math-errno", "-w")
"""-Ofast is the library's own default; it asks for no -ffreestanding, as it relies on copies made inline."""
OPTIONS_OF_CORE = {"Cortex-M7": ("-DOPTIONAL_RESTRICT_KEYWORD=__restrict",)}
"""What the library's README recommends for a core."""
ALIGNMENT = 16
SCRATCH = 64 << 10
OFFSETS = {"int8": 0, "uint8": 128}
"""What is taken off, for all of CMSIS-NN's tensors are int8."""


class Peer:
    """A firmware with the network for a board's emulator. Raises UserError, MissingDependencyError."""

    def __init__(self, network: IntegerNetwork, target: Target, checkout: Path, folder: Path) -> None:
        from tvmflow.targets.cortex_m.machine import HERE, MACHINES, linker_script

        if not (checkout / "Include" / "arm_nnfunctions.h").is_file():
            raise UserError(f"{checkout} is no checkout of CMSIS-NN: it has no Include/arm_nnfunctions.h.")
        self.network, self.target, self.folder = network, target, folder
        self.layers = list(layers_for(network))
        write_tables(self.layers, folder)
        # gcc's package of Debian has no C library; of it the kernels want two functions, which are in cmsis_nn.c
        (folder / "string.h").write_text(
            "#include <stddef.h>\nvoid *memcpy(void *, const void *, size_t);\nvoid *memset(void *, int, size_t);\n"
        )
        (folder / "link.ld").write_text(linker_script(MACHINES[Mcu.of(target).machine]))
        core = (f"-mcpu={target.cpu.model.lower()}", "-mthumb", "-mfloat-abi=hard")
        own = OPTIONS_OF_CORE.get(target.cpu.model, ())
        kernels = [path for name in FOLDERS for path in sorted((checkout / "Source" / f"{name}Functions").glob("*.c"))]
        sources = [
            *(path for path in kernels if not path.stem.endswith(("_f16", "_f32"))),
            *(Path(__file__).with_suffix(".c"), folder / "constants.S"),
        ]
        include = [f"-I{path}" for path in (folder, checkout / "Include", HERE)]
        # its byte-wise copies are for other programs
        renamed = ("-Dmemcpy=startup_memcpy", "-Dmemset=startup_memset", "-ffreestanding", "-c")
        _gcc(*core, "-O2", *include, *renamed, HERE / "startup.c", "-o", folder / "startup.o")
        _gcc(
            *(
                *core,
                *OPTIONS,
                *own,
                *include,
                *sources,
                folder / "startup.o",
                "-ffunction-sections",
                "-fdata-sections",
            ),
            *("-nostdlib", "-lgcc", "-Wl,--gc-sections", f"-Wl,-T,{folder / 'link.ld'}", "-o", folder / "peer.elf"),
        )

    def run(self, inputs: np.ndarray, first: int, count: int) -> tuple[np.ndarray, int]:
        """`count` layers from the `first`, on N×C×H×W, int8 or uint8 as the reference has them.

        Gives the outputs in the same form, and all instructions that the firmware executed, its start included.
        """
        from tvmflow.measure import emulate
        from tvmflow.targets.cortex_m import machine

        signed = (inputs.astype(np.int16) - OFFSETS[str(inputs.dtype)]).astype(np.int8)
        np.ascontiguousarray(signed.transpose(0, 2, 3, 1)).tofile(self.folder / "input.raw")
        (self.folder / "layers.raw").write_bytes(struct.pack("<2i", first, count))
        plugin = ["-plugin", f"{emulate.compile_plugin(machine.COUNTING_PLUGIN)},out={self.folder / 'counts'}"]
        done = machine.start(
            machine.find_qemu(), Mcu.of(self.target).machine, self.folder / "peer.elf", self.folder, plugin, 600
        )
        if done.returncode:
            raise UserError(f"CMSIS-NN's firmware for {self.target.name} failed: {done.stderr or done.stdout}")
        executed = sum(int(line.split()[0]) for line in (self.folder / "counts").read_text().splitlines())
        if not count:
            return inputs, executed
        last = self.layers[first + count - 1]
        _, channels, *extents = last.output_shape
        made = np.fromfile(self.folder / "output.raw", np.int8).reshape(-1, *extents, channels)
        return (made.transpose(0, 3, 1, 2).astype(np.int16) + OFFSETS[last.dtype]).astype(last.dtype), executed


def layers_for(network: IntegerNetwork) -> Iterator[IntegerLayer]:
    """The layers as CMSIS-NN can have them: a pool keeps its scale, the dense layer behind it makes up for that."""
    factor = 1.0
    for layer in network.layers:
        assert layer.multiplier is not None
        if layer.kind == "pool":
            factor = float(layer.multiplier[0]) * layer.weight[0].size / 2**32
        elif factor != 1:
            multiplier = 2 * np.rint(layer.multiplier * factor / 2).astype(np.int32)
            bias = np.rint(layer.bias / factor).astype(np.int32)
            layer, factor = replace(layer, multiplier=multiplier, bias=bias), 1.0
        yield layer


def write_tables(layers: Sequence[IntegerLayer], folder: Path) -> None:
    """layers.h and the constants that it points to, channels last. What was uint8 has an offset of 128."""
    blob = bytearray()

    def place(array: np.ndarray) -> str:
        blob.extend(bytes(-len(blob) % ALIGNMENT))
        at = len(blob)
        blob.extend(np.ascontiguousarray(array).tobytes())
        return f"(void *)(constants + {at})"

    rows, dtype = [], "int8"
    for layer in layers:
        offset = OFFSETS[layer.dtype]
        alone = layer.groups > 1
        kind = {"pool": "POOL", "dense": "DENSE"}.get(layer.kind, "DEPTHWISE" if alone else "CONVOLUTION")
        weight = layer.weight.transpose(1, 2, 3, 0) if alone else layer.weight.transpose(0, 2, 3, 1)
        assert layer.multiplier is not None
        # (acc · multiplier/2 + 2³⁰) >> 31 is what the reference computes
        arrays = (weight, layer.bias, layer.multiplier // 2, np.zeros_like(layer.multiplier))
        numbers: list[Any] = [
            _braces((*layer.input_shape[2:], layer.input_shape[1])),
            _braces((*layer.output_shape[2:], layer.output_shape[1])),
            *map(_braces, (layer.weight.shape[2:], layer.stride, layer.padding[:2], layer.dilation)),
            *(OFFSETS[dtype], -offset, layer.minimum - offset, layer.maximum - offset),
            *map(place, arrays),
        ]
        rows.append(f"  {{{', '.join(map(str, (kind, *numbers)))}}},")
        dtype = layer.dtype
    largest = max(int(np.prod(shape)) for layer in layers for shape in (layer.input_shape, layer.output_shape))
    sizes = {
        "LAYERS": len(layers),
        "LARGEST": largest,
        "SCRATCH": SCRATCH,
        "CLASSES": layers[-1].output_shape[1],
    }
    defines = [f"#define {name} {value}" for name, value in sizes.items()]
    (folder / "layers.h").write_text("\n".join([*defines, "static const struct layer layers[] = {", *rows, "};", ""]))
    (folder / "constants.bin").write_bytes(blob)
    (folder / "constants.S").write_text(
        f'.section .rodata.constants, "a", %progbits\n.balign {ALIGNMENT}\n.global constants\nconstants:\n'
        f'.incbin "{folder / "constants.bin"}"\n'
    )


def _braces(values: Sequence[int]) -> str:
    return f"{{{', '.join(map(str, values))}}}"


def _gcc(*arguments: str | Path) -> None:
    try:
        done = subprocess.run([COMPILER, *map(str, arguments)], capture_output=True, text=True, check=False)
    except OSError as error:
        raise MissingDependencyError(f"{COMPILER} can't be run: {error}.") from error
    if done.returncode:
        said = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip())
        raise UserError(f"{COMPILER} refuses: {said}")


def measure(network: IntegerNetwork, target: Target, checkout: Path, images: np.ndarray) -> dict[str, Any]:
    """Instructions of each layer, whether each makes the reference's integers of its input, and how logits differ."""
    with tempfile.TemporaryDirectory(prefix="tvmflow-") as scratch:
        peer = Peer(network, target, checkout, Path(scratch))
        logits, kept = network.run(images, keep=True)
        _, nothing = peer.run(images[:1], 0, 0)
        instructions, exact = [], []
        for index, layer in enumerate(network.layers):
            (read,) = layer.inputs
            made, executed = peer.run(kept[read][:1], index, 1)
            instructions.append(executed - nothing)
            exact.append(bool(np.array_equal(made, kept[layer.name][:1])))
        ended = peer.run(images, 0, len(network.layers))[0].reshape(logits.shape)
    return {
        "instructions": instructions,
        "exact": exact,
        "largest_difference_of_logits": int(np.abs(ended.astype(int) - logits).max()),
        "same_class": int((ended.argmax(1) == logits.argmax(1)).sum()),
    }
