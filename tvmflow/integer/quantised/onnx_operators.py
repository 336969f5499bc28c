"""What the operators of an ONNX file become, between its DequantizeLinear and its QuantizeLinear."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tvmflow.integer.layers import RANGES
from tvmflow.integer.network import Port
from tvmflow.integer.operators import ArgMax, Shape
from tvmflow.integer.quantised import operations
from tvmflow.integer.quantised.onnx_graph import Node
from tvmflow.integer.quantised.operations import Sides
from tvmflow.integer.quantised.values import Constant, Graph, Real, Steps, check_elements
from tvmflow.integer.tflite.values import Refused
from tvmflow.system.untrusted import MalformedError

Tensor = Real | Constant
NO_BORDER = (0, 0, 0, 0)


class Reading:
    """A file's tensors by their names, as far as they were read, and the layers made of them."""

    def __init__(self, constants: dict[str, np.ndarray]) -> None:
        self.graph = Graph()
        self.tensors: dict[str, Tensor] = {name: Constant(array=array) for name, array in constants.items()}
        self.inputs: dict[str, list[Port]] = {}

    def tensor(self, node: Node, place: int) -> Tensor | None:
        """What a node reads there, or None where it reads nothing."""
        name = node.inputs[place] if place < len(node.inputs) else ""
        if not name:
            return None
        if name not in self.tensors:
            raise MalformedError(f"{node} reads what nothing gives")
        return self.tensors[name]

    def real(self, node: Node, place: int = 0) -> Real:
        found = self.tensor(node, place)
        if found is None:
            raise MalformedError(f"{node} lacks an input")
        if isinstance(found, Constant):
            raise Refused("a constant, where a tensor is taken")
        return found

    def constant(self, node: Node, place: int) -> Constant | None:
        found = self.tensor(node, place)
        if isinstance(found, Real):
            raise Refused("parameters that aren't constant")
        return found

    def array(self, node: Node, place: int) -> np.ndarray | None:
        found = self.constant(node, place)
        return None if found is None else found.array

    def integers(self, node: Node, place: int, attribute: str = "") -> list[int] | None:
        """A list of integers: an input, or an attribute in files of older opsets."""
        if (found := self.array(node, place)) is not None:
            if not np.issubdtype(found.dtype, np.integer) or found.size > 64:
                raise MalformedError(f"{node} lacks a list of integers")
            return [int(number) for number in found.reshape(-1)]
        if attribute and node.get(attribute) is not None:
            return list(node.integers(attribute, ()))
        return None

    def number(self, node: Node, place: int, attribute: str, default: float) -> float:
        """A single number, as `integers`."""
        if (found := self.array(node, place)) is not None:
            if found.size != 1:
                raise MalformedError(f"{node} has {found.size} numbers, where one belongs")
            return float(found.reshape(-1)[0])
        return float(node.get(attribute, default))

    def steps(self, node: Node, scale: int, zero: int, dtype: str = "uint8") -> Steps:
        """Of a whole tensor, by the inputs that have its scale and its zero point."""
        size = self.array(node, scale)
        point = self.array(node, zero)
        if size is None:
            raise MalformedError(f"{node} has no scale")
        if point is not None:
            dtype = str(point.dtype)
        if dtype not in RANGES:
            raise Refused(f"a tensor of {dtype}, where int8 or uint8 are taken")
        if size.size != 1 or (point is not None and point.size != 1):
            raise Refused("a tensor with several scales that is no weight")
        number = float(np.float32(size.reshape(-1)[0]))
        if not (math.isfinite(number) and number > 0):
            raise MalformedError(f"{node} has a scale of {number}")
        return Steps(dtype=dtype, scale=number, zero_point=0 if point is None else int(point.reshape(-1)[0]))


Convert = Callable[[Reading, Node], Sequence[Tensor]]


def axis_of(node: Node, axis: int, rank: int) -> int:
    if not -rank <= axis < rank:
        raise MalformedError(f"{node} has the axis {axis} of a tensor of {rank} dimensions")
    return axis % rank


# ------------------------------------------------------------------------------------------------------- quantisation


def _beside(node: Node, array: np.ndarray, shape: Shape, axis: int) -> np.ndarray:
    """Scales or zero points, shaped to stand beside an array."""
    if node.get("block_size", 0):
        raise Refused("scales for blocks of numbers")
    if array.size == 1:
        return array.reshape(())
    axis = axis_of(node, axis, len(shape))
    if array.ndim != 1 or len(array) != shape[axis]:
        raise MalformedError(f"{node} has {array.size} scales or zero points for an axis of {shape[axis]}")
    return array.reshape([-1 if place == axis else 1 for place in range(len(shape))])


def dequantised(
    node: Node, array: np.ndarray, scale: np.ndarray | None, zero: np.ndarray | None, axis: int
) -> Constant:
    """A constant of integers with its real numbers."""
    if scale is None or not (np.isfinite(scale.astype(np.float32)).all() and (scale > 0).all()):
        raise MalformedError(f"{node} has scales that aren't positive")
    if array.dtype.kind == "f":
        raise MalformedError(f"{node} reads {array.dtype}")
    integers = array.astype(np.int64)
    if zero is not None:
        integers = integers - _beside(node, zero, array.shape, axis).astype(np.int64)
    scales = np.broadcast_to(_beside(node, scale.astype(np.float32), array.shape, axis), array.shape)
    return Constant(array=integers.astype(np.float32) * scales, integers=integers, scales=scales)


