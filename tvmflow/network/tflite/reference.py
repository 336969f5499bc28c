"""What a float `.tflite` file computes, in PyTorch and in the file's own order: the original that builds are held to.

It shares with the reader how the parameters of operators are read, and nothing of what is computed. The tests hold it
to what LiteRT's interpreter answers.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from tvmflow.integer.tflite.model import ABSENT, FileGraph, FileOperator
from tvmflow.network.interface import to_numpy, to_torch
from tvmflow.network.tflite.graph import Operation, Pair, Refused, real_constant
from tvmflow.system import limits
from tvmflow.system.untrusted import MalformedError

Tensor = torch.Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Step(Operation):
    """An operator and what it reads, None where that is left out."""

    tensors: tuple[Tensor | None, ...]

    def tensor(self, place: int = 0) -> Tensor:
        found = self.tensors[place] if self.given(place) else None
        if found is None:
            raise MalformedError(f"{self.kind} lacks a tensor that it needs")
        return found

    def bias(self, place: int) -> Tensor | None:
        return self.tensor(place).reshape(-1) if self.given(place) else None


Compute = Callable[[Step], "Tensor | Sequence[Tensor]"]


class Reference:
    """A file's network on arrays; `known` are constants, and what is computed of them alone, by tensors' numbers."""

    def __init__(self, graph: FileGraph) -> None:
        self.graph = graph
        constants = {n: real_constant(tensor) for n, tensor in enumerate(graph.tensors) if tensor.data is not None}
        self.known = {number: to_torch(array) for number, array in constants.items()}
        left = max(MOST_MADE, TIMES * sum(array.size for array in constants.values()))
        for operator in graph.operators:
            if operator.kind in FOLDED and all(number in self.known for number in operator.inputs):
                left -= _made_of(operator, [self.known[number] for number in operator.inputs])
                if left < 0:  # a small file would make much of few constants
                    break
                self.known.update(self.step(operator, self.known))
        self.last = {
            number: place
            for place, operator in enumerate(graph.operators)
            for number in (*operator.inputs, *operator.outputs)
        }

    def __call__(self, *arrays: np.ndarray) -> tuple[np.ndarray, ...]:
        values = dict(self.known)
        values.update(zip(self.graph.inputs, map(to_torch, arrays), strict=True))
        with torch.no_grad():
            for place, operator in enumerate(self.graph.operators):
                if any(number not in self.known for number in operator.outputs):
                    values.update(self.step(operator, values))
                for number in (*operator.inputs, *operator.outputs):  # nobody reads it any more
                    if self.last[number] == place and number not in self.graph.outputs:
                        values.pop(number, None)
        return tuple(to_numpy(values[number]) for number in self.graph.outputs)

    def step(self, operator: FileOperator, values: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """What an operator gives, by the numbers of tensors. Raises MalformedError, Refused and what PyTorch raises."""
        if not operator.outputs or ABSENT in operator.outputs:
            raise MalformedError(f"{operator.kind} gives nothing")
        tensors = tuple(None if number == ABSENT else values[number] for number in operator.inputs)
        step = Step(
            operator=operator,
            shapes=tuple(None if tensor is None else tuple(tensor.shape) for tensor in tensors),
            constants=tuple(
                None if number not in self.known else self.known[number].numpy() for number in operator.inputs
            ),
            result=self.graph.tensors[operator.outputs[0]],
            tensors=tensors,
        )
        made = COMPUTED[operator.kind](step)
        results = [made] if isinstance(made, Tensor) else list(made)
        for result in results:
            limits.check_tensor(result.shape, f"The result of {operator.kind}")
        return dict(zip(operator.outputs, results, strict=True))


def _made_of(operator: FileOperator, tensors: Sequence[Tensor]) -> int:
    """How many values an operator of FOLDED makes, at most. Raises what PyTorch raises where shapes don't fit."""
    if operator.kind in ("ADD", "DIV", "MUL", "SUB"):
        return math.prod(torch.broadcast_shapes(*(tensor.shape for tensor in tensors)))
    return sum(tensor.numel() for tensor in tensors)


# ------------------------------------------------------------------------------------------------------------- weights


def _fused(step: Step, result: Tensor) -> Tensor:
    return result if step.fused == "NONE" else ACTIVATIONS[step.fused](result)


