"""A quantised network as ONNX with QuantizeLinear and DequantizeLinear, for runtimes that take int8 in this form.

Every layer reads dequantised tensors, computes in real numbers and is quantised again, by the scales and zero points of
the network; weights and biases are its integers. A runtime that multiplies integers finds the pattern and does so. It
may round otherwise than `layers` says: scales are float32, and QuantizeLinear rounds halves to even. A layer's own
factors count: where they say something else than the scales around it do, there is one more product. In the scheme
"power-of-two", where halves are frequent, `_larger` has them rounded up nevertheless.

An operator without a line in EXPORTERS can't be said.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from tvmflow.integer.layers import RANGES, THRESHOLDS, AnyIntegerLayer, IntegerLayer, IntegerNode
from tvmflow.integer.network import IntegerNetwork, Port
from tvmflow.integer.onnx_writer import (
    Writer,
    convolved,
    gathered,
    matrix_of,
    normalised,
    pooled,
    resampled,
)
from tvmflow.integer.operators import (
    AveragePool,
    Concat,
    Function,
    Gather,
    LogSoftmax,
    MatMul,
    MaxPool,
    Normalise,
    Probabilities,
    Product,
    Resample,
    Shape,
    Softmax,
    Sum,
)
from tvmflow.integer.tail import Tail
from tvmflow.spec import UserError
from tvmflow.system import scratch

STEPS = 0.02
"""How far off a result may be, in its steps, for a factor to be left out that is nearly 1."""
LARGEST = 255
"""Steps from the zero point to the farthest number, at most."""
NOTE = (
    "Quantised by tvmflow. Scales are float32 here and runtimes round halves to even, so that a number may differ by a "
    "step from tvmflow's integers, which are the same on every device."
)


class UnsayableError(ValueError):
    """What a layer does can't be said in ONNX; the message says what that is, and comes after its name."""


def write(network: IntegerNetwork, path: Path, *, integers: bool = False) -> None:
    """Write `model_of` a network, whole or not at all. Raises UserError, and OSError."""
    content = model_of(network, integers=integers).SerializeToString()
    with scratch.replacing(path) as made:
        made.write_bytes(content)


def model_of(network: IntegerNetwork, *, integers: bool = False) -> onnx.ModelProto:
    """The network, float32 → float32: inputs as the float network takes them, outputs as it gives them, of one image.

    With `integers` inputs and outputs are uint8, but for those of a tail, and so is every tensor: int8 lies around a
    zero point 128 higher, which some runtimes multiply faster. Nodes that compute have their layers' names. Raises
    UserError if layers can't be said in ONNX, and names them all.
    """
    made = _Graph(integers, exact_halves=network.scheme == "power-of-two")
    inputs = [_input(made, port, integers) for port in network.inputs]
    wrong: dict[str, str] = {}
    for layer in network.layers:
        try:
            made.tensors[layer.name] = _exported(made, layer)
        except UnsayableError as error:
            wrong[layer.name] = str(error)
            made.tensors[layer.name] = _result(made, layer)  # so that others that read it are looked at
    if wrong:
        named = ", ".join(f"{name} ({why})" for name, why in wrong.items())
        raise UserError(f"{network.name} can't be written as ONNX, because of {named}.")
    if network.tail is None:
        outputs = [_output(made, port, integers) for port in network.outputs]
    else:
        outputs = _appended(made, network.tail, network.outputs)
    model = made.model(network.name, inputs, outputs, NOTE)
    helper.set_model_props(model, {"tvmflow.scheme": network.scheme, **_state(network)})
    if model.ByteSize() >= onnx.checker.MAXIMUM_PROTOBUF:
        raise UserError(f"{network.name} has {model.ByteSize():,} bytes as ONNX, and a file of it holds 2 GiB.")
    onnx.checker.check_model(model, full_check=True)
    return model


@dataclass(frozen=True)
class _Tensor:
    """A quantised tensor in the file: real = (stored − zero − more) · scale, where stored − more is ours."""

    name: str
    scale: float
    zero: int
    dtype: str
    more: int
    shape: Shape


