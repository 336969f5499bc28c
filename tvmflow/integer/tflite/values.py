"""Tensors of a file while its operators are read: which tensor of ours has their values, and in which order.

Ours are 1×C×H×W; those of a file have their channels last. Reshapes, transposes, slices, splits and borders move values
only: they change the list of `places`, and no layer is made before somebody needs the values in an order of his own.
"""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from tvmflow.integer.layers import RANGES, AnyIntegerLayer, IntegerNode
from tvmflow.integer.network import Port, canonical
from tvmflow.integer.operators import OUTSIDE, Function, Gather, Operator, Shape
from tvmflow.integer.tflite.model import ABSENT, MAX_ELEMENTS, FileGraph, FileOperator, FileTensor
from tvmflow.system import untrusted
from tvmflow.system.untrusted import MalformedError

MAX_MOVED = 1 << 27
"""Values that all reshapes, slices and so on of a file move together."""


class Typed(Protocol):
    """What has a type and steps: a tensor of a file, or a value."""

    @property
    def dtype(self) -> str: ...

    @property
    def scale(self) -> float: ...

    @property
    def zero_point(self) -> int: ...


class Refused(Exception):
    """What of a network isn't taken, as a clause."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Value:
    """A tensor of the file: `places`, of its `shape`, count in `source`'s order 1×C×H×W; OUTSIDE is the zero point.

    Without `places`, the channels of `source` are its last dimension, and the pixels all others.
    """

    shape: Shape
    source: str
    places: np.ndarray | None
    dtype: str
    scale: float
    zero_point: int


def plain_name(name: str) -> str:
    """The first of a file's names for a tensor, in letters that are plain everywhere; scopes end with a dot."""
    plain = re.sub(r"[^A-Za-z0-9_./]+", "_", name.split(";")[0]).strip("_./")[:100]
    return re.sub(r"[./]+", ".", plain) or "tensor"


def inside(shape: Shape) -> Shape:
    """1×C×H×W of a file's shape, whose last dimension is the channels. Without a batch of 1, all others are rows."""
    if not shape:
        return (1, 1, 1, 1)
    *others, channels = shape
    if len(others) > 1 and others[0] == 1:
        others = others[1:]
    if len(others) < 2:
        return (1, channels, 1, math.prod(others))
    return (1, channels, math.prod(others[:-1]), others[-1])


def natural(shape: Shape) -> np.ndarray:
    """Where the values of a tensor of the file lie in 1×C×H×W."""
    _, channels, height, width = inside(shape)
    return (
        np.arange(math.prod(shape), dtype=np.int32).reshape(channels, height, width).transpose(1, 2, 0).reshape(shape)
    )


