"""Layers that VTA has no instructions for, on the board's processor: as C, on the tensors where they lie, in tiles.

Each is a function of the memory image, made of the loops that every kind of target has for its operator, which find
their elements in tiles: so nothing is put into another order between the two. The same C is compiled for the board and,
to be verified, for this computer.
"""

from __future__ import annotations

import ctypes
import functools
import math
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tvmflow import __version__
from tvmflow.integer.layers import IntegerNode
from tvmflow.spec import Target, UserError
from tvmflow.system import toolchain
from tvmflow.targets.vta.layout import Tensor
from tvmflow.targets.vta.program import SOURCE

if TYPE_CHECKING:
    from tvm import tirx

LIBRARY = "cpu.so"
"""In a bundle beside SOURCE: what the functions are on the board."""

KERNEL = "cpu"
"""What reports call such layers' kernels, in front of their operator."""

ALIGNMENT = 16
"""Bytes, of tables in the image."""

OPTIONS = ("-std=c99", "-O2", "-shared", "-fPIC")
ELF = {"arm": (32, "ARM"), "aarch64": (64, "AArch64")}
"""Of what a board's processor runs, by the architecture in its triple."""


@dataclass(frozen=True, kw_only=True, eq=False)
class CpuWork:
    """A layer without weights as the processor sees it: `dtypes` are its inputs', `placed` the inputs that lie in
    memory where the output has them."""

    layer: IntegerNode
    sources: tuple[Tensor, ...]
    target: Tensor
    dtypes: tuple[str, ...]
    placed: frozenset[int] = frozenset()

    @property
    def elements(self) -> int:
        """Of the result."""
        return math.prod(self.layer.output_shape)

    @functools.cached_property
    def constants(self) -> tuple[np.ndarray, ...]:
        """Tables that its function reads."""
        from tvmflow.schedules.nodes import constants_of

        return constants_of(self.layer)


