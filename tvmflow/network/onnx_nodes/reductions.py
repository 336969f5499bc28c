"""Reductions over axes, and what ranks or sums up values along one."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from tvm import relax
from tvm.relax import op

from tvmflow.network.onnx_nodes.node import Node, constant, dtype_of, is_float, permute, piece, shape_of

Reduce = Callable[[Node, relax.Expr, list[int], bool], relax.Expr]


def reduction(reduce: Reduce) -> Callable[[Node], relax.Expr]:
    """Axes are an attribute or, newer, an input; none means all of them, or with `noop_with_empty_axes` none."""

    def convert(node: Node) -> relax.Expr:
        axes = node.integers(1, "axes")
        rank = len(node.shape())
        if not axes:
            axes = [] if node.get("noop_with_empty_axes", 0) else list(range(rank))
        return reduce(node, node.inputs[0], [axis % rank for axis in axes], bool(node.get("keepdims", 1)))

    return convert


def _over(operator: Callable[..., relax.Expr]) -> Reduce:
    return lambda node, data, axes, keepdims: operator(data, axes, keepdims) if axes else data


def _sum(data: relax.Expr, axes: list[int], keepdims: bool) -> relax.Expr:
    return op.sum(data, axes, keepdims) if axes else data


def _mean(node: Node, data: relax.Expr, axes: list[int], keepdims: bool) -> relax.Expr:
    if is_float(node.dtype()) or not axes:
        return _over(op.mean)(node, data, axes, keepdims)
    count = math.prod([node.shape()[axis] for axis in axes])
    return op.divide(op.sum(data, axes, keepdims), node.like(count))


def _l1(node: Node, data: relax.Expr, axes: list[int], keepdims: bool) -> relax.Expr:
    return _sum(op.abs(data), axes, keepdims)


def _sum_square(node: Node, data: relax.Expr, axes: list[int], keepdims: bool) -> relax.Expr:
    return _sum(op.multiply(data, data), axes, keepdims)


def _l2(node: Node, data: relax.Expr, axes: list[int], keepdims: bool) -> relax.Expr:
    summed = _sum_square(node, data, axes, keepdims)
    if is_float(node.dtype()):
        return op.sqrt(summed)
    return op.astype(op.sqrt(op.astype(summed, "float64")), node.dtype())


def _log_sum(node: Node, data: relax.Expr, axes: list[int], keepdims: bool) -> relax.Expr:
    return op.log(_sum(data, axes, keepdims))


def _log_sum_exp(node: Node, data: relax.Expr, axes: list[int], keepdims: bool) -> relax.Expr:
    """The largest value is taken out first; an infinite one stays where it is, or infinities would cancel."""
    if not axes:
        return data
    most = node.bind(op.max(data, axes, True))
    most = node.bind(op.where(op.isfinite(most), most, node.like(0)))
    summed = op.sum(op.exp(op.subtract(data, most)), axes, keepdims)
    kept = [dim for axis, dim in enumerate(shape_of(most)) if keepdims or axis not in axes]
    return op.add(op.log(summed), op.reshape(most, kept))


def _least(dtype: str, *, greatest: bool) -> np.generic:
    """The extreme of nothing: the least that a dtype holds, or the greatest."""
    if dtype == "bool":
        return np.bool_(greatest)
    if is_float(dtype):
        return constant(math.inf if greatest else -math.inf, dtype).value.numpy()[()]
    limits = np.iinfo(dtype)
    return np.dtype(dtype).type(limits.max if greatest else limits.min)


def _extreme(operator: Callable[..., relax.Expr]) -> Reduce:
    def reduce(node: Node, data: relax.Expr, axes: list[int], keepdims: bool) -> relax.Expr:
        if 0 in node.shape():
            kept = [1 if axis in axes else dim for axis, dim in enumerate(node.shape()) if keepdims or axis not in axes]
            return constant(np.full(kept, _least(node.dtype(), greatest=operator is op.min)))
        if node.dtype() == "bool":  # TVM knows no least bool
            return op.astype(_over(operator)(node, op.astype(data, "int8"), axes, keepdims), "bool")
        return _over(operator)(node, data, axes, keepdims)

    return reduce


reduce_max = reduction(_extreme(op.max))
reduce_min = reduction(_extreme(op.min))
reduce_sum = reduction(_over(op.sum))
reduce_prod = reduction(_over(op.prod))
reduce_mean = reduction(_mean)
reduce_l1 = reduction(_l1)
reduce_l2 = reduction(_l2)
reduce_sum_square = reduction(_sum_square)
reduce_log_sum = reduction(_log_sum)
reduce_log_sum_exp = reduction(_log_sum_exp)


def arg_extreme(node: Node) -> relax.Expr:
    """Of equal values the first, or with `select_last_index` the last."""
    axis = node.get("axis", 0) % len(node.shape())
    find = op.argmax if node.operator == "ArgMax" else op.argmin
    keepdims = bool(node.get("keepdims", 1))
    if not node.get("select_last_index", 0):
        return op.astype(find(node.inputs[0], axis, keepdims), "int64")
    found = op.astype(find(node.bind(op.flip(node.inputs[0], axis)), axis, keepdims), "int64")
    return op.subtract(constant(np.array(node.shape()[axis] - 1, "int64")), found)


def top_k(node: Node) -> tuple[relax.Expr, relax.Expr]:
    """A value's rank is the number of those before it: larger ones, and equal ones to its left.

    It costs as many comparisons as the square of the axis, and runs on every target.
    """
    shape = node.shape()
    axis, rank = node.get("axis", -1) % len(shape), len(shape)
    wanted = node.constant(1, "k")
    count = int(node.get("k") if wanted is None else wanted.reshape(()))
    last = [*(other for other in range(rank) if other != axis), axis]
    data = node.bind(permute(node.inputs[0], last)) if axis != rank - 1 else node.inputs[0]
    extent = shape[axis]
    ours, others = node.bind(op.expand_dims(data, rank)), node.bind(op.expand_dims(data, rank - 1))
    first = op.greater if node.get("largest", 1) else op.less
    left = np.tri(extent, extent, -1, dtype=bool)
    before = op.logical_or(first(others, ours), op.logical_and(op.equal(others, ours), constant(left)))
    ranks = node.bind(op.sum(op.astype(before, "int64"), [rank], False))
    chosen = node.bind(
        op.equal(op.expand_dims(ranks, rank - 1), constant(np.arange(count, dtype="int64").reshape(-1, 1)))
    )
    places = op.sum(op.multiply(op.astype(chosen, "int64"), constant(np.arange(extent, dtype="int64"))), [rank], False)
    indices = node.bind(places)
    values = node.bind(op.gather_elements(data, indices, rank - 1))
    back = [last.index(other) for other in range(rank)]
    return permute(values, back), permute(indices, back)


def cumulative(operator: Callable[..., relax.Expr]) -> Callable[[Node], relax.Expr]:
    """Running sums or products; with `exclusive` without the element itself, with `reverse` from the end on."""

    def convert(node: Node) -> relax.Expr:
        place = node.required(1, "axis")
        axis = int(np.reshape(place, ())) % len(node.shape())
        data, reverse = node.inputs[0], node.get("reverse", 0)
        if reverse:
            data = node.bind(op.flip(data, axis))
        made = operator(data, axis, dtype_of(data), bool(node.get("exclusive", 0)))
        return op.flip(node.bind(made), axis) if reverse else made

    return convert


def _flattened(node: Node, operator: Callable[[relax.Expr, int], relax.Expr]) -> relax.Expr:
    """Before opset 13 all axes from `axis` on are taken as one."""
    if node.opset >= 13:
        return operator(node.inputs[0], node.get("axis", -1) % len(node.shape()))
    shape, axis = node.shape(), node.get("axis", 1)
    axis += len(shape) if axis < 0 else 0
    if axis == len(shape) - 1:
        return operator(node.inputs[0], axis)
    rows = int(np.prod(shape[:axis], dtype="int64"))
    flat = node.bind(op.reshape(node.inputs[0], (rows, int(np.prod(shape, dtype="int64")) // rows)))
    return op.reshape(node.bind(operator(flat, 1)), shape)


def softmax(node: Node) -> relax.Expr:
    return _flattened(node, op.nn.softmax)


def log_softmax(node: Node) -> relax.Expr:
    return _flattened(node, op.nn.log_softmax)


def hardmax(node: Node) -> relax.Expr:
    def hottest(data: relax.Expr, axis: int) -> relax.Expr:
        shape = shape_of(data)
        most = op.astype(op.argmax(data, axis, True), "int64")
        places = np.arange(shape[axis], dtype="int64").reshape([-1 if at == axis else 1 for at in range(len(shape))])
        return op.astype(op.equal(most, constant(places)), dtype_of(data))

    return _flattened(node, hottest)


def lp_normalization(node: Node) -> relax.Expr:
    """What has no length stays zero."""
    axis, data = [node.get("axis", -1) % len(node.shape())], node.inputs[0]
    reduce = _l1 if node.get("p", 2) == 1 else _l2
    length = node.bind(reduce(node, data, axis, True))
    return op.where(op.equal(length, node.like(0)), node.like(0), node.bind(op.divide(data, length)))


def local_response_normalization(node: Node) -> relax.Expr:
    data, size = node.inputs[0], node.get("size")
    squares = op.multiply(data, data)
    before, after = (size - 1) // 2, size // 2
    width = [0, 0, before, after, *[0] * (2 * len(node.shape()) - 4)]
    bordered = node.bind(op.nn.pad(squares, width, "constant", 0.0))
    summed = piece(bordered, 1, 0, node.shape()[1])
    for offset in range(1, size):
        summed = op.add(summed, piece(bordered, 1, offset, offset + node.shape()[1]))
    scale = op.multiply(summed, node.like(node.get("alpha", 0.0001) / size))
    raised = op.add(scale, node.like(node.get("bias", 1.0)))
    return op.divide(data, op.power(raised, node.like(node.get("beta", 0.75))))