class Layers:
    """Layers as they are made of a file, and where the values of its tensors lie in what they give.

    How a tensor of the file lies in 1×C×H×W is for subclasses to say.
    """

    def __init__(self) -> None:
        self.layers: list[AnyIntegerLayer] = []
        self.shapes: dict[str, Shape] = {}
        self.gathers: dict[tuple[str, Shape, int, bytes], str] = {}
        self.moved = 0

    def natural(self, shape: Shape) -> np.ndarray:
        """int32: where the values of a tensor of the file lie in 1×C×H×W."""
        raise NotImplementedError

    def laid(self, places: np.ndarray) -> np.ndarray:
        """Places of a tensor of the file as 1×C×H×W."""
        raise NotImplementedError

    # -------------------------------------------------------------------------------------------------------- layers

    def unused(self, name: str) -> str:
        """`plain_name`, with a number behind it if it was given before."""
        found, number = plain_name(name), 1
        while found in self.shapes:
            number += 1
            found = f"{plain_name(name)}.{number}"
        return found

    def add(self, layer: AnyIntegerLayer) -> None:
        self.layers.append(layer)
        self.shapes[layer.name] = layer.output_shape

    def node(self, operator: Operator, inputs: tuple[str, ...], like: Typed, name: str, **more: object) -> str:
        """Add an operator without weights, whose result is of the type of `like`; returns its name."""
        shapes = tuple(self.shapes[name] for name in inputs)
        name = self.unused(name)
        low, high = RANGES[like.dtype]
        given = {"modules": (name,), "minimum": low, "maximum": high, **more}
        self.add(
            IntegerNode(
                name=name,
                operator=operator,
                inputs=inputs,
                dtype=like.dtype,
                scale=like.scale,
                zero_point=like.zero_point,
                input_shapes=shapes,
                output_shape=operator.out_shape(*shapes),
                **given,  # type: ignore[arg-type]
            )
        )
        return name

    # -------------------------------------------------------------------------------------------------------- orders

    def places(self, value: Value) -> np.ndarray:
        self._count(math.prod(value.shape))
        return self.natural(value.shape) if value.places is None else value.places

    def moved_to(self, value: Value, places: np.ndarray) -> Value:
        self._count(places.size)
        return replace(value, shape=tuple(places.shape), places=places)

    def _count(self, values: int) -> None:
        self.moved += values
        if self.moved > MAX_MOVED:
            raise MalformedError(f"its reshapes, slices and borders move over {MAX_MOVED:,} values")

    def read(self, value: Value) -> str:
        """The name of a tensor of ours that has a value as its file's tensors lie in 1×C×H×W."""
        return value.source if value.places is None else self.ordered(value, self.laid(self.places(value)))

    def ordered(self, value: Value, wanted: np.ndarray) -> str:
        """The name of a tensor of ours whose elements are those of the value's source at these places, 1×C×H×W."""
        shape = self.shapes[value.source]
        if wanted.shape == shape and np.array_equal(wanted.reshape(-1), np.arange(wanted.size)):
            return value.source
        if not wanted.size:
            raise MalformedError("an operator reads a tensor without elements")
        outside = value.zero_point if (wanted == OUTSIDE).any() else 0
        gather = Gather(places=np.ascontiguousarray(wanted, np.int32), outside=outside)
        key = value.source, wanted.shape, outside, hashlib.sha256(gather.places.tobytes()).digest()
        if key not in self.gathers:  # another reader may have asked for the same
            self.gathers[key] = self.node(gather, (value.source,), value, f"{value.source}.moved")
        return self.gathers[key]

    def mapped(self, value: Value, table: np.ndarray, like: Typed, name: str, **more: object) -> Value:
        """A function of each element, whatever order they lie in: the result has the same."""
        if value.places is not None and (value.places == OUTSIDE).any():
            value = replace(value, source=self.read(value), places=None)
        limits = {"minimum": int(table.min()), "maximum": int(table.max())}
        if table.min() == table.max():  # no layer's outputs may all be alike as far as its limits say
            limits = {}
        source = self.node(Function(), (value.source,), like, name, table=table, **limits, **more)
        return replace(value, source=source, dtype=like.dtype, scale=like.scale, zero_point=like.zero_point)