def quantize_linear(reading: Reading, node: Node) -> Sequence[Tensor]:
    x = reading.tensor(node, 0)
    dtype = "uint8"
    if node.get("output_dtype", 0):
        from onnx.helper import tensor_dtype_to_np_dtype

        dtype = str(tensor_dtype_to_np_dtype(int(node.get("output_dtype"))))
    if isinstance(x, Real):
        return [operations.quantize(reading.graph, x, reading.steps(node, 1, 2, dtype))]
    scale, zero = reading.array(node, 1), reading.array(node, 2)
    if x is None or scale is None or x.array.dtype.kind != "f":
        raise MalformedError(f"{node} lacks an input, or has one that it doesn't take")
    dtype = dtype if zero is None else str(zero.dtype)
    low, high = RANGES.get(dtype, (0, 0))
    if low == high:
        raise Refused(f"a tensor of {dtype}, where int8 or uint8 are taken")
    axis = int(node.get("axis", 1))
    with np.errstate(all="ignore"):
        q = np.rint(x.array.astype(np.float32) / _beside(node, scale.astype(np.float32), x.array.shape, axis))
    if zero is not None:
        q = q + _beside(node, zero.astype(np.float64), x.array.shape, axis)
    return [Constant(array=np.nan_to_num(q).clip(low, high).astype(dtype))]


def dequantize_linear(reading: Reading, node: Node) -> Sequence[Tensor]:
    x = reading.tensor(node, 0)
    if isinstance(x, Constant):
        axis = int(node.get("axis", 1))
        return [dequantised(node, x.array, reading.array(node, 1), reading.array(node, 2), axis)]
    return [_read(reading, node, 0)]


def _read(reading: Reading, node: Node, first: int) -> Real:
    """The real numbers of integers, which come with a scale and a zero point."""
    x = reading.real(node, first)
    stored = x.stored.dtype if x.stored is not None else "uint8"
    steps = reading.steps(node, first + 1, first + 2, stored)
    if steps.dtype != stored:
        raise MalformedError(f"{node} has a zero point of {steps.dtype} and reads {stored}")
    return operations.dequantize(reading.graph, x, steps.scale, steps.zero_point)


def _either(reading: Reading, node: Node, first: int) -> Tensor:
    """As `_read`, or of a constant."""
    x = reading.tensor(node, first)
    if not isinstance(x, Constant):
        return _read(reading, node, first)
    return dequantised(node, x.array, reading.array(node, first + 1), reading.array(node, first + 2), 0)


def _written(reading: Reading, node: Node, real: Real, scale: int) -> Sequence[Tensor]:
    """Quantised, by a scale and a zero point that a node reads from place `scale` on."""
    return [operations.quantize(reading.graph, real, reading.steps(node, scale, scale + 1))]


# ----------------------------------------------------------------------------------------------- layers with weights


def _pairs(node: Node, name: str, count: int, default: int = 1) -> tuple[int, int]:
    """Along rows and columns; rows of a map of one dimension are one."""
    found = node.integers(name, [default] * count)
    if len(found) != count:
        raise MalformedError(f"{node} has {len(found)} {name}")
    return (1, found[0]) if count == 1 else (found[0], found[1])


def _axes(node: Node, real: Real) -> int:
    count = len(real.shape) - 2
    if count not in (1, 2):
        raise Refused(f"a map of {len(real.shape)} dimensions")
    return count


