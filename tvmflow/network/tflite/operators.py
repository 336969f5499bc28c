"""What each operator of a float `.tflite` file becomes in Relax. An operator without a line is refused."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import numpy as np
from tvm import relax
from tvm.relax import op

from tvmflow.integer.tflite.resizing import nearest
from tvmflow.integer.tflite.weighted import borders
from tvmflow.network.onnx_nodes.node import constant, padded, permute, piece, reshape, shape_of
from tvmflow.network.resampling import Taps, resample
from tvmflow.network.tflite.graph import Pair, Refused, Shape
from tvmflow.network.tflite.walk import FIRST, LAST, Call, Make, Value
from tvmflow.system import limits
from tvmflow.system.untrusted import MalformedError

# ------------------------------------------------------------------------------------------------------------- weights


def _activated(call: Call, result: relax.Expr) -> relax.Expr:
    if call.fused == "NONE":
        return result
    return ACTIVATIONS[call.fused](call.bind(result))


def _biased(call: Call, result: relax.Expr, place: int, channels: int, shape: Sequence[int]) -> relax.Expr:
    """With a bias for each channel, if there is one, and the fused activation."""
    if call.given(place):
        if math.prod(call.shape(place)) != channels:
            raise MalformedError(f"{call.kind} has {math.prod(call.shape(place))} biases for {channels} outputs")
        result = op.add(call.bind(result), call.bind(reshape(call.plain(place), shape)))
    return _activated(call, result)


def _window(call: Call, size: Pair, kernel: Pair, stride: Pair, dilation: Pair = (1, 1)) -> list[int]:
    """The border above, to the left, below and to the right."""
    if not call.same:
        reach = [(taps - 1) * step + 1 for taps, step in zip(kernel, dilation, strict=True)]
        if any(length < taps for length, taps in zip(size, reach, strict=True)):
            raise MalformedError(f"{call.kind} has a window that is larger than its map")
        return [0, 0, 0, 0]
    (top, bottom), (left, right) = (borders(*of) for of in zip(size, kernel, stride, dilation, strict=True))
    bordered = (call.map_shape()[0], size[0] + top + bottom, size[1] + left + right, call.map_shape()[3])
    limits.check_tensor(bordered, f"The map of {call.kind} with its border")
    return [top, left, bottom, right]


def _convolve(call: Call, weights: np.ndarray, groups: int) -> Value:
    """`weights` are O×(I/groups)×KH×KW."""
    _, rows, columns, _ = call.map_shape()
    kernel, stride = (weights.shape[2], weights.shape[3]), call.pair("stride_h", "stride_w")
    dilation = call.pair("dilation_h", "dilation_w")
    padding = _window(call, (rows, columns), kernel, stride, dilation)
    data, border = call.channels_first(), call.value().border
    if border is not None:
        data, more = border
        padding = [own + other for own, other in zip(padding, more, strict=True)]
    result = op.nn.conv2d(
        data,
        constant(np.ascontiguousarray(weights)),
        strides=list(stride),
        padding=padding,
        dilation=list(dilation),
        groups=groups,
        data_layout="NCHW",
        kernel_layout="OIHW",
    )
    count = weights.shape[0]
    return call.as_map(_biased(call, result, 2, count, (1, count, 1, 1)))


def _weights(call: Call, place: int) -> np.ndarray:
    found = call.constant(place, "weights")
    if found.ndim != 4 or not found.size or found.dtype != np.float32:
        raise MalformedError(f"{call.kind} has weights of {found.ndim} dimensions and {found.dtype}")
    return found


def conv_2d(call: Call) -> Value:
    weights, channels = _weights(call, 1), call.map_shape()[3]
    outputs, inputs = weights.shape[0], weights.shape[3]
    if channels % inputs or outputs % (channels // inputs):
        raise MalformedError(f"CONV_2D has weights for {inputs} channels and reads {channels}")
    return _convolve(call, weights.transpose(0, 3, 1, 2), channels // inputs)


def depthwise_conv_2d(call: Call) -> Value:
    weights, channels = _weights(call, 1), call.map_shape()[3]
    if weights.shape[0] != 1 or weights.shape[3] % channels:
        raise MalformedError(f"DEPTHWISE_CONV_2D has weights for {weights.shape[3]} channels and reads {channels}")
    return _convolve(call, weights.transpose(3, 0, 1, 2), channels)


def transpose_conv(call: Call) -> Value:
    """Cut out of the full result; where it ends before the shape that is wanted, zeros follow."""
    weights, (_, *size, channels) = _weights(call, 1), call.map_shape(2)
    wanted, stride = call.integers(0, "output shape"), call.pair("stride_h", "stride_w")
    outputs, *kernel, inputs = weights.shape
    if inputs != channels or len(wanted) != 4 or wanted[3] != outputs or min(wanted) < 1:
        raise MalformedError("TRANSPOSE_CONV has weights or an output shape that don't fit")
    full = [(length - 1) * step + taps for length, step, taps in zip(size, stride, kernel, strict=True)]
    limits.check_tensor((call.map_shape(2)[0], *full, outputs), "What TRANSPOSE_CONV makes before it is cut")
    before = [0, 0]
    if call.same:
        before = [borders(wanted[1 + axis], kernel[axis], stride[axis])[0] for axis in (0, 1)]
    behind = [full[axis] - before[axis] - wanted[1 + axis] for axis in (0, 1)]
    result = op.nn.conv2d_transpose(
        call.channels_first(2),
        constant(np.ascontiguousarray(weights.transpose(3, 0, 1, 2))),
        strides=list(stride),
        padding=[*before, *(max(0, less) for less in behind)],
        data_layout="NCHW",
        kernel_layout="IOHW",
    )
    result = padded(call.bind(result), [0] * 4, [0, 0, *(max(0, -less) for less in behind)])
    return call.as_map(_biased(call, result, 3, outputs, (1, outputs, 1, 1)))


def fully_connected(call: Call) -> Value:
    shape, weights = call.shape(), call.shape(1)
    if call.option("weights_format") or len(weights) != 2 or not math.prod(weights):
        raise MalformedError(f"FULLY_CONNECTED has weights of {len(weights)} dimensions, or in an order of their own")
    outputs, inputs = weights
    if not math.prod(shape) or math.prod(shape) % inputs:
        raise MalformedError(f"FULLY_CONNECTED has weights for {inputs} values and reads {math.prod(shape)}")
    rows: Shape = (math.prod(shape) // inputs,)
    if call.option("keep_num_dims"):
        if shape[-1] != inputs:
            raise MalformedError(f"FULLY_CONNECTED has weights for {inputs} values and reads {shape[-1]}")
        rows = shape[:-1]
    turned = call.bind(permute(call.plain(1), [1, 0]))
    result = op.matmul(call.bind(reshape(call.plain(), (math.prod(rows), inputs))), turned)
    result = _biased(call, result, 2, outputs, (1, outputs))
    return call.as_file(reshape(call.bind(result), (*rows, outputs)))


def batch_matmul(call: Call) -> Value:
    operands = []
    for place, name in enumerate(("adj_x", "adj_y")):
        rank = len(call.shape(place))
        if rank < 2:
            raise MalformedError("BATCH_MATMUL reads what is no matrix")
        order = [*range(rank - 2), rank - 1, rank - 2]
        operands.append(call.bind(permute(call.plain(place), order) if call.option(name) else call.plain(place)))
    return call.as_file(op.matmul(*operands))


# ------------------------------------------------------------------------------------------------ element by element


def unary(make: Callable[[relax.Expr], relax.Expr]) -> Make:
    def convert(call: Call) -> Value:
        (x,), value, _ = call.in_order([0])
        return value(make(x))

    return convert


def binary(make: Callable[[relax.Expr, relax.Expr], relax.Expr]) -> Make:
    def convert(call: Call) -> Value:
        (x, y), value, _ = call.in_order([0, 1])
        return value(_activated(call, make(x, y)))

    return convert


def _one(value: float) -> relax.Expr:
    return constant(value, "float32")


def _divided(x: relax.Expr, y: relax.Expr) -> relax.Expr:
    if str(x.ty.dtype) != "float32":
        raise Refused("DIV of integers")
    return op.divide(x, y)


def _power(x: relax.Expr, y: relax.Expr) -> relax.Expr:
    if str(x.ty.dtype) != "float32":
        raise Refused("POW of integers")
    return op.power(x, y)


def _elu(x: relax.Expr) -> relax.Expr:
    return op.where(op.greater(x, _one(0)), x, op.subtract(op.exp(x), _one(1)))


def _hard_swish(x: relax.Expr) -> relax.Expr:
    return op.divide(op.multiply(x, op.clip(op.add(x, _one(3)), 0, 6)), _one(6))


def gelu(call: Call) -> Value:
    (x,), value, _ = call.in_order([0])
    return value(op.nn.gelu_tanh(x) if call.option("approximate") else op.nn.gelu(x))


def leaky_relu(call: Call) -> Value:
    (x,), value, _ = call.in_order([0])
    return value(op.nn.leakyrelu(x, call.number("alpha")))


def prelu(call: Call) -> Value:
    (x, slope), value, _ = call.in_order([0, 1])
    return value(op.where(op.greater(x, _one(0)), x, op.multiply(slope, x)))


def squared_difference(call: Call) -> Value:
    (x, y), value, _ = call.in_order([0, 1])
    difference = call.bind(op.subtract(x, y))
    return value(op.multiply(difference, difference))


def add_n(call: Call) -> Value:
    operands, value, _ = call.in_order(range(len(call.values)))
    if not operands:
        raise MalformedError("ADD_N of nothing")
    if len(operands) == 1:
        return call.value()
    return value(functools.reduce(lambda x, y: call.bind(op.add(x, y)), operands))


def select(call: Call) -> Value:
    if call.kind == "SELECT" and call.shape(0) != call.shape(1):
        raise Refused("SELECT whose condition isn't of the shape of what is selected")
    (condition, x, y), value, _ = call.in_order([0, 1, 2])
    return value(op.where(condition, x, y))


def cast(call: Call) -> Value:
    (x,), value, _ = call.in_order([0])
    source, target = str(x.ty.dtype), call.result.dtype
    if source == target:
        return call.value()
    if target == "bool":
        return value(op.not_equal(x, constant(0, source)))
    return value(op.astype(x, target))


def same(call: Call) -> Value:
    """DEQUANTIZE of what is in float32 by now."""
    return call.value()


ACTIVATIONS: dict[str, Callable[[relax.Expr], relax.Expr]] = {
    "RELU": op.nn.relu,
    "RELU6": lambda x: op.clip(x, 0, 6),
    "RELU_N1_TO_1": lambda x: op.clip(x, -1, 1),
    "RELU_0_TO_1": lambda x: op.clip(x, 0, 1),
    "TANH": op.tanh,
}

# --------------------------------------------------------------------------------------------------- pools, reductions


def pool(make: Callable[..., relax.Expr], **more: bool) -> Make:
    def convert(call: Call) -> Value:
        _, rows, columns, _ = call.map_shape()
        kernel, stride = call.pair("filter_height", "filter_width"), call.pair("stride_h", "stride_w")
        padding = _window(call, (rows, columns), kernel, stride)
        arguments = {"pool_size": list(kernel), "strides": list(stride), "padding": padding, **more}
        return call.as_map(_activated(call, make(call.channels_first(), **arguments)))

    return convert


def _of_axes(call: Call, axes: Sequence[int]) -> tuple[relax.Expr, list[int], Callable[[relax.Expr], Value]]:
    """What is read and the axes in whichever order it lies in, for a result that has all axes."""
    (x,), value, maps = call.in_order([0])
    return x, [FIRST.index(axis) if maps else axis for axis in axes], value


def reduce(make: Callable[..., relax.Expr]) -> Make:
    """Along axes, which go or stay with a length of 1."""

    def convert(call: Call) -> Value:
        axes = call.axes(1, len(call.shape()))
        if not axes:
            return call.value()
        if 0 in call.shape():
            raise MalformedError(f"{call.kind} of nothing")
        x, own, value = _of_axes(call, axes)
        kept = value(make(x, own, keepdims=True))
        if call.option("keep_dims"):
            return kept
        shape = tuple(length for axis, length in enumerate(call.shape()) if axis not in axes)
        return call.as_file(reshape(call.walk.plain(kept), shape))

    return convert


def softmax(call: Call) -> Value:
    x, (axis,), value = _of_axes(call, [_last(call)])
    if (beta := call.number("beta")) != 1:
        x = call.bind(op.multiply(x, _one(beta)))
    return value(op.nn.softmax(x, axis))


def log_softmax(call: Call) -> Value:
    x, (axis,), value = _of_axes(call, [_last(call)])
    return value(op.nn.log_softmax(x, axis))


def _last(call: Call) -> int:
    if not call.shape() or 0 in call.shape():
        raise MalformedError(f"{call.kind} of a tensor that has no rows")
    return len(call.shape()) - 1


def l2_normalization(call: Call) -> Value:
    x, axes, value = _of_axes(call, [_last(call)])
    length = op.sqrt(op.sum(op.multiply(x, x), axes, keepdims=True))
    return value(_activated(call, op.divide(x, op.maximum(length, _one(1e-6)))))


def arg(make: Callable[..., relax.Expr]) -> Make:
    def convert(call: Call) -> Value:
        axis = call.axis(len(call.shape()), 1)
        found = call.bind(make(call.plain(), axis))
        return call.as_file(op.astype(found, call.result.dtype))

    return convert


def cumsum(call: Call) -> Value:
    axis = call.axis(len(call.shape()), 1)
    x = call.plain()
    back = bool(call.option("reverse"))
    x = call.bind(op.flip(x, axis)) if back else x
    made = call.bind(op.cumsum(x, axis, exclusive=bool(call.option("exclusive"))))
    return call.as_file(op.flip(made, axis) if back else made)


# --------------------------------------------------------------------------------------------------------------- moves


def reshape_(call: Call) -> Value:
    """To the shape that the file says its result has; SQUEEZE and EXPAND_DIMS are such too."""
    shape = tuple(call.result.shape)
    if math.prod(shape) != math.prod(call.shape()):
        raise MalformedError(f"{call.kind} makes {math.prod(shape):,} values of {math.prod(call.shape()):,}")
    return call.value() if shape == call.shape() else call.as_file(reshape(call.plain(), shape))


def transpose(call: Call) -> Value:
    order = call.permutation(len(call.shape()))
    value = call.value()
    if value.is_map:  # as the map lies, that is another order, or none at all
        own = [FIRST.index(axis) for axis in order]
        laid = call.walk.channels_first(value)
        return call.as_file(laid if own == [0, 1, 2, 3] else permute(laid, own))
    if order == list(LAST):  # what becomes a map lies with the channels first already
        lies = tuple(value.shape[axis] for axis in order)
        return Value(shape=lies, dtype=value.dtype, channels_first=call.plain(), is_map=True)
    return call.as_file(permute(call.plain(), order))


def pad(call: Call) -> Value:
    widths = call.widths(len(call.shape()))
    fill = 0.0
    if call.given(2):
        given = call.constant(2, "value")
        if given.size != 1:
            raise MalformedError(f"{call.kind} has {given.size} values for its border")
        fill = given.reshape(()).item()
    if not any(map(any, widths)):
        return call.value()
    (x,), value, maps = call.in_order([0])
    if not maps and len(widths) == 4:  # what has a border is a map, by all that is likely
        x, value, maps = call.channels_first(), call.as_map, True
    own = [widths[axis] for axis in FIRST] if maps else widths
    made = value(padded(x, [before for before, _ in own], [after for _, after in own], fill))
    if maps and fill == 0 and not any(map(any, own[:2])):
        made.border = (x, [own[2][0], own[3][0], own[2][1], own[3][1]])
    return made


def mirror_pad(call: Call) -> Value:
    widths, mode = call.widths(len(call.shape())), call.option("mode")
    if mode not in (0, 1):
        raise MalformedError(f"the mode of MIRROR_PAD is {mode}")
    (x,), value, maps = call.in_order([0])
    own = [widths[axis] for axis in FIRST] if maps else widths
    for axis, pair in enumerate(own):
        length = shape_of(x)[axis]
        if not any(pair):
            continue
        if max(pair) > length - (mode == 0):
            raise MalformedError("MIRROR_PAD has a border that is wider than its tensor")
        places: np.ndarray = np.pad(np.arange(length), pair, mode=("reflect", "symmetric")[mode])
        x = call.bind(op.take(x, constant(places.astype("int64")), axis, mode="clip"))
    return value(x)


def slice_(call: Call) -> Value:
    """SLICE and STRIDED_SLICE: pieces along each axis, then axes go or come."""
    taken, shape = call.slices(call.shape())
    if 0 in shape:
        raise Refused(f"{call.kind} that takes nothing")
    (x,), value, maps = call.in_order([0])
    own = [taken[axis] for axis in FIRST] if maps else taken
    for axis, places in enumerate(own):
        if places == range(shape_of(x)[axis]):
            continue
        back = places.step < 0
        forth = places[::-1] if back else places
        x = call.bind(piece(x, axis, forth.start, forth[-1] + 1, forth.step))
        x = call.bind(op.flip(x, axis)) if back else x
    kept = value(x)
    return kept if shape == kept.shape else call.as_file(reshape(call.walk.plain(kept), shape))


def split(call: Call) -> tuple[Value, ...]:
    place = 0 if call.kind == "SPLIT_V" else 1
    shape = call.shape(place)
    axis = call.axis(len(shape), 2 if call.kind == "SPLIT_V" else 0)
    parts = call.parts(shape[axis], len(call.operator.outputs))
    if 0 in parts:
        raise Refused(f"{call.kind} into parts of which one is empty")
    (x,), value, maps = call.in_order([place])
    own, begin, made = FIRST.index(axis) if maps else axis, 0, []
    for part in parts:
        made.append(value(piece(x, own, begin, begin + part)))
        begin += part
    return tuple(made)


def concatenate(call: Call) -> Value:
    places = range(len(call.operator.inputs))
    if not places:
        raise MalformedError("CONCATENATION of nothing")
    rank = len(call.shape())
    if {len(call.shape(place)) for place in places} != {rank}:
        raise MalformedError("CONCATENATION of tensors that don't fit together")
    axis = call.axis(rank)
    operands, value, maps = call.in_order(places)
    whole = op.concat(operands, FIRST.index(axis) if maps else axis)
    return value(_activated(call, whole))


def pack(call: Call) -> Value:
    places = range(len(call.operator.inputs))
    if not places or len({call.shape(place) for place in places}) != 1:
        raise MalformedError("PACK of tensors that don't fit together, or of none")
    shape = call.shape()
    axis = call.axis(len(shape), more=1)
    raised = [call.bind(reshape(call.plain(place), (*shape[:axis], 1, *shape[axis:]))) for place in places]
    return call.as_file(op.concat(raised, axis))


def unpack(call: Call) -> tuple[Value, ...]:
    shape = call.shape()
    axis = call.axis(len(shape))
    if shape[axis] != len(call.operator.outputs):
        raise MalformedError(f"UNPACK makes {len(call.operator.outputs)} tensors of {shape[axis]}")
    rest, x = (*shape[:axis], *shape[axis + 1 :]), call.plain()
    return tuple(
        call.as_file(reshape(call.bind(piece(x, axis, number, number + 1)), rest)) for number in range(shape[axis])
    )


def depth_to_space(call: Call) -> Value:
    batch, rows, columns, channels = call.map_shape()
    block = call.positive("block_size")
    if channels % block**2:
        raise MalformedError(f"DEPTH_TO_SPACE makes blocks of {block} of {channels} channels")
    apart = reshape(call.channels_first(), (batch, block, block, channels // block**2, rows, columns))
    moved = call.bind(permute(call.bind(apart), [0, 3, 4, 1, 5, 2]))
    return call.as_map(reshape(moved, (batch, channels // block**2, rows * block, columns * block)))


def space_to_depth(call: Call) -> Value:
    batch, rows, columns, channels = call.map_shape()
    block = call.positive("block_size")
    if rows % block or columns % block:
        raise MalformedError(f"SPACE_TO_DEPTH takes blocks of {block} of {rows}×{columns} pixels")
    apart = reshape(call.channels_first(), (batch, channels, rows // block, block, columns // block, block))
    moved = call.bind(permute(call.bind(apart), [0, 3, 5, 1, 2, 4]))
    return call.as_map(reshape(moved, (batch, channels * block**2, rows // block, columns // block)))


def space_to_batch(call: Call) -> Value:
    shape = call.shape()
    blocks, widths = call.blocks(len(shape))
    rank, spatial = len(shape), len(blocks)
    before = [0, *(pair[0] for pair in widths), *[0] * (rank - spatial - 1)]
    after = [0, *(pair[1] for pair in widths), *[0] * (rank - spatial - 1)]
    x = call.bind(padded(call.plain(), before, after))
    shape = shape_of(x)
    if any(length % block for length, block in zip(shape[1:], blocks, strict=False)):
        raise MalformedError("SPACE_TO_BATCH_ND has blocks that don't fit into its tensor")
    cut = [part for length, block in zip(shape[1:], blocks, strict=False) for part in (length // block, block)]
    apart = call.bind(reshape(x, (shape[0], *cut, *shape[1 + spatial :])))
    inner, outer = [2 * axis + 2 for axis in range(spatial)], [2 * axis + 1 for axis in range(spatial)]
    moved = call.bind(permute(apart, [*inner, 0, *outer, *range(2 * spatial + 1, rank + spatial)]))
    lengths = [length // block for length, block in zip(shape[1:], blocks, strict=False)]
    return call.as_file(reshape(moved, (shape[0] * math.prod(blocks), *lengths, *shape[1 + spatial :])))


def batch_to_space(call: Call) -> Value:
    shape = call.shape()
    blocks, crops = call.blocks(len(shape))
    rank, spatial = len(shape), len(blocks)
    if shape[0] % math.prod(blocks):
        raise MalformedError("BATCH_TO_SPACE_ND has blocks that don't fit into its batch")
    batch = shape[0] // math.prod(blocks)
    lengths = [length * block for length, block in zip(shape[1:], blocks, strict=False)]
    if any(sum(pair) >= length for pair, length in zip(crops, lengths, strict=True)):
        raise MalformedError("BATCH_TO_SPACE_ND cuts off all that there is")
    apart = call.bind(reshape(call.plain(), (*blocks, batch, *shape[1:])))
    pairs = [part for axis in range(spatial) for part in (spatial + 1 + axis, axis)]
    moved = call.bind(permute(apart, [spatial, *pairs, *range(2 * spatial + 1, rank + spatial)]))
    x = call.bind(reshape(moved, (batch, *lengths, *shape[1 + spatial :])))
    for axis, (before, after) in enumerate(crops):
        if before or after:
            x = call.bind(piece(x, axis + 1, before, lengths[axis] - after))
    return call.as_file(x)


def tile(call: Call) -> Value:
    times = call.integers(1, "multiples")
    if len(times) != len(call.shape()) or min(times, default=1) < 1:
        raise MalformedError(f"TILE has {len(times)} multiples for {len(call.shape())} dimensions, or one that is none")
    return call.as_file(op.tile(call.plain(), times))


def broadcast_to(call: Call) -> Value:
    return call.as_file(op.broadcast_to(call.plain(), call.integers(1, "shape")))


# ------------------------------------------------------------------------------------------------------------ resizing


def resize_bilinear(call: Call) -> Value:
    def taps(axis: int, length: int, wanted: int) -> Taps:
        at = _places(call, length, wanted)
        first = np.clip(np.floor(at), 0, length - 1).astype(np.int32)
        second = np.clip(np.ceil(at), 0, length - 1).astype(np.int32)
        part = (at.clip(0, length - 1) - first).astype(np.float32)
        return Taps(axis=axis, inputs=np.stack([first, second], 1), weights=np.stack([1 - part, part], 1))

    _, rows, columns, _ = call.map_shape()
    tables = [taps(2 + axis, (rows, columns)[axis], wanted) for axis, wanted in enumerate(call.size())]
    return call.as_map(resample(call.kernel, call.channels_first(), tables))


def _places(call: Call, length: int, wanted: int) -> np.ndarray:
    """Where outputs lie between inputs, computed in float32."""
    scale = np.float32(length) / np.float32(wanted)
    if call.option("align_corners") and wanted > 1:
        scale = np.float32(length - 1) / np.float32(wanted - 1)
    at = np.arange(wanted, dtype=np.float32)
    half = np.float32(0.5)
    return (at + half) * scale - half if call.option("half_pixel_centers") else at * scale


def resize_nearest(call: Call) -> Value:
    x, shape = call.channels_first(), call.map_shape()
    align, half = bool(call.option("align_corners")), bool(call.option("half_pixel_centers"))
    for axis, wanted in enumerate(call.size()):
        places = nearest(shape[1 + axis], wanted, align=align, half=half)
        factor = wanted // shape[1 + axis]
        if wanted == shape[1 + axis] * factor and np.array_equal(
            places, np.repeat(np.arange(wanted // factor), factor)
        ):
            x = call.bind(op.repeat(x, factor, 2 + axis)) if factor > 1 else x
        else:
            x = call.bind(op.take(x, constant(places.astype("int64")), 2 + axis, mode="clip"))
    return call.as_map(x)


CONVERTERS: dict[str, Make] = {
    # weights
    "CONV_2D": conv_2d,
    "DEPTHWISE_CONV_2D": depthwise_conv_2d,
    "TRANSPOSE_CONV": transpose_conv,
    "FULLY_CONNECTED": fully_connected,
    "BATCH_MATMUL": batch_matmul,
    # of two or more
    "ADD": binary(op.add),
    "SUB": binary(op.subtract),
    "MUL": binary(op.multiply),
    "DIV": binary(_divided),
    "POW": binary(_power),
    "MAXIMUM": binary(op.maximum),
    "MINIMUM": binary(op.minimum),
    "SQUARED_DIFFERENCE": squared_difference,
    "ADD_N": add_n,
    "EQUAL": binary(op.equal),
    "NOT_EQUAL": binary(op.not_equal),
    "LESS": binary(op.less),
    "LESS_EQUAL": binary(op.less_equal),
    "GREATER": binary(op.greater),
    "GREATER_EQUAL": binary(op.greater_equal),
    "LOGICAL_AND": binary(op.logical_and),
    "LOGICAL_OR": binary(op.logical_or),
    "SELECT": select,
    "SELECT_V2": select,
    # functions
    **{name: unary(make) for name, make in ACTIVATIONS.items()},
    "ABS": unary(op.abs),
    "NEG": unary(op.negative),
    "EXP": unary(op.exp),
    "LOG": unary(op.log),
    "SQRT": unary(op.sqrt),
    "RSQRT": unary(op.rsqrt),
    "SQUARE": unary(lambda x: op.multiply(x, x)),
    "SIN": unary(op.sin),
    "COS": unary(op.cos),
    "FLOOR": unary(op.floor),
    "CEIL": unary(op.ceil),
    "ROUND": unary(op.round),
    "LOGICAL_NOT": unary(op.logical_not),
    "LOGISTIC": unary(op.sigmoid),
    "HARD_SWISH": unary(_hard_swish),
    "ELU": unary(_elu),
    "GELU": gelu,
    "LEAKY_RELU": leaky_relu,
    "PRELU": prelu,
    "CAST": cast,
    "DEQUANTIZE": same,
    # pools, and along axes
    "AVERAGE_POOL_2D": pool(op.nn.avg_pool2d, count_include_pad=False),
    "MAX_POOL_2D": pool(op.nn.max_pool2d),
    "MEAN": reduce(op.mean),
    "SUM": reduce(op.sum),
    "REDUCE_MAX": reduce(op.max),
    "REDUCE_MIN": reduce(op.min),
    "REDUCE_PROD": reduce(op.prod),
    "SOFTMAX": softmax,
    "LOG_SOFTMAX": log_softmax,
    "L2_NORMALIZATION": l2_normalization,
    "ARG_MAX": arg(op.argmax),
    "ARG_MIN": arg(op.argmin),
    "CUMSUM": cumsum,
    # moves
    "RESHAPE": reshape_,
    "SQUEEZE": reshape_,
    "EXPAND_DIMS": reshape_,
    "TRANSPOSE": transpose,
    "PAD": pad,
    "PADV2": pad,
    "MIRROR_PAD": mirror_pad,
    "SLICE": slice_,
    "STRIDED_SLICE": slice_,
    "SPLIT": split,
    "SPLIT_V": split,
    "CONCATENATION": concatenate,
    "PACK": pack,
    "UNPACK": unpack,
    "DEPTH_TO_SPACE": depth_to_space,
    "SPACE_TO_DEPTH": space_to_depth,
    "SPACE_TO_BATCH_ND": space_to_batch,
    "BATCH_TO_SPACE_ND": batch_to_space,
    "TILE": tile,
    "BROADCAST_TO": broadcast_to,
    # resizing
    "RESIZE_BILINEAR": resize_bilinear,
    "RESIZE_NEAREST_NEIGHBOR": resize_nearest,
}
