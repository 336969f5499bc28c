"""A `.tflite` file's graph as plain values: tensors with their constants, and operators with their options.

Everything that numbers point to is held to what is there; a graph whose operators read what comes later is refused.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tvmflow.integer.tflite.schema import IDENTIFIER, OPERATORS, OPTIONS, TEXTS, TYPES
from tvmflow.integer.tflite.tables import Table
from tvmflow.system import limits, untrusted
from tvmflow.system.untrusted import MalformedError, UnusableFileError

Shape = tuple[int, ...]
ABSENT = -1
"""In place of the number of a tensor: an operator goes without it."""
MAX_DIMENSIONS = 8
MAX_ELEMENTS = 1 << 24
"""Of a tensor: no board that computes in integers holds more."""
MAX_OPERATORS = 1 << 14
MAX_TENSORS = 1 << 16
MAX_SUBGRAPHS = 64
MAX_READ = 1 << 10
"""Tensors that an operator reads or gives."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FileTensor:
    """`scales` float32 and `zero_points` int64 are empty, one, or as many as there are places along `axis`."""

    name: str
    shape: Shape
    dtype: str
    data: np.ndarray | None
    scales: np.ndarray
    zero_points: np.ndarray
    axis: int

    @property
    def scale(self) -> float:
        """Of the whole tensor. Raises MalformedError if it has none that is a positive number."""
        if len(self.scales) != 1 or not np.isfinite(self.scales[0]) or self.scales[0] <= 0:
            raise MalformedError(f"the tensor {untrusted.shown(self.name)} has no scale, or more than one")
        return float(self.scales[0])

    @property
    def zero_point(self) -> int:
        return int(self.zero_points[0]) if len(self.zero_points) else 0


@dataclass(frozen=True, kw_only=True, eq=False)
class FileOperator:
    """What it reads and gives are numbers of tensors; ABSENT among them is left out at will."""

    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: dict[str, float | str] = field(default_factory=dict)

    def integer(self, name: str) -> int:
        return int(self.options[name])