def _padding(
    node: Node, real: Real, kernel: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int]
) -> Sides:
    count = _axes(node, real)
    auto = node.get("auto_pad", "NOTSET")
    pads = node.integers("pads", [0] * 2 * count)
    if len(pads) != 2 * count:
        raise MalformedError(f"{node} has {len(pads)} pads")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        sides = []
        for axis in range(count):
            place = axis + 2 - count
            length = real.shape[2 + axis]
            operations.check_window(stride[place], dilation[place], kernel[place])
            outputs = -(-length // stride[place])
            total = max((outputs - 1) * stride[place] + (kernel[place] - 1) * dilation[place] + 1 - length, 0)
            less, more = total // 2, total - total // 2
            sides.append((less, more) if auto == "SAME_UPPER" else (more, less))
        pads = (*(before for before, _ in sides), *(after for _, after in sides))
    elif auto == "VALID":
        pads = tuple([0] * 2 * count)
    elif auto != "NOTSET":
        raise MalformedError(f"{node} pads {auto}")
    if count == 1:
        return (0, pads[0], 0, pads[1])
    return (pads[0], pads[1], pads[2], pads[3])


def _convolved(node: Node, reading: Reading, x: Real, weight: Tensor | None, bias: Tensor | None) -> Real:
    count = _axes(node, x)
    if not isinstance(weight, Constant):
        raise Refused("weights that aren't constant")
    if weight.array.ndim != count + 2:
        raise MalformedError(f"{node} has weights of {weight.array.ndim} dimensions")
    kernel = (1, *weight.array.shape[2:])[-2:]
    stride, dilation = _pairs(node, "strides", count), _pairs(node, "dilations", count)
    return operations.convolution(
        reading.graph,
        x,
        weight,
        bias,
        stride=stride,
        padding=_padding(node, x, (kernel[0], kernel[1]), stride, dilation),
        dilation=dilation,
        groups=int(node.get("group", 1)),
        name=node.name,
    )


def conv(reading: Reading, node: Node) -> Sequence[Tensor]:
    return [_convolved(node, reading, reading.real(node), reading.tensor(node, 1), reading.tensor(node, 2))]


def conv_transpose(reading: Reading, node: Node) -> Sequence[Tensor]:
    x, weight = reading.real(node), reading.constant(node, 1)
    count = _axes(node, x)
    if weight is None or weight.array.ndim != count + 2:
        raise MalformedError(f"{node} has no weights that fit")
    kernel = (1, *weight.array.shape[2:])[-2:]
    stride, dilation = _pairs(node, "strides", count), _pairs(node, "dilations", count)
    more = (0, *node.integers("output_padding", [0] * count))[-2:]
    pads = list(node.integers("pads", [0] * 2 * count))
    wanted = node.integers("output_shape", ())[-count:]
    auto = node.get("auto_pad", "NOTSET")
    if wanted or auto in ("SAME_UPPER", "SAME_LOWER"):
        for axis in range(count):
            place = axis + 2 - count
            length = wanted[axis] if wanted else x.shape[2 + axis] * stride[place]
            reach = (kernel[place] - 1) * dilation[place] + 1
            total = max(0, stride[place] * (x.shape[2 + axis] - 1) + more[place] + reach - length)
            half = total // 2
            pads[axis], pads[axis + count] = (total - half, half) if auto == "SAME_LOWER" else (half, total - half)
    sides = (0, pads[0], 0, pads[1]) if count == 1 else (pads[0], pads[1], pads[2], pads[3])
    return [
        operations.transposed_convolution(
            reading.graph,
            x,
            weight,
            reading.constant(node, 2),
            stride=stride,
            padding=sides,
            dilation=dilation,
            more=(more[0], more[1]),
            groups=int(node.get("group", 1)),
            name=node.name,
        )
    ]


def _transposed(constant: Constant) -> Constant:
    return constant.moved(lambda array: array.T)


def _dense(reading: Reading, node: Node, a: Real, b: Tensor | None, c: Tensor | None) -> Real:
    """What Gemm does: alpha · A · B + beta · C."""
    if not isinstance(b, Constant) or b.array.ndim != 2:
        raise Refused("weights that aren't constant")
    if int(node.get("transA", 0)):
        a = operations.moved(reading.graph, a, lambda places: places.T)
    weight = b if int(node.get("transB", 0)) else _transposed(b)
    alpha, beta = float(node.get("alpha", 1.0)), float(node.get("beta", 1.0))
    found = operations.dense(
        reading.graph, a, weight, c if alpha == beta == 1 and _fits(c, weight) else None, node.name
    )
    if alpha != 1:
        found = _same(found, operations.arithmetic(reading.graph, "multiply", found, _number(alpha), node.name))
    if c is not None and not (alpha == beta == 1 and _fits(c, weight)) and beta:
        if not isinstance(c, Constant):
            raise Refused("a bias that isn't constant")
        more = Constant(array=np.asarray(c.array, np.float32) * np.float32(beta))
        found = _same(found, operations.arithmetic(reading.graph, "add", found, more, node.name))
    return found


def _fits(bias: Tensor | None, weight: Constant) -> bool:
    return isinstance(bias, Constant) and bias.array.size == weight.array.shape[0]


def _same(before: Real, after: Real) -> Real:
    """What a part of a node's work gave, without naming the node twice."""
    return replace(after, names=before.names)


def _number(value: float) -> Constant:
    return Constant(array=np.array(value, np.float32))


def gemm(reading: Reading, node: Node) -> Sequence[Tensor]:
    return [_dense(reading, node, reading.real(node), reading.tensor(node, 1), reading.tensor(node, 2))]


def _multiplied(reading: Reading, node: Node, a: Tensor | None, b: Tensor | None) -> Real:
    if isinstance(a, Constant) and isinstance(b, Real):
        if a.integers is not None or len(b.shape) < 2:
            raise Refused("a constant times a tensor")
        return operations.interpolated(reading.graph, b, a.array, len(b.shape) - 2, node.name)
    if not isinstance(a, Real) or b is None:
        raise MalformedError(f"{node} lacks an input")
    if isinstance(b, Real):
        return operations.matrix_product(reading.graph, a, b, node.name)
    if b.array.ndim == 1:
        raise Refused("weights that are no matrix")
    if b.integers is None and b.array.ndim == 2:
        return operations.interpolated(reading.graph, a, b.array.T, len(a.shape) - 1, node.name)
    if b.array.ndim > 2 and math.prod(b.array.shape[:-2]) == 1:
        b = b.moved(lambda array: array.reshape(array.shape[-2:]))
    if b.array.ndim > 2:
        raise Refused("weights that are several matrices")
    return operations.dense(reading.graph, a, _transposed(b), None, node.name)


def matmul(reading: Reading, node: Node) -> Sequence[Tensor]:
    return [_multiplied(reading, node, reading.tensor(node, 0), reading.tensor(node, 1))]


def qlinear_conv(reading: Reading, node: Node) -> Sequence[Tensor]:
    x = _read(reading, node, 0)
    weight = dequantised(node, *_arrays(reading, node, 3), 0)
    found = _convolved(node, reading, x, weight, _sums(reading, node, 8, 1, 4))
    return _written(reading, node, found, 6)


def _arrays(reading: Reading, node: Node, first: int) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    array = reading.array(node, first)
    if array is None:
        raise MalformedError(f"{node} has no weights")
    return array, reading.array(node, first + 1), reading.array(node, first + 2)


def _sums(reading: Reading, node: Node, place: int, x_scale: int, w_scale: int, factor: float = 1.0) -> Constant | None:
    """A bias in int32, in units of the products of these scales."""
    bias, scales = reading.array(node, place), [reading.array(node, at) for at in (x_scale, w_scale)]
    if bias is None:
        return None
    if bias.dtype != np.int32 or any(scale is None for scale in scales):
        raise MalformedError(f"{node} has a bias of {bias.dtype}")
    unit: np.ndarray = np.full(1, factor, np.float32)
    for scale in scales:
        unit = unit * np.asarray(scale, np.float32).reshape(-1)
    flat = bias.reshape(-1)
    if unit.size not in (1, flat.size):
        raise MalformedError(f"{node} has {flat.size} biases")
    unit = np.broadcast_to(unit, flat.shape)
    return Constant(array=flat.astype(np.float32) * unit, integers=flat.astype(np.int64), scales=unit)


def qgemm(reading: Reading, node: Node) -> Sequence[Tensor]:
    array, scale, zero = _arrays(reading, node, 3)
    weight = dequantised(node, array, scale, zero, 0 if int(node.get("transB", 0)) else 1)
    alpha = float(node.get("alpha", 1.0))
    bias = _sums(reading, node, 6, 1, 4, alpha)
    found = _dense(reading, node, _read(reading, node, 0), weight, bias)
    return _written(reading, node, found, 7) if reading.array(node, 7) is not None else [found]


def qlinear_matmul(reading: Reading, node: Node) -> Sequence[Tensor]:
    b = reading.tensor(node, 3)
    right: Tensor = (
        dequantised(node, *_arrays(reading, node, 3), 1) if isinstance(b, Constant) else _read(reading, node, 3)
    )
    return _written(reading, node, _multiplied(reading, node, _read(reading, node, 0), right), 6)


# -------------------------------------------------------------------------------------------------- element by element


def _binary(kind: str) -> Convert:
    def convert(reading: Reading, node: Node) -> Sequence[Tensor]:
        a, b = reading.tensor(node, 0), reading.tensor(node, 1)
        if a is None or b is None:
            raise MalformedError(f"{node} lacks an input")
        return [operations.arithmetic(reading.graph, kind, a, b, node.name)]

    return convert


def _qlinear_binary(kind: str) -> Convert:
    def convert(reading: Reading, node: Node) -> Sequence[Tensor]:
        a, b = _either(reading, node, 0), _either(reading, node, 3)
        return _written(reading, node, operations.arithmetic(reading.graph, kind, a, b, node.name), 6)

    return convert


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.float32(1) / (np.float32(1) + np.exp(-x))


def _erf(x: np.ndarray) -> np.ndarray:
    return np.vectorize(math.erf, otypes=[np.float32])(x)


def _softplus(x: np.ndarray) -> np.ndarray:
    return np.logaddexp(x, np.float32(0))


def _gelu(node: Node) -> operations.Function:
    if node.get("approximate", "none") == "tanh":
        root, part = np.float32(math.sqrt(2 / math.pi)), np.float32(0.044715)
        return lambda x: np.float32(0.5) * x * (1 + np.tanh(root * (x + part * x * x * x)))
    return lambda x: np.float32(0.5) * x * (1 + _erf(x * np.float32(math.sqrt(0.5))))


def _with(of: Callable[..., np.ndarray], *attributes: tuple[str, float]) -> Callable[[Node], operations.Function]:
    def made(node: Node) -> operations.Function:
        numbers = [np.float32(node.get(name, default)) for name, default in attributes]
        return lambda x: of(x, *numbers)

    return made


def _hard_sigmoid(x: np.ndarray, alpha: Any, beta: Any) -> np.ndarray:
    return np.clip(x * alpha + beta, 0, 1)


FUNCTIONS: dict[str, Callable[[Node], operations.Function]] = {
    "Sigmoid": _with(_sigmoid),
    "Tanh": _with(np.tanh),
    "HardSwish": _with(lambda x: x * _hard_sigmoid(x, np.float32(1 / 6), np.float32(0.5))),
    "HardSigmoid": _with(_hard_sigmoid, ("alpha", 0.2), ("beta", 0.5)),
    "LeakyRelu": _with(lambda x, alpha: np.where(x < 0, x * alpha, x), ("alpha", 0.01)),
    "Elu": _with(lambda x, alpha: np.where(x < 0, alpha * np.expm1(x), x), ("alpha", 1.0)),
    "Celu": _with(lambda x, alpha: np.maximum(x, 0) + np.minimum(alpha * np.expm1(x / alpha), 0), ("alpha", 1.0)),
    "Selu": _with(
        lambda x, alpha, gamma: gamma * np.where(x > 0, x, alpha * np.expm1(x)),
        ("alpha", 1.6732632423543772),
        ("gamma", 1.0507009873554805),
    ),
    "ThresholdedRelu": _with(lambda x, alpha: np.where(x > alpha, x, 0), ("alpha", 1.0)),
    "Softplus": _with(_softplus),
    "Softsign": _with(lambda x: x / (1 + np.abs(x))),
    "Mish": _with(lambda x: x * np.tanh(_softplus(x))),
    "Gelu": _gelu,
    "QuickGelu": _with(lambda x, alpha: x * _sigmoid(alpha * x), ("alpha", 1.702)),
    "Erf": _with(_erf),
    "Exp": _with(np.exp),
    "Log": _with(np.log),
    "Sqrt": _with(np.sqrt),
    "Reciprocal": _with(lambda x: np.float32(1) / x),
    "Abs": _with(np.abs),
    "Neg": _with(np.negative),
    "Sin": _with(np.sin),
    "Cos": _with(np.cos),
    "Atan": _with(np.arctan),
    "Floor": _with(np.floor),
    "Ceil": _with(np.ceil),
    "Round": _with(np.rint),
    "Sign": _with(np.sign),
}
"""Functions of single elements, which become tables: from a node's attributes."""


def _function(reading: Reading, node: Node) -> Sequence[Tensor]:
    of = FUNCTIONS[node.kind](node)
    return [operations.elementwise(reading.graph, reading.real(node), of, node.name)]


def _qlinear_function(kind: str) -> Convert:
    def convert(reading: Reading, node: Node) -> Sequence[Tensor]:
        of = FUNCTIONS[kind](node)
        return _written(reading, node, operations.elementwise(reading.graph, _read(reading, node, 0), of, node.name), 3)

    return convert


def relu(reading: Reading, node: Node) -> Sequence[Tensor]:
    return [operations.clipped(reading.graph, reading.real(node), 0.0, math.inf, node.name)]


def clip(reading: Reading, node: Node) -> Sequence[Tensor]:
    low = reading.number(node, 1, "min", -math.inf)
    high = reading.number(node, 2, "max", math.inf)
    return [operations.clipped(reading.graph, reading.real(node), low, high, node.name)]


def _limit(highest: bool) -> Convert:
    """Max and Min with numbers."""

    def convert(reading: Reading, node: Node) -> Sequence[Tensor]:
        found = [reading.tensor(node, place) for place in range(len(node.inputs))]
        reals = [value for value in found if isinstance(value, Real)]
        numbers = [value.array for value in found if isinstance(value, Constant)]
        if len(reals) != 1 or any(number.size != 1 for number in numbers):
            raise Refused("several tensors, where a tensor and numbers are taken")
        values = [float(number.reshape(-1)[0]) for number in numbers]
        limits = (-math.inf, min(values, default=math.inf)) if highest else (max(values, default=-math.inf), math.inf)
        return [operations.clipped(reading.graph, reals[0], *limits, node.name)]

    return convert


def prelu(reading: Reading, node: Node) -> Sequence[Tensor]:
    x, slope = reading.real(node), reading.array(node, 1)
    if slope is None:
        raise MalformedError(f"{node} has no slopes")
    by = slope.astype(np.float32)
    if np.broadcast_shapes(x.shape, by.shape) != x.shape:
        raise MalformedError(f"{node} has slopes that don't fit")
    if by.size == 1:
        by = by.reshape(())

    def of(x: np.ndarray) -> np.ndarray:
        return np.where(x < 0, x * by, x)

    return [operations.elementwise(reading.graph, x, of, node.name, uniform=by.size == 1)]


def power(reading: Reading, node: Node) -> Sequence[Tensor]:
    exponent = np.float32(reading.number(node, 1, "", 1.0))
    return [operations.elementwise(reading.graph, reading.real(node), lambda x: np.power(x, exponent), node.name)]


def batch_normalization(reading: Reading, node: Node) -> Sequence[Tensor]:
    gamma, beta, mean, variance = (reading.array(node, place) for place in (1, 2, 3, 4))
    if int(node.get("training_mode", 0)):
        raise Refused("statistics of the batch")
    if gamma is None or beta is None or mean is None or variance is None or len(node.outputs) > 1:
        raise Refused("parameters that aren't constant")
    wide = [array.astype(np.float64).reshape(-1) for array in (gamma, beta, mean, variance)]
    factor = wide[0] / np.sqrt(wide[3] + float(node.get("epsilon", 1e-5)))
    moved = wide[1] - wide[2] * factor
    return [operations.normalised(reading.graph, reading.real(node), factor, moved, node.name)]


def layer_normalization(reading: Reading, node: Node) -> Sequence[Tensor]:
    x = reading.real(node)
    if axis_of(node, int(node.get("axis", -1)), len(x.shape)) != len(x.shape) - 1:
        raise Refused("a normalisation along several axes")
    gamma, beta = reading.array(node, 1), reading.array(node, 2)
    epsilon = float(node.get("epsilon", 1e-5))
    return [operations.layer_normalised(reading.graph, x, gamma, beta, epsilon, node.name)]


def group_normalization(reading: Reading, node: Node) -> Sequence[Tensor]:
    """Of groups of channels, or of each one."""
    x, gamma, beta = reading.real(node), reading.array(node, 1), reading.array(node, 2)
    channels = x.shape[1] if len(x.shape) > 1 else 1
    groups = int(node.get("num_groups", channels))
    if node.kind == "GroupNormalization" and node.opset < 21 and gamma is not None and beta is not None:
        gamma, beta = (np.repeat(array.reshape(-1), channels // groups) for array in (gamma, beta))
    epsilon = float(node.get("epsilon", 1e-5))
    return [operations.group_normalised(reading.graph, x, groups, gamma, beta, epsilon, node.name)]


def cast(reading: Reading, node: Node) -> Sequence[Tensor]:
    """To real numbers, or to whole ones, as places in a table."""
    x, to = reading.real(node), int(node.get("to", 1))
    if x.integers:
        raise Refused("integers that are made real numbers by no scale")
    if to in (1, 11):
        return [x]
    if to not in (6, 7):
        raise Refused("numbers made of another type")
    return [operations.elementwise(reading.graph, x, np.trunc, node.name)]


def gather(reading: Reading, node: Node) -> Sequence[Tensor]:
    data, places = reading.tensor(node, 0), reading.tensor(node, 1)
    if isinstance(data, Constant) and isinstance(places, Real):
        return [_looked_up(reading, node, data.array, places)]
    x, index = reading.real(node), reading.array(node, 1)
    if index is None or not np.issubdtype(index.dtype, np.integer):
        raise MalformedError(f"{node} has no places")
    axis = axis_of(node, int(node.get("axis", 0)), len(x.shape))
    if index.size and not (-x.shape[axis] <= index.min() and index.max() < x.shape[axis]):
        raise MalformedError(f"{node} takes places that aren't there")
    check_elements(*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])
    return [operations.moved(reading.graph, x, lambda array: np.take(array, index, axis))]


def _looked_up(reading: Reading, node: Node, table: np.ndarray, places: Real) -> Real:
    """A function whose numbers the file has itself."""
    if table.ndim != 1 or not table.size or places.integers:
        raise Refused("a table of rows")
    numbers = table.astype(np.float32)

    def of(x: np.ndarray) -> np.ndarray:
        found: np.ndarray = numbers[np.nan_to_num(x).astype(np.int64).clip(-len(numbers), len(numbers) - 1)]
        return found

    return operations.elementwise(reading.graph, places, of, node.name)


# -------------------------------------------------------------------------------------------------------------- pools


def _pooled(node: Node, x: Real) -> tuple[tuple[int, int], tuple[int, int], Sides, tuple[int, int]]:
    """Kernel, stride, border and dilation; a window that begins on the map is counted if `ceil_mode` says so."""
    count = _axes(node, x)
    if len(node.integers("kernel_shape", ())) != count:
        raise MalformedError(f"{node} has no window that fits")
    kernel, stride = _pairs(node, "kernel_shape", count), _pairs(node, "strides", count)
    dilation = _pairs(node, "dilations", count)
    operations.check_window(*kernel, *stride, *dilation)
    sides = list(_padding(node, x, kernel, stride, dilation))
    if int(node.get("ceil_mode", 0)) and node.get("auto_pad", "NOTSET") == "NOTSET":
        for axis in range(2):
            length = 1 if axis == 0 and count == 1 else x.shape[axis - 2]
            reach = dilation[axis] * (kernel[axis] - 1) + 1
            left = length + sides[axis] + sides[axis + 2] - reach
            outputs = -(-left // stride[axis]) + 1
            if (outputs - 1) * stride[axis] >= length + sides[axis]:
                outputs -= 1
            sides[axis + 2] += max(0, (outputs - 1) * stride[axis] - left)
    return kernel, stride, (sides[0], sides[1], sides[2], sides[3]), dilation


def max_pool(reading: Reading, node: Node) -> Sequence[Tensor]:
    x = reading.real(node)
    if len([name for name in node.outputs if name]) > 1:
        raise Refused("the places of what is largest")
    kernel, stride, sides, dilation = _pooled(node, x)
    return [operations.max_pool(reading.graph, x, kernel, stride, sides, dilation, node.name)]


def _averaged(reading: Reading, node: Node, x: Real) -> Real:
    kernel, stride, sides, dilation = _pooled(node, x)
    if dilation != (1, 1):
        raise Refused("a window with gaps")
    include = bool(int(node.get("count_include_pad", 0)))
    if include and int(node.get("ceil_mode", 0)):
        raise Refused("a window that ends beyond the border, which counts")
    return operations.average_pool(reading.graph, x, kernel, stride, sides, include, node.name)


def average_pool(reading: Reading, node: Node) -> Sequence[Tensor]:
    return [operations.on_integers(reading.graph, reading.real(node), lambda x: _averaged(reading, node, x))]


def qlinear_average_pool(reading: Reading, node: Node) -> Sequence[Tensor]:
    if int(node.get("channels_last", 0)):
        raise Refused("channels that come last")
    return _written(reading, node, _averaged(reading, node, _read(reading, node, 0)), 3)


def _spatial(x: Real) -> list[int]:
    return list(range(2, len(x.shape)))


def global_average_pool(reading: Reading, node: Node) -> Sequence[Tensor]:
    x = reading.real(node)
    return [
        operations.on_integers(
            reading.graph, x, lambda real: operations.mean(reading.graph, real, _spatial(real), True, node.name)
        )
    ]


def qlinear_global_average_pool(reading: Reading, node: Node) -> Sequence[Tensor]:
    x = _read(reading, node, 0)
    axes = list(range(1, len(x.shape) - 1)) if int(node.get("channels_last", 0)) else _spatial(x)
    return _written(reading, node, operations.mean(reading.graph, x, axes, True, node.name), 3)


def global_max_pool(reading: Reading, node: Node) -> Sequence[Tensor]:
    x = reading.real(node)
    return [operations.largest_along(reading.graph, x, _spatial(x), True, node.name)]


def _reduced(reading: Reading, node: Node, x: Real, place: int) -> tuple[list[int], bool]:
    axes = reading.integers(node, place, "axes") if place else list(node.integers("axes", ()))
    return axes or list(range(len(x.shape))), bool(int(node.get("keepdims", 1)))


def _reduction(kind: str) -> Convert:
    def convert(reading: Reading, node: Node) -> Sequence[Tensor]:
        x = reading.real(node)
        axes, keep = _reduced(reading, node, x, 1)
        if int(node.get("noop_with_empty_axes", 0)) and not reading.integers(node, 1, "axes"):
            return [x]
        if kind == "largest":
            return [operations.largest_along(reading.graph, x, axes, keep, node.name)]
        return [operations.mean(reading.graph, x, axes, keep, node.name, total=kind == "total")]

    return convert


def qlinear_reduce_mean(reading: Reading, node: Node) -> Sequence[Tensor]:
    x = _read(reading, node, 0)
    axes, keep = _reduced(reading, node, x, 0)
    return _written(reading, node, operations.mean(reading.graph, x, axes, keep, node.name), 3)


def _shares(reading: Reading, node: Node, x: Real, opset: int, logarithm: bool) -> Real:
    axis = axis_of(node, int(node.get("axis", -1 if opset >= 13 else 1)), len(x.shape))
    if opset >= 13 or axis == len(x.shape) - 1:
        return operations.softmax(reading.graph, x, axis, node.name, logarithm=logarithm)
    shape = x.shape
    flat = operations.moved(reading.graph, x, lambda places: places.reshape(1, math.prod(shape[:axis]), -1))
    found = operations.softmax(reading.graph, flat, 2, node.name, logarithm=logarithm)
    return operations.moved(reading.graph, found, lambda places: places.reshape(shape))


def softmax(reading: Reading, node: Node) -> Sequence[Tensor]:
    return [_shares(reading, node, reading.real(node), node.opset, node.kind == "LogSoftmax")]


def qlinear_softmax(reading: Reading, node: Node) -> Sequence[Tensor]:
    found = _shares(reading, node, _read(reading, node, 0), int(node.get("opset", 13)), False)
    return _written(reading, node, found, 3)


def arg_max(reading: Reading, node: Node) -> Sequence[Tensor]:
    """As uint8, whatever the file has: there are up to 256 places along an axis."""
    x, graph = reading.real(node), reading.graph
    axis = axis_of(node, int(node.get("axis", 0)), len(x.shape))
    if x.shape[axis] > 256 or not math.prod(x.shape) or int(node.get("select_last_index", 0)):
        raise Refused("more than 256 places, or the last of the largest")
    value = operations.value_of(graph, x)
    source, _ = graph.along_channels(value, axis)
    steps = Steps(dtype="uint8", scale=1.0, zero_point=0)
    name = graph.node(ArgMax(axis=1), (source,), steps, node.name)
    shape = (*x.shape[:axis], *([1] if int(node.get("keepdims", 1)) else []), *x.shape[axis + 1 :])
    return [operations.stored(graph.value_of(name, shape, steps), steps)]


# -------------------------------------------------------------------------------------------------------------- moves


def _moved(reading: Reading, x: Tensor, how: Callable[[np.ndarray], np.ndarray]) -> Tensor:
    return x.moved(how) if isinstance(x, Constant) else operations.moved(reading.graph, x, how)


def _any(reading: Reading, node: Node) -> Tensor:
    x = reading.tensor(node, 0)
    if x is None:
        raise MalformedError(f"{node} lacks an input")
    return x


def shape_of(x: Tensor) -> Shape:
    return x.shape if isinstance(x, Real) else tuple(x.array.shape)


def identity(reading: Reading, node: Node) -> Sequence[Tensor]:
    return [_any(reading, node)]


def reshape(reading: Reading, node: Node) -> Sequence[Tensor]:
    x, wanted = _any(reading, node), reading.integers(node, 1, "shape")
    if wanted is None:
        raise MalformedError(f"{node} has no shape")
    before = shape_of(x)
    if not int(node.get("allowzero", 0)):
        wanted = [length or before[place] for place, length in enumerate(wanted)]
    return [_moved(reading, x, lambda array: array.reshape(wanted))]


def flatten(reading: Reading, node: Node) -> Sequence[Tensor]:
    x = _any(reading, node)
    shape, axis = shape_of(x), int(node.get("axis", 1))
    axis = axis + len(shape) if axis < 0 else axis
    return [_moved(reading, x, lambda array: array.reshape(math.prod(shape[:axis]), math.prod(shape[axis:])))]


def squeeze(reading: Reading, node: Node) -> Sequence[Tensor]:
    x = _any(reading, node)
    shape, axes = shape_of(x), reading.integers(node, 1, "axes")
    chosen = (
        [axis_of(node, axis, len(shape)) for axis in axes]
        if axes
        else [axis for axis, length in enumerate(shape) if length == 1]
    )
    return [_moved(reading, x, lambda array: array.squeeze(tuple(chosen)))]


def unsqueeze(reading: Reading, node: Node) -> Sequence[Tensor]:
    x, axes = _any(reading, node), reading.integers(node, 1, "axes") or []
    return [_moved(reading, x, lambda array: np.expand_dims(array, tuple(axes)))]


def transpose(reading: Reading, node: Node) -> Sequence[Tensor]:
    x = _any(reading, node)
    order = node.integers("perm", range(len(shape_of(x)))[::-1])
    return [_moved(reading, x, lambda array: array.transpose(order))]


def expand(reading: Reading, node: Node) -> Sequence[Tensor]:
    x, wanted = reading.real(node), reading.integers(node, 1) or []
    shape = np.broadcast_shapes(x.shape, tuple(wanted))
    check_elements(*shape)
    return [operations.moved(reading.graph, x, lambda array: np.ascontiguousarray(np.broadcast_to(array, shape)))]


def tile(reading: Reading, node: Node) -> Sequence[Tensor]:
    x, counts = reading.real(node), reading.integers(node, 1) or []
    if len(counts) != len(x.shape):
        raise MalformedError(f"{node} repeats along {len(counts)} axes")
    check_elements(*(length * count for length, count in zip(x.shape, counts, strict=True)))
    return [operations.moved(reading.graph, x, lambda array: np.tile(array, counts))]


def slice_(reading: Reading, node: Node) -> Sequence[Tensor]:
    x = _any(reading, node)
    rank = len(shape_of(x))
    starts, ends = reading.integers(node, 1, "starts"), reading.integers(node, 2, "ends")
    if starts is None or ends is None:
        raise MalformedError(f"{node} lacks its places")
    axes = reading.integers(node, 3, "axes")
    axes = list(range(len(starts))) if axes is None else axes
    steps = reading.integers(node, 4)
    steps = [1] * len(starts) if steps is None else steps
    index = [slice(None)] * rank
    for axis, first, last, step in zip(axes, starts, ends, steps, strict=True):
        place = axis_of(node, axis, rank)
        length = shape_of(x)[place]
        stop: int | None = last
        if step < 0 and last < -length:
            stop = None
        index[place] = slice(first, stop, step)
    return [_moved(reading, x, lambda array: array[tuple(index)])]


def split(reading: Reading, node: Node) -> Sequence[Tensor]:
    x, count = reading.real(node), len(node.outputs)
    axis = axis_of(node, int(node.get("axis", 0)), len(x.shape))
    length, parts = x.shape[axis], reading.integers(node, 1, "split")
    if parts is None:
        size = -(-length // count)
        parts = [size] * (count - 1) + [length - size * (count - 1)]
    if sum(parts) != length or min(parts) < 0 or len(parts) != count:
        raise MalformedError(f"{node} makes {len(parts)} parts that don't fit")
    ends = np.cumsum([0, *parts])
    found = []
    for first, last in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True):
        index = [slice(None)] * len(x.shape)
        index[axis] = slice(first, last)
        found.append(operations.moved(reading.graph, x, lambda array, index=tuple(index): array[index]))  # type: ignore[misc]
    return found


def concat(reading: Reading, node: Node) -> Sequence[Tensor]:
    found = [reading.tensor(node, place) for place in range(len(node.inputs))]
    parts = [value for value in found if value is not None]
    reals = [value for value in parts if isinstance(value, Real)]
    if not reals:
        raise MalformedError(f"{node} has no inputs")
    axis = axis_of(node, int(node.get("axis", 1)), len(reals[0].shape))
    return [operations.concatenated(reading.graph, operations.with_zeros(reading.graph, parts, axis), axis, node.name)]


def qlinear_concat(reading: Reading, node: Node) -> Sequence[Tensor]:
    found = [_read(reading, node, place) for place in range(2, len(node.inputs), 3)]
    if not found:
        raise MalformedError(f"{node} has no inputs")
    axis = axis_of(node, int(node.get("axis", 1)), len(found[0].shape))
    return _written(reading, node, operations.concatenated(reading.graph, found, axis, node.name), 0)


def pad(reading: Reading, node: Node) -> Sequence[Tensor]:
    x = reading.real(node)
    widths = reading.integers(node, 1, "pads" if node.get("pads") is not None else "paddings")
    axes = reading.integers(node, 3)
    rank = len(x.shape)
    chosen = list(range(rank)) if axes is None else [axis_of(node, axis, rank) for axis in axes]
    if widths is None or len(widths) != 2 * len(chosen):
        raise MalformedError(f"{node} has no widths that fit")
    pairs = [(0, 0)] * rank
    for place, axis in enumerate(chosen):
        pairs[axis] = (widths[place], widths[place + len(chosen)])
    modes = {"constant": "constant", "reflect": "reflect", "edge": "edge", "wrap": "wrap"}
    mode = node.get("mode", "constant")
    if mode not in modes:
        raise MalformedError(f"{node} pads by {mode}")
    number = reading.number(node, 2, "value", 0.0)
    if x.integers and mode == "constant":
        if x.stored is None or number != x.stored.zero_point:
            raise Refused("a border of another number than the zero point")
        number = 0.0
    return [
        operations.on_integers(
            reading.graph, x, lambda real: operations.padded(reading.graph, real, pairs, number, modes[mode])
        )
    ]


def depth_to_space(reading: Reading, node: Node) -> Sequence[Tensor]:
    x, size = reading.real(node), int(node.get("blocksize", 1))
    n, c, h, w = x.shape
    if node.get("mode", "DCR") == "DCR":
        lengths, order = (n, size, size, c // size**2, h, w), (0, 3, 4, 1, 5, 2)
    else:
        lengths, order = (n, c // size**2, size, size, h, w), (0, 1, 4, 2, 5, 3)
    whole = (n, c // size**2, h * size, w * size)
    return [operations.moved(reading.graph, x, lambda a: a.reshape(lengths).transpose(order).reshape(whole))]


def space_to_depth(reading: Reading, node: Node) -> Sequence[Tensor]:
    x, size = reading.real(node), int(node.get("blocksize", 1))
    n, c, h, w = x.shape
    lengths, whole = (n, c, h // size, size, w // size, size), (n, c * size**2, h // size, w // size)
    return [operations.moved(reading.graph, x, lambda a: a.reshape(lengths).transpose(0, 3, 5, 1, 2, 4).reshape(whole))]


def resize(reading: Reading, node: Node) -> Sequence[Tensor]:
    """Places and weights as the float reader has them."""
    from tvmflow.network.onnx_nodes.resize import COORDINATES, NEAREST, axes_of, taps_of

    x, rank = reading.real(node), len(reading.real(node).shape)
    upsample = node.kind == "Upsample"
    newer = node.opset >= 11 and not upsample
    places = (2, 3) if newer else (1, 9)
    scales, sizes = (reading.array(node, place) for place in places)
    if upsample and scales is None:
        scales = np.array(node.get("scales", ()), np.float32)
    scales = None if scales is None or not scales.size else scales
    sizes = None if scales is not None or sizes is None or not sizes.size else sizes
    axes = [axis_of(node, int(axis), rank) for axis in node.get("axes") or range(rank)]
    numbers = scales if scales is not None else sizes
    if numbers is None or numbers.size != len(axes) or not (np.isfinite(numbers).all() and (numbers > 0).all()):
        raise MalformedError(f"{node} has neither scales nor sizes that fit")
    coordinates = node.get("coordinate_transformation_mode", "half_pixel" if newer else "asymmetric")
    rounding, mode = node.get("nearest_mode", "round_prefer_floor" if newer else "floor"), node.get("mode", "nearest")
    if coordinates not in COORDINATES or coordinates == "tf_crop_and_resize" or rounding not in NEAREST:
        raise Refused(f"places by {coordinates}")
    if mode not in ("nearest", "linear", "cubic"):
        raise Refused(f"interpolation by {mode}")
    if max(float(number) for number in numbers.reshape(-1)) > operations.MAX_SIDE:
        raise MalformedError(f"{node} makes too large a map")
    wanted = axes_of(node, [x.shape[axis] for axis in axes], scales, sizes, None)
    shape = list(x.shape)
    for axis, found in zip(axes, wanted, strict=True):
        shape[axis] = found.output
    check_elements(*shape)
    tables = {}
    for axis, found in zip(axes, wanted, strict=True):
        if found.output == found.extent and found.scale == 1:
            continue
        at = COORDINATES[coordinates](np.arange(found.output, dtype=np.float32), found).astype(np.float32)
        if mode == "nearest":
            taken = np.clip(NEAREST[rounding](at), 0, found.extent - 1).astype(np.int64)
            x = operations.moved(reading.graph, x, lambda array, t=taken, a=axis: np.take(array, t, a))  # type: ignore[misc]
            continue
        inputs, weights = taps_of(node, mode, at, found)
        tables[axis] = (inputs.astype(np.int32), weights.astype(np.float64))
    if not tables:
        return [x]
    return [
        operations.on_integers(
            reading.graph, x, lambda real: operations.resized(reading.graph, real, tables, node.name)
        )
    ]


CONVERTERS: dict[str, Convert] = {
    "QuantizeLinear": quantize_linear,
    "DequantizeLinear": dequantize_linear,
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "Gemm": gemm,
    "MatMul": matmul,
    "QLinearConv": qlinear_conv,
    "QLinearMatMul": qlinear_matmul,
    "QGemm": qgemm,
    "Add": _binary("add"),
    "Sub": _binary("subtract"),
    "Mul": _binary("multiply"),
    "Div": _binary("divide"),
    "QLinearAdd": _qlinear_binary("add"),
    "QLinearMul": _qlinear_binary("multiply"),
    **dict.fromkeys(FUNCTIONS, _function),
    "QLinearSigmoid": _qlinear_function("Sigmoid"),
    "QLinearLeakyRelu": _qlinear_function("LeakyRelu"),
    "Relu": relu,
    "Clip": clip,
    "Max": _limit(False),
    "Min": _limit(True),
    "PRelu": prelu,
    "Pow": power,
    "BatchNormalization": batch_normalization,
    "LayerNormalization": layer_normalization,
    "GroupNormalization": group_normalization,
    "InstanceNormalization": group_normalization,
    "Cast": cast,
    "MaxPool": max_pool,
    "AveragePool": average_pool,
    "GlobalAveragePool": global_average_pool,
    "GlobalMaxPool": global_max_pool,
    "QLinearAveragePool": qlinear_average_pool,
    "QLinearGlobalAveragePool": qlinear_global_average_pool,
    "ReduceMean": _reduction("mean"),
    "ReduceSum": _reduction("total"),
    "ReduceMax": _reduction("largest"),
    "QLinearReduceMean": qlinear_reduce_mean,
    "Softmax": softmax,
    "LogSoftmax": softmax,
    "QLinearSoftmax": qlinear_softmax,
    "ArgMax": arg_max,
    "Concat": concat,
    "QLinearConcat": qlinear_concat,
    "Resize": resize,
    "Upsample": resize,
    "Pad": pad,
    "Slice": slice_,
    "Split": split,
    "Gather": gather,
    "Expand": expand,
    "Tile": tile,
    "Reshape": reshape,
    "Flatten": flatten,
    "Squeeze": squeeze,
    "Unsqueeze": unsqueeze,
    "Transpose": transpose,
    "DepthToSpace": depth_to_space,
    "SpaceToDepth": space_to_depth,
    "Identity": identity,
    "Dropout": identity,
}
"""What each operator of a file becomes. An operator without a line is refused, but for those that constants alone
need."""