class _Graph(Writer):
    """Nodes and arrays as they are added.

    With `exact_halves` sums are a quarter of their unit larger, which rounds halves up and nothing else otherwise. That
    is an addition of its own, for runtimes round biases to integers.
    """

    def __init__(self, unsigned: bool, exact_halves: bool) -> None:
        super().__init__()
        self.unsigned, self.exact_halves = unsigned, exact_halves
        self.tensors: dict[str, _Tensor] = {}

    def stored(self, name: str, scale: float, zero: int, dtype: str, shape: Shape) -> _Tensor:
        """A tensor of ours as it lies in the file."""
        more = 128 if self.unsigned and dtype == "int8" else 0
        return _Tensor(name, scale, zero, "uint8" if self.unsigned else dtype, more, shape)

    def _parameters(self, tensor: _Tensor, name: str) -> list[str]:
        zero = tensor.zero + tensor.more
        low, high = RANGES[tensor.dtype]
        if not low <= zero <= high:
            raise UnsayableError(f"a zero point of {zero}, which {tensor.dtype} can't hold")
        scale = self.array(tensor.scale, "float32", f"{name}.scale")
        return [scale, self.array(zero, tensor.dtype, f"{name}.zero_point")]

    def quantize(self, real: str, tensor: _Tensor) -> _Tensor:
        """Quantised as `tensor` says, whose name is the wanted one."""
        name = self.node("QuantizeLinear", [real, *self._parameters(tensor, tensor.name)], tensor.name)
        return replace(tensor, name=name)

    def dequantize(self, tensor: _Tensor, name: str, output: str = "") -> str:
        return self.node("DequantizeLinear", [tensor.name, *self._parameters(tensor, name)], output or f"{name}.real")

    def real(self, layer: AnyIntegerLayer, place: int = 0, shape: Shape | None = None, **other: Any) -> str:
        """An input of a layer in real numbers, in its shape inside or another; `other` replaces its scale or zero."""
        tensor = replace(self.tensors[layer.inputs[place]], **other)
        name = f"{layer.name}.in{place}"
        wanted = layer.input_shapes[place] if shape is None else shape
        found = self.dequantize(tensor, name)
        if tensor.shape == wanted:
            return found
        # quantised once more, so that what reads it is between both as well
        moved = self.reshaped(found, wanted, f"{name}.shaped")
        return self.dequantize(self.quantize(moved, replace(tensor, name=f"{name}.again")), f"{name}.again")


def _state(network: IntegerNetwork) -> dict[str, str]:
    """What the caller gives back at the next call, and with what real number everywhere the first one begins."""
    ports = {port.name: port for port in network.inputs}
    said = [
        {
            "input": state.input,
            "output": state.output,
            "initial": (state.initial - ports[state.input].zero_point) * ports[state.input].scale,
        }
        for state in network.state
    ]
    return {"tvmflow.state": json.dumps(said)} if said else {}


def _input(made: _Graph, port: Port, integers: bool) -> onnx.ValueInfoProto:
    name = made.fresh(port.name)
    tensor = made.stored(name, port.scale, port.zero_point, port.dtype, tuple(port.shape))
    if not integers:
        tensor = made.quantize(name, replace(tensor, name=f"{port.name}.quantized"))
    made.tensors[port.name] = tensor
    return helper.make_tensor_value_info(name, TensorProto.UINT8 if integers else TensorProto.FLOAT, port.shape)


def _output(made: _Graph, port: Port, integers: bool) -> onnx.ValueInfoProto:
    tensor = made.tensors[port.source]
    shape, name = tuple(port.shape), port.name
    if integers:
        if tensor.shape != shape:
            moved = made.reshaped(made.dequantize(tensor, f"{name}.out"), shape, f"{name}.shaped")
            tensor = made.quantize(moved, replace(tensor, name=name, shape=shape))
        return helper.make_tensor_value_info(tensor.name, TensorProto.UINT8, shape)
    if tensor.shape == shape:
        return helper.make_tensor_value_info(made.dequantize(tensor, name, name), TensorProto.FLOAT, shape)
    moved = made.reshaped(made.dequantize(tensor, name), shape, name)
    return helper.make_tensor_value_info(moved, TensorProto.FLOAT, shape)


