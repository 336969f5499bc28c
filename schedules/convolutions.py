"""A fused convolution read off its TensorIR: sizes, steps, borders, layout, and what follows the sum.

Tensors are NCHW, or have their channels in blocks: channel c of n×C×H×W is element [n, c // B, y, x, c % B] of
n×C/B×H×W×B, and weight [f, …] is element [f // B, …, f % B].

Rules decide by these figures and by nothing else, so a kernel's name never matters: what is read here is proved from
the loops' kinds and the indices, and anything else (other layouts, dtypes, symbolic shapes) is no convolution to them.
"""

from __future__ import annotations

import functools
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

from tvmflow.integer.window import Window
from tvmflow.system.toolchain import tvm_target_dict

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
    the right is as wide as the outputs need. With `depthwise`, c is f and the sum goes over r and s only. Outputs of
    one of several `groups` read the `in_channels` of their group alone, from `first_channel` on.
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
    groups: int = 1

    def first_channel(self, channel: Expr) -> Expr:
        """Of the input, of those that an output's channel reads."""
        return channel // (self.channels // self.groups) * self.in_channels if self.groups > 1 else 0

    @property
    def data_block(self) -> int:
        """Channels in a block of the input; 0 if it is NCHW."""
        return _block_length(self.data)

    @property
    def weight_block(self) -> int:
        return _block_length(self.weight)

    @property
    def out_block(self) -> int:
        return _block_length(self.output)

    @property
    def window(self) -> Window:
        bottom, right = (
            (self.out_size[axis] - 1) * self.stride[axis]
            + self.dilation[axis] * (self.kernel[axis] - 1)
            + 1
            - self.size[axis]
            - self.pad[axis]
            for axis in (0, 1)
        )
        return Window(
            kernel=self.kernel,
            stride=self.stride,
            dilation=self.dilation,
            padding=(*self.pad, bottom, right),
            size=self.size,
        )

    @property
    def macs(self) -> int:
        taps = self.kernel[0] * self.kernel[1] * (1 if self.depthwise else self.in_channels)
        return self.batch * self.channels * self.out_size[0] * self.out_size[1] * taps


@dataclass(frozen=True, kw_only=True)
class Vectors:
    """What the vector registers of a CPU allow.

    `lanes` are float32 in one register; `tiles` of sums, (rows of weights, vectors), leave registers for their factors;
    `unroll` steps of a reduction make one. LLVM loads all weights of a step first, to the stack if it must. With
    `by_element` a product takes its factor from any place of a register: neighbours are loaded by one instruction.
    """

    lanes: int
    tiles: tuple[tuple[int, int], ...]
    unroll: int
    by_element: bool = False


AVX512 = Vectors(lanes=16, tiles=((6, 4), (12, 2), (8, 2), (4, 4), (12, 1), (8, 1)), unroll=4)
AVX = Vectors(lanes=8, tiles=((6, 2), (5, 2), (4, 2), (4, 3), (8, 1)), unroll=4)
SSE = replace(AVX, lanes=4)
NEON = replace(AVX512, lanes=4, by_element=True)
NEON_FLOAT16 = replace(NEON, lanes=8, by_element=False)  # there only half of the registers can be such factors
NEON_32BIT = Vectors(lanes=4, tiles=((5, 2), (4, 2), (3, 3), (6, 1)), unroll=1)


def vectors_of(target: Target) -> Vectors:
    """The vector registers of a board's CPU."""
    if target.elf != MACHINE_X64:
        if target.arithmetic == "float16":  # written as float32, of which a register holds half as many
            return NEON_FLOAT16
        return NEON if target.elf[0] == 64 else NEON_32BIT
    # llvm_get_vector_width says 512 bits of every x86 processor
    described = tvm.target.Target(tvm_target_dict(target))
    has = tvm.target.codegen.target_has_features
    return AVX512 if has("avx512f", described) else AVX if has("avx", described) else SSE


