"""A fused NCHW convolution read off its TensorIR: sizes, steps, borders, and what follows the sum.

Rules decide by these figures and by nothing else, so a kernel's name never matters: what is read here is proved from
the loops' kinds and the indices, and anything else (other layouts, dtypes, symbolic shapes) is no convolution to them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import tvm
import tvm_ffi
from tvm import s_tir, sym, tirx
from tvm.ir import TensorLoad
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from tvmflow.toolchain import tvm_target_dict

if TYPE_CHECKING:
    from tvmflow.spec import Target

Expr = Any
"""A tvm.ir.Expr or a Python number."""

MACHINE_X64 = (64, "x64")

INDEX_LIMIT = 1 << 31  # the loops that rules write count in 32 bits

LOOP_COST = 4
"""What one step over the input channels costs beside its loads and products, in instructions, by measurements."""

THREAD_MACS_PER_LANE = 16_384
"""Multiply-adds for each lane of a vector from which a kernel is shared among threads: about 3 µs of one Xeon core,
where two threads come even."""


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


@dataclass(frozen=True, kw_only=True)
class Vectors:
    """What the vector registers of a CPU allow.

    `lanes` are float32 in one register; `tiles` of sums, (rows of weights, vectors), leave registers for their factors;
    `unroll` steps of a reduction make one. LLVM loads all weights of a step first, to the stack if it must.
    """

    lanes: int
    tiles: tuple[tuple[int, int], ...]
    unroll: int


AVX512 = Vectors(lanes=16, tiles=((6, 4), (12, 2), (8, 2), (4, 4), (12, 1), (8, 1)), unroll=4)
AVX = Vectors(lanes=8, tiles=((6, 2), (5, 2), (4, 2), (4, 3), (8, 1)), unroll=4)
SSE = replace(AVX, lanes=4)
NEON = replace(AVX512, lanes=4)
NEON_32BIT = Vectors(lanes=4, tiles=((5, 2), (4, 2), (3, 3), (6, 1)), unroll=1)


def vectors_of(target: Target) -> Vectors:
    """The vector registers of a board's CPU."""
    if target.elf != MACHINE_X64:
        return NEON if target.elf[0] == 64 else NEON_32BIT
    # llvm_get_vector_width says 512 bits of every x86 processor
    described = tvm.target.Target(tvm_target_dict(target))
    has = tvm.target.codegen.target_has_features
    return AVX512 if has("avx512f", described) else AVX if has("avx", described) else SSE


def static_shape(buffer: tirx.Buffer) -> tuple[int, ...] | None:
    """The shape of a dense buffer of known size, else None."""
    if not all(isinstance(dim, tirx.IntImm) for dim in buffer.shape) or len(buffer.strides):
        return None
    shape = tuple(int(dim) for dim in buffer.shape)
    return shape if 0 < math.prod(shape) < INDEX_LIMIT else None


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
    finish: Callable[[Expr, Sequence[Expr]], Expr] | None
    if tail is None:
        output, finish = total, _unchanged
        if not total.same_as(_param(func, total)):
            return None
    else:
        output = tail.writes[0].source
        finish = _finish(tail, total)
        if finish is None or static_shape(output) != static_shape(total) or not output.same_as(_param(func, output)):
            return None
        others = [load.source for load in loads(tail.body.value) if not load.source.same_as(total)]
        if _param(func, total) is not None or any(_param(func, other) is None for other in others):
            return None
        if any(other.same_as(output) for other in others):  # rules may compute an element again
            return None
    if output.same_as(source) or output.same_as(weight.source):
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
    """One store for each point of a box of known size, a loop for each axis, and no place stored by two points."""
    block, around = sch.get(name), [sch.get(loop) for loop in sch.get_loops(name)]
    if not around or not isinstance(block.body, tirx.BufferStore) or len(block.writes) != 1:
        return False
    realized = around[-1].body
    if not isinstance(realized, s_tir.SBlockRealize) or not _is_true(realized.predicate):
        return False
    if not _same(realized.iter_values, [loop.loop_var for loop in around]):
        return False
    for axis, loop in zip(block.iter_vars, around, strict=True):
        extents = axis.dom.extent, loop.extent
        if loop.kind != tirx.ForKind.SERIAL or not all(isinstance(extent, tirx.IntImm) for extent in extents):
            return False
        if int(loop.min) != 0 or int(axis.dom.min) != 0 or int(extents[0]) != int(extents[1]):
            return False
    stored = [index for index in block.body.indices if isinstance(index, tirx.Var)]
    return all(
        any(axis.var.same_as(index) for index in stored)
        for axis in block.iter_vars
        if axis.iter_type == tirx.IterVar.DataPar and int(axis.dom.extent) > 1
    )