def _appended(made: _Graph, tail: Tail, ports: Sequence[Port]) -> list[onnx.ValueInfoProto]:
    """The nodes of what stays in float32, behind the tensors that it reads, and its outputs."""
    names = {"": ""}  # an input that is left out has no name
    for port, spec, real in zip(ports, tail.inputs, tail.read, strict=True):
        tensor = made.tensors[port.source]
        names[real] = made.dequantize(tensor, f"{tensor.name}.kept")
        if tensor.shape != spec.shape:
            names[real] = made.reshaped(names[real], spec.shape, f"{tensor.name}.shaped")
    read = {name for node in tail.nodes for name in node.input}
    for array in (tensor for tensor in tail.model.graph.initializer if tensor.name in read):
        names[array.name] = made.fresh(array.name)
        made.arrays.append(onnx.TensorProto())
        made.arrays[-1].CopyFrom(array)
        made.arrays[-1].name = names[array.name]
    for node in tail.nodes:
        (output,) = node.output
        names[output] = made.fresh(output)
        made.nodes.append(onnx.NodeProto())
        made.nodes[-1].CopyFrom(node)
        made.nodes[-1].name = made.fresh(node.name or output, "node")
        made.nodes[-1].output[0] = names[output]
        made.nodes[-1].input[:] = [names[name] for name in node.input]
    return [helper.make_tensor_value_info(names[spec.name], TensorProto.FLOAT, spec.shape) for spec in tail.outputs]


def _exported(made: _Graph, layer: AnyIntegerLayer) -> _Tensor:
    """A layer, from its inputs to its quantised output."""
    kind = layer.kind if isinstance(layer, IntegerLayer) else type(layer.operator)
    if kind not in EXPORTERS:
        raise UnsayableError(layer.kind)
    real = EXPORTERS[kind](made, layer)
    if made.exact_halves and isinstance(layer, IntegerLayer):
        real = _larger(made, layer, real, _sums(layer).reshape((-1,) if layer.kind == "dense" else (-1, 1, 1)))
    elif made.exact_halves and isinstance(layer, IntegerNode) and layer.shift and kind in ROUNDED:
        real = _larger(made, layer, real, 2.0**-layer.shift)
    return made.quantize(_clipped(made, layer, real), _result(made, layer))


def _larger(made: _Graph, layer: AnyIntegerLayer, real: str, unit: Any) -> str:
    """Larger by a quarter of `unit`, of what one more in a sum of the layer is in steps of its result."""
    more = made.array(unit / 4 * layer.scale, "float32", f"{layer.name}.quarter")
    return made.node("Add", [real, more], f"{layer.name}.more")


def _result(made: _Graph, layer: AnyIntegerLayer) -> _Tensor:
    shape = layer.output_shape[:2] if layer.kind == "dense" else layer.output_shape
    return made.stored(f"{layer.name}.quantized", layer.scale, layer.zero_point, layer.dtype, shape)


def _clipped(made: _Graph, layer: AnyIntegerLayer, real: str) -> str:
    """Between the layer's limits, where they aren't those of its dtype."""
    low, high = RANGES[layer.dtype]
    if (layer.minimum, layer.maximum) == (low, high):
        return real
    if (layer.minimum, layer.maximum) == (layer.zero_point, high):
        return made.node("Relu", [real], f"{layer.name}.clipped")
    limits = [
        made.array((limit - layer.zero_point) * layer.scale, "float32", f"{layer.name}.{end}")
        for end, limit in (("low", layer.minimum), ("high", layer.maximum))
    ]
    return made.node("Clip", [real, *limits], f"{layer.name}.clipped")


def _sums(layer: IntegerLayer) -> np.ndarray:
    """float64 O: how much of a step of the output one of the accumulator is."""
    if layer.twice:
        assert layer.multiplier is not None
        assert layer.shift is not None
        return layer.multiplier * 2.0 ** (layer.shift - 31.0)
    if layer.multiplier is not None:
        return layer.multiplier / 2.0**32
    assert layer.shift is not None
    return 2.0 ** -layer.shift.astype(np.float64)


