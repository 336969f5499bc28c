"""Whether the threads of a scheduled kernel read only what is theirs: schedules from elsewhere don't always see to it.

TVM's primitives keep what a kernel computes if its loops run one after the other. Bound to threads they don't: a number
in a thread's own memory is lost for all others, what is in shared memory for all other blocks, and what one thread of a
launch writes to global memory another can't yet read. `owned` finds this by going through the indices of some threads.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from tvm import s_tir, tirx
from tvm.ir import TensorLoad

from tvmflow.schedules.expressions import evaluate

SAMPLES = 8
"""Threads whose memory is looked at, beside the first and the last."""
MOST_POINTS = 1 << 20
"""Of the loops around an access; beyond, nothing is proved."""
BLOCK, THREAD = "blockIdx", "threadIdx"


@dataclass(frozen=True, kw_only=True)
class Access:
    """A load or store: what its indices and conditions depend on are loop variables and `values`."""

    buffer: tirx.Buffer
    indices: tuple[Any, ...]
    loops: tuple[tirx.For, ...]
    values: Mapping[Any, Any]
    conditions: tuple[Any, ...]
    stores: bool


def has_threads(statement: Any) -> bool:
    """Whether a statement starts threads by itself, as TVM's sorting does; such kernels stay as they are."""
    found: list[Any] = []
    tvm_ffi.structural_walk(statement, (tirx.AttrStmt, lambda node: found.append(node.attr_key)))
    return "thread_extent" in found


def owned(func: tirx.PrimFunc) -> bool:
    """Whether each thread's or block's loads of what the kernel's launches keep to themselves are of its own stores."""
    params = set(func.params)
    root = func.body.block
    steps = root.body.seq if isinstance(root.body, tirx.SeqStmt) else [root.body]
    for step in steps:
        if has_threads(step):
            continue
        found = defaultdict(list)
        for access in _accesses(step, (), {}, ()):
            if access.buffer not in params or access.stores:
                found[access.buffer].append(access)
        if not all(_own(buffer, accesses) for buffer, accesses in found.items()):
            return False
    return True


def _own(buffer: tirx.Buffer, accesses: list[Access]) -> bool:
    if all(access.stores for access in accesses) or not any(access.stores for access in accesses):
        return True  # another launch has written it, or will read it
    axes = (BLOCK,) if buffer.scope().startswith("shared") else (BLOCK, THREAD)
    extents: dict[str, int] = {}
    for loop in (loop for access in accesses for loop in access.loops if _tag(loop).startswith(axes)):
        extents[_tag(loop)] = max(extents.get(_tag(loop), 1), int(loop.extent))
    random = np.random.default_rng(0)
    places = [dict.fromkeys(extents, 0), {tag: extent - 1 for tag, extent in extents.items()}]
    places += [{tag: int(random.integers(extent)) for tag, extent in extents.items()} for _ in range(SAMPLES)]
    for place in places:
        stored: set[int] = set()
        loaded: set[int] = set()
        for access in accesses:
            elements = _elements(access, place)
            if elements is None:
                return False
            (stored if access.stores else loaded).update(elements)
        if not loaded <= stored:
            return False
    return True


def _elements(access: Access, place: Mapping[str, int]) -> set[int] | None:
    """The elements that the thread or block at `place` touches; None if that can't be told."""
    needed: set[Any] = set()
    for node in (*access.indices, *access.conditions):
        _note_variables(node, access.values, needed)
    for loop in reversed(access.loops):
        if loop.loop_var in needed:
            _note_variables(loop.extent, access.values, needed)
    values: dict[Any, np.ndarray] = {}
    active: Any = np.asarray(True)
    axes = sum(loop.loop_var in needed for loop in access.loops)
    points, axis = 1, 0
    for loop in access.loops:
        if _tag(loop) in place:
            if place[_tag(loop)] >= int(loop.extent):
                return set()
            values[loop.loop_var] = np.asarray(place[_tag(loop)])
        elif loop.loop_var in needed:
            extent = _value(loop.extent, access.values, values)
            if extent is None or (points := points * max(1, int(extent.max()))) > MOST_POINTS:
                return None
            shape = [1] * axes
            shape[axis] = -1
            values[loop.loop_var] = np.arange(int(extent.max())).reshape(shape)
            active = active & (values[loop.loop_var] < extent)
            axis += 1
    for condition in access.conditions:
        holds = _value(condition, access.values, values)
        if holds is None:
            return None
        active = active & (holds != 0)
    index: Any = np.asarray(0)
    for dim, node in zip(access.buffer.shape, access.indices, strict=True):
        found = _value(node, access.values, values)
        if found is None:
            return None
        index = index * int(dim) + found
    index, active = np.broadcast_arrays(index, active)
    return set(index[active].tolist())


