"""Views, slices and gathers: where each element of the result is read."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tvmflow.network.aten.arithmetic import broadcast_index
from tvmflow.network.aten.call import Call, Converter, dtype_of, is_tensor, shape_of
from tvmflow.spec import UserError


def slice_tensor(call: Call) -> Any:
    """x[…, start:end:step], with bounds that count from the end, lie outside, or are missing."""
    x, axis, start, end, step = call.arguments
    shape = shape_of(x)
    axis %= len(shape)
    first, last, _ = slice(start, end, step).indices(shape[axis])
    return strided(call, x, axis, first, max(first, last), step)


def strided(call: Call, x: Any, axis: int, first: int, last: int, step: int = 1) -> Any:
    """x[…, first:last:step] of bounds within the tensor."""
    from tvm import relax

    if (first, last, step) == (0, shape_of(x)[axis], 1):
        return x
    return call.emit(relax.op.strided_slice(x, [axis], [first], [last], [step]))


def split(call: Call) -> list[Any]:
    """Slices, each of which its readers can be fused with; one kernel of all parts could not."""
    x, sizes, axis = call.arguments
    axis %= len(shape_of(x))
    if isinstance(sizes, int):
        whole, rest = divmod(shape_of(x)[axis], sizes)
        sizes = [sizes] * whole + [rest] * bool(rest)
    ends = np.cumsum(sizes).tolist()
    return [strided(call, x, axis, end - size, end) for size, end in zip(sizes, ends, strict=True)]


def select(call: Call) -> Any:
    """x[…, index], where an index below 0 counts from the end."""
    from tvm import relax

    x, axis, index = call.arguments
    axis %= len(shape_of(x))
    index %= shape_of(x)[axis]
    part = strided(call, x, axis, index, index + 1)
    return call.emit(relax.op.squeeze(part, [axis]))


def gathered(
    call: Call, name: str, where: Callable[..., Sequence[Any]], *tensors: Any, shape: Sequence[int] | None = None
) -> Any:
    """A kernel that copies: `where(*index, *rest of the tensors)` says which element of the first tensor is read."""
    from tvm import te

    result = tuple(call.shape if shape is None else shape)

    def make(x: Any, *given: Any) -> Any:
        return te.compute(result, lambda *index: x[tuple(where(index, *given))], name=name)

    return call.compute(name, make, *tensors)


def from_front(index: Any, size: int) -> Any:
    """An index that may count from the end."""
    from tvm import tirx

    return tirx.Select(index < 0, index + size, index)


def index_tensor(call: Call) -> Any:
    """x[i, :, j]: index tensors are broadcast together, and their axes come where they stand, or first if apart."""
    x, indices = call.arguments
    shape = shape_of(x)
    places = [axis for axis, index in enumerate(indices) if index is not None]
    given = [indices[axis] for axis in places]
    if any(dtype_of(index) == "bool" for index in given):
        raise UserError(
            f"{call.overload} in {call.node.name} picks elements by a mask, so the shape of what it gives depends on "
            "its input; use torch.where, which keeps the shape."
        )
    together = np.broadcast_shapes(*(shape_of(index) for index in given))
    adjacent = places == list(range(places[0], places[-1] + 1))
    front = places[0] if adjacent else 0
    free = [axis for axis in range(len(shape)) if axis not in places]

    def where(index: Any, *tables: Any) -> list[Any]:
        common = index[front : front + len(together)]
        others = [*index[:front], *index[front + len(together) :]]
        found = dict(zip(free, others, strict=True))
        for axis, table in zip(places, tables, strict=True):
            found[axis] = from_front(table[broadcast_index(table.shape, common)], shape[axis])
        return [found[axis] for axis in range(len(shape))]

    return gathered(call, "index", where, x, *given)


def index_select(call: Call) -> Any:
    x, axis, index = call.arguments
    if not shape_of(x):
        return x
    axis %= len(shape_of(x))
    flat = index if shape_of(index) else _reshape(call, index, (1,))
    return gathered(call, "index", lambda at, table: [*at[:axis], table[at[axis]], *at[axis + 1 :]], x, flat)


def embedding(call: Call) -> Any:
    """Rows of the weight."""
    weight, index, *_ = call.arguments
    rank = len(shape_of(index))
    return gathered(call, "embedding", lambda at, table: [table[tuple(at[:rank])], at[rank]], weight, index)


def gather(call: Call) -> Any:
    """x[i, index[i, j], …] along an axis."""
    x, axis, index, *_ = call.arguments
    if not shape_of(x):
        return x
    axis %= len(shape_of(x))
    return gathered(call, "gather", lambda at, table: [*at[:axis], table[tuple(at)], *at[axis + 1 :]], x, index)


def roll(call: Call) -> Any:
    """Along axes, or of all elements in a row if none is given."""
    x, shifts, axes = call.arguments
    shape = shape_of(x)
    if not math.prod(shape):
        return x
    if not axes:
        x, axes = _reshape(call, x, (math.prod(shape),)), [0]
    sizes, shifts = shape_of(x), [shifts] if isinstance(shifts, int) else shifts
    moved = dict.fromkeys(range(len(sizes)), 0)
    for axis, shift in zip([axes] if isinstance(axes, int) else axes, shifts, strict=True):
        moved[axis % len(sizes)] += shift

    def where(index: Any) -> list[Any]:
        return [
            (at + (-moved[axis]) % sizes[axis]) % sizes[axis] if moved[axis] % sizes[axis] else at
            for axis, at in enumerate(index)
        ]

    return _reshape(call, gathered(call, "roll", where, x, shape=sizes), shape)


def flip(call: Call) -> Any:
    x, axes = call.arguments
    shape = shape_of(x)
    turned = {axis % len(shape) for axis in axes}
    return gathered(
        call, "flip", lambda index: [shape[a] - 1 - at if a in turned else at for a, at in enumerate(index)], x
    )


def pad(call: Call) -> Any:
    """A constant, the edge, a mirror image or the other end, on either side of an axis; negative borders cut off.

    PyTorch lists borders from the last axis on.
    """
    from tvm import relax, tirx

    x, given = call.arguments[0], call.arguments[1]
    mode, value = call.named.get("mode", "constant"), call.named.get("value") or 0
    shape, result = shape_of(x), call.shape
    before = {len(shape) - 1 - number: given[2 * number] for number in range(len(given) // 2)}

    def source(axis: int, at: Any) -> Any:
        size, place = shape[axis], at - before[axis]
        if mode == "replicate":
            return tirx.min(tirx.max(place, 0), size - 1)
        if mode == "circular":
            return (place + size) % size
        reflected = tirx.Select(place < 0, -place, place)
        return tirx.Select(reflected >= size, 2 * (size - 1) - reflected, reflected)

    if mode != "constant":
        return gathered(
            call,
            f"pad_{mode}",
            lambda index: [source(axis, at) if before.get(axis) or result[axis] != shape[axis] else at
                           for axis, at in enumerate(index)],
            x,
        )  # fmt: skip
    sides = {axis: (low, result[axis] - shape[axis] - low) for axis, low in before.items()}
    for axis, (low, high) in sides.items():
        x = strided(call, x, axis, max(0, -low), shape[axis] - max(0, -high))
    widths = [tuple(max(0, side) for side in sides.get(axis, (0, 0))) for axis in range(len(shape))]
    if not any(map(any, widths)):
        return x

    return call.emit(relax.op.nn.pad(x, [side for pair in widths for side in pair], "constant", value))


def unfold(call: Call) -> Any:
    """Windows of an axis as one axis more."""
    x, axis, _, step = call.arguments
    axis %= max(len(shape_of(x)), 1)

    def where(index: Any) -> list[Any]:
        return [*index[:axis], index[axis] * step + index[-1], *index[axis + 1 : -1]]

    return gathered(call, "unfold", where, x) if shape_of(x) else _reshape(call, x, (1,))


def diagonal(call: Call) -> Any:
    """Elements (i, i + offset) of two axes as the last axis."""
    x, offset, first, second = call.arguments
    rank = len(shape_of(x))
    first, second = first % rank, second % rank

    def where(index: Any) -> list[Any]:
        rest, at = list(index[:-1]), index[-1]
        found = {first: at + max(0, -offset), second: at + max(0, offset)}
        return [found[axis] if axis in found else rest.pop(0) for axis in range(rank)]

    return gathered(call, "diagonal", where, x)


def as_strided(call: Call) -> Any:
    """Any view of a contiguous tensor: the element at ∑ index · stride + offset."""
    x, _, strides, offset = call.arguments
    flat = _reshape(call, x, (math.prod(shape_of(x)),))

    def where(index: Any) -> list[Any]:
        return [sum((at * step for at, step in zip(index, strides, strict=True)), offset or 0)]

    return gathered(call, "as_strided", where, flat)


def repeat(call: Call) -> Any:
    """x tiled; axes that x lacks come first."""
    from tvm import relax

    x, counts = call.arguments
    x = _reshape(call, x, (*[1] * (len(counts) - len(shape_of(x))), *shape_of(x)))
    return call.emit(relax.op.tile(x, [int(count) for count in counts]))


def slice_scatter(call: Call) -> Any:
    """x with x[…, start:end:step] replaced."""
    from tvm import te, tirx

    x, source, axis, start, end, step = call.arguments
    shape = shape_of(x)
    axis %= len(shape)
    first, last, step = slice(start, end, step).indices(shape[axis])
    count = len(range(first, last, step))
    if not count:
        return x

    def make(x: Any, source: Any) -> Any:
        def value(*index: Any) -> Any:
            place = index[axis] - first
            inside = tirx.all(place >= 0, place % step == 0, place < count * step)
            at = (*index[:axis], place // step, *index[axis + 1 :])
            return tirx.if_then_else(inside, source[at], x[index])

        return te.compute(shape, value, name="slice_scatter")

    return call.compute("slice_scatter", make, x, call.tensor(source, dtype_of(x)))


def select_scatter(call: Call) -> Any:
    """x with x[…, index] replaced."""
    from tvm import te, tirx

    x, source, axis, position = call.arguments
    shape = shape_of(x)
    axis %= len(shape)
    position %= shape[axis]

    def make(x: Any, source: Any) -> Any:
        def value(*index: Any) -> Any:
            at = (*index[:axis], *index[axis + 1 :])
            return tirx.if_then_else(index[axis] == position, source[at], x[index])

        return te.compute(shape, value, name="select_scatter")

    return call.compute("select_scatter", make, x, call.tensor(source, dtype_of(x)))


def scatter(call: Call) -> Any:
    """x[i, index[i, j], …] replaced by, or combined with, elements of a source; of a number where it is one."""
    from tvm import relax

    x, axis, index, source = call.arguments[:4]
    name = call.overload._schema.name
    reduction = "add" if name.endswith("_add") else call.named.get("reduce")
    names = {None: "update", "add": "add", "sum": "add", "multiply": "mul", "prod": "mul", "amax": "max", "amin": "min"}
    if reduction not in names or call.named.get("include_self") is False:
        raise UserError(
            f"{call.overload} in {call.node.name} combines by {reduction!r}, include_self="
            f"{call.named.get('include_self', True)}; sum, prod, amax and amin of all elements are supported."
        )
    shape = shape_of(index)
    if not is_tensor(source):
        source = np.full(shape, source, dtype_of(x))
    else:
        for place, size in enumerate(shape):
            source = strided(call, source, place, 0, size)
    return call.emit(
        relax.op.scatter_elements(
            x, index, call.tensor(source), axis=axis % len(shape_of(x)), reduction=names[reduction]
        )
    )


def reshape(call: Call) -> Any:
    return _reshape(call, call.arguments[0], call.shape)


def _reshape(call: Call, x: Any, shape: Sequence[int]) -> Any:
    from tvm import relax

    return x if shape_of(x) == tuple(shape) else call.emit(relax.op.reshape(x, tuple(shape)))


OPERATORS: dict[str, Converter] = {
    "slice.Tensor": slice_tensor,
    "split.Tensor": split,
    "split_with_sizes.default": split,
    "select.int": select,
    "index.Tensor": index_tensor,
    "index_select.default": index_select,
    "embedding.default": embedding,
    "gather.default": gather,
    "roll.default": roll,
    "flip.default": flip,
    "pad.default": pad,
    "constant_pad_nd.default": pad,
    "unfold.default": unfold,
    "diagonal.default": diagonal,
    "as_strided.default": as_strided,
    "repeat.default": repeat,
    "slice_scatter.default": slice_scatter,
    "select_scatter.default": select_scatter,
    "scatter.src": scatter,
    "scatter.value": scatter,
    "scatter.reduce": scatter,
    "scatter_add.default": scatter,
    "scatter_reduce.two": scatter,
    "squeeze.dim": reshape,
    "squeeze.dims": reshape,
    "squeeze.default": reshape,
    "unsqueeze.default": reshape,
    "view.default": reshape,
}
