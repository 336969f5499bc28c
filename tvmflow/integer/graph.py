"""An imported network as layers of real numbers: what is quantised, and what kernels of microcontrollers are made of.

A FloatLayer has weights, as an IntegerLayer has; a FloatNode is an operator without. `low` and `high` are what follows
at once: a ReLU is 0 and infinity, ReLU6 0 and 6.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch.nn import functional

from tvmflow.integer.layers import window_of
from tvmflow.integer.network import Port, canonical
from tvmflow.integer.operators import (
    OUTSIDE,
    Concat,
    Function,
    Gather,
    LogSoftmax,
    MatMul,
    MaxPool,
    Normalise,
    Operator,
    Product,
    Resample,
    Shape,
    Softmax,
    Sum,
    boxed,
)
from tvmflow.integer.window import Pair, Window
from tvmflow.models.depthwise import depthwise

Borders = tuple[int, int, int, int]


@dataclass(frozen=True, kw_only=True, eq=False)
class FloatLayer:
    """As an IntegerLayer, before it is quantised: `weight` is float64 O×(I/groups)×KH×KW, 1/(H·W) for a pool."""

    name: str
    modules: tuple[str, ...]
    kind: Literal["conv2d", "pool", "dense"]
    inputs: tuple[str, ...] = ("input",)
    weight: np.ndarray
    bias: np.ndarray
    stride: Pair = (1, 1)
    padding: Borders = (0, 0, 0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1
    low: float = -math.inf
    high: float = math.inf
    input_shape: Shape
    output_shape: Shape
    dtype: ClassVar[str] = "float32"  # of what it passes on

    def __post_init__(self) -> None:
        if len(self.padding) == 2:
            object.__setattr__(self, "padding", (*self.padding, *self.padding))

    @property
    def relu(self) -> bool:
        return self.low == 0

    @property
    def limited(self) -> bool:
        """Whether its sums aren't what it passes on, but are clamped."""
        return self.low > -math.inf or self.high < math.inf

    @property
    def window(self) -> Window:
        return window_of(self)

    @property
    def input_shapes(self) -> tuple[Shape, ...]:
        return (self.input_shape,)

    @property
    def macs(self) -> int:
        """Multiply-adds for one image; a pool's are additions."""
        return int(np.prod(self.output_shape)) * self.weight[0].size

    @property
    def live_macs(self) -> int:
        """Those of them that read the input and not its border."""
        return self.window.live_taps() * self.output_shape[1] * self.weight.shape[1]

    @property
    def alone(self) -> bool:
        """Whether each output channel reads the one input channel of its number."""
        return self.groups == self.input_shape[1] == self.output_shape[1]

    def sums(self, x: torch.Tensor) -> torch.Tensor:
        """float32 N×C×H×W → N×O×OH×OW, before it is clamped."""
        weight, bias = torch.from_numpy(self.weight).float(), torch.from_numpy(self.bias).float()
        return convolve(self, x, weight, bias)


@dataclass(frozen=True, kw_only=True, eq=False)
class FloatNode:
    """An operator without weights, before it is quantised."""

    name: str
    modules: tuple[str, ...]
    operator: Operator
    inputs: tuple[str, ...]
    low: float = -math.inf
    high: float = math.inf
    input_shapes: tuple[Shape, ...]
    output_shape: Shape
    dtype: ClassVar[str] = "float32"

    @property
    def kind(self) -> str:
        return self.operator.kind

    @property
    def input_shape(self) -> Shape:
        """Of the first input."""
        return self.input_shapes[0]

    @property
    def limited(self) -> bool:
        return self.low > -math.inf or self.high < math.inf

    @property
    def macs(self) -> int:
        """What isn't multiplied by weights isn't counted."""
        return 0

    live_macs = macs

    def sums(self, *inputs: torch.Tensor) -> torch.Tensor:
        """float32 N×C×H×W → the result, before it is clamped."""
        return REAL[type(self.operator)](self.operator, *inputs)


AnyFloatLayer = FloatLayer | FloatNode