def _weights(made: _Graph, layer: IntegerLayer) -> list[str]:
    """Real weights and bias, from int8 and int32, one scale an output channel."""
    tensor = made.tensors[layer.inputs[0]]
    scales = _sums(layer) * layer.scale / tensor.scale
    live = scales > 0  # a channel of no factor is 0, whatever its weights
    scales = np.where(live, scales, 1.0).astype(np.float32)
    weight = layer.weight[:, :, 0, 0] if layer.kind == "dense" else layer.weight
    # ours are biases of what is stored, those of ONNX of what is without its zero point
    bias = layer.bias + tensor.zero * layer.weight.sum((1, 2, 3), dtype=np.int64)
    if np.abs(bias).max() >= 2**31:
        raise UnsayableError("a bias that int32 can't hold")
    found = []
    for name, dtype, array, by in (
        ("weight", "int8", weight * live.reshape(-1, *[1] * (weight.ndim - 1)), scales),
        ("bias", "int32", bias * live, scales * np.float32(tensor.scale)),
    ):
        inputs = [
            made.array(array, dtype, f"{layer.name}.{name}"),
            made.array(by, "float32", f"{layer.name}.{name}.scale"),
            made.array(np.zeros(len(by)), dtype, f"{layer.name}.{name}.zero_point"),
        ]
        found.append(made.node("DequantizeLinear", inputs, f"{layer.name}.{name}.real", axis=0))
    return found


def _conv(made: _Graph, layer: IntegerLayer) -> str:
    if any(layer.padding) and made.tensors[layer.inputs[0]].zero:
        raise UnsayableError("a border of something else than zero")
    return convolved(made, layer, [made.real(layer), *_weights(made, layer)])


def _dense(made: _Graph, layer: IntegerLayer) -> str:
    given = made.real(layer, shape=layer.input_shape[:2])
    return made.node("Gemm", [given, *_weights(made, layer)], f"{layer.name}.sums", named=layer.name, transB=1)


def _pool(made: _Graph, layer: IntegerLayer) -> str:
    """An average, if that is what it is by its multipliers, else the convolution that it is."""
    tensor, count = made.tensors[layer.inputs[0]], layer.weight[0].size
    error = np.abs(_sums(layer) - tensor.scale / layer.scale / count).max() * count * LARGEST
    # the bias is of what is read with its zero point, which nearly cancels it
    rest = np.abs(layer.bias + tensor.zero * count).max() * _sums(layer).max()
    if max(error, rest) > STEPS:
        return _conv(made, layer)
    return made.node("GlobalAveragePool", [made.real(layer)], f"{layer.name}.mean", named=layer.name)


def _rows(layer: IntegerNode) -> list[tuple[float, int]]:
    """Of a Sum or a Product by "tflite": the factor and the offset of each input, and of the result."""
    assert layer.factors is not None
    return [(multiplier * 2.0 ** (shift - 31), offset) for offset, multiplier, shift in layer.factors.tolist()]


def _check_offsets(made: _Graph, layer: IntegerNode) -> None:
    zeros = [-made.tensors[name].zero for name in layer.inputs]
    if [offset for _, offset in _rows(layer)] != [*zeros, layer.zero_point]:
        raise UnsayableError(f"{layer.kind} with other zero points than its tensors'")


def _sum(made: _Graph, layer: IntegerNode) -> str:
    assert isinstance(layer.operator, Sum)
    assert layer.factors is not None
    factors = (layer.factors * 2.0**-layer.shift).reshape(-1).tolist()
    if layer.factors.ndim == 2:
        _check_offsets(made, layer)
        *rows, (last, _) = _rows(layer)
        signs = layer.operator.signs
        factors = [sign * factor * 2.0**layer.shift * last for sign, (factor, _) in zip(signs, rows, strict=True)]
    total, last_place = "", len(factors) - 1
    for place, factor in enumerate(factors):
        step = made.tensors[layer.inputs[place]].scale / layer.scale
        real, minus = made.real(layer, place), False
        if place and abs(factor + step) * LARGEST < STEPS:
            minus = True
        elif abs(factor - step) * LARGEST >= STEPS:
            real = made.times(real, factor / step, f"{layer.name}.scaled{place}")
        named = layer.name if place == last_place else ""
        kind = "Sub" if minus else "Add"
        total = made.node(kind, [total, real], f"{layer.name}.sum", named=named) if place else real
    return total


def _product(made: _Graph, layer: IntegerNode) -> str:
    assert layer.factors is not None
    factor = float(layer.factors.flat[0]) * 2.0**-layer.shift
    if layer.factors.ndim == 2:
        _check_offsets(made, layer)
        *_, (factor, _) = _rows(layer)
    return _multiplied(made, layer, "Mul", factor, LARGEST**2)


