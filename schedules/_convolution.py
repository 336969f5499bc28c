"""A fused NCHW convolution read off its TensorIR: sizes, steps, borders, and what follows the sum.

Rules decide by these figures and by nothing else, so a kernel's name never matters: what is read here is proved from
the loops' kinds and the indices, and anything else (other layouts, dtypes, symbolic shapes) is no convolution to them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import tvm
import tvm_ffi
from tvm import s_tir, sym, tirx
from tvm.ir import TensorLoad

from tvmflow.toolchain import tvm_target_dict

if TYPE_CHECKING:
    from tvmflow.spec import Target

Expr = Any
"""A tvm.ir.Expr or a Python number."""

INDEX_LIMIT = 1 << 31  # the loops that rules write count in 32 bits

THREAD_MACS_PER_LANE = 16_384
"""Multiply-adds for each lane of a vector from which a kernel is shared among threads."""


@dataclass(frozen=True, kw_only=True)
class Convolution:
    """out[n, f, y, x] = finish(Σ data[n, c, y·stride + r·dilation − pad, …] · weight[f, c, r, s], (n, f, y, x)).

    All pairs are (vertical, horizontal). `pad` is the border above and to the left; the border of zeros below and to
    the right is as wide as the outputs need. With `depthwise`, c is f and the sum goes over r and s only.
    """

    func: tirx.PrimFunc
    data: tirx.Buffer
    weight: tirx.Buffer
    output: tirx.Buffer
    batch: int
    in_channels: int
    channels: int
    size: tuple[int, int]
    out_size: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    pad: tuple[int, int]
    depthwise: bool
    finish: Callable[[Expr, Sequence[Expr]], Expr]

    @property
    def macs(self) -> int:
        taps = self.kernel[0] * self.kernel[1] * (1 if self.depthwise else self.in_channels)
        return self.batch * self.channels * self.out_size[0] * self.out_size[1] * taps


def native_lanes(target: Target) -> int:
    """float32 lanes of one vector register."""
    return max(1, tvm.target.codegen.llvm_get_vector_width(_tvm_target(target)) // 32)


def vector_registers(target: Target) -> int:
    """Vector registers of that width: 32 with AVX-512 and on 64-bit ARM, 16 elsewhere."""
    triple = target.tvm.get("mtriple", target.triple)
    return 32 if triple.startswith("aarch64") or native_lanes(target) >= 16 else 16


def _tvm_target(target: Target) -> tvm.target.Target:
    return tvm.target.Target(tvm_target_dict(target))


def static_shape(buffer: tirx.Buffer) -> tuple[int, ...] | None:
    """The shape of a dense buffer of known size, else None."""
    if not all(isinstance(dim, tirx.IntImm) for dim in buffer.shape) or len(buffer.strides):
        return None
    shape = tuple(int(dim) for dim in buffer.shape)
    size = 1
    for dim in shape:
        size *= dim
    return shape if 0 < size < INDEX_LIMIT else None


def loads(node: Any) -> list[TensorLoad]:
    """Every element that an expression or statement reads."""
    found: list[TensorLoad] = []
    tvm_ffi.structural_walk(node, (TensorLoad, lambda load: found.append(load)))
    return found


def read_convolution(func: tirx.PrimFunc) -> Convolution | None:
    """The convolution that `func` computes, or None."""
    if not all(tirx.is_buffer_var(param) and static_shape(param) for param in func.params):
        return None
    blocks = _blocks(func)
    sums = [index for index, block in enumerate(blocks) if is_reduction(block)]
    if len(sums) != 1 or sums[0] > 1 or len(blocks) - sums[0] > 2:
        return None
    border = blocks[0] if sums[0] else None
    core = blocks[sums[0]]
    tail = blocks[-1] if len(blocks) > sums[0] + 1 else None

    axes = _axes(core)
    if axes is None:
        return None
    (n, f, y, x), (c, r, s) = axes
    extent = {iter_var.var: int(iter_var.dom.extent) for iter_var in core.iter_vars}
    product = _product(core)
    if product is None:
        return None
    weight = next((load for load in product if _same(load.indices, (f, c, r, s))), None)
    data = next((load for load in product if load is not weight), None)
    if weight is None or data is None or len(data.indices) != 4:
        return None
    if not weight.source.same_as(_param(func, weight.source)) or data.source.same_as(weight.source):
        return None

    # which element of the (bordered) input meets which weight
    vertical = _steps(data.indices[2], y, r, core)
    horizontal = _steps(data.indices[3], x, s, core)
    if vertical is None or horizontal is None or not _equal(data.indices[0], n, core):
        return None
    depthwise = extent[c] == 1 and _equal(data.indices[1], f + c, core)
    if not depthwise and not _equal(data.indices[1], c, core):
        return None

    bordered = static_shape(data.source)
    source, pad = data.source, (0, 0)
    if border is not None:
        inner = _border(border)
        if inner is None or not border.writes[0].source.same_as(source):
            return None
        source, pad = inner
    shape = static_shape(source)
    if bordered is None or shape is None or not source.same_as(_param(func, source)):
        return None
    if tuple(str(buffer.dtype) for buffer in (source, weight.source)) != ("float32", "float32"):
        return None
    if static_shape(weight.source) != (extent[f], extent[c], extent[r], extent[s]):
        return None
    if shape[0] != extent[n] or shape[1] != (extent[f] if depthwise else extent[c]) or bordered[:2] != shape[:2]:
        return None
    for axis, (out, tap, (stride, dilation)) in enumerate(((y, r, vertical), (x, s, horizontal))):
        if (extent[out] - 1) * stride + (extent[tap] - 1) * dilation >= bordered[2 + axis]:
            return None

    total = core.writes[0].source
    if static_shape(total) != (extent[n], extent[f], extent[y], extent[x]) or str(total.dtype) != "float32":
        return None
    if tail is None:
        output, finish = total, lambda value, indices: value
        if not total.same_as(_param(func, total)):
            return None
    else:
        output = tail.writes[0].source
        finish = _finish(tail, total)
        if finish is None or static_shape(output) != static_shape(total) or not output.same_as(_param(func, output)):
            return None
        if _param(func, total) is not None:
            return None
        if any(_param(func, load.source) is None for load in loads(tail.body) if not load.source.same_as(total)):
            return None
    return Convolution(
        func=func,
        data=source,
        weight=weight.source,
        output=output,
        batch=extent[n],
        in_channels=shape[1],
        channels=extent[f],
        size=(shape[2], shape[3]),
        out_size=(extent[y], extent[x]),
        kernel=(extent[r], extent[s]),
        stride=(vertical[0], horizontal[0]),
        dilation=(vertical[1], horizontal[1]),
        pad=pad,
        depthwise=depthwise,
        finish=finish,
    )


def _blocks(func: tirx.PrimFunc) -> list[s_tir.SBlock]:
    """The kernel's blocks in order, after element-wise ones have been folded into those that read them."""
    sch = s_tir.Schedule(func)
    names = sch.get_child_blocks(sch.get_sblock("root"))
    plain = all(is_plain(sch, name) for name in names)
    last_sum = max((index for index, name in enumerate(names) if is_reduction(sch.get(name))), default=None)
    if not plain or last_sum is None:
        return []
    try:
        for name in names[last_sum + 1 : -1]:
            sch.compute_inline(name)
    except s_tir.ScheduleError:  # it isn't element-wise, or more than the next block reads it
        return []
    return [sch.get(name) for name in (*names[: last_sum + 1], *names[last_sum + 1 :][-1:])]


