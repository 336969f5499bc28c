"""Reductions over axes: sums, products, extremes and their places, norms, running sums."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from tvmflow.network.aten.arithmetic import broadcast_index, differ, truth
from tvmflow.network.aten.call import Call, Converter, axes_of, dtype_of, is_floating, shape_of


def extreme(dtype: str, *, largest: bool) -> Any:
    """The largest or smallest value of a dtype: infinite if it is a float's."""
    from tvm import tirx

    if is_floating(dtype):
        return tirx.const(math.inf if largest else -math.inf, dtype)
    if dtype == "bool":
        return tirx.const(largest, "bool")
    return tirx.max_value(dtype) if largest else tirx.min_value(dtype)


def maximum_of(dtype: str, *, largest: bool) -> Callable[..., Any]:
    """A reducer to the largest or smallest element, that starts from infinity."""
    from tvm import te, tirx

    combine = tirx.max if largest else tirx.min
    return te.comm_reducer(
        lambda old, new: combine(old, new),
        lambda _: extreme(dtype, largest=not largest),
        name="max" if largest else "min",
    )


def first_extreme(dtype: str, *, largest: bool, last_nan: bool = False) -> Callable[..., Any]:
    """A reducer of (place, value): NaN beats all numbers, and the lower place wins among equals.

    `last_nan`: the higher place wins among NaNs, as in PyTorch's pooling.

    A place of −1 stands for nothing, which every element beats, infinity included.
    """
    from tvm import te, tirx

    def combine(old: Sequence[Any], new: Sequence[Any]) -> tuple[Any, Any]:
        beats = new[1] > old[1] if largest else new[1] < old[1]
        equal = new[1] == old[1]
        if is_floating(dtype):
            old_nan, new_nan = tirx.isnan(old[1]), tirx.isnan(new[1])
            beats = tirx.Or(beats, tirx.And(new_nan, tirx.Not(old_nan)))
            both = tirx.And(new_nan, old_nan)
            if last_nan:
                beats = tirx.Or(beats, tirx.And(both, new[0] > old[0]))
            else:
                equal = tirx.Or(equal, both)
        wins = tirx.Or(beats, tirx.And(equal, new[0] < old[0]))
        wins = tirx.And(new[0] >= 0, tirx.Or(old[0] < 0, wins))
        return tirx.Select(wins, new[0], old[0]), tirx.Select(wins, new[1], old[1])

    def nothing(place: str, _: str) -> tuple[Any, Any]:
        return tirx.const(-1, place), extreme(dtype, largest=not largest)

    return te.comm_reducer(combine, nothing, name="first_extreme")


def reduce(call: Call, name: str, x: Any, axes: Sequence[int], make: Callable[..., Any]) -> Any:
    """`make(x, index, axes)` gives the reduction of the elements at `index`; axes stay away or have length 1."""
    from tvm import te

    shape = shape_of(x)
    kept = [axis for axis in range(len(shape)) if axis not in axes]

    def compute(x: Any) -> Any:
        steps = {axis: te.reduce_axis((0, shape[axis]), name=f"r{axis}") for axis in axes}

        def value(*index: Any) -> Any:
            where = dict(zip(kept, index, strict=True)) | steps
            return make(x, tuple(where[axis] for axis in range(len(shape))), list(steps.values()))

        return te.compute([shape[axis] for axis in kept], value, name=name)

    return call.compute(name, compute, x)


def reshaped(call: Call, value: Any, shape: Sequence[int] | None = None) -> Any:
    from tvm import relax

    wanted = tuple(call.shape if shape is None else shape)
    return value if shape_of(value) == wanted else call.emit(relax.op.reshape(value, wanted))


def extremes(largest: bool) -> Converter:
    """amax, amin, max and min without places."""

    def convert(call: Call) -> Any:
        x, dim = call.arguments[0], call.named.get("dim")
        axes = axes_of(dim, len(shape_of(x)))
        if not axes:
            return x
        reducer = maximum_of(dtype_of(x), largest=largest)
        name = "max" if largest else "min"
        return reshaped(call, reduce(call, name, x, axes, lambda x, index, steps: reducer(x[index], axis=steps)))

    return convert


