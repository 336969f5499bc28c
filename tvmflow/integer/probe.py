"""What an operator of an imported network does, found out by asking its kernel: where elements go, or what becomes of
each.

Kernels of our own converters, and Relax's operators that only move elements, are compiled for this computer and run on
numbers that say which element they are. So every slice, roll, border of copies or gather by constant indices is known
exactly, without a description of it being kept anywhere. Functions of single elements are compiled likewise.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from tvm import relax

from tvmflow.integer.operators import OUTSIDE, Shape
from tvmflow.network.resampling import AXES, WEIGHTED

BROADCAST, INJECTIVE = 1, 2
"""TVM's OpPatternKind, as its analysis finds it."""
MOVES = frozenset(
    f"relax.{name}"
    for name in [
        "broadcast_to",
        "flip",
        "gather_elements",
        "gather_nd",
        "index_tensor",
        "layout_transform",
        "nn.pad",
        "nn.pixel_shuffle",
        "repeat",
        "strided_slice",
        "take",
        "tile",
    ]
)
"""Relax's operators that may do no more than to move elements, besides those that are known by their attributes."""
SUMS_OF_PATCHES = "col2im"
"""A kernel of ours that adds up what lies on one place, and only moves what it has where patches lie side by side."""
MOST_EXACT = 1 << 24
"""Integers up to here are float32 numbers."""


Resolve = Callable[[Any], Any]
Reduce = Callable[[np.ndarray, tuple[int, ...]], np.ndarray]


class UnreadableError(Exception):
    """A kernel couldn't be asked."""


def is_elementwise(module: Any, call: Any) -> bool:
    """Whether the call is a kernel of ours that computes each element from those at its place, and from numbers."""
    func = _kernel(module, call)
    if func is None or not hasattr(call.ty, "shape"):
        return False
    for field in call.args[1].fields:
        wanted = _shape(call) if isinstance(field, relax.Var) else ()
        if not hasattr(field.ty, "shape") or (_shape(field) != wanted and math.prod(_shape(field)) != 1):
            return False
    return _pattern(func) <= BROADCAST


def _kernel(module: Any, call: Any) -> Any:
    """The kernel that a `call_tir` calls."""
    if not isinstance(call, relax.Call) or call.op.name != "relax.call_tir":
        return None
    return module[call.args[0]]


def _pattern(func: Any) -> int:
    annotated = relax.transform.AnnotateTIROpPattern()(tvm.IRModule({"kernel": func}))["kernel"]
    return int((annotated.attrs or {}).get("op_pattern", 8))


def places_of(module: Any, call: Any, shape: Shape, var: Any) -> tuple[np.ndarray, float] | None:
    """Where each element of the result comes from in `var`, of `shape`: its number in order, or OUTSIDE; and what is
    there then, one number for all.

    None if the operator does more than to move elements.
    """
    count = math.prod(shape)
    order = np.arange(count).reshape(shape)
    name = call.op.name
    if name in ("relax.reshape", "relax.squeeze", "relax.expand_dims", "relax.flatten", "relax.nn.batch_flatten"):
        return order.reshape(_shape(call)), 0.0
    if name == "relax.permute_dims":
        axes = call.attrs.axes
        return order.transpose(None if axes is None else [int(axis) for axis in axes]), 0.0
    func = _kernel(module, call)
    patches = func is not None and call.args[0].name_hint.startswith(SUMS_OF_PATCHES)
    if name not in MOVES and not patches and (func is None or _pattern(func) > INJECTIVE):
        return None
    if count + 1 > MOST_EXACT or "float32" not in str(getattr(call.ty, "dtype", "")):
        return None
    run = _compiled(module, [(None, call)], var, shape, lambda read: var)
    first, second = (run((order + 1) * np.float32(sign)) for sign in (1, -1))
    # what was moved follows its sign; what is put in is the same both times
    moved = second == -first
    added = np.unique(first[~moved])
    if len(added) > 1 or (first[~moved] != second[~moved]).any():
        return None
    inside = moved & (first != 0)
    places = np.where(inside, first, 0).astype(np.int64) - 1
    if (places[inside] < 0).any() or (places >= count).any() or (first[inside] != places[inside] + 1).any():
        return None
    if len(added) and (moved & ~inside).any():
        return None
    if patches:  # the numbers of two places add up to that of a third
        noise = np.random.default_rng(0).standard_normal(count, np.float32)
        if not np.array_equal(run(noise.reshape(shape)), np.where(inside, noise[places], 0)):
            return None
    return np.where(inside, places, OUTSIDE), float(added[0]) if len(added) else 0.0