def most_vectors(registers: Vectors) -> int:
    """Vectors of channels in a tile of pixels × channels, and in a block of the weights."""
    return 4 if registers.lanes == 4 and registers.tiles[0][0] * registers.tiles[0][1] > 16 else 2


def most_pixels(registers: Vectors, vectors: int) -> int:
    """Pixels in a tile of so many vectors of channels."""
    sums = max(rows * columns for rows, columns in registers.tiles)
    return min(8 if vectors < 4 else 5, sums // vectors)  # 6 × 4 spills on the Cortex-A72


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


FUNCTIONS = ("tirx.exp", "tirx.sigmoid", "tirx.tanh", "tirx.erf", "tirx.log", "tirx.call_pure_extern")
"""What takes dozens of instructions for a number, or for a vector of them."""


def has_long_tail(func: tirx.PrimFunc) -> bool:
    """Whether a kernel does more to its sums than to add to them and to cut off what is negative."""
    found: list[Any] = []
    longer = (tvm.ir.Call, tirx.Select, tirx.Min, tirx.Div)
    tvm_ffi.structural_walk(func.body, [(kind, found.append) for kind in longer])
    calls = [node.op for node in found if isinstance(node, tvm.ir.Call)]
    return len(found) > len(calls) or any(getattr(operator, "name", "") in FUNCTIONS for operator in calls)


def _block_length(buffer: tirx.Buffer) -> int:
    return int(buffer.shape[4]) if len(buffer.shape) == 5 else 0


def unblocked(access: TensorLoad | tirx.BufferStore, axis: int) -> list[Expr]:
    """The indices of an element as they are without blocks of `axis`."""
    buffer = access.source if isinstance(access, TensorLoad) else access.buffer
    indices = list(access.indices)
    if len(indices) == 5 and static_shape(buffer) is not None:
        indices[axis] = sym.Analyzer().simplify(indices[axis] * buffer.shape[4] + indices.pop())
    return indices


def blocked(buffer: tirx.Buffer, *indices: Expr, axis: int = 1) -> tuple[Expr, ...]:
    """Where an element of NCHW indices lies in a buffer, whose channels (`axis`) may be in blocks."""
    if not (block := _block_length(buffer)):
        return indices
    channel = indices[axis]
    return (*indices[:axis], tirx.floordiv(channel, block), *indices[axis + 1 :], tirx.floormod(channel, block))


def plain_shape(buffer: tirx.Buffer, axis: int) -> tuple[int, ...] | None:
    """The shape of a buffer as it is without blocks of `axis`; None if it isn't known."""
    shape = static_shape(buffer)
    if shape is None or len(shape) != 5:
        return shape
    return (*shape[:axis], shape[axis] * shape[4], *shape[axis + 1 : 4])


def read_convolution(func: tirx.PrimFunc, *, grouped: bool = False) -> Convolution | None:
    """The NCHW convolution that `func` computes, or None."""
    found = read_convolutions(func, grouped=grouped)
    if len(found) != 1 or found[0].data_block or found[0].weight_block or found[0].out_block:
        return None
    return found[0]


@functools.lru_cache(maxsize=512)
def read_convolutions(func: tirx.PrimFunc, *, grouped: bool = False) -> tuple[Convolution, ...]:
    """The convolutions that `func` computes, each of what the one before it gave; none if it does anything else.

    Those with groups, of which there is one for each input channel if they are depthwise, are found only if asked for.
    Each rule, each pass and each tile of a search asks for the same functions again.
    """
    if not all(tirx.is_buffer_var(param) and static_shape(param) for param in func.params):
        return ()
    found: list[Convolution] = []
    steps = _steps_of(func)
    for border, core, tail in steps:
        conv = _read(func, border, core, tail, found[-1].output if found else None)
        if conv is None or (param_of(func, conv.output) is not None) != (len(found) == len(steps) - 1):
            return ()
        if conv.groups > 1 and not grouped:
            return ()
        found.append(conv)
    return tuple(found)


def _read(
    func: tirx.PrimFunc,
    border: s_tir.SBlock | None,
    core: s_tir.SBlock,
    tail: s_tir.SBlock | None,
    before: tirx.Buffer | None,
) -> Convolution | None:
    """The convolution of these blocks, of a parameter or of what the blocks before have stored to `before`."""
    axes = _axes(core)
    if axes is None:
        return None
    (n, f, y, x), (c, r, s) = axes
    extent = {iter_var.var: int(iter_var.dom.extent) for iter_var in core.iter_vars}
    product = product_of(core)
    if product is None:
        return None
    weight = next((load for load in product if all_equal(unblocked(load, 0), (f, c, r, s), core)), None)
    data = next((load for load in product if load is not weight), None)
    if weight is None or data is None or len(unblocked(data, 1)) != 4:
        return None
    if not weight.source.same_as(param_of(func, weight.source)) or data.source.same_as(weight.source):
        return None

    # which element of the (bordered) input meets which weight
    image, channel, row, column = unblocked(data, 1)
    vertical, horizontal = _steps(row, y, r, core), _steps(column, x, s, core)
    if vertical is None or horizontal is None or not _equal(image, n, core):
        return None
    bordered = plain_shape(data.source, 1)
    depthwise = extent[c] == 1 and _equal(channel, f + c, core)
    groups = 1
    if bordered is not None and 1 < extent[c] < bordered[1] and extent[f] % (bordered[1] // extent[c]) == 0:
        groups = bordered[1] // extent[c]
    first = tirx.floordiv(f, extent[f] // groups) * extent[c] if groups > 1 else 0
    if not depthwise and not _equal(channel, first + c, core):
        return None

    source, pad = data.source, (0, 0)
    if border is not None:
        inner = border_of(border)
        if inner is None or not border.writes[0].source.same_as(source):
            return None
        source, pad = inner
    shape = plain_shape(source, 1)
    if bordered is None or shape is None:
        return None
    if not source.same_as(param_of(func, source) if before is None else before):
        return None
    if tuple(str(buffer.dtype) for buffer in (source, weight.source)) != ("float32", "float32"):
        return None
    if plain_shape(weight.source, 0) != (extent[f], extent[c], extent[r], extent[s]):
        return None
    read = extent[f] if depthwise else extent[c] * groups
    if shape[:2] != (extent[n], read) or bordered[:2] != shape[:2]:
        return None
    for axis, (out, tap, (stride, dilation)) in enumerate(((y, r, vertical), (x, s, horizontal))):
        if (extent[out] - 1) * stride + (extent[tap] - 1) * dilation >= bordered[2 + axis]:
            return None

    total = core.writes[0].source
    whole = (extent[n], extent[f], extent[y], extent[x])
    if plain_shape(total, 1) != whole or str(total.dtype) != "float32":
        return None
    finish: Callable[[Expr, Sequence[Expr]], Expr] | None
    if tail is None:
        output, finish = total, unchanged
    else:
        output = tail.writes[0].source
        finish = finish_of(tail, total)
        if finish is None or plain_shape(output, 1) != whole:
            return None
        others = [load.source for load in loads(tail.body.value) if not load.source.same_as(total)]
        if param_of(func, total) is not None or any(param_of(func, other) is None for other in others):
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
        in_channels=shape[1] // groups,
        channels=extent[f],
        size=(shape[2], shape[3]),
        out_size=(extent[y], extent[x]),
        kernel=(extent[r], extent[s]),
        stride=(vertical[0], horizontal[0]),
        dilation=(vertical[1], horizontal[1]),
        pad=pad,
        depthwise=depthwise,
        finish=finish,
        groups=groups,
    )


Step = tuple["s_tir.SBlock | None", s_tir.SBlock, "s_tir.SBlock | None"]


def _steps_of(func: tirx.PrimFunc) -> list[Step]:
    """(border, sum, tail) of each sum, after element-wise blocks have been folded into those that read them."""
    sch = s_tir.Schedule(func)
    names = sch.get_child_blocks(sch.get_sblock("root"))
    if not all(is_plain(sch, name) for name in names):
        return []
    sums = [index for index, name in enumerate(names) if is_reduction(sch.get(name))]
    if not sums or sums[0] > 1:
        return []
    steps: list[tuple[Any, Any, Any]] = []
    border = names[0] if sums[0] else None
    try:
        for place, following in zip(sums, [*sums[1:], None], strict=True):
            after = names[place + 1 : following]
            next_border = None
            if following is not None and after and border_of(sch.get(after[-1])) is not None:
                next_border = after.pop()
            for name in after[:-1]:
                sch.compute_inline(name)
            steps.append((border, names[place], after[-1] if after else None))
            border = next_border
    except s_tir.ScheduleError:  # it isn't element-wise, or more than the next block reads it
        return []
    return [(border and sch.get(border), sch.get(core), tail and sch.get(tail)) for border, core, tail in steps]


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
    stored = [*block.body.indices, *unblocked(block.body, 1)]
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
    return (spatial, reduced) if all_equal(unblocked(core.body, 1), spatial, core) else None


def product_of(core: s_tir.SBlock) -> tuple[TensorLoad, TensorLoad] | None:
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


def border_of(block: s_tir.SBlock) -> tuple[tirx.Buffer, tuple[int, int]] | None:
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
    if not isinstance(value, TensorLoad):
        return None
    shape, indices = plain_shape(value.source, 1), unblocked(value, 1)
    if shape is None or len(shape) != 4 or not all_equal(indices[:2], (n, c), block):
        return None
    pad, allowed = [], []
    for axis, var in ((2, y), (3, x)):
        offset = sym.Analyzer().simplify(var - indices[axis])
        if not isinstance(offset, tirx.IntImm) or int(offset) < 0:
            return None
        pad.append(int(offset))
        low, high = (tirx.const(int(offset) + length, str(var.ty.dtype)) for length in (0, shape[axis]))
        allowed += [tirx.LE(low, var), tirx.GE(var, low), tirx.LT(var, high), tirx.GT(high, var)]
    if not all(any(tvm_ffi.structural_equal(condition, known) for known in allowed) for condition in conditions):
        return None
    # a missing condition can't hide a border: the read would leave the buffer there
    return value.source, (pad[0], pad[1])


def finish_of(tail: s_tir.SBlock, total: tirx.Buffer) -> Callable[[Expr, Sequence[Expr]], Expr] | None:
    """What the last block makes of the sum at the same place, as a function."""
    axes = [axis.var for axis in tail.iter_vars]
    if not all_equal(unblocked(tail.body, 1), axes, tail):
        return None
    if not all(
        all_equal(unblocked(load, 1), axes, tail) for load in loads(tail.body.value) if load.source.same_as(total)
    ):
        return None

    def finish(value: Expr, indices: Sequence[Expr]) -> Expr:
        replaced = tvm_ffi.structural_map(
            tail.body.value, (TensorLoad, lambda load: value if load.source.same_as(total) else load), order="post"
        )
        return _of_one_dtype(substitute(replaced, dict(zip(axes, indices, strict=True))))

    return finish


def _of_one_dtype(node: Expr) -> Expr:
    """`node` with operands of one dtype: where int32 replaced axes of int64, constants of int64 are left beside them.

    Conditions of a border among the channels are such, which a block behind a sum may have.
    """

    def agreed(pair: Any) -> Expr:
        a, b = pair.a, pair.b
        dtypes = str(a.ty.dtype), str(b.ty.dtype)
        if len(set(dtypes)) == 1 or not all(dtype in ("int32", "int64") for dtype in dtypes):
            return pair
        for constant, other, swapped in ((a, b, True), (b, a, False)):
            if isinstance(constant, tirx.IntImm) and abs(int(constant)) < 1 << 31:
                same = tirx.const(int(constant), str(other.ty.dtype))
                return type(pair)(same, other) if swapped else type(pair)(other, same)
        return type(pair)(a.astype("int64"), b.astype("int64"))

    return tvm_ffi.structural_map(node, [(kind, agreed) for kind in _PAIRS], order="post")


_PAIRS = (tirx.LT, tirx.LE, tirx.GT, tirx.GE, tirx.EQ, tirx.NE)


def unchanged(value: Expr, indices: Sequence[Expr]) -> Expr:
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


def all_equal(found: Sequence[Expr], expected: Sequence[Expr], block: s_tir.SBlock) -> bool:
    return len(found) == len(expected) and all(_equal(a, b, block) for a, b in zip(found, expected, strict=True))


def _is_true(value: Expr) -> bool:
    return isinstance(value, tirx.IntImm) and int(value) == 1


def _is_zero(value: Expr) -> bool:
    return isinstance(value, (tirx.FloatImm, tirx.IntImm)) and value.value == 0


def param_of(func: tirx.PrimFunc, buffer: tirx.Buffer) -> tirx.Buffer | None:
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


def live_rows(conv: Convolution, y: Expr) -> tuple[Expr, Expr]:
    """The first row of taps that meets the input for a row of the output, and the one behind the last."""
    above = conv.pad[0] - y * conv.stride[0]
    first = tirx.max(0, (above + conv.dilation[0] - 1) // conv.dilation[0])
    return first, tirx.min(conv.kernel[0], (conv.size[0] - 1 + above) // conv.dilation[0] + 1)


def every_tile(
    channels: int, pixels: int, lanes: int, vectors: Vectors, most: int = INDEX_LIMIT
) -> list[tuple[int, int]]:
    """The tiles of (channels, vectors of pixels) that have no more sums than the largest of `vectors.tiles`."""
    sums = min(most, max(rows * columns for rows, columns in vectors.tiles))
    widest = max(columns for _, columns in vectors.tiles)
    return [
        (rows, columns)
        for columns in range(1, widest + 1)
        for rows in range(1, min(channels, sums // columns) + 1)
        if columns * lanes <= pixels
    ]


def cheapest_tile(channels: int, pixels: int, lanes: int, vectors: Vectors, most: int = INDEX_LIMIT) -> tuple[int, int]:
    """The tile of `vectors.tiles` that should need the fewest instructions, no larger than `most`."""

    def cost(tile: tuple[int, int]) -> int:
        rows, columns = tile
        tiles = math.ceil(channels / rows) * math.ceil(pixels / (columns * lanes))
        return tiles * (rows * columns + rows + columns + LOOP_COST)

    possible = [
        (rows, columns)
        for rows, columns in vectors.tiles
        if rows <= channels and columns * lanes <= pixels and rows * columns <= most
    ]
    return min(possible, key=cost, default=(min(channels, 4), 1))


def worth_threads(macs: int, target: Target) -> bool:
    """Whether a kernel has work enough for starting threads to pay."""
    return target.cpu.cores > 1 and macs >= THREAD_MACS_PER_LANE * vectors_of(target).lanes


TO_L2 = 2  # llvm.prefetch's locality: everywhere but in L1, which a tile itself needs


def prefetch(address: Expr) -> None:
    """Emit a fetch of data into the L2 cache, to be read. Beyond the end of a tensor it does nothing."""
    T.evaluate(T.call_llvm_intrin("void", "llvm.prefetch", address, *(tirx.const(n, "int32") for n in (0, TO_L2, 1))))


@contextmanager
def kernel(func: tirx.PrimFunc) -> Iterator[IRBuilder]:
    """A function with the same arguments, whose loops are emitted inside; afterwards `get()` gives it."""
    with IRBuilder() as builder, T.prim_func(is_private=True, s_tir=True):
        T.func_attr({"tirx.noalias": True})
        for param in func.params:
            T.arg(param.name, param)
        yield builder
