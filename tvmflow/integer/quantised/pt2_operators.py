"""What the operators of a quantised `.pt2` file become.

Functions of single elements and moves are what PyTorch itself makes of tables and of places: the operators are those of
an allow-list, and nothing else of the file is run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tvmflow.integer.layers import RANGES
from tvmflow.integer.network import Port
from tvmflow.integer.operators import OUTSIDE
from tvmflow.integer.quantised import operations
from tvmflow.integer.quantised.cores import Given
from tvmflow.integer.quantised.operations import Sides
from tvmflow.integer.quantised.values import Constant, Graph, Real, Steps, check_elements
from tvmflow.integer.tflite.values import Refused
from tvmflow.system.untrusted import MalformedError

if TYPE_CHECKING:
    import torch

Tensor = Real | Constant
NO_BORDER = (0, 0, 0, 0)


class Call:
    """One operator of the graph: its arguments by name, with tensors as they were read."""

    def __init__(self, graph: Graph, target: Any, name: str, arguments: dict[str, Any]) -> None:
        self.graph, self.target, self.name, self.arguments = graph, target, name, arguments

    @property
    def kind(self) -> str:
        """As `conv2d`; what changes its argument in place does the same in a graph without aliases."""
        packet: str = self.target._schema.name.partition("::")[2]
        return packet.removesuffix("_") if not packet.endswith("__") else packet

    def get(self, name: str, default: Any = None) -> Any:
        value = self.arguments.get(name)
        return default if value is None else value

    def real(self, name: str = "") -> Real:
        value = self.get(name) if name else next(iter(self.arguments.values()))
        if not isinstance(value, Real):
            raise Refused("a constant, where a tensor is taken")
        return value

    def constant(self, name: str) -> Constant | None:
        value = self.get(name)
        if isinstance(value, Real):
            raise Refused("parameters that aren't constant")
        return value

    def array(self, name: str) -> np.ndarray | None:
        value = self.constant(name)
        return None if value is None else value.array

    def axes(self, name: str, rank: int) -> list[int]:
        """A dimension or several, or all."""
        value = self.get(name)
        given = (
            list(range(rank)) if value is None or value == [] else [value] if isinstance(value, int) else list(value)
        )
        return [self.axis(axis, rank) for axis in given]

    def axis(self, axis: int, rank: int) -> int:
        if not -rank <= axis < rank:
            raise MalformedError(f"the axis {axis} of a tensor of {rank} dimensions")
        return axis % rank

    def pair(self, name: str, real: Real, default: Any) -> tuple[int, int]:
        """Along rows and columns; rows of a map of one dimension are one."""
        value = self.get(name, default)
        count = len(real.shape) - 2
        numbers = [value] * count if isinstance(value, int) else list(value) * (count if len(value) == 1 else 1)
        if count not in (1, 2) or len(numbers) != count:
            raise Refused(f"a map of {len(real.shape)} dimensions")
        first = 0 if name in ("padding", "output_padding") else 1
        return (first, int(numbers[0])) if count == 1 else (int(numbers[0]), int(numbers[1]))


Convert = Callable[[Call], Sequence[Tensor] | Tensor]


# ------------------------------------------------------------------------------------------------------- quantisation


def _steps(call: Call, dtype: torch.dtype) -> Steps:
    name = str(dtype).removeprefix("torch.")
    if name not in RANGES:
        raise Refused(f"a tensor of {name}, where int8 or uint8 are taken")
    scale, zero = (
        float(value.array.reshape(-1)[0]) if isinstance(value, Constant) else value
        for value in (call.get("scale"), call.get("zero_point", 0))
    )
    number = float(np.float32(scale))
    low, high = RANGES[name]
    if not (math.isfinite(number) and number > 0 and low <= int(zero) <= high):
        raise MalformedError(f"a scale of {scale} and a zero point of {zero}")
    return Steps(dtype=name, scale=number, zero_point=int(zero))


def quantize(call: Call) -> Tensor:
    """With limits that may be narrower than the type."""
    if isinstance(call.get("input"), Constant):
        return evaluated(call)[0]
    real, steps = call.real("input"), _steps(call, call.get("dtype"))
    low, high = RANGES[steps.dtype]
    ends = max(low, int(call.get("quant_min", low))), min(high, int(call.get("quant_max", high)))
    if isinstance(real.core, Given):
        found = operations.quantize(call.graph, real, steps)
        if ends == (low, high):
            return found
        real = operations.dequantize(call.graph, found, steps.scale, steps.zero_point)
    if ends != (low, high):
        least, most = ((end - steps.zero_point) * steps.scale for end in ends)
        real = operations.limited(call.graph, real, least, most)
    return operations.quantize(call.graph, real, steps)


def dequantize(call: Call) -> Tensor:
    value = call.get("input")
    if isinstance(value, Constant):
        scales, zero = call.get("scale", call.get("scales")), call.get("zero_point", call.get("zero_points"))
        axis = call.get("axis", 0)
        integers = value.array.astype(np.int64)
        wide = [
            _beside(np.asarray(given.array if isinstance(given, Constant) else given), integers.shape, axis)
            for given in (scales, 0 if zero is None else zero)
        ]
        integers = integers - wide[1].astype(np.int64)
        by = np.broadcast_to(wide[0].astype(np.float32), integers.shape)
        if not (np.isfinite(by).all() and (by > 0).all()):
            raise MalformedError("scales that aren't positive")
        return Constant(array=integers.astype(np.float32) * by, integers=integers, scales=by)
    steps = _steps(call, call.get("dtype"))
    return operations.dequantize(call.graph, call.real("input"), steps.scale, steps.zero_point)


def _beside(array: np.ndarray, shape: tuple[int, ...], axis: int) -> np.ndarray:
    if array.size == 1:
        return array.reshape(())
    if not -len(shape) <= axis < len(shape) or array.size != shape[axis]:
        raise MalformedError(f"{array.size} scales or zero points for a weight of {shape}")
    return array.reshape([-1 if place == axis % len(shape) else 1 for place in range(len(shape))])


# ----------------------------------------------------------------------------------------------- layers with weights


def _convolution(call: Call, transposed: bool) -> Tensor:
    real = call.real("input")
    stride, dilation = call.pair("stride", real, 1), call.pair("dilation", real, 1)
    padding = call.get("padding", 0)
    if isinstance(padding, str):
        sides = _named_padding(call, padding, real, dilation)
    else:
        rows, columns = call.pair("padding", real, 0)
        sides = (rows, columns, rows, columns)
    about: dict[str, Any] = {
        "stride": stride,
        "padding": sides,
        "dilation": dilation,
        "groups": int(call.get("groups", 1)),
    }
    weight, bias = call.get("weight"), call.constant("bias")
    if transposed:
        more = call.pair("output_padding", real, 0)
        return operations.transposed_convolution(call.graph, real, weight, bias, more=more, name=call.name, **about)
    return operations.convolution(call.graph, real, weight, bias, name=call.name, **about)


def _named_padding(call: Call, padding: str, real: Real, dilation: tuple[int, int]) -> Sides:
    if padding == "valid":
        return NO_BORDER
    weight = call.constant("weight")
    if padding != "same" or weight is None:
        raise Refused(f"a border by {padding}")
    kernel = (1, *weight.array.shape[2:])[-2:]
    (top, bottom), (left, right) = (
        (total // 2, total - total // 2) for total in (dilation[axis] * (kernel[axis] - 1) for axis in (0, 1))
    )
    return (top, left, bottom, right)


def convolution(call: Call) -> Tensor:
    return _convolution(call, bool(call.get("transposed", False)))


def transposed(call: Call) -> Tensor:
    return _convolution(call, True)


def linear(call: Call) -> Tensor:
    return operations.dense(call.graph, call.real("input"), call.get("weight"), call.constant("bias"), call.name)


def addmm(call: Call) -> Tensor:
    if call.get("alpha", 1) != 1 or call.get("beta", 1) != 1:
        raise Refused("factors of a product and a sum")
    weight = call.constant("mat2")
    turned = None if weight is None else weight.moved(lambda array: array.T)
    bias = call.constant("self")
    return operations.dense(call.graph, call.real("mat1"), turned, bias, call.name)


def matmul(call: Call) -> Tensor:
    a, b = list(call.arguments.values())[:2]
    if isinstance(a, Constant):
        raise Refused("a constant times a tensor")
    if isinstance(b, Real):
        return operations.matrix_product(call.graph, a, b, call.name)
    return operations.dense(call.graph, a, b.moved(lambda array: array.T), None, call.name)


# -------------------------------------------------------------------------------------------------- element by element


def _arithmetic(kind: str) -> Convert:
    def convert(call: Call) -> Tensor:
        a, b = (_tensor(call.get(name)) for name in ("self", "other"))
        if kind in ("add", "subtract") and call.get("alpha", 1) != 1:
            by = Constant(array=np.array(call.get("alpha"), np.float32))
            b = operations.arithmetic(call.graph, "multiply", b, by, call.name)
        return operations.arithmetic(call.graph, kind, a, b, call.name)

    return convert


def _tensor(value: Any) -> Tensor:
    return value if isinstance(value, Real | Constant) else Constant(array=np.array(value, np.float32))


def function(call: Call) -> Tensor:
    """PyTorch's operator on the numbers of a table."""
    import torch

    first, *others = list(call.arguments)
    given = {name: call.arguments[name] for name in others}
    if any(isinstance(value, Real | Constant) for value in given.values()):
        raise Refused("parameters that are tensors")

    def of(x: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return np.asarray(_run(call.target, {first: torch.from_numpy(np.array(x)), **given}).numpy(), np.float32)

    return operations.elementwise(call.graph, call.real(), of, call.name)


def _run(target: Any, arguments: dict[str, Any]) -> Any:
    """An operator, with arguments by the names of its schema."""
    keyword = {argument.name for argument in target._schema.arguments if argument.kwarg_only}
    positional = [
        arguments[argument.name]
        for argument in target._schema.arguments
        if argument.name in arguments and not argument.kwarg_only
    ]
    return target(*positional, **{name: value for name, value in arguments.items() if name in keyword})


def prelu(call: Call) -> Tensor:
    real, slope = call.real("self"), call.array("weight")
    if slope is None:
        raise MalformedError("no slopes")
    by = slope.astype(np.float32).reshape(() if slope.size == 1 else (-1, *[1] * (len(real.shape) - 2)))
    return operations.elementwise(
        call.graph, real, lambda x: np.where(x < 0, x * by, x), call.name, uniform=by.size == 1
    )


def relu(call: Call) -> Tensor:
    return operations.clipped(call.graph, call.real(), 0.0, math.inf, call.name)


def clamp(call: Call) -> Tensor:
    """Also hardtanh and relu6."""
    ends = {"relu6": (0.0, 6.0), "hardtanh": (-1.0, 1.0)}.get(call.kind, (-math.inf, math.inf))
    low, high = (
        float(call.get(names[0], call.get(names[1], end)))
        for names, end in ((("min", "min_val"), ends[0]), (("max", "max_val"), ends[1]))
    )
    return operations.clipped(call.graph, call.real(), low, high, call.name)


def batch_norm(call: Call) -> Sequence[Tensor]:
    if call.get("training", False):
        raise Refused("statistics of the batch")
    mean, variance = call.array("running_mean"), call.array("running_var")
    if mean is None or variance is None:
        raise Refused("statistics of the batch")
    gamma, beta = call.array("weight"), call.array("bias")
    factor = 1 / np.sqrt(variance.astype(np.float64) + float(call.get("eps", 1e-5)))
    factor = factor if gamma is None else factor * gamma
    moved = -mean * factor if beta is None else beta - mean * factor
    return [operations.normalised(call.graph, call.real("input"), factor, moved, call.name)]


def layer_norm(call: Call) -> Sequence[Tensor]:
    if len(call.get("normalized_shape", ())) != 1:
        raise Refused("a normalisation along several axes")
    gamma, beta, epsilon = call.array("weight"), call.array("bias"), float(call.get("eps", 1e-5))
    return [operations.layer_normalised(call.graph, call.real("input"), gamma, beta, epsilon, call.name)]


# -------------------------------------------------------------------------------------------------------------- pools


def _pool(call: Call, real: Real) -> tuple[tuple[int, int], tuple[int, int], Sides, tuple[int, int]]:
    kernel = call.pair("kernel_size", real, None)
    stride = call.pair("stride", real, call.get("kernel_size")) if call.get("stride") else kernel
    dilation, (rows, columns) = call.pair("dilation", real, 1), call.pair("padding", real, 0)
    sides = [rows, columns, rows, columns]
    operations.check_window(*kernel, *stride, *dilation)
    if call.get("ceil_mode", False):
        _, size = operations.planes(real.shape)
        for axis in (0, 1):
            left = size[axis] + 2 * sides[axis] - dilation[axis] * (kernel[axis] - 1) - 1
            outputs = -(-left // stride[axis]) + 1
            if (outputs - 1) * stride[axis] >= size[axis] + sides[axis]:
                outputs -= 1
            sides[axis + 2] += max(0, (outputs - 1) * stride[axis] - left)
    return kernel, stride, (sides[0], sides[1], sides[2], sides[3]), dilation


def max_pool(call: Call) -> Sequence[Tensor]:
    real = call.real()
    return [operations.max_pool(call.graph, real, *_pool(call, real), call.name)]


def average_pool(call: Call) -> Tensor:
    real = call.real()
    kernel, stride, sides, _ = _pool(call, real)
    include = bool(call.arguments.get("count_include_pad", True))
    if call.get("divisor_override") is not None or (include and any(sides) and call.get("ceil_mode", False)):
        raise Refused("an average by another number than that of its window")
    return operations.average_pool(call.graph, real, kernel, stride, sides, include, call.name)


def adaptive_average_pool(call: Call) -> Tensor:
    real = call.real()
    _, size = operations.planes(real.shape)
    wanted = call.pair("output_size", real, None)
    if any(length % count for length, count in zip(size, wanted, strict=True)):
        raise Refused("windows of several sizes")
    if wanted == (1, 1):
        axes = list(range(2, len(real.shape)))
        return operations.mean(call.graph, real, axes, True, call.name)
    kernel = (size[0] // wanted[0], size[1] // wanted[1])
    return operations.average_pool(call.graph, real, kernel, kernel, NO_BORDER, False, call.name)


def mean(call: Call) -> Tensor:
    real = call.real()
    axes = call.axes("dim", len(real.shape))
    total = call.kind == "sum"
    return operations.mean(call.graph, real, axes, bool(call.get("keepdim", False)), call.name, total=total)


def largest(call: Call) -> Tensor:
    real = call.real()
    axes = call.axes("dim", len(real.shape))
    return operations.largest_along(call.graph, real, axes, bool(call.get("keepdim", False)), call.name)


def softmax(call: Call) -> Tensor:
    real = call.real()
    axis = call.axis(int(call.get("dim", -1)), len(real.shape))
    logarithm = "log" in call.kind
    return operations.softmax(call.graph, real, axis, call.name, logarithm=logarithm)


# -------------------------------------------------------------------------------------------------------------- moves


def move(call: Call) -> Sequence[Tensor]:
    """PyTorch's operator on the places of elements; several results of what splits."""
    first, *others = list(call.arguments)
    value = call.arguments[first]
    given = {name: call.arguments[name] for name in others}
    if any(isinstance(one, Real | Constant) for one in given.values()):
        raise Refused("parameters that are tensors")
    if isinstance(value, Constant):
        return [
            value.moved(lambda array, n=number: _moved(call, array, given)[n])
            for number in range(_count(call, value.array, given))
        ]
    _check_result(call, value)
    count = _count(call, np.zeros(value.shape, np.int32), given)
    return [
        operations.moved(call.graph, value, lambda places, n=number: _moved(call, places, given)[n])  # type: ignore[misc]
        for number in range(count)
    ]


def _check_result(call: Call, real: Real) -> None:
    """Raises MalformedError before more elements are made than a device has room for."""
    for name in ("size", "repeats", "dims", "output_size"):
        given = call.get(name)
        if isinstance(given, (list, tuple)) and all(isinstance(length, int) for length in given):
            lengths = [max(1, length) for length in given]
            check_elements(*(lengths if name != "repeats" else [math.prod(real.shape), *lengths]))
    for name in ("scale_factors", "pad"):
        for number in call.get(name, ()) or ():
            check_elements(*real.shape, math.ceil(abs(number)))


def _count(call: Call, array: np.ndarray, given: dict[str, Any]) -> int:
    return len(_moved(call, array, given))


def _moved(call: Call, array: np.ndarray, given: dict[str, Any]) -> list[np.ndarray]:
    """As float64, in which places are exact and which every operator takes."""
    import torch

    first = next(iter(call.arguments))
    if "pad" in call.kind and not call.get("value"):
        given = {**given, "value": float(OUTSIDE)}
    wide = torch.from_numpy(np.ascontiguousarray(array, np.float64))
    found = _run(call.target, {first: wide, **given})
    parts = list(found) if isinstance(found, (list, tuple)) else [found]
    return [part.contiguous().numpy().astype(array.dtype) for part in parts]


def pad(call: Call) -> Sequence[Tensor]:
    if call.get("value"):
        raise Refused("a border of another number than 0")
    if call.get("mode", "constant") != "constant":
        call.arguments.pop("value", None)
    return move(call)


def concatenate(call: Call) -> Tensor:
    tensors = list(call.get("tensors", ()))
    reals = [tensor for tensor in tensors if isinstance(tensor, Real)]
    if not reals:
        raise Refused("constants that are joined")
    axis = call.axis(int(call.get("dim", 0)), len(reals[0].shape))
    parts = operations.with_zeros(call.graph, tensors, axis)
    return operations.concatenated(call.graph, parts, axis, call.name)


def interpolate(call: Call) -> Tensor:
    """Bilinear or bicubic: the matrices of rows and columns are read off PyTorch."""
    import torch

    real = call.real()
    _, size = operations.planes(real.shape)
    _check_result(call, real)
    first, *others = list(call.arguments)
    given = {name: call.arguments[name] for name in others}
    one = len(real.shape) == 3
    tables = {}
    for axis in (1,) if one else (0, 1):
        length = size[axis]
        eye = torch.eye(length)
        whole = eye[None] if one else (eye[None, :, :, None] if axis == 0 else eye[None, :, None, :])
        if not one:
            whole = whole.expand(1, length, size[0], size[1]).contiguous()
        check_elements(length, *size)
        found = _run(call.target, {first: whole, **given})
        matrix = (found[0] if one else (found[0, :, :, 0] if axis == 0 else found[0, :, 0, :])).T.numpy()
        most = max(1, int((matrix != 0).sum(1).max(initial=0)))
        places = np.argsort(matrix == 0, 1, kind="stable")[:, :most].astype(np.int32)
        tables[len(real.shape) - 2 + axis] = places, np.take_along_axis(matrix, places, 1).astype(np.float64)
    return operations.resized(call.graph, real, tables, call.name)


def identity(call: Call) -> Tensor:
    dtype = call.get("dtype")
    if dtype is not None and str(dtype) not in ("torch.float32", "torch.float64"):
        raise Refused(f"numbers made {str(dtype).removeprefix('torch.')}")
    value: Tensor = next(iter(call.arguments.values()))
    return value


def evaluated(call: Call) -> list[Constant]:
    """PyTorch's operator on constants."""
    import torch

    def plain(value: Any) -> Any:
        if isinstance(value, Constant):
            return torch.from_numpy(np.array(value.array))
        return [plain(one) for one in value] if isinstance(value, list) else value

    with torch.no_grad():
        found = _run(call.target, {name: plain(value) for name, value in call.arguments.items()})
    parts = found if isinstance(found, (list, tuple)) else [found]
    for part in parts:
        check_elements(*part.shape)
    return [Constant(array=part.contiguous().numpy()) for part in parts]


# names of ATen's operators without their overloads
FUNCTIONS = (
    *("sigmoid", "tanh", "hardswish", "hardsigmoid", "silu", "gelu", "leaky_relu", "elu", "selu", "celu", "mish"),
    *("softplus", "softsign", "exp", "log", "sqrt", "rsqrt", "reciprocal", "abs", "neg", "erf", "sin", "cos", "pow"),
    *("floor", "ceil", "round", "trunc", "sign", "square", "threshold", "hardshrink", "softshrink", "log_sigmoid"),
)
MOVES = (
    *("view", "_unsafe_view", "reshape", "flatten", "unflatten", "permute", "transpose", "t", "squeeze", "unsqueeze"),
    *("slice", "select", "narrow", "split", "split_with_sizes", "chunk", "unbind", "expand", "repeat", "flip", "roll"),
    *("pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "upsample_nearest1d", "upsample_nearest2d"),
    *("numpy_T", "swapaxes", "movedim", "repeat_interleave"),
)
IDENTITIES = (
    *("dropout", "feature_dropout", "clone", "contiguous", "detach", "alias", "lift_fresh_copy", "_to_copy", "to"),
)

CONVERTERS: dict[str, Convert] = {
    "quantize_per_tensor": quantize,
    "dequantize_per_tensor": dequantize,
    "quantize_per_channel": quantize,
    "dequantize_per_channel": dequantize,
    **dict.fromkeys(("conv1d", "conv2d", "convolution"), convolution),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d"), transposed),
    "linear": linear,
    "addmm": addmm,
    **dict.fromkeys(("mm", "matmul", "bmm"), matmul),
    "add": _arithmetic("add"),
    "sub": _arithmetic("subtract"),
    "mul": _arithmetic("multiply"),
    "div": _arithmetic("divide"),
    **dict.fromkeys(FUNCTIONS, function),
    "prelu": prelu,
    "relu": relu,
    **dict.fromkeys(("clamp", "clamp_min", "clamp_max", "hardtanh", "relu6"), clamp),
    **dict.fromkeys(("batch_norm", "_native_batch_norm_legit_no_training"), batch_norm),
    **dict.fromkeys(("layer_norm", "native_layer_norm"), layer_norm),
    **dict.fromkeys(("max_pool1d", "max_pool2d", "max_pool2d_with_indices"), max_pool),
    **dict.fromkeys(("avg_pool1d", "avg_pool2d"), average_pool),
    **dict.fromkeys(("adaptive_avg_pool1d", "adaptive_avg_pool2d", "_adaptive_avg_pool2d"), adaptive_average_pool),
    **dict.fromkeys(("mean", "sum"), mean),
    "amax": largest,
    **dict.fromkeys(("softmax", "_softmax", "log_softmax", "_log_softmax"), softmax),
    **dict.fromkeys(MOVES, move),
    **dict.fromkeys(("pad", "constant_pad_nd"), pad),
    "cat": concatenate,
    **dict.fromkeys(("upsample_linear1d", "upsample_bilinear2d", "upsample_bicubic2d"), interpolate),
    **dict.fromkeys(IDENTITIES, identity),
}
"""What each operator becomes, by its name without the overload. An operator without a line is refused."""
CHECKS = (
    "_assert_tensor_metadata",
    "_assert_scalar",
    "_assert_async",
    "sym_constrain_range",
    "sym_constrain_range_for_size",
)
"""Operators that compute nothing."""


class Inputs:
    """Places for the ports of a network's inputs."""

    def __init__(self) -> None:
        self.ports: list[list[Port]] = []

    def real(self, name: str, shape: tuple[int, ...]) -> Real:
        self.ports.append([])
        return Real(shape=shape, core=Given(name=name, shape=shape, ports=self.ports[-1]))