def function_name(number: int) -> str:
    """Of the C function that does the work of the layer of that number in the network."""
    return f"layer_{number:03}"


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where in the image what a work reads and writes begins, in bytes."""

    sources: tuple[int, ...]
    target: int
    constants: tuple[int, ...]


def source_of(works: Mapping[str, CpuWork], places: Mapping[str, Place]) -> str:
    """The C of all these works, by the names of their functions."""
    import tvm

    from tvmflow.passes import portable_c

    functions = {f"kernel_{name}": _kernel(work) for name, work in works.items()}
    with tvm.target.Target("c"):
        lowered = portable_c.lower_loops(tvm.IRModule(functions))
    kernels = portable_c.definitions({symbol: lowered[symbol] for symbol in functions})
    lines = [
        f"/* Layers that VTA has no instructions for, made by tvmflow {__version__}: each a function of the memory",
        " * that the accelerator works in, where tensors are tiles of neighbouring channels. */",
        "#include <stdint.h>",
        "",
        kernels,
    ]
    for name, work in works.items():
        arguments = [f"({_pointer(kind)})(memory + {at})" for kind, at in _arguments(work, places[name])]
        lines += [
            "",
            f"/* {re.sub(r'[^ -~]|[*]/', '?', work.layer.name)}: {work.layer.kind} */",
            f"void {name}(uint8_t *memory) {{ kernel_{name}({', '.join(arguments)}); }}",
        ]
    return "\n".join([*lines, ""])


def _pointer(dtype: str) -> str:
    from tvmflow.passes.portable_c import TYPES

    return f"{TYPES[dtype]} *"


def _arguments(work: CpuWork, place: Place) -> list[tuple[str, int]]:
    read = dict(zip(work.layer.inputs, zip(work.dtypes, place.sources, strict=True), strict=True))
    tables = zip((str(array.dtype) for array in work.constants), place.constants, strict=True)
    return [*read.values(), (work.layer.dtype, place.target), *tables]


def _kernel(work: CpuWork) -> tirx.PrimFunc:
    """The function of each tensor that is read, once, of the result, and of the tables."""
    from tvm.script.ir_builder import tirx as T

    from tvmflow.schedules.nodes import SUMMING, SUMS, Expr, Part, Sums, box_of, parts_of, prepare, value_of

    layer, block = work.layer, work.target.block
    read_by = list(dict.fromkeys(layer.inputs))
    tensors = dict(zip(layer.inputs, zip(work.sources, work.dtypes, strict=True), strict=True))
    pointers = {f"source{number}": (tensors[name][1], _tiled(tensors[name][0])) for number, name in enumerate(read_by)}
    pointers["result"] = (layer.dtype, _tiled(work.target))
    pointers |= {f"table{number}": (str(array.dtype), array.shape) for number, array in enumerate(work.constants)}
    with _function(pointers) as (builder, given):
        tables = [given[f"table{number}"] for number in range(len(work.constants))]
        sums = Sums(T.alloc_buffer((SUMS,), "int32", scope="global") if isinstance(layer.operator, SUMMING) else None)

        def read(number: int, c: Expr, y: Expr, x: Expr) -> Expr:
            source = given[f"source{read_by.index(layer.inputs[number])}"]
            return T.Cast("int32", source[c // block, y, x, c % block])

        box = box_of(layer)
        for part in parts_of(layer):
            if part.source is not None and part.source in work.placed:
                continue
            channels, height, width = part.lengths

            def store(c: Expr, y: Expr, x: Expr, part: Part = part) -> None:
                value = value_of(layer, read, tables, sums, (c, y, x), part.source, prepared=box is not None)
                first, top, left = part.start
                place = [(c + first) // block, y + top, x + left, (c + first) % block]
                T.buffer_store(given["result"], T.Cast(layer.dtype, value), place)

            if box is not None:
                counts = [length // own for length, own in zip(part.lengths, box, strict=True)]
                with T.serial(0, counts[0]) as c, T.serial(0, counts[1]) as y, T.serial(0, counts[2]) as x:
                    first, top, left = (at * length for at, length in zip((c, y, x), box, strict=True))
                    prepare(layer, read, tables, sums, (first, top, left))
                    with T.serial(0, box[1]) as y, T.serial(0, box[2]) as x, T.serial(0, box[0]) as c:
                        store(first + c, top + y, left + x)
                continue
            # channels of a tile lie side by side
            whole = channels // block if part.start[0] % block == 0 else 0
            if whole:
                loops = (T.serial(0, length) for length in (whole, height, width, block))
                with next(loops) as tile, next(loops) as y, next(loops) as x, next(loops) as lane:
                    store(tile * block + lane, y, x)
            if whole * block < channels:
                with T.serial(0, height) as y, T.serial(0, width) as x, T.serial(0, channels - whole * block) as c:
                    store(c + whole * block, y, x)
    return builder.get()


def _tiled(tensor: Tensor) -> tuple[int, ...]:
    return (tensor.blocks, *tensor.shape[1:], tensor.block)


@contextmanager
def _function(pointers: Mapping[str, tuple[str, Sequence[int]]]) -> Iterator[tuple[Any, dict[str, Any]]]:
    """A function of plain pointers, whose loops are emitted inside; afterwards the builder's `get()` gives it."""
    from tvm.script.ir_builder import IRBuilder
    from tvm.script.ir_builder import tirx as T

    with IRBuilder() as builder, T.prim_func(is_private=True, s_tir=True):
        T.func_name("kernel")
        T.func_attr({"tirx.noalias": True})
        arguments = {name: T.arg(name, T.handle(dtype)) for name, (dtype, _) in pointers.items()}
        yield (
            builder,
            {
                name: T.decl_buffer(tuple(shape), dtype, data=arguments[name])
                for name, (dtype, shape) in pointers.items()
            },
        )


# ------------------------------------------------------------------------------------------------------------ compiling


def board_library(source: Path, target: Target, output: Path) -> None:
    """Compile the functions for a board's processor. Raises MissingDependencyError, UserError."""
    cpu, architecture = target.tvm["mcpu"], target.triple.partition("-")[0]
    linker = toolchain.select_linker(replace(target, elf=ELF[architecture]))
    options = [f"-mcpu={cpu.replace('-', '_')}" if linker.name == "zig" else f"-mcpu={cpu}"]
    if architecture == "arm":
        options = [f"{options[0]}+neon"] if linker.name == "zig" else [*options, "-mfpu=neon", "-mfloat-abi=hard"]
    toolchain.link(linker, output, [source], (*OPTIONS, *options, "-O3", "-s"))
    toolchain.check_elf(output, ELF[architecture], target.name)


def library_here(source: str) -> Path:
    """The functions compiled for this computer. Raises MissingDependencyError without a compiler, UserError if it
    refuses the source."""
    with tempfile.TemporaryDirectory(prefix="tvmflow-") as folder:
        path = Path(folder) / SOURCE
        path.write_text(source, encoding="utf-8")
        return toolchain.native_library(path, OPTIONS)


def functions_of(library: Path) -> Callable[[str], Callable[[int], None]]:
    """The functions of a library for this computer: by its name each, of the address of the memory.

    Raises UserError for one that isn't there.
    """
    loaded = ctypes.CDLL(str(library))

    def find(name: str) -> Callable[[int], None]:
        try:
            found = getattr(loaded, name)
        except AttributeError:
            raise UserError(f"{SOURCE} has no function {name}; build the bundle again.") from None
        found.argtypes, found.restype = [ctypes.c_void_p], None
        return found

    return find