class Network(Layers):
    """What is made of the operators of a `.tflite` file: values by the numbers of its tensors, channels last."""

    def __init__(self, graph: FileGraph) -> None:
        super().__init__()
        self.graph = graph
        self.values: dict[int, Value] = {}

    def natural(self, shape: Shape) -> np.ndarray:
        return natural(shape)

    def laid(self, places: np.ndarray) -> np.ndarray:
        _, channels, height, width = inside(tuple(places.shape))
        return places.reshape(height, width, channels).transpose(2, 0, 1)[None]

    # ------------------------------------------------------------------------------------------------------- tensors

    def tensor(self, number: int) -> FileTensor:
        if number == ABSENT:
            raise MalformedError("an operator lacks a tensor that it needs")
        return self.graph.tensors[number]

    def value(self, operator: FileOperator, place: int = 0) -> Value:
        """What an operator reads there; a constant isn't taken."""
        number = self._number(operator.inputs, place, operator.kind)
        if number not in self.values:
            raise Refused(f"{operator.kind} of a constant")
        return self.values[number]

    def constant(self, operator: FileOperator, place: int) -> FileTensor | None:
        """The constant that an operator reads there, or None where there is none."""
        number = operator.inputs[place] if place < len(operator.inputs) else ABSENT
        if number == ABSENT:
            return None
        if self.graph.tensors[number].data is None:
            raise Refused(f"{operator.kind} with weights or parameters that aren't constant")
        return self.graph.tensors[number]

    def integers(self, operator: FileOperator, place: int) -> list[int]:
        """A constant of integers, such as a shape."""
        found = self.constant(operator, place)
        if found is None or found.data is None or found.dtype not in ("int32", "int64") or found.data.size > 64:
            raise MalformedError(f"{operator.kind} lacks a list of integers")
        return [int(number) for number in found.data.reshape(-1)]

    def result(self, operator: FileOperator, place: int = 0) -> FileTensor:
        return self.tensor(self._number(operator.outputs, place, operator.kind))

    def set(self, operator: FileOperator, value: Value, place: int = 0) -> None:
        """Raises MalformedError if the file says that the tensor has another shape."""
        number = self._number(operator.outputs, place, operator.kind)
        wanted = self.graph.tensors[number].shape
        if wanted and tuple(wanted) != tuple(value.shape):
            raise MalformedError(
                f"{operator.kind} makes {_sizes(value.shape)} of what it reads, and the file says {_sizes(wanted)}"
            )
        self.values[number] = value

    @staticmethod
    def _number(numbers: tuple[int, ...], place: int, kind: str) -> int:
        if place >= len(numbers) or numbers[place] == ABSENT:
            raise MalformedError(f"{kind} lacks a tensor that it needs")
        return numbers[place]

    def input(self, name: str, tensor: FileTensor) -> Port:
        """An input, of int8 or uint8, in the order that the file has."""
        check_type(tensor)
        if not tensor.shape or not math.prod(tensor.shape):
            raise MalformedError(f"the input {untrusted.shown(tensor.name)} has no elements")
        check_batch(tensor.shape)
        name = self.unused(name)
        self.shapes[name] = canonical(tensor.shape)
        return Port(
            name=name,
            shape=tensor.shape,
            scale=tensor.scale,
            zero_point=tensor.zero_point,
            dtype=tensor.dtype,
        )

    def given(self, port: Port) -> Value:
        return Value(
            shape=port.shape,
            source=port.name,
            places=np.arange(math.prod(port.shape), dtype=np.int32).reshape(port.shape),
            dtype=port.dtype,
            scale=port.scale,
            zero_point=port.zero_point,
        )

    def result_of(self, operator: FileOperator, source: str, shape: Shape, tensor: FileTensor | Value) -> None:
        """What an operator gives is `source`, whose channels are the last dimension of `shape`."""
        made = Value(
            shape=shape,
            source=source,
            places=None,
            dtype=tensor.dtype,
            scale=tensor.scale,
            zero_point=tensor.zero_point,
        )
        self.set(operator, made)


def taken(places: np.ndarray, index: np.ndarray, axis: int) -> np.ndarray:
    """The places at these along an axis. Raises MalformedError where they become too many."""
    if places.size // places.shape[axis] * len(index) > MAX_ELEMENTS:
        raise MalformedError(f"a map that is resized has over {MAX_ELEMENTS:,} elements on the way")
    return np.take(places, index, axis)


def check_batch(shape: Shape) -> None:
    """Raises Refused for an input or an output that isn't one of a batch of 1."""
    if len(shape) < 2 or shape[0] != 1:
        raise Refused(f"an input or output of {_sizes(shape)}, whose first dimension isn't a batch of 1")


def check_same_steps(operator: FileOperator, x: Value, result: FileTensor | Value) -> None:
    """Raises Refused unless what is given has the type, the scale and the zero point of what is read."""
    if (x.dtype, x.scale, x.zero_point) != (result.dtype, result.scale, result.zero_point):
        raise Refused(f"{operator.kind} that changes the scale")


def check_type(tensor: FileTensor) -> None:
    """Raises Refused for what isn't int8 or uint8."""
    if tensor.dtype not in RANGES:
        raise Refused(f"the tensor {untrusted.shown(tensor.name)} of {tensor.dtype}, where int8 or uint8 are taken")
    low, high = RANGES[tensor.dtype]
    if not low <= tensor.zero_point <= high:
        raise MalformedError(f"the zero point of {untrusted.shown(tensor.name)} is {tensor.zero_point}")


def _sizes(shape: Shape) -> str:
    return "×".join(map(str, shape)) or "one number"