def _matmul(made: _Graph, layer: IntegerNode) -> str:
    assert layer.factors is not None
    factor = float(layer.factors[0]) * 2.0**-layer.shift
    return _multiplied(made, layer, "MatMul", factor, LARGEST**2 * layer.input_shapes[0][3])


def _multiplied(made: _Graph, layer: IntegerNode, kind: str, factor: float, most: int) -> str:
    """Both inputs multiplied, of whose integers' product a step of the result is one by `factor`."""
    reals = [made.real(layer, place) for place in (0, 1)]
    found = made.node(kind, reals, f"{layer.name}.product", named=layer.name)
    step = math.prod(made.tensors[name].scale for name in layer.inputs) / layer.scale
    return found if abs(factor - step) * most < STEPS else made.times(found, factor / step, f"{layer.name}.scaled")


def _passed(made: _Graph, layer: IntegerNode, place: int = 0) -> str:
    """An input whose integers are passed on, in the steps of the result."""
    return made.real(layer, place, scale=layer.scale, zero=layer.zero_point)


def _max_pool(made: _Graph, layer: IntegerNode) -> str:
    assert isinstance(layer.operator, MaxPool)
    tensor = made.tensors[layer.inputs[0]]
    least = (RANGES[tensor.dtype][0] - tensor.more - layer.zero_point) * layer.scale
    return pooled(made, layer.name, layer.operator.window, _passed(made, layer), least)


def _average_pool(made: _Graph, layer: IntegerNode) -> str:
    assert isinstance(layer.operator, AveragePool)
    window = layer.operator.window
    if window.dilation != (1, 1) or any(b >= window.kernel[place % 2] for place, b in enumerate(window.padding)):
        raise UnsayableError("average_pool of a window with gaps, or beside the map")
    return made.node(
        *("AveragePool", [_passed(made, layer)], f"{layer.name}.mean"),
        named=layer.name,
        kernel_shape=window.kernel,
        strides=window.stride,
        pads=window.padding,
    )


def _concat(made: _Graph, layer: IntegerNode) -> str:
    assert isinstance(layer.operator, Concat)
    reals = [_passed(made, layer, place) for place in range(len(layer.inputs))]
    return made.node("Concat", reals, f"{layer.name}.joined", named=layer.name, axis=layer.operator.axis)


def _gather(made: _Graph, layer: IntegerNode) -> str:
    assert isinstance(layer.operator, Gather)
    outside = (layer.operator.outside - layer.zero_point) * layer.scale
    return gathered(made, layer.name, layer.operator, layer.input_shapes[0], _passed(made, layer), outside)


def _resample(made: _Graph, layer: IntegerNode) -> str:
    """By the operator's integers."""
    assert isinstance(layer.operator, Resample)
    operator = layer.operator
    rows, columns = (
        matrix_of(places, weights * 2.0**-operator.bits, length)
        for (places, _), weights, length in zip(operator.axes, operator.integers, layer.input_shape[2:], strict=True)
    )
    return resampled(made, layer.name, rows, columns, _passed(made, layer))


def _function(made: _Graph, layer: IntegerNode) -> str:
    """A function that has a name, if the table is that one's, or else its real numbers, looked up by the integers."""
    assert layer.table is not None
    tensor, name = made.tensors[layer.inputs[0]], layer.name
    low, high = (limit - tensor.more for limit in RANGES[tensor.dtype])
    numbers = np.arange(low, high + 1)
    table = layer.table[..., numbers & 255]
    real = (numbers - tensor.zero) * tensor.scale
    for kind, (function, attributes) in FUNCTIONS.items():
        rounded = (function(real) / layer.scale + layer.zero_point).clip(layer.minimum, layer.maximum)
        if (np.abs(table - rounded) < 0.5 + STEPS / 2).all():
            return made.node(kind, [made.real(layer)], f"{name}.{kind.lower()}", named=name, **attributes)
    places = made.real(layer, scale=1.0, zero=low)
    if table.ndim > 1:
        firsts = made.array(np.arange(len(table)).reshape(-1, 1, 1) * len(numbers), "float32", f"{name}.firsts")
        places = made.node("Add", [places, firsts], f"{name}.ofchannels")
    places = made.node("Cast", [places], f"{name}.places", to=TensorProto.INT32)
    values = made.array((table.reshape(-1) - layer.zero_point) * layer.scale, "float32", f"{name}.table")
    return made.node("Gather", [values, places], f"{name}.found", named=name)