def _value(node: Any, meaning: Mapping[Any, Any], values: dict[Any, np.ndarray]) -> np.ndarray | None:
    """`node` in numbers, the variables that `meaning` explains included."""
    used: set[Any] = set()
    _note_variables(node, meaning, used)
    for var, meant in meaning.items():
        if var in used and var not in values and (found := evaluate(meant, values)) is not None:
            values[var] = found
    return evaluate(node, values)


def _note_variables(node: Any, values: Mapping[Any, Any], found: set[Any]) -> None:
    """Add the variables that `node` depends on, those that `values` are made of included."""

    def note(var: tirx.Var) -> None:
        if var not in found:
            found.add(var)
            if var in values:
                _note_variables(values[var], values, found)

    tvm_ffi.structural_walk(node, (tirx.Var, note))


def _tag(loop: tirx.For) -> str:
    return str(loop.thread_binding.thread_tag) if loop.kind == tirx.ForKind.THREAD_BINDING else ""


def _accesses(
    node: Any, loops: tuple[tirx.For, ...], values: Mapping[Any, Any], conditions: tuple[Any, ...]
) -> Iterator[Access]:
    """All loads and stores of a statement or expression, in no order."""
    if isinstance(node, tirx.For):
        yield from _accesses(node.body, (*loops, node), values, conditions)
    elif isinstance(node, s_tir.SBlockRealize):
        block = node.block
        inner = {**values, **dict(zip((axis.var for axis in block.iter_vars), node.iter_values, strict=True))}
        for part in filter(None, (block.init, block.body)):
            yield from _accesses(part, loops, inner, (*conditions, node.predicate))
    elif isinstance(node, tirx.SeqStmt):
        for step in node.seq:
            yield from _accesses(step, loops, values, conditions)
    elif isinstance(node, tirx.IfThenElse):
        yield from _branches(node.condition, node.then_case, node.else_case, loops, values, conditions)
    elif isinstance(node, tvm.ir.Call) and getattr(node.op, "name", "").endswith("if_then_else"):
        condition, then, otherwise = node.args
        yield from _branches(condition, then, otherwise, loops, values, conditions)
    elif isinstance(node, (tirx.BufferStore, TensorLoad)):
        stores = isinstance(node, tirx.BufferStore)
        yield Access(
            buffer=node.buffer if stores else node.source,
            indices=tuple(node.indices),
            loops=loops,
            values=values,
            conditions=conditions,
            stores=stores,
        )
        for part in (*node.indices, *((node.value,) if stores else ())):
            yield from _accesses(part, loops, values, conditions)
    else:
        for name in ("a", "b", "value", "body", "condition", "true_value", "false_value"):
            if isinstance(part := getattr(node, name, None), tvm.runtime.Object):
                yield from _accesses(part, loops, values, conditions)
        for part in getattr(node, "args", ()):
            yield from _accesses(part, loops, values, conditions)


def _branches(
    condition: Any,
    then: Any,
    otherwise: Any,
    loops: tuple[tirx.For, ...],
    values: Mapping[Any, Any],
    conditions: tuple[Any, ...],
) -> Iterator[Access]:
    yield from _accesses(condition, loops, values, conditions)
    yield from _accesses(then, loops, values, (*conditions, condition))
    if otherwise is not None:
        yield from _accesses(otherwise, loops, values, (*conditions, tirx.Not(condition)))