def axes_of(
    module: Any, call: Any, shape: Shape, var: Any, reduce: Reduce, field: int | None = None
) -> tuple[int, ...] | None:
    """Along which axes of `var`, of `shape`, a kernel is `reduce`; None if it does something else.

    Of a kernel of several results, `field` is the one that is asked.
    """
    x = np.random.default_rng(0).standard_normal(shape, np.float32)
    found = _compiled(module, [(None, call)], var, shape, lambda read: var, field)(x).reshape(-1)
    several = [axis for axis in range(len(shape)) if shape[axis] > 1]
    for number in range(1, len(several) + 1):
        for axes in itertools.combinations(several, number):
            wanted = reduce(x.astype(np.float64), axes).reshape(-1)
            if wanted.shape == found.shape and np.allclose(found, wanted, rtol=1e-4, atol=1e-6):
                return axes
    return None


def tables_of(module: Any, call: Any) -> dict[int, tuple[np.ndarray, np.ndarray]] | None:
    """Of a kernel that resamples: for each axis that it does so along the places, outputs × taps, and their weights."""
    func = _kernel(module, call)
    if func is None or not func.attrs or AXES not in func.attrs:
        return None
    axes = [int(axis) for axis in func.attrs[AXES]]
    weighted = [int(axis) for axis in func.attrs[WEIGHTED]]
    given = [field.value.numpy() for field in call.args[1].fields if hasattr(field, "value")]
    places, weights = given[: len(axes)], dict(zip(weighted, given[len(axes) :], strict=True))
    return {
        axis: (table.astype(np.int32), np.asarray(weights.get(axis, np.ones(table.shape)), np.float64))
        for axis, table in zip(axes, places, strict=True)
    }


def function_of(
    module: Any, steps: Sequence[tuple[Any, Any]], root: Any, shape: Shape, resolved: Resolve
) -> Callable[[np.ndarray], np.ndarray]:
    """The value of the last of `steps`, bindings in order, float32, for one of the variable `root`.

    `resolved` gives of a variable the one that it is another name of. Raises UnreadableError.
    """
    return _compiled(module, steps, root, shape, resolved)


_KNOWN: dict[Any, tuple[Any, Any]] = {}
"""Modules that were compiled, by their structural hash."""


def _compiled(
    module: Any,
    steps: Sequence[tuple[Any, Any]],
    root: Any,
    shape: Shape,
    resolved: Resolve,
    field: int | None = None,
) -> Callable[[np.ndarray], np.ndarray]:
    """The last step's value, or a field of it, as a function of `root`. Raises UnreadableError."""
    try:
        small = _function_module(module, steps, root, shape, resolved, field)
        key = tvm_ffi.structural_hash(small)
        for known, machine in _KNOWN.get(key, ()):
            if tvm_ffi.structural_equal(known, small):
                return _runner(machine)
        with tvm.transform.PassContext(opt_level=2):
            machine = relax.VirtualMachine(tvm.compile(small, "llvm"), tvm.cpu())
    except (tvm.error.InternalError, RuntimeError, ValueError, TypeError, KeyError) as error:
        raise UnreadableError(str(error)) from error
    _KNOWN[key] = (*_KNOWN.get(key, ()), (small, machine))
    return _runner(machine)


def _runner(machine: Any) -> Callable[[np.ndarray], np.ndarray]:
    def run(x: np.ndarray) -> np.ndarray:
        return machine["main"](tvm.runtime.tensor(np.ascontiguousarray(x, np.float32))).numpy()

    return run


def _function_module(
    module: Any, steps: Sequence[tuple[Any, Any]], root: Any, shape: Shape, resolved: Resolve, field: int | None
) -> Any:
    """`main`, which takes `root` and gives the last step's value, or a field of it."""
    builder = relax.BlockBuilder()
    param = relax.Var("x", relax.TensorType(shape, "float32"))
    values: dict[Any, Any] = {root: param}
    kernels: dict[str, Any] = {}

    def replaced(value: Any) -> Any:
        if isinstance(value, relax.Var):
            return values[resolved(value)]
        if isinstance(value, relax.Tuple):
            return relax.Tuple([replaced(field) for field in value.fields])
        if isinstance(value, tvm.ir.GlobalVar):
            name = value.name_hint
            if name not in kernels:
                kernels[name] = builder.add_func(module[value], name)
            return kernels[name]
        return value

    with builder.function("main", [param]):
        with builder.dataflow():
            result: Any = param
            for var, call in steps:
                made = relax.Call(call.op, [replaced(arg) for arg in call.args], call.attrs, call.ty_args)
                result = builder.emit(made)
                if call.op.name == "relax.nn.batch_norm":
                    result = builder.emit(relax.TupleGetItem(result, 0))
                if var is not None:
                    values[var] = result
            out = builder.emit_output(result if field is None else relax.TupleGetItem(result, field))
        builder.emit_func_output(out)
    return builder.get()


def _shape(value: Any) -> Shape:
    return tuple(int(dim) for dim in value.ty.shape.values)