def is_reduction(block: s_tir.SBlock) -> bool:
    """Whether any of its axes is summed over, or the like."""
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
    if stride is None or dilation is None or min(stride, dilation) < 1:
        return None
    return (stride, dilation) if _equal(index, out * stride + tap * dilation, core) else None


def _border(block: s_tir.SBlock) -> tuple[tirx.Buffer, tuple[int, int]] | None:
    """The buffer that a block surrounds with zeros, and the border above and to the left."""
    axes = [axis.var for axis in block.iter_vars]
    if len(axes) != 4 or not _same(block.body.indices, axes):
        return None
    n, c, y, x = axes
    value, conditions = block.body.value, []
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


def _unchanged(value: Expr, indices: Sequence[Expr]) -> Expr:
    return value


def _conjuncts(condition: Expr) -> Iterator[Expr]:
    if isinstance(condition, tirx.And):
        yield from _conjuncts(condition.a)
        yield from _conjuncts(condition.b)
    else:
        yield condition


def substitute(node: Expr, values: dict[tirx.Var, Expr]) -> Expr:
    """`node` with variables replaced."""
    return tvm_ffi.structural_map(node, (tirx.Var, lambda var: values.get(var, var)), order="post")


def _same(found: Sequence[Expr], expected: Sequence[Expr]) -> bool:
    return len(found) == len(expected) and all(
        tvm_ffi.structural_equal(a, b) for a, b in zip(found, expected, strict=True)
    )


def _equal(found: Expr, expected: Expr, block: s_tir.SBlock) -> bool:
    analyzer = sym.Analyzer()
    for axis in block.iter_vars:
        analyzer.bind(axis.var, axis.dom)
    return analyzer.can_prove_equal(found, expected)


def _is_true(value: Expr) -> bool:
    return isinstance(value, tirx.IntImm) and int(value) == 1


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


def fitting(lanes: int, length: int) -> int:
    """The most lanes, a power of two, that an axis of this length fills."""
    return min(lanes, 1 << (length.bit_length() - 1))


def unfuse(index: Expr, *lengths: int) -> list[Expr]:
    """The indices of nested loops of these lengths from that of the one loop they are fused to."""
    found = []
    for length in reversed(lengths):
        found.append(tirx.floormod(index, length))
        index = tirx.floordiv(index, length)
    return found[::-1]


def cheapest_tile(channels: int, pixels: int, lanes: int, vectors: Vectors, most: int = INDEX_LIMIT) -> tuple[int, int]:
    """The tile of (channels, vectors of pixels) that should need the fewest instructions, no larger than `most`."""
    possible = [
        (rows, columns)
        for rows, columns in vectors.tiles
        if rows <= channels and columns * lanes <= pixels and rows * columns <= most
    ]

    def cost(tile: tuple[int, int]) -> int:
        rows, columns = tile
        tiles = math.ceil(channels / rows) * math.ceil(pixels / (columns * lanes))
        return tiles * (rows * columns + rows + columns + LOOP_COST)

    return min(possible, key=cost, default=(min(channels, 4), 1))


def tiles(channels: int, pixels: int, lanes: int, vectors: Vectors, most: int = INDEX_LIMIT) -> list[tuple[int, int]]:
    """Every tile of (channels, vectors of pixels) that has no more sums than the largest of `vectors.tiles`."""
    sums = min(most, max(rows * columns for rows, columns in vectors.tiles))
    widest = max(columns for _, columns in vectors.tiles)
    return [
        (rows, columns)
        for columns in range(1, widest + 1)
        for rows in range(1, min(channels, sums // columns) + 1)
        if columns * lanes <= pixels
    ]


def worth_threads(macs: int, target: Target) -> bool:
    """Whether a kernel has work enough for starting threads to pay."""
    return target.cpu.cores > 1 and macs >= THREAD_MACS_PER_LANE * vectors_of(target).lanes


@contextmanager
def kernel(conv: Convolution) -> Iterator[IRBuilder]:
    """A function with the same arguments, whose loops are emitted inside; afterwards `get()` gives it."""
    with IRBuilder() as builder, T.prim_func(is_private=True, s_tir=True):
        T.func_attr({"tirx.noalias": True})
        for param in conv.func.params:
            T.arg(param.name, param)
        yield builder