def extremes_and_places(largest: bool, *, values: bool) -> Converter:
    """max.dim and min.dim (both), argmax and argmin (places alone), NaN first and the first of equals."""

    def convert(call: Call) -> Any:
        from tvm import relax, te

        x, dim = call.arguments[0], call.named.get("dim")
        if dim is None:
            x = reshaped(call, x, (math.prod(shape_of(x)),))
        if not shape_of(x):
            x = reshaped(call, x, (1,))
        axis = (dim or 0) % len(shape_of(x))
        shape = shape_of(x)
        first = first_extreme(dtype_of(x), largest=largest)

        def make(x: Any) -> Any:
            step = te.reduce_axis((0, shape[axis]), name="r")

            def value(*index: Any) -> Any:
                return first((step.var.astype("int64"), x[(*index[:axis], step, *index[axis:])]), axis=step)

            kept = [*shape[:axis], *shape[axis + 1 :]]
            return list(te.compute(kept, value, name="extreme"))

        places, found = (call.emit(relax.TupleGetItem(call.compute("argmax", make, x), n)) for n in range(2))
        places = reshaped(call, places)
        return [reshaped(call, found), places] if values else places

    return convert


def total(call: Call) -> Any:
    """sum and mean in the dtype that PyTorch sums in; TVM's own operators."""
    return _summed(call, mean=False)


def mean(call: Call) -> Any:
    return _summed(call, mean=True)


def _summed(call: Call, *, mean: bool) -> Any:
    from tvm import relax

    x = call.tensor(call.arguments[0], call.dtype)
    axes = axes_of(call.named.get("dim"), len(shape_of(x)))
    if not axes:
        return x
    keep = bool(call.named.get("keepdim"))
    return call.emit((relax.op.mean if mean else relax.op.sum)(x, axes, keepdims=keep))


def product(call: Call) -> Any:
    from tvm import relax

    x = call.tensor(call.arguments[0], call.dtype)
    axes = axes_of(call.named.get("dim"), len(shape_of(x)))
    return call.emit(relax.op.prod(x, axes, keepdims=bool(call.named.get("keepdim")))) if axes else x


def some(call: Call) -> Any:
    """any: whether an element isn't 0."""
    from tvm import te, tirx

    x = call.arguments[0]
    axes = axes_of(call.named.get("dim"), len(shape_of(x)))
    found = te.comm_reducer(lambda old, new: tirx.Or(old, new), lambda _: tirx.const(False, "bool"), name="any")
    if not axes:
        return truth(call, x)
    zero = tirx.const(0, dtype_of(x))
    return reshaped(
        call, reduce(call, "any", x, axes, lambda x, index, steps: found(differ(x(*index), zero), axis=steps))
    )


def log_sum_exp(call: Call) -> Any:
    """log ∑ exp(x − max) + max, where an infinite maximum isn't subtracted, for ∞ − ∞ is NaN."""
    from tvm import te, tirx

    x, dim, _ = call.arguments
    axes, dtype = axes_of(dim, len(shape_of(x))), dtype_of(x)
    reducer = maximum_of(dtype, largest=True)
    largest = reduce(call, "max", x, axes, lambda x, index, steps: reducer(x[index], axis=steps))
    kept = [axis for axis in range(len(shape_of(x))) if axis not in axes]

    def shift(value: Any) -> Any:
        return tirx.Select(tirx.isinf(value), tirx.const(0, dtype), value)

    def make(x: Any, largest: Any) -> Any:
        steps = {axis: te.reduce_axis((0, x.shape[axis]), name=f"r{axis}") for axis in axes}

        def exponentials(*index: Any) -> Any:
            where = dict(zip(kept, index, strict=True)) | steps
            at = tuple(where[axis] for axis in range(len(x.shape)))
            return te.sum(tirx.exp(x[at] - shift(largest[index])), list(steps.values()))

        sums = te.compute(largest.shape, exponentials, name="exponentials")
        return te.compute(largest.shape, lambda *index: tirx.log(sums[index]) + shift(largest[index]), name="logarithm")

    return reshaped(call, call.compute("logsumexp", make, x, largest))


def vector_norm(call: Call) -> Any:
    """linalg_vector_norm: by its definition for orders 0, 1, 2 and ±∞, where powers would cost and lose digits."""
    from tvm import relax, te, tirx

    x, order, dim, _, _ = call.arguments
    x = call.tensor(x, call.dtype)
    axes, dtype = axes_of(dim, len(shape_of(x))), call.dtype
    if not axes:
        x, axes = reshaped(call, x, (1,)), [0]
    if abs(order) == math.inf:
        reducer = maximum_of(dtype, largest=order > 0)
        return reshaped(
            call, reduce(call, "norm", x, axes, lambda x, index, steps: reducer(tirx.abs(x[index]), axis=steps))
        )
    terms: dict[float, Callable[[Any], Any]] = {
        0: lambda x: tirx.Select(differ(x, tirx.const(0, dtype)), tirx.const(1, dtype), tirx.const(0, dtype)),
        1: tirx.abs,
        2: lambda x: x * x,
    }
    term = terms.get(order, lambda x: tirx.pow(tirx.abs(x), tirx.const(order, dtype)))
    sums = reduce(call, "norm", x, axes, lambda x, index, steps: te.sum(term(x(*index)), steps))
    if order == 2:
        sums = call.emit(relax.op.sqrt(sums))
    elif order not in (0, 1):
        sums = call.emit(relax.op.power(sums, relax.const(1 / order, dtype)))
    return reshaped(call, sums)