@dataclass(frozen=True, kw_only=True, eq=False)
class FileGraph:
    tensors: tuple[FileTensor, ...]
    operators: tuple[FileOperator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def read_model(path: Path) -> tuple[FileGraph, ...]:
    """The subgraphs of a file, the main one first. Raises UserError, of one sentence."""
    content = untrusted.read_bytes(path, limits.NETWORK)
    try:
        return _graphs(Table.root(content, IDENTIFIER))
    except MalformedError as error:
        raise UnusableFileError(path, f"is no TensorFlow Lite file that can be read: {error}") from error


def _graphs(model: Table) -> tuple[FileGraph, ...]:
    if (version := model.integer(0, "I")) != 3:
        raise MalformedError(f"it is of version {version} of the format, not 3")
    kinds = [_kind(code) for code in model.tables(1, MAX_OPERATORS)]
    buffers = list(model.tables(4, MAX_TENSORS))
    graphs = tuple(_graph(graph, kinds, buffers) for graph in model.tables(2, MAX_SUBGRAPHS))
    if not graphs:
        raise MalformedError("it has no graph")
    return graphs


def _kind(code: Table) -> str:
    # files of before 2020 have the number in a byte, which later ones fill up to 127 only
    number = max(code.integer(0, "b"), code.integer(3))
    name = OPERATORS[number] if 0 <= number < len(OPERATORS) else f"operator {number}"
    return f"custom operator {code.text(1)}" if name == "CUSTOM" else name


def _graph(graph: Table, kinds: list[str], buffers: list[Table]) -> FileGraph:
    tensors = tuple(_tensor(tensor, buffers) for tensor in graph.tables(0, MAX_TENSORS))
    operators = tuple(_operator(operator, kinds, len(tensors)) for operator in graph.tables(3, MAX_OPERATORS))
    inputs, outputs = (_numbers(graph, place, len(tensors)) for place in (1, 2))
    if ABSENT in (*inputs, *outputs):
        raise MalformedError("an input or an output of the graph is no tensor")
    known = {number for number, tensor in enumerate(tensors) if tensor.data is not None} | {*inputs, ABSENT}
    for operator in operators:
        if missing := [number for number in operator.inputs if number not in known]:
            name = untrusted.shown(tensors[missing[0]].name)
            raise MalformedError(f"{operator.kind} reads the tensor {name}, which nothing gives before")
        if twice := [number for number in operator.outputs if number in known]:
            what = "no tensor" if ABSENT in twice else untrusted.shown(tensors[twice[0]].name)
            raise MalformedError(f"{operator.kind} gives {what}, or something gave it before")
        known |= {*operator.outputs}
    if any(number not in known for number in outputs):
        raise MalformedError("an output of the graph is given by nothing")
    return FileGraph(tensors=tensors, operators=operators, inputs=inputs, outputs=outputs)


def _numbers(table: Table, place: int, count: int) -> tuple[int, ...]:
    numbers = tuple(table.array(place, "i4", MAX_READ).tolist())
    if not all(ABSENT <= number < count for number in numbers):
        raise MalformedError(f"a tensor of a number beyond the {count} that there are is read or given")
    return numbers


def _operator(operator: Table, kinds: list[str], tensors: int) -> FileOperator:
    number = operator.integer(0, "I")
    if number >= len(kinds):
        raise MalformedError(f"an operator is of the kind {number} of {len(kinds)}")
    kind, table = kinds[number], operator.table(4)
    options: dict[str, float | str] = {}
    for name, (place, form, default) in OPTIONS.get(kind, {}).items():
        value = default if table is None else table.number(place, form, default)
        if not math.isfinite(value):
            raise MalformedError(f"the {name} of {kind} is {value}")
        options[name] = value
    for name, place in TEXTS.get(kind, {}).items():
        options[name] = "" if table is None else table.text(place)
    inputs, outputs = (_numbers(operator, place, tensors) for place in (1, 2))
    return FileOperator(kind=kind, inputs=inputs, outputs=outputs, options=options)


def _tensor(tensor: Table, buffers: list[Table]) -> FileTensor:
    name = tensor.text(3)
    shape = tuple(tensor.array(0, "i4", MAX_DIMENSIONS).tolist())
    number = tensor.integer(1, "b")
    dtype = TYPES.get(number, f"type {number}")
    if any(length < 0 for length in shape) or math.prod(shape) > MAX_ELEMENTS:
        sizes = "×".join(map(str, shape))
        raise MalformedError(f"the tensor {untrusted.shown(name)} of {sizes} has over {MAX_ELEMENTS:,} elements")
    scales, zero_points, axis = np.empty(0, np.float32), np.empty(0, np.int64), 0
    if (quantization := tensor.table(4)) is not None:
        scales, zero_points = quantization.array(2, "f4"), quantization.array(3, "i8")
        axis = quantization.integer(6)
    limited = untrusted.shortened(name)
    return FileTensor(
        name=limited,
        shape=shape,
        dtype=dtype,
        data=_data(tensor, shape, dtype, buffers, limited),
        scales=scales,
        zero_points=zero_points,
        axis=axis,
    )


def _data(tensor: Table, shape: Shape, dtype: str, buffers: list[Table], name: str) -> np.ndarray | None:
    """A constant's, or None where the tensor is computed."""
    number = tensor.integer(2, "I")
    if number >= len(buffers):
        raise MalformedError(f"the tensor {untrusted.shown(name)} has its values in a buffer that isn't there")
    buffer = buffers[number]
    if buffer.integer(1, "Q") > 1:
        raise MalformedError(f"the values of {untrusted.shown(name)} lie beyond the graph, where they aren't read")
    given = buffer.array(0, "u1", limits.NETWORK.bytes)
    if not len(given) or number == 0:
        return None
    if tensor.table(6) is not None:
        raise MalformedError(f"the tensor {untrusted.shown(name)} is sparse, which isn't read")
    if dtype not in ("float32", "float16", "int32", "uint8", "int64", "bool", "int16", "int8", "float64"):
        raise MalformedError(f"the constant {untrusted.shown(name)} is of {dtype}, which isn't read")
    wanted = math.prod(shape) * np.dtype(dtype).itemsize
    if len(given) != wanted:
        raise MalformedError(f"the constant {untrusted.shown(name)} has {len(given):,} bytes instead of {wanted:,}")
    return given.view(np.dtype(dtype).newbyteorder("<")).astype(dtype).reshape(shape)