@dataclass(frozen=True, kw_only=True, eq=False)
class FloatGraph:
    """Layers in execution order. Ports' scales are nothing yet, and 1."""

    name: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    layers: tuple[AnyFloatLayer, ...]

    @property
    def by_name(self) -> dict[str, AnyFloatLayer]:
        return {layer.name: layer for layer in self.layers}

    def readers(self, name: str) -> list[AnyFloatLayer]:
        """The layers that read a tensor."""
        return [layer for layer in self.layers if name in layer.inputs]

    def sole_reader(self, name: str) -> AnyFloatLayer | None:
        """The one layer that reads a tensor, unless it is an output as well."""
        readers = self.readers(name)
        if len(readers) != 1 or readers[0].inputs.count(name) != 1 or self.is_output(name):
            return None
        return readers[0]

    def is_output(self, name: str) -> bool:
        return any(port.source == name for port in self.outputs)

    def run(self, inputs: Mapping[str, torch.Tensor]) -> Iterator[tuple[AnyFloatLayer, torch.Tensor, torch.Tensor]]:
        """Each layer with its sums and what it passes on, float32 N×C×H×W, of inputs N×C×H×W by their names.

        A tensor is forgotten when its last reader has come.
        """
        tensors = dict(inputs)
        last = {name: step for step, layer in enumerate(self.layers) for name in layer.inputs}
        with torch.no_grad():
            for step, layer in enumerate(self.layers):
                sums = layer.sums(*(tensors[name] for name in layer.inputs))
                passed = sums.clamp(layer.low, layer.high) if layer.limited else sums
                tensors[layer.name] = passed
                yield layer, sums, passed
                for name in layer.inputs:
                    if last[name] == step:
                        tensors.pop(name, None)

    def tensors_of(self, arrays: tuple[np.ndarray, ...]) -> dict[str, torch.Tensor]:
        """The inputs, of the ports' shapes but for the batch, as `run` takes them."""
        pairs = zip(self.inputs, arrays, strict=True)
        shaped = ((port, array.reshape(-1, *canonical(port.shape)[1:])) for port, array in pairs)
        return {port.name: torch.from_numpy(np.array(array, np.float32)) for port, array in shaped}

    def outputs_of(self, arrays: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        """The network's outputs, of the ports' shapes but for the batch."""
        sources = {port.source for port in self.outputs}
        given = self.tensors_of(arrays)
        found = given | {layer.name: out for layer, _, out in self.run(given) if layer.name in sources}
        return tuple(found[port.source].numpy().reshape(-1, *port.shape[1:]) for port in self.outputs)


def convolve(layer: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """The convolution of a FloatLayer or IntegerLayer with other weights; all float32."""
    stride, dilation = layer.stride, layer.dilation
    top, left, bottom, right = layer.padding
    alone = layer.groups == len(weight) == x.shape[1]
    even = layer.padding == (dilation[0],) * 4
    square = stride[0] == stride[1] and even and dilation[0] == dilation[1] and weight.shape[2:] == (3, 3)
    if alone and square:
        sums = depthwise(x, weight, stride[0], dilation[0])
        return sums if bias is None else sums + bias[:, None, None]
    if (top, left) != (bottom, right):
        x = functional.pad(x, (left, right, top, bottom))
        top = left = 0
    return functional.conv2d(x, weight, bias, stride, (top, left), dilation, layer.groups)


def _sum(operator: Sum, *inputs: torch.Tensor) -> torch.Tensor:
    total = inputs[0] * operator.signs[0]
    for sign, x in zip(operator.signs[1:], inputs[1:], strict=True):
        total = total + sign * x
    return total


def _max_pool(operator: MaxPool, x: torch.Tensor) -> torch.Tensor:
    window = operator.window
    top, left, bottom, right = window.padding
    bordered = functional.pad(x, (left, right, top, bottom), value=-math.inf)
    return functional.max_pool2d(bordered, window.kernel, window.stride, 0, window.dilation)


def _gather(operator: Gather, x: torch.Tensor) -> torch.Tensor:
    places = torch.from_numpy(operator.places[0].astype(np.int64))
    found = x.flatten(1)[:, places.clamp(min=0)]
    return torch.where(places == OUTSIDE, torch.tensor(operator.outside, dtype=found.dtype), found)


def _resample(operator: Resample, x: torch.Tensor) -> torch.Tensor:
    down, along = (torch.from_numpy(_matrix(*axis, x.shape[2 + place])) for place, axis in enumerate(operator.axes))
    return torch.einsum("yh,nchw,xw->ncyx", down, x, along)


def _matrix(places: np.ndarray, weights: np.ndarray, length: int) -> np.ndarray:
    matrix = np.zeros((len(places), length), np.float32)
    for tap in range(places.shape[1]):
        np.add.at(matrix, (np.arange(len(places)), places[:, tap]), weights[:, tap])
    return matrix


def _function(operator: Function, x: torch.Tensor) -> torch.Tensor:
    assert operator.real is not None
    return torch.from_numpy(operator.real(x.numpy()))


def _normalise(operator: Normalise, x: torch.Tensor) -> torch.Tensor:
    boxes = boxed(x, operator.lengths).double()
    centred = boxes - boxes.mean((2, 4, 6), keepdim=True)
    variance = centred.square().mean((2, 4, 6), keepdim=True)
    normal = (centred / (variance + operator.epsilon).sqrt()).reshape(x.shape)
    if operator.gamma is not None and operator.beta is not None:
        gamma, beta = (torch.from_numpy(numbers)[:, None, None] for numbers in (operator.gamma, operator.beta))
        normal = normal * gamma + beta
    return normal.float()


REAL: dict[type, Callable[..., torch.Tensor]] = {
    Sum: _sum,
    Product: lambda operator, a, b: a * b,
    MaxPool: _max_pool,
    Concat: lambda operator, *inputs: torch.cat(inputs, operator.axis),
    Gather: _gather,
    Resample: _resample,
    Function: _function,
    Softmax: lambda operator, x: torch.softmax(x, operator.axis),
    LogSoftmax: lambda operator, x: torch.log_softmax(x, operator.axis),
    Normalise: _normalise,
    MatMul: lambda operator, a, b: (a @ b) * operator.factor,
}
"""Operators' meaning for real numbers, on float32 N×C×H×W."""