def is_plain(sch: s_tir.Schedule, name: s_tir.schedule.SBlockRV) -> bool:
    """One store for each point of a box that starts at 0, each loop being one axis of it."""
    block, around = sch.get(name), [sch.get(loop) for loop in sch.get_loops(name)]
    return (
        isinstance(block.body, tirx.BufferStore)
        and len(block.writes) == 1
        and len(around) == len(block.iter_vars)
        and all(loop.kind == tirx.ForKind.SERIAL and int(loop.min) == 0 for loop in around)
        and all(
            isinstance(axis.dom.extent, tirx.IntImm)
            and isinstance(loop.extent, tirx.IntImm)
            and int(axis.dom.min) == 0
            and int(axis.dom.extent) == int(loop.extent)
            for axis, loop in zip(block.iter_vars, around, strict=True)
        )
    )


def is_reduction(block: s_tir.SBlock) -> bool:
    return any(axis.iter_type != tirx.IterVar.DataPar for axis in block.iter_vars)


def _axes(core: s_tir.SBlock) -> tuple[list[tirx.Var], list[tirx.Var]] | None:
    """Its axes (n, f, y, x) by the place where they index the output, and (c, r, s)."""
    spatial = [axis.var for axis in core.iter_vars if axis.iter_type == tirx.IterVar.DataPar]
    reduced = [axis.var for axis in core.iter_vars if axis.iter_type == tirx.IterVar.CommReduce]
    if len(spatial) != 4 or len(reduced) != 3 or len(core.iter_vars) != 7:
        return None
    return (spatial, reduced) if _same(core.body.indices, spatial) else None


def _product(core: s_tir.SBlock) -> tuple[TensorLoad, TensorLoad] | None:
    """The factors of a block that computes total += a · b from 0."""
    store, start = core.body, core.init
    if not isinstance(start, tirx.BufferStore) or not start.buffer.same_as(store.buffer):
        return None
    if not _same(start.indices, store.indices) or not _is_zero(start.value) or not isinstance(store.value, tirx.Add):
        return None
    for before, term in ((store.value.a, store.value.b), (store.value.b, store.value.a)):
        if (
            isinstance(before, TensorLoad)
            and before.source.same_as(store.buffer)
            and _same(before.indices, store.indices)
            and isinstance(term, tirx.Mul)
            and isinstance(term.a, TensorLoad)
            and isinstance(term.b, TensorLoad)
        ):
            return term.a, term.b
    return None