def distances(call: Call) -> Any:
    """_cdist_forward: norms of order p of the differences of all pairs of rows."""
    from tvm import te, tirx

    x, y, order, _ = call.arguments
    shape, dtype, width = call.shape, call.dtype, shape_of(x)[-1]
    reducer = maximum_of(dtype, largest=True)

    def make(x: Any, y: Any) -> Any:
        step = te.reduce_axis((0, width), name="r")

        def value(*index: Any) -> Any:
            row, column = ((*index[:-2], at, step) for at in index[-2:])
            apart = tirx.abs(x(*broadcast_index(x.shape, row)) - y(*broadcast_index(y.shape, column)))
            if order == math.inf:
                return reducer(apart, axis=step)
            if order == 0:
                zero, one = tirx.const(0, dtype), tirx.const(1, dtype)
                return te.sum(tirx.Select(differ(apart, zero), one, zero), step)
            return te.sum({1: apart, 2: apart * apart}.get(order, tirx.pow(apart, tirx.const(order, dtype))), step)

        sums = te.compute(shape, value, name="distances")
        if order in (0, 1, math.inf):
            return sums

        def root(total: Any) -> Any:
            return tirx.sqrt(total) if order == 2 else tirx.pow(total, tirx.const(1 / order, dtype))

        return te.compute(shape, lambda *index: root(sums(*index)), name="roots")

    return call.compute("cdist", make, x, y)


def running(kind: str) -> Converter:
    """cumsum and cumprod, of floats in float64 as PyTorch has it on CPUs: rounding would pile up along the axis."""

    def convert(call: Call) -> Any:
        from tvm import relax

        x = call.tensor(call.arguments[0], call.dtype)
        shape = shape_of(x)
        if not math.prod(shape) or not shape:
            return x
        axis = call.arguments[1] % len(shape)
        flat = (math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :]))
        kernel = call.builder.add_func(_scan(flat, call.dtype, kind), f"running_{kind}")
        given = relax.Tuple([reshaped(call, x, flat)])
        return reshaped(call, call.emit(relax.call_tir(kernel, given, relax.TensorType(flat, call.dtype))), shape)

    return convert


def _scan(shape: tuple[int, int, int], dtype: str, kind: str) -> Any:
    """A kernel that goes along the middle axis, for each row by itself."""
    from tvm.script import tirx as T

    outer, length, inner = shape
    wide = "float64" if is_floating(dtype) else dtype
    start = T.float64(kind == "product") if wide == "float64" else T.Cast(dtype, int(kind == "product"))

    @T.prim_func(private=True, s_tir=True)
    def scan(x: T.Buffer(shape, dtype), result: T.Buffer(shape, dtype)) -> None:  # type: ignore[valid-type]
        T.func_attr({"tirx.noalias": True})
        for i, k in T.grid(outer, inner):
            with T.sblock("scan"):
                v_i, v_k = T.axis.remap("SS", [i, k])
                T.reads(x[v_i, 0:length, v_k])
                T.writes(result[v_i, 0:length, v_k])
                so_far = T.alloc_buffer((1,), wide, scope="local")
                so_far[0] = start
                for j in T.serial(length):
                    if kind == "sum":
                        so_far[0] = so_far[0] + T.Cast(wide, x[v_i, j, v_k])
                    else:
                        so_far[0] = so_far[0] * T.Cast(wide, x[v_i, j, v_k])
                    result[v_i, j, v_k] = T.Cast(dtype, so_far[0])

    return scan


OPERATORS: dict[str, Converter] = {
    "amax.default": extremes(True),
    "amin.default": extremes(False),
    "max.default": extremes(True),
    "min.default": extremes(False),
    "max.dim": extremes_and_places(True, values=True),
    "min.dim": extremes_and_places(False, values=True),
    "argmax.default": extremes_and_places(True, values=False),
    "argmin.default": extremes_and_places(False, values=False),
    "sum.default": total,
    "sum.dim_IntList": total,
    "mean.default": mean,
    "mean.dim": mean,
    "prod.default": product,
    "prod.dim_int": product,
    "any.default": some,
    "any.dim": some,
    "any.dims": some,
    "logsumexp.default": log_sum_exp,
    "linalg_vector_norm.default": vector_norm,
    "_cdist_forward.default": distances,
    "cumsum.default": running("sum"),
    "cumprod.default": running("product"),
}
