"""Operators that move values, or pick some: reshapes, slices, gathers, pads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tvm import relax
from tvm.relax import op

from tvmflow.network.onnx_nodes.node import (
    Node,
    constant,
    convert,
    elements,
    is_constant,
    padded,
    permute,
    piece,
    reshape,
    shape_of,
)

PAD_MODES = {"reflect": "reflect", "edge": "edge", "wrap": "wrap"}
"""ONNX's name of a border that repeats the data → NumPy's."""


def reshape_(node: Node) -> relax.Expr:
    wanted = node.integers(1, "shape") or []
    if not node.get("allowzero", 0):
        wanted = [node.shape()[axis] if dim == 0 else dim for axis, dim in enumerate(wanted)]
    if -1 in wanted:
        rest = elements([dim for dim in wanted if dim != -1])
        wanted[wanted.index(-1)] = elements(node.shape()) // rest if rest else 0
    if not elements(wanted):
        raise node.refusal("its result is empty")
    return reshape(node.inputs[0], wanted)


def flatten(node: Node) -> relax.Expr:
    shape, axis = node.shape(), node.get("axis", 1)
    axis += len(shape) if axis < 0 else 0
    return reshape(node.inputs[0], (elements(shape[:axis]), elements(shape[axis:])))


def transpose(node: Node) -> relax.Expr:
    rank = len(node.shape())
    axes = node.get("perm") or list(range(rank))[::-1]
    return node.inputs[0] if list(axes) == list(range(rank)) else permute(node.inputs[0], axes)


def squeeze(node: Node) -> relax.Expr:
    shape, axes = node.shape(), node.integers(1, "axes")
    gone = {axis % len(shape) for axis in axes} if axes else {axis for axis, dim in enumerate(shape) if dim == 1}
    return reshape(node.inputs[0], [dim for axis, dim in enumerate(shape) if axis not in gone])


def unsqueeze(node: Node) -> relax.Expr:
    axes = node.integers(1, "axes") or []
    rank = len(node.shape()) + len(axes)
    made, rest = {axis % rank for axis in axes}, iter(node.shape())
    return reshape(node.inputs[0], [1 if axis in made else next(rest) for axis in range(rank)])


def concat(node: Node) -> relax.Expr:
    if len(node.inputs) == 1:
        return node.inputs[0]
    return op.concat(list(node.inputs), node.get("axis", 1))


def split_sizes(node: Node, extent: int) -> list[int]:
    sizes = node.integers(1, "split")
    if sizes is None:
        count = node.get("num_outputs", node.results)
        largest = -(-extent // count)
        sizes = [min(largest, extent - largest * index) for index in range(count)]
    return sizes


def pieces(data: relax.Expr, axis: int, sizes: Sequence[int]) -> tuple[relax.Expr, ...]:
    ends = np.cumsum(sizes).tolist()
    return tuple(piece(data, axis, end - size, end) for size, end in zip(sizes, ends, strict=True))


def split(node: Node) -> relax.Expr | tuple[relax.Expr, ...]:
    axis = node.get("axis", 0) % len(node.shape())
    made = pieces(node.inputs[0], axis, split_sizes(node, node.shape()[axis]))
    return made if len(made) > 1 else made[0]


def slice_(node: Node) -> relax.Expr:
    shape = node.shape()
    starts, ends = node.integers(1, "starts") or [], node.integers(2, "ends") or []
    axes = node.integers(3, "axes") or list(range(len(starts)))
    steps = node.integers(4, "steps") or [1] * len(starts)
    data = node.inputs[0]
    begins, stops, strides, flipped = [], [], [], []
    axes = [axis % len(shape) for axis in axes]
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        taken = range(*slice(start, end, step).indices(shape[axis]))
        if not taken:
            raise node.refusal("its result is empty")
        if step < 0:
            flipped.append(axis)
        first = shape[axis] - 1 - taken.start if step < 0 else taken.start
        begins.append(first)
        stops.append(first + (len(taken) - 1) * abs(step) + 1)
        strides.append(abs(step))
    for axis in flipped:
        data = node.bind(op.flip(data, axis))
    return op.strided_slice(data, axes, begins, stops, strides, assume_inbound=True)


def indices_within(indices: relax.Expr, extent: int | np.ndarray) -> relax.Expr:
    """Indices with the negative ones counted from the end. What is beyond the extent reads the nearest element."""
    if is_constant(indices):
        values = indices.value.numpy().astype("int64")
        return constant(np.where(values < 0, values + extent, values).astype("int64"))
    indices = convert(indices, "int64")
    dims = constant(extent, "int64")
    counted = op.where(op.less(indices, constant(0, "int64")), op.add(indices, dims), indices)
    return op.minimum(op.maximum(counted, constant(0, "int64")), op.subtract(dims, constant(1, "int64")))


def gather(node: Node) -> relax.Expr:
    data, indices = node.inputs
    axis = node.get("axis", 0) % len(node.shape())
    if is_constant(indices) and indices.value.numpy().size == 1:
        index = int(indices.value.numpy().reshape(())) % node.shape()[axis]
        taken = node.bind(piece(data, axis, index, index + 1))
        shape = node.shape()
        return reshape(taken, (*shape[:axis], *shape_of(indices), *shape[axis + 1 :]))
    return op.take(data, node.bind(indices_within(indices, node.shape()[axis])), axis, mode="clip")


def gather_elements(node: Node) -> relax.Expr:
    axis = node.get("axis", 0) % len(node.shape())
    return op.gather_elements(node.inputs[0], node.bind(indices_within(node.inputs[1], node.shape()[axis])), axis)


def gather_nd(node: Node) -> relax.Expr:
    batch = node.get("batch_dims", 0)
    extents = np.array(node.shape()[batch : batch + node.shape(1)[-1]], "int64")
    return op.gather_nd(node.inputs[0], node.bind(indices_within(node.inputs[1], extents)), batch)


def reduction_of(node: Node) -> str:
    reduction = node.get("reduction", "none")
    return "update" if reduction == "none" else reduction


def placed(node: Node, places: np.ndarray, width: int) -> relax.Expr:
    """The data with updates in known places: each row of `width` elements is the data's or that of the last update.

    `places` are the rows, in the order of the updates.
    """
    shape = node.shape()
    rows = elements(shape) // width
    source = np.full(rows, -1, "int64")
    source[places.reshape(-1)] = np.arange(places.size)
    data = node.bind(reshape(node.inputs[0], (rows, width)))
    updates = node.bind(reshape(node.inputs[2], (places.size, width)))
    moved = node.bind(op.take(updates, constant(np.maximum(source, 0)), 0, mode="clip"))
    return reshape(node.bind(op.where(constant((source >= 0)[:, None]), moved, data)), shape)


def scatter_elements(node: Node) -> relax.Expr:
    shape, axis = node.shape(), node.get("axis", 0) % len(node.shape())
    indices = node.bind(indices_within(node.inputs[1], shape[axis]))
    grid = list(np.indices(node.shape(1)))
    if is_constant(indices) and reduction_of(node) == "update":
        grid[axis] = indices.value.numpy()
        return placed(node, np.ravel_multi_index(grid, shape), 1)
    if node.shape(1) == shape:
        return op.scatter_elements(node.inputs[0], indices, node.inputs[2], axis, reduction_of(node))
    columns = [constant(places[..., None].astype("int64")) for places in grid]
    columns[axis] = op.expand_dims(indices, len(shape))
    return op.scatter_nd(node.inputs[0], node.bind(op.concat(columns, -1)), node.inputs[2], reduction_of(node))


def scatter_nd(node: Node) -> relax.Expr:
    shape, depth = node.shape(), node.shape(1)[-1]
    indices = node.bind(indices_within(node.inputs[1], np.array(shape[:depth], "int64")))
    if is_constant(indices) and reduction_of(node) == "update":
        columns = np.moveaxis(indices.value.numpy(), -1, 0)
        return placed(node, np.ravel_multi_index(list(columns), shape[:depth]), elements(shape[depth:]))
    return op.scatter_nd(node.inputs[0], indices, node.inputs[2], reduction_of(node))


def expand(node: Node) -> relax.Expr:
    wanted = np.broadcast_shapes(node.shape(), tuple(node.integers(1, "shape") or ()))
    return node.inputs[0] if wanted == node.shape() else op.broadcast_to(node.inputs[0], wanted)


def tile(node: Node) -> relax.Expr:
    repeats = node.integers(1, "repeats") or []
    if node.opset < 6:  # once along one axis
        repeats = [repeats[0] if axis == int(node.required(2, "axis")) else 1 for axis in range(len(node.shape()))]
    return op.tile(node.inputs[0], repeats)


def pad(node: Node) -> relax.Expr:
    """A border of zeros is remembered: a convolution takes it over. Negative borders cut off."""
    shape = node.shape()
    pads = node.integers(1, "paddings" if "paddings" in node.attributes else "pads") or []
    axes = [axis % len(shape) for axis in node.integers(3, "axes") or range(len(shape))]
    before, after = [0] * len(shape), [0] * len(shape)
    for axis, low, high in zip(axes, pads[: len(axes)], pads[len(axes) :], strict=True):
        before[axis], after[axis] = low, high
    mode = node.get("mode", "constant")
    if mode == "constant":
        value = node.constant(2, "value")
        fill = node.get("value", 0.0) if value is None else value.reshape(()).item()
        made = padded(node.inputs[0], before, after, fill)
        if made is node.inputs[0] or fill or min(before + after) < 0 or any(before[:2] + after[:2]):
            return made
        made = node.bind(made)
        node.borders[made] = (node.inputs[0], before[2:] + after[2:])
        return made
    data = padded(node.inputs[0], [min(0, low) for low in before], [min(0, high) for high in after])
    for axis, (low, high) in enumerate(zip(before, after, strict=True)):
        if max(low, high) > 0:
            data = node.bind(data)
            extent = shape_of(data)[axis]
            places: np.ndarray = np.pad(np.arange(extent), (max(low, 0), max(high, 0)), mode=PAD_MODES[mode])  # type: ignore[call-overload]
            data = op.take(data, constant(places.astype("int64")), axis, mode="clip")
    return data


def depth_to_space(node: Node) -> relax.Expr:
    n, c, h, w = node.shape()
    block = node.get("blocksize")
    depth = c // block**2
    rows = node.get("mode", "DCR") == "DCR"
    apart = reshape(node.inputs[0], (n, block, block, depth, h, w) if rows else (n, depth, block, block, h, w))
    moved = node.bind(permute(node.bind(apart), [0, 3, 4, 1, 5, 2] if rows else [0, 1, 4, 2, 5, 3]))
    return reshape(moved, (n, depth, h * block, w * block))


def space_to_depth(node: Node) -> relax.Expr:
    n, c, h, w = node.shape()
    block = node.get("blocksize")
    order = [0, 3, 5, 1, 2, 4] if node.get("mode", "DCR") == "DCR" else [0, 1, 3, 5, 2, 4]
    apart = node.bind(reshape(node.inputs[0], (n, c, h // block, block, w // block, block)))
    return reshape(node.bind(permute(apart, order)), (n, c * block**2, h // block, w // block))


def trilu(node: Node) -> relax.Expr:
    diagonal = node.constant(1, "diagonal")
    kept = (np.triu if node.get("upper", 1) else np.tril)(
        np.ones(node.shape()[-2:], bool), 0 if diagonal is None else int(diagonal.reshape(()))
    )
    return op.where(constant(kept), node.inputs[0], node.like(0))


def one_hot(node: Node) -> relax.Expr:
    """Indices that are out of range, on either side, get no hot value."""
    depth = node.required(1, "depth")
    extent = int(np.reshape(depth, -1)[0])
    rank = len(node.shape()) + 1
    axis = node.get("axis", -1) % rank
    indices = convert(node.inputs[0], "int64")
    counted = node.bind(op.where(op.less(indices, constant(0, "int64")), op.add(indices, constant(extent)), indices))
    places = np.arange(extent, dtype="int64").reshape([-1 if other == axis else 1 for other in range(rank)])
    hot = op.equal(op.expand_dims(counted, axis), constant(places))
    off, on = (reshape(node.bind(piece(node.inputs[2], 0, index, index + 1)), ()) for index in (0, 1))
    return op.where(hot, on, off)


def eye_like(node: Node) -> relax.Expr:
    from onnx.helper import tensor_dtype_to_np_dtype

    dtype = str(tensor_dtype_to_np_dtype(node.get("dtype"))) if "dtype" in node.attributes else node.dtype()
    rows, columns = node.shape()
    return constant(np.eye(rows, columns, k=node.get("k", 0)), dtype)


def constant_of_shape(node: Node) -> relax.Expr:
    value = node.get("value", np.zeros(1, "float32"))
    return op.full(node.integers(0, "shape"), constant(value.reshape(())), str(value.dtype))


def compress(node: Node) -> relax.Expr:
    kept = np.flatnonzero(node.required(1, "condition")).astype("int64")
    if "axis" in node.attributes:
        return op.take(node.inputs[0], constant(kept), node.get("axis"), mode="clip")
    return op.take(node.bind(reshape(node.inputs[0], (-1,))), constant(kept), 0, mode="clip")


def reverse_sequence(node: Node) -> relax.Expr:
    time, batch = node.get("time_axis", 0), node.get("batch_axis", 1)
    return op.reverse_sequence(node.inputs[0], node.inputs[1], time, batch)


def sequence_construct(node: Node) -> list[relax.Expr]:
    return list(node.inputs)


def sequence_empty(node: Node) -> list[relax.Expr]:
    return []


def sequence_at(node: Node) -> relax.Expr:
    return node.inputs[0][int(node.required(1, "position"))]


def sequence_insert(node: Node) -> list[relax.Expr]:
    made, position = list(node.inputs[0]), node.constant(2, "position")
    made.insert(len(made) if position is None else int(position), node.inputs[1])
    return made


def sequence_erase(node: Node) -> list[relax.Expr]:
    made, position = list(node.inputs[0]), node.constant(1, "position")
    made.pop(-1 if position is None else int(position))
    return made


def sequence_length(node: Node) -> relax.Expr:
    return constant(np.array(len(node.inputs[0]), "int64"))


def concat_from_sequence(node: Node) -> relax.Expr:
    parts, axis = list(node.inputs[0]), node.get("axis")
    return op.stack(parts, axis) if node.get("new_axis", 0) else op.concat(parts, axis)


def split_to_sequence(node: Node) -> list[relax.Expr]:
    axis = node.get("axis", 0) % len(node.shape())
    extent, sizes = node.shape()[axis], node.constant(1, "split")
    if sizes is None or sizes.ndim == 0:
        size = 1 if sizes is None else int(sizes)
        sizes = np.array([min(size, extent - start) for start in range(0, extent, size)])
    made = [node.bind(part) for part in pieces(node.inputs[0], axis, sizes.tolist())]
    if not node.given(1) and not node.get("keepdims", 1):
        made = [node.bind(op.squeeze(part, [axis])) for part in made]
    return made
