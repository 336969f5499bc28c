"""Convolutions, plain and transposed."""

from __future__ import annotations

from collections.abc import Sequence

from tvm import relax
from tvm.relax import op

from tvmflow.network.onnx_nodes.elementwise import clip, hard_sigmoid, leaky_relu
from tvmflow.network.onnx_nodes.node import Node, is_constant, padded, reshape, shape_of

SPATIAL = {1: "W", 2: "HW", 3: "DHW"}
CONVOLUTIONS = {1: op.nn.conv1d, 2: op.nn.conv2d, 3: op.nn.conv3d}
TRANSPOSED = {1: op.nn.conv1d_transpose, 2: op.nn.conv2d_transpose, 3: op.nn.conv3d_transpose}


def same_pads(mode: str, total: Sequence[int]) -> list[int]:
    """Begins, then ends: an odd one out is at the end for SAME_UPPER, at the beginning for SAME_LOWER."""
    small, large = [amount // 2 for amount in total], [amount - amount // 2 for amount in total]
    return small + large if mode == "SAME_UPPER" else large + small


def window_pads(
    node: Node, spatial: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> list[int]:
    """The border that a window over `spatial` has, begins and then ends."""
    mode = node.get("auto_pad", "NOTSET")
    if mode in ("NOTSET", ""):
        return list(node.get("pads") or [0] * (2 * len(kernel)))
    if mode == "VALID":
        return [0] * (2 * len(kernel))
    reach = [(size - 1) * dilation + 1 for size, dilation in zip(kernel, dilations, strict=True)]
    return same_pads(
        mode,
        [
            max(0, (-(-extent // stride) - 1) * stride + size - extent)
            for extent, stride, size in zip(spatial, strides, reach, strict=True)
        ],
    )


def convolve(node: Node, data: relax.Expr, weight: relax.Expr, dtype: str | None = None) -> relax.Expr:
    """The convolution that the node's attributes describe, of any of the kinds that have a kernel and a border."""
    spatial = len(shape_of(data)) - 2
    if spatial not in CONVOLUTIONS:
        raise node.refusal(f"it is over {spatial} dimensions instead of 1, 2 or 3")
    strides = node.get("strides") or [1] * spatial
    dilations = node.get("dilations") or [1] * spatial
    pads = window_pads(node, shape_of(data)[2:], shape_of(weight)[2:], strides, dilations)
    if data in node.borders:
        data, border = node.borders[data]
        pads = [ours + before for ours, before in zip(pads, border, strict=True)]
    if min(pads) < 0:
        begins, ends = pads[:spatial], pads[spatial:]
        data = node.bind(padded(data, [0, 0, *(min(0, x) for x in begins)], [0, 0, *(min(0, x) for x in ends)]))
        pads = [max(0, border) for border in pads]
    return CONVOLUTIONS[spatial](
        data,
        weight,
        strides=list(strides),
        padding=pads,
        dilation=list(dilations),
        groups=node.get("group", 1),
        data_layout=f"NC{SPATIAL[spatial]}",
        kernel_layout=f"OI{SPATIAL[spatial]}",
        out_dtype=dtype,
    )


def with_bias(node: Node, result: relax.Expr, bias: relax.Expr | None, rank: int) -> relax.Expr:
    if bias is None:
        return result
    return op.add(
        node.bind(result), reshape(bias, (1, -1 if not is_constant(bias) else shape_of(bias)[0], *[1] * (rank - 2)))
    )


def conv(node: Node) -> relax.Expr:
    return with_bias(node, convolve(node, node.inputs[0], node.inputs[1]), node.optional(2), len(node.shape()))


def conv_transpose(node: Node) -> relax.Expr:
    """Borders cut off the full result; `output_shape` says how much is left, `output_padding` what is added behind."""
    data, weight = node.inputs[0], node.inputs[1]
    spatial = len(node.shape()) - 2
    if spatial not in TRANSPOSED:
        raise node.refusal(f"it is over {spatial} dimensions instead of 1, 2 or 3")
    strides = node.get("strides") or [1] * spatial
    dilations = node.get("dilations") or [1] * spatial
    extra = node.get("output_padding") or [0] * spatial
    kernel = [(size - 1) * distance + 1 for size, distance in zip(shape_of(weight)[2:], dilations, strict=True)]
    full = [(dim - 1) * stride + size for dim, stride, size in zip(node.shape()[2:], strides, kernel, strict=True)]
    mode, wanted = node.get("auto_pad", "NOTSET"), node.get("output_shape")
    if wanted is None and mode in ("SAME_UPPER", "SAME_LOWER"):
        wanted = [dim * stride for dim, stride in zip(node.shape()[2:], strides, strict=True)]
    pads = [0] * (2 * spatial) if mode == "VALID" else list(node.get("pads") or [0] * (2 * spatial))
    if wanted is not None:
        total = [size + more - out for size, more, out in zip(full, extra, list(wanted)[-spatial:], strict=True)]
        # the specification has the odd one at the beginning for all but SAME_UPPER
        pads = same_pads(mode if mode == "SAME_UPPER" else "SAME_LOWER", [max(0, amount) for amount in total])
        extra = [more + max(0, -amount) for more, amount in zip(extra, total, strict=True)]
    plain = min(pads) >= 0 and all(more < stride for more, stride in zip(extra, strides, strict=True))
    result = TRANSPOSED[spatial](
        data,
        weight,
        strides=list(strides),
        padding=pads if plain else [0] * (2 * spatial),
        output_padding=list(extra) if plain else [0] * spatial,
        dilation=list(dilations),
        groups=node.get("group", 1),
        data_layout=f"NC{SPATIAL[spatial]}",
        kernel_layout=f"IO{SPATIAL[spatial]}",
    )
    if not plain:
        begins, ends = pads[:spatial], pads[spatial:]
        cut = [more - end for more, end in zip(extra, ends, strict=True)]
        result = padded(node.bind(result), [0, 0, *(-border for border in begins)], [0, 0, *cut])
    return with_bias(node, result, node.optional(2), len(node.shape()))


def activated(node: Node, result: relax.Expr) -> relax.Expr:
    """ONNX Runtime's fused operators name an activation and its parameters."""
    name, parameters = node.get("activation", ""), node.get("activation_params", [])
    if not name:
        return result
    result = node.bind(result)
    keys = {"LeakyRelu": ("alpha",), "Clip": ("min", "max"), "HardSigmoid": ("alpha", "beta")}.get(name, ())
    inner = Node(
        operator=name,
        name=node.name,
        opset=1,
        attributes=dict(zip(keys, parameters, strict=False)),
        inputs=(result,),
        results=1,
        bind=node.bind,
        call_te=node.call_te,
        borders=node.borders,
    )
    converters = {
        "Relu": lambda node: op.nn.relu(node.inputs[0]),
        "Sigmoid": lambda node: op.sigmoid(node.inputs[0]),
        "Tanh": lambda node: op.tanh(node.inputs[0]),
        "LeakyRelu": leaky_relu,
        "Clip": clip,
        "HardSigmoid": hard_sigmoid,
    }
    if name not in converters:
        raise node.refusal(f"its activation is {name}")
    return converters[name](inner)


def fused_conv(node: Node) -> relax.Expr:
    result = conv(node)
    if node.given(3):
        result = op.add(node.bind(result), node.inputs[3])
    return activated(node, result)