def _steps(index: Expr, out: tirx.Var, tap: tirx.Var, core: s_tir.SBlock) -> tuple[int, int] | None:
    """(a, b) if `index` is a · out + b · tap, both positive."""
    names = [axis.var for axis in core.iter_vars]

    def at(**values: int) -> int | None:
        found = {out: values.get("out", 0), tap: values.get("tap", 0)}
        point = {name: tirx.const(found.get(name, 0), str(name.ty.dtype)) for name in names}
        value = sym.Analyzer().simplify(substitute(index, point))
        return int(value) if isinstance(value, tirx.IntImm) else None

    stride, dilation = at(out=1), at(tap=1)
    if not stride or not dilation or min(stride, dilation) < 1 or not _equal(index, out * stride + tap * dilation, core):
        return None
    return stride, dilation


def _border(block: s_tir.SBlock) -> tuple[tirx.Buffer, tuple[int, int]] | None:
    """The buffer that a block surrounds with zeros, and the border above and to the left."""
    store, (n, c, y, x) = block.body, [axis.var for axis in block.iter_vars] if len(block.iter_vars) == 4 else (None,) * 4
    if n is None or not _same(store.indices, (n, c, y, x)):
        return None
    value, conditions = store.value, []
    if isinstance(value, tvm.ir.Call) and value.op.same_as(tvm.ir.Op.get("prim.if_then_else")):
        condition, value, zero = value.args
        if not _is_zero(zero):
            return None
        conditions = list(_conjuncts(condition))
    if not isinstance(value, TensorLoad) or not _same(value.indices[:2], (n, c)):
        return None
    shape = static_shape(value.source)
    if shape is None or len(shape) != 4:
        return None
    pad, allowed = [], []
    for axis, var in ((2, y), (3, x)):
        offset = sym.Analyzer().simplify(var - value.indices[axis])
        if not isinstance(offset, tirx.IntImm) or int(offset) < 0:
            return None
        pad.append(int(offset))
        low, high = (tirx.const(int(offset) + length, str(var.ty.dtype)) for length in (0, shape[axis]))
        allowed += [tirx.LE(low, var), tirx.GE(var, low), tirx.LT(var, high), tirx.GT(high, var)]
    if not all(any(tvm_ffi.structural_equal(condition, known) for known in allowed) for condition in conditions):
        return None
    # a missing condition can't hide a border: the read would leave the buffer there
    return value.source, (pad[0], pad[1])


def _finish(tail: s_tir.SBlock, total: tirx.Buffer) -> Callable[[Expr, Sequence[Expr]], Expr] | None:
    """What the last block makes of the sum at the same place, as a function."""
    axes = [axis.var for axis in tail.iter_vars]
    if not _same(tail.body.indices, axes):
        return None
    if not all(_same(load.indices, axes) for load in loads(tail.body.value) if load.source.same_as(total)):
        return None

    def finish(value: Expr, indices: Sequence[Expr]) -> Expr:
        replaced = tvm_ffi.structural_map(
            tail.body.value, (TensorLoad, lambda load: value if load.source.same_as(total) else load), order="post"
        )
        return substitute(replaced, dict(zip(axes, indices, strict=True)))

    return finish


def _conjuncts(condition: Expr) -> Iterator[Expr]:
    if isinstance(condition, tirx.And):
        yield from _conjuncts(condition.a)
        yield from _conjuncts(condition.b)
    else:
        yield condition


def substitute(node: Expr, values: dict[tirx.Var, Expr]) -> Expr:
    return tvm_ffi.structural_map(node, (tirx.Var, lambda var: values.get(var, var)), order="post")


def _same(found: Sequence[Expr], expected: Sequence[Expr]) -> bool:
    return len(found) == len(expected) and all(tvm_ffi.structural_equal(a, b) for a, b in zip(found, expected))


def _equal(found: Expr, expected: Expr, block: s_tir.SBlock) -> bool:
    analyzer = sym.Analyzer()
    for axis in block.iter_vars:
        analyzer.bind(axis.var, axis.dom)
    return analyzer.can_prove_equal(found, expected)


def _is_zero(value: Expr) -> bool:
    return isinstance(value, (tirx.FloatImm, tirx.IntImm)) and value.value == 0


def _param(func: tirx.PrimFunc, buffer: tirx.Buffer) -> tirx.Buffer | None:
    return next((param for param in func.params if param.same_as(buffer)), None)


def starts(length: int, tile: int) -> tuple[int, Callable[[Expr], Expr]]:
    """How many tiles cover an axis, and where each begins; the last begins early rather than reach beyond the end."""
    count = -(-length // tile)
    if length % tile == 0:
        return count, lambda index: index * tile
    return count, lambda index: tirx.min(index * tile, length - tile)


def worth_threads(macs: int, target: Target) -> bool:
    """Whether a kernel has work enough for starting threads to pay."""
    return target.cpu.cores > 1 and macs >= THREAD_MACS_PER_LANE * native_lanes(target)