def _border(step: Step, size: Sequence[int], kernel: Pair, stride: Pair, dilation: Pair = (1, 1)) -> list[int]:
    """As PyTorch's pad takes it: left, right, above, below."""
    if not step.same:
        return [0, 0, 0, 0]
    pads: list[int] = []
    for length, taps, every, apart in reversed(list(zip(size, kernel, stride, dilation, strict=True))):
        outputs = math.ceil(length / every)
        missing = max(0, every * (outputs - 1) + apart * (taps - 1) + 1 - length)
        pads += [missing // 2, missing - missing // 2]
    return pads


def _first(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)


def _last(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1)


def conv_2d(step: Step) -> Tensor:
    x, weights = _first(step.tensor()), _first(step.tensor(1))
    return _convolved(step, x, weights, x.shape[1] // weights.shape[1])


def depthwise_conv_2d(step: Step) -> Tensor:
    x = _first(step.tensor())
    return _convolved(step, x, step.tensor(1).permute(3, 0, 1, 2).contiguous(), x.shape[1])


def _convolved(step: Step, x: Tensor, weights: Tensor, groups: int) -> Tensor:
    stride, dilation = step.pair("stride_h", "stride_w"), step.pair("dilation_h", "dilation_w")
    kernel = (weights.shape[2], weights.shape[3])
    x = functional.pad(x, _border(step, x.shape[2:], kernel, stride, dilation))
    made = functional.conv2d(x, weights, step.bias(2), stride, 0, dilation, groups)
    return _fused(step, _last(made))


def transpose_conv(step: Step) -> Tensor:
    """Each input adds its weights to the outputs, of which those of `output shape` are kept."""
    weights, (_, rows, columns, _) = step.tensor(1).permute(3, 0, 1, 2), step.integers(0, "output shape")
    stride = step.pair("stride_h", "stride_w")
    kernel = (weights.shape[2], weights.shape[3])
    full = functional.conv_transpose2d(_first(step.tensor(2)), weights, None, stride)
    left, _, top, _ = _border(step, (rows, columns), kernel, stride)
    cut = functional.pad(full, [-left, columns + left - full.shape[3], -top, rows + top - full.shape[2]])
    bias = step.bias(3)
    return _fused(step, _last(cut if bias is None else cut + bias.reshape(1, -1, 1, 1)))


def fully_connected(step: Step) -> Tensor:
    x, weights = step.tensor(), step.tensor(1)
    rows = x if step.option("keep_num_dims") else x.reshape(-1, weights.shape[1])
    return _fused(step, functional.linear(rows, weights, step.bias(2)))


def batch_matmul(step: Step) -> Tensor:
    x, y = step.tensor(), step.tensor(1)
    return (x.mT if step.option("adj_x") else x) @ (y.mT if step.option("adj_y") else y)


# ------------------------------------------------------------------------------------------------ element by element


def unary(compute: Callable[[Tensor], Tensor]) -> Compute:
    return lambda step: compute(step.tensor())


def binary(compute: Callable[[Tensor, Tensor], Tensor]) -> Compute:
    return lambda step: _fused(step, compute(step.tensor(), step.tensor(1)))


def add_n(step: Step) -> Tensor:
    return functools.reduce(torch.add, [step.tensor(place) for place in range(len(step.tensors))])


def prelu(step: Step) -> Tensor:
    x = step.tensor()
    return torch.where(x > 0, x, x * step.tensor(1))


def cast(step: Step) -> Tensor:
    """To integers towards 0."""
    return step.tensor().to(DTYPES[step.result.dtype])


DTYPES = {"float32": torch.float32, "int32": torch.int32, "int64": torch.int64, "bool": torch.bool}

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "RELU": torch.relu,
    "RELU6": lambda x: x.clamp(0, 6),
    "RELU_N1_TO_1": lambda x: x.clamp(-1, 1),
    "RELU_0_TO_1": lambda x: x.clamp(0, 1),
    "TANH": torch.tanh,
}

# --------------------------------------------------------------------------------------------------- pools, reductions


def average_pool(step: Step) -> Tensor:
    """The mean of what lies on the map."""
    x = _first(step.tensor())
    sums, counts = (_summed(step, tensor) for tensor in (x, torch.ones_like(x[:1, :1])))
    return _fused(step, _last(sums / counts))


def _summed(step: Step, x: Tensor) -> Tensor:
    kernel, stride = step.pair("filter_height", "filter_width"), step.pair("stride_h", "stride_w")
    x = functional.pad(x, _border(step, x.shape[2:], kernel, stride))
    return functional.avg_pool2d(x, kernel, stride, divisor_override=1)


def max_pool(step: Step) -> Tensor:
    x, kernel = _first(step.tensor()), step.pair("filter_height", "filter_width")
    stride = step.pair("stride_h", "stride_w")
    x = functional.pad(x, _border(step, x.shape[2:], kernel, stride), value=-math.inf)
    return _fused(step, _last(functional.max_pool2d(x, kernel, stride)))


def reduced(compute: Callable[[Tensor, list[int], bool], Tensor]) -> Compute:
    def found(step: Step) -> Tensor:
        x = step.tensor()
        axes = step.axes(1, x.dim())
        return compute(x, axes, bool(step.option("keep_dims"))) if axes else x

    return found


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in reversed(axes):
        x = x.prod(axis, keepdim=keep)
    return x


def l2_normalization(step: Step) -> Tensor:
    x = step.tensor()
    length = (x * x).sum(-1, keepdim=True).sqrt()
    return _fused(step, x / length.clamp(min=1e-6))


def arg(compute: Callable[..., Tensor]) -> Compute:
    def found(step: Step) -> Tensor:
        return compute(step.tensor(), step.axis(step.tensor().dim(), 1)).to(DTYPES[step.result.dtype])

    return found


def cumsum(step: Step) -> Tensor:
    x = step.tensor()
    axis = step.axis(x.dim(), 1)
    x = x.flip(axis) if step.option("reverse") else x
    found = x.cumsum(axis)
    found = found - x if step.option("exclusive") else found
    return found.flip(axis) if step.option("reverse") else found


# --------------------------------------------------------------------------------------------------------------- moves


def pad(step: Step) -> Tensor:
    widths = step.widths(step.tensor().dim())
    value = step.constant(2, "value").reshape(()).item() if step.given(2) else 0
    limits.check_tensor(
        [sum(pair) + length for pair, length in zip(widths, step.shape(), strict=True)], f"The result of {step.kind}"
    )
    return functional.pad(step.tensor(), [width for pair in reversed(widths) for width in pair], value=value)


def mirror_pad(step: Step) -> Tensor:
    x, skipped = step.tensor(), 1 - step.option("mode")
    for axis, (before, after) in enumerate(step.widths(x.dim())):
        if max(before, after) > x.shape[axis] - skipped:
            raise MalformedError("MIRROR_PAD has a border that is wider than its tensor")
        turned = x.flip(axis)
        left = turned.narrow(axis, x.shape[axis] - skipped - before, before)
        x = torch.cat([left, x, turned.narrow(axis, skipped, after)], axis)
    return x


def sliced(step: Step) -> Tensor:
    x = step.tensor()
    taken, shape = step.slices(tuple(x.shape))
    for axis, places in enumerate(taken):
        x = x.index_select(axis, torch.tensor(places, dtype=torch.int64))
    return x.reshape(shape)


def split(step: Step) -> Sequence[Tensor]:
    v = step.kind == "SPLIT_V"
    x = step.tensor(0 if v else 1)
    axis = step.axis(x.dim(), 2 if v else 0)
    return torch.split(x, step.parts(x.shape[axis], len(step.operator.outputs)), axis)


def concatenated(step: Step) -> Tensor:
    tensors = [step.tensor(place) for place in range(len(step.tensors))]
    return _fused(step, torch.cat(tensors, step.axis(tensors[0].dim())))


def packed(step: Step) -> Tensor:
    tensors = [step.tensor(place) for place in range(len(step.tensors))]
    return torch.stack(tensors, step.axis(tensors[0].dim(), more=1))


def unpacked(step: Step) -> Sequence[Tensor]:
    return step.tensor().unbind(step.axis(step.tensor().dim()))


def depth_to_space(step: Step) -> Tensor:
    """A pixel's channels are those of a block's pixels, row by row."""
    x, block = step.tensor(), step.positive("block_size")
    n, rows, columns, channels = x.shape
    apart = x.reshape(n, rows, columns, block, block, channels // block**2)
    return apart.permute(0, 1, 3, 2, 4, 5).reshape(n, rows * block, columns * block, -1)


def space_to_depth(step: Step) -> Tensor:
    x, block = step.tensor(), step.positive("block_size")
    n, rows, columns, channels = x.shape
    apart = x.reshape(n, rows // block, block, columns // block, block, channels)
    return apart.permute(0, 1, 3, 2, 4, 5).reshape(n, rows // block, columns // block, -1)


def space_to_batch(step: Step) -> Tensor:
    """A phase of the pixels is an image of the batch."""
    x = step.tensor()
    blocks, widths = step.blocks(x.dim())
    pads = [(0, 0), *widths, *[(0, 0)] * (x.dim() - 1 - len(blocks))]
    padded = [sum(pair) + length for pair, length in zip(pads, x.shape, strict=True)]
    limits.check_tensor(padded, f"The result of {step.kind}")
    x = functional.pad(x, [width for pair in reversed(pads) for width in pair])
    images = [x]
    for axis, block in enumerate(blocks):
        places = [torch.arange(phase, x.shape[1 + axis], block) for phase in range(block)]
        images = [image.index_select(1 + axis, place) for image in images for place in places]
    return torch.cat(images)


def batch_to_space(step: Step) -> Tensor:
    x = step.tensor()
    blocks, crops = step.blocks(x.dim())
    images = list(x.split(x.shape[0] // math.prod(blocks)))
    for axis in reversed(range(len(blocks))):
        some = [images[first : first + blocks[axis]] for first in range(0, len(images), blocks[axis])]
        images = [torch.stack(phases, 2 + axis).flatten(1 + axis, 2 + axis) for phases in some]
    (whole,) = images
    for axis, (before, after) in enumerate(crops):
        whole = whole.narrow(1 + axis, before, whole.shape[1 + axis] - before - after)
    return whole


def tiled(step: Step) -> Tensor:
    times = step.integers(1, "multiples")
    limits.check_tensor([n * length for n, length in zip(times, step.shape(), strict=True)], "The result of TILE")
    return step.tensor().repeat(times)


def broadcast(step: Step) -> Tensor:
    shape = step.integers(1, "shape")
    limits.check_tensor(shape, "The result of BROADCAST_TO")
    return step.tensor().broadcast_to(shape).clone()


def shape_of(step: Step) -> Tensor:
    return torch.tensor(step.shape(), dtype=DTYPES[step.result.dtype])


# ------------------------------------------------------------------------------------------------------------ resizing


def _scale(step: Step, length: int, wanted: int) -> Tensor:
    if step.option("align_corners") and wanted > 1:
        return torch.tensor(length - 1, dtype=torch.float32) / (wanted - 1)
    return torch.tensor(length, dtype=torch.float32) / wanted


def resize_bilinear(step: Step) -> Tensor:
    x, half = step.tensor(), 0.5 * step.option("half_pixel_centers")
    for axis, wanted in enumerate(step.size(), 1):
        length = x.shape[axis]
        at = ((torch.arange(wanted) + half) * _scale(step, length, wanted) - half).clamp(0, length - 1)
        low = at.floor().to(torch.int64)
        part = (at - low).reshape([-1 if other == axis else 1 for other in range(4)])
        one, two = x.index_select(axis, low), x.index_select(axis, (low + 1).clamp(max=length - 1))
        x = torch.where(part == 0, one, one * (1 - part) + two * part)
    return x


def resize_nearest(step: Step) -> Tensor:
    x, half = step.tensor(), 0.5 * step.option("half_pixel_centers")
    for axis, wanted in enumerate(step.size(), 1):
        at = (torch.arange(wanted) + half) * _scale(step, x.shape[axis], wanted)
        at = (at + 0.5).floor() if step.option("align_corners") else at.floor()
        x = x.index_select(axis, at.to(torch.int64).clamp(max=x.shape[axis] - 1))
    return x


def as_said(step: Step) -> Tensor:
    return step.tensor().reshape(step.result.shape)


def permuted(step: Step) -> Tensor:
    return step.tensor().permute(step.permutation(step.tensor().dim()))


def selected(step: Step) -> Tensor:
    if step.tensor().dtype != torch.bool:
        raise MalformedError(f"{step.kind} selects by what isn't true or false")
    return torch.where(step.tensor(), step.tensor(1), step.tensor(2))


def _divided(x: Tensor, y: Tensor) -> Tensor:
    if x.dtype != torch.float32:
        raise Refused("DIV of integers")
    return x / y


COMPUTED: dict[str, Compute] = {
    "CONV_2D": conv_2d,
    "DEPTHWISE_CONV_2D": depthwise_conv_2d,
    "TRANSPOSE_CONV": transpose_conv,
    "FULLY_CONNECTED": fully_connected,
    "BATCH_MATMUL": batch_matmul,
    "ADD": binary(torch.add),
    "SUB": binary(torch.sub),
    "MUL": binary(torch.mul),
    "DIV": binary(_divided),
    "POW": binary(torch.pow),
    "MAXIMUM": binary(torch.maximum),
    "MINIMUM": binary(torch.minimum),
    "SQUARED_DIFFERENCE": binary(lambda x, y: (x - y) * (x - y)),
    "ADD_N": add_n,
    "EQUAL": binary(torch.eq),
    "NOT_EQUAL": binary(torch.ne),
    "LESS": binary(torch.lt),
    "LESS_EQUAL": binary(torch.le),
    "GREATER": binary(torch.gt),
    "GREATER_EQUAL": binary(torch.ge),
    "LOGICAL_AND": binary(torch.logical_and),
    "LOGICAL_OR": binary(torch.logical_or),
    "SELECT": selected,
    "SELECT_V2": selected,
    **{name: unary(compute) for name, compute in ACTIVATIONS.items()},
    "ABS": unary(torch.abs),
    "NEG": unary(torch.neg),
    "EXP": unary(torch.exp),
    "LOG": unary(torch.log),
    "SQRT": unary(torch.sqrt),
    "RSQRT": unary(torch.rsqrt),
    "SQUARE": unary(torch.square),
    "SIN": unary(torch.sin),
    "COS": unary(torch.cos),
    "FLOOR": unary(torch.floor),
    "CEIL": unary(torch.ceil),
    "ROUND": unary(torch.round),
    "LOGICAL_NOT": unary(torch.logical_not),
    "LOGISTIC": unary(torch.sigmoid),
    "HARD_SWISH": unary(lambda x: x * (x + 3).clamp(0, 6) / 6),
    "ELU": unary(lambda x: torch.where(x > 0, x, torch.exp(x) - 1)),
    "GELU": lambda step: functional.gelu(step.tensor(), approximate="tanh" if step.option("approximate") else "none"),
    "LEAKY_RELU": lambda step: functional.leaky_relu(step.tensor(), step.number("alpha")),
    "PRELU": prelu,
    "CAST": cast,
    "DEQUANTIZE": Step.tensor,
    "AVERAGE_POOL_2D": average_pool,
    "MAX_POOL_2D": max_pool,
    "MEAN": reduced(torch.mean),
    "SUM": reduced(torch.sum),
    "REDUCE_MAX": reduced(torch.amax),
    "REDUCE_MIN": reduced(torch.amin),
    "REDUCE_PROD": reduced(_product),
    "SOFTMAX": lambda step: torch.softmax(step.tensor() * step.number("beta"), -1),
    "LOG_SOFTMAX": lambda step: torch.log_softmax(step.tensor(), -1),
    "L2_NORMALIZATION": l2_normalization,
    "ARG_MAX": arg(torch.argmax),
    "ARG_MIN": arg(torch.argmin),
    "CUMSUM": cumsum,
    "RESHAPE": as_said,
    "SQUEEZE": as_said,
    "EXPAND_DIMS": as_said,
    "TRANSPOSE": permuted,
    "PAD": pad,
    "PADV2": pad,
    "MIRROR_PAD": mirror_pad,
    "SLICE": sliced,
    "STRIDED_SLICE": sliced,
    "SPLIT": split,
    "SPLIT_V": split,
    "CONCATENATION": concatenated,
    "PACK": packed,
    "UNPACK": unpacked,
    "DEPTH_TO_SPACE": depth_to_space,
    "SPACE_TO_DEPTH": space_to_depth,
    "SPACE_TO_BATCH_ND": space_to_batch,
    "BATCH_TO_SPACE_ND": batch_to_space,
    "TILE": tiled,
    "BROADCAST_TO": broadcast,
    "RESIZE_BILINEAR": resize_bilinear,
    "RESIZE_NEAREST_NEIGHBOR": resize_nearest,
    "SHAPE": shape_of,
}
"""What each operator computes."""

FOLDED = frozenset(
    {
        *("ADD", "CAST", "CONCATENATION", "DEQUANTIZE", "DIV", "EXPAND_DIMS", "MUL", "PACK", "RESHAPE", "SLICE"),
        *("SHAPE", "SQUEEZE", "STRIDED_SLICE", "SUB", "TRANSPOSE", "UNPACK"),
    }
)
"""Operators that are computed at once where all that they read is known: shapes, and weights in float16."""

MOST_MADE, TIMES = 1 << 20, 4
"""How many values are computed at once: so many, or so many times those of the file's constants."""
