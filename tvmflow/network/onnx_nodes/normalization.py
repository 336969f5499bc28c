"""Normalisations, all in two passes: a variance of squares less the mean's square has no digits left far from zero."""

from __future__ import annotations

from tvm import relax
from tvm.relax import op

from tvmflow.network.onnx_nodes.node import (
    Node,
    convert,
    elements,
    mean_and_deviation,
    reshape,
    shape_of,
    standardized,
)


def batch_normalization(node: Node) -> relax.Expr:
    training = node.get("training_mode", 0) or node.results > 1 or (node.opset < 7 and not node.get("is_test", 0))
    if training:
        raise node.refusal("it is in training mode; export the network after .eval()")
    if node.opset < 9 and not node.get("spatial", 1):
        raise node.refusal("it has spatial=0, a normalisation of each element")
    norm = op.nn.batch_norm(*node.inputs, axis=1, epsilon=node.get("epsilon", 1e-5), training=False)
    return relax.TupleGetItem(node.bind(norm), 0)


def _per_channel(node: Node, data: relax.Expr, scale: relax.Expr, shift: relax.Expr) -> relax.Expr:
    shape = (1, -1, *[1] * (len(node.shape()) - 2))
    sized = [reshape(value, [elements(shape_of(value)) if dim == -1 else dim for dim in shape]) for value in (scale, shift)]
    return op.add(op.multiply(data, sized[0]), sized[1])


def instance_normalization(node: Node) -> relax.Expr:
    axes = list(range(2, len(node.shape())))
    return _per_channel(
        node, standardized(node.bind, node.inputs[0], axes, node.get("epsilon", 1e-5)), node.inputs[1], node.inputs[2]
    )


def group_normalization(node: Node) -> relax.Expr:
    """Of opset 18 with a scale and a shift for each group, from 21 on for each channel."""
    n, c, *spatial = node.shape()
    groups = node.get("num_groups")
    apart = node.bind(reshape(node.inputs[0], (n, groups, c // groups * elements(spatial))))
    normed = node.bind(reshape(standardized(node.bind, apart, [2], node.get("epsilon", 1e-5)), node.shape()))
    scale, shift = node.inputs[1], node.inputs[2]
    if node.opset < 21 and c != groups:
        scale, shift = (node.bind(op.repeat(value, c // groups, 0)) for value in (scale, shift))
    return _per_channel(node, normed, scale, shift)


def _last_axes(node: Node) -> list[int]:
    rank = len(node.shape())
    return list(range(node.get("axis", -1) % rank, rank))


def layer_normalization(node: Node) -> relax.Expr | tuple[relax.Expr, ...]:
    return _layer_norm(node, node.inputs[0], node.inputs[1], node.optional(2))


def _layer_norm(
    node: Node, data: relax.Expr, scale: relax.Expr, shift: relax.Expr | None
) -> relax.Expr | tuple[relax.Expr, ...]:
    axes, epsilon, dtype = _last_axes(node), node.get("epsilon", 1e-5), node.dtype()
    wide = data if dtype == "float64" else node.bind(convert(data, "float32")) if dtype != "float32" else data
    if node.results == 1:
        normed: relax.Expr = standardized(node.bind, wide, axes, epsilon)
        extras: tuple[relax.Expr, ...] = ()
    else:
        mean, centered = mean_and_deviation(node.bind, wide, axes)
        variance = op.mean(op.multiply(centered, centered), axes, True)
        inverse = node.bind(op.divide(node.like(1), op.sqrt(op.add(variance, node.like(epsilon)))))
        normed, extras = node.bind(op.multiply(centered, inverse)), (mean, inverse)
    result = op.multiply(convert(normed, dtype), scale)
    result = result if shift is None else op.add(result, shift)
    return (result, *extras) if extras else result


def skip_layer_normalization(node: Node) -> relax.Expr | tuple[relax.Expr, ...]:
    """ONNX Runtime's: input, skip, gamma, beta, bias; the sum is the fourth output."""
    total = op.add(node.inputs[0], node.inputs[1])
    if node.given(4):
        total = op.add(total, node.inputs[4])
    total = node.bind(total)
    normed = op.multiply(standardized(node.bind, total, [len(node.shape()) - 1], node.get("epsilon", 1e-12)), node.inputs[2])
    normed = op.add(normed, node.inputs[3]) if node.given(3) else normed
    return normed if node.results == 1 else (normed, None, None, total)


def rms_normalization(node: Node) -> relax.Expr:
    axes, dtype = _last_axes(node), node.dtype()
    wide = node.bind(convert(node.inputs[0], "float32")) if dtype == "float16" else node.inputs[0]
    square = op.mean(op.multiply(wide, wide), axes, True)
    root = op.sqrt(op.add(square, relax.const(node.get("epsilon", 1e-5), str(wide.ty.dtype))))
    return op.multiply(convert(node.bind(op.divide(wide, root)), dtype), node.inputs[1])


def mean_variance_normalization(node: Node) -> relax.Expr:
    axes = list(node.get("axes") or (0, 2, 3))
    return standardized(node.bind, node.inputs[0], axes, 1e-9)