FUNCTIONS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], dict[str, float]]] = {
    "Identity": (lambda x: x, {}),
    "Sigmoid": (lambda x: 1 / (1 + np.exp(-x)), {}),
    "Tanh": (np.tanh, {}),
    "HardSigmoid": (lambda x: (x / 6 + 0.5).clip(0, 1), {"alpha": 1 / 6, "beta": 0.5}),
    "HardSwish": (lambda x: x * (x / 6 + 0.5).clip(0, 1), {}),
}
"""Functions of single elements that ONNX has a name for: what they are, and their attributes. The first rescales."""


def _steepness(layer: IntegerNode, scale: float) -> float:
    """The step of the input by a table of exponentials: the input's own scale, if that fits."""
    assert layer.table is not None
    table, distances = layer.table[:256].astype(np.float64), np.arange(256)
    for step in (scale, *(-np.log(table[d] / table[0]) / d for d in (1, 8, 64) if table[d] > 0)):
        if (np.abs(table - table[0] * np.exp(-distances * step)) <= np.maximum(1.5, table[0] * 1e-6)).all():
            return float(step)
    raise UnsayableError(f"{layer.kind} of other functions than exponentials")


def _check_logarithm(layer: IntegerNode, step: float) -> None:
    """That the factors are those of a logarithm in steps of the result, but for half a step."""
    assert isinstance(layer.operator, LogSoftmax)
    assert layer.factors is not None
    given = layer.factors * 2.0**-layer.shift
    wanted = np.array([step, math.log(max(2, layer.output_shape[layer.operator.axis])) / THRESHOLDS]) / layer.scale
    if np.abs(given - wanted).max() * LARGEST > 0.5:
        raise UnsayableError(f"{layer.kind} of other functions than exponentials")


def _softmax(made: _Graph, layer: IntegerNode) -> str:
    assert isinstance(layer.operator, Softmax | LogSoftmax | Probabilities)
    kind = "LogSoftmax" if isinstance(layer.operator, LogSoftmax) else "Softmax"
    real = made.real(layer)
    scale = made.tensors[layer.inputs[0]].scale
    step = _steepness(layer, scale)
    if isinstance(layer.operator, LogSoftmax):
        _check_logarithm(layer, step)
    if step != scale:
        real = made.times(real, step / scale, f"{layer.name}.scaled")
    return made.node(kind, [real], f"{layer.name}.{kind.lower()}", named=layer.name, axis=layer.operator.axis)


def _normalise(made: _Graph, layer: IntegerNode) -> str:
    assert isinstance(layer.operator, Normalise)
    assert layer.factors is not None
    assert layer.table is not None
    unit = (made.tensors[layer.inputs[0]].scale / layer.operator.count) ** 2
    epsilon = max(1.0, float(layer.factors[0]) * 2.0 ** float(layer.factors[1])) * unit
    gamma, beta = layer.table.reshape(2, -1, 1, 1) * layer.scale
    return normalised(
        *(made, layer.name, layer.operator.lengths, layer.output_shape, made.real(layer)),
        epsilon=epsilon,
        gamma=gamma * 2.0**-layer.shift,
        beta=beta / 256,
    )


EXPORTERS: dict[str | type, Callable[[_Graph, Any], str]] = {
    "conv2d": _conv,
    "dense": _dense,
    "pool": _pool,
    Sum: _sum,
    Product: _product,
    MaxPool: _max_pool,
    AveragePool: _average_pool,
    Concat: _concat,
    Gather: _gather,
    Resample: _resample,
    Function: _function,
    Softmax: _softmax,
    LogSoftmax: _softmax,
    Normalise: _normalise,
    MatMul: _matmul,
    Probabilities: _softmax,
}
"""Kinds of layers with weights, and operators → what makes their real result, before it is clipped and quantised."""

ROUNDED = (Sum, Product, Resample, MatMul)
"""Operators whose sums a power of two divides."""
