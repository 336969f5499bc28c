"""Convolutions 3×3 by Winograd's minimal filtering: the transforms, the weights, and a kernel's definition.

F(m×m, 3×3) gives m×m outputs of (m + 2)² inputs by (m + 2)² products for each pair of channels, where the direct sum
takes 9·m²: y = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A (Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, 2015,
arXiv 1509.09308). Over all channels these are (m + 2)² matrix products. The weights are transformed when a network is
compiled, in float64, and rounded once.

The matrices follow from m + 1 points at which polynomials are evaluated, beside infinity. They decide the error: with
0, ±1 and ±2 or ±½, as F(4×4, 3×3) is often given, numbers of unlike sizes are subtracted, and the largest error of a
layer in float32 is six to eight times that of the direct sum. With 0, ±√2 and ±√½, whose products are 1, it is twice
that or less, and F(2×2, 3×3) with 0 and ±1 is no worse than the direct sum.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import tvm_ffi
from tvm import s_tir, te, tirx

from tvmflow.schedules.convolutions import (
    Convolution,
    Expr,
    blocked,
    border_of,
    finish_of,
    is_reduction,
    loads,
    param_of,
    plain_shape,
    product_of,
    read_convolutions,
    static_shape,
    unchanged,
)

TAPS = 3
POINTS: dict[int, tuple[float, ...]] = {
    2: (0, 1, -1),
    4: (0, math.sqrt(2), -math.sqrt(2), math.sqrt(0.5), -math.sqrt(0.5)),
}
"""Of F(m×m, 3×3) by m: where polynomials are evaluated, beside infinity; 0, then pairs of opposite signs."""
ATTRIBUTE = "tvmflow.winograd"
"""Of a kernel that `define` made: its m."""
TRANSFORMED, PRODUCTS, RESTORED = "winograd_transformed", "winograd_products", "winograd_restored"
"""The blocks of such a kernel, in order, between a border and what follows the sum."""


@dataclass(frozen=True, kw_only=True)
class Matrices:
    """Aᵀ, m × (m + 2), G, (m + 2) × 3, and Bᵀ, (m + 2) × (m + 2), in float64."""

    restore: np.ndarray
    weights: np.ndarray
    data: np.ndarray


@functools.cache
def matrices(outputs: int) -> Matrices:
    """Of F(m×m, 3×3), m being a key of POINTS."""
    points = POINTS[outputs]
    restore = [[point**power for point in points] + [float(power == outputs - 1)] for power in range(outputs)]
    weights, data = [], []
    for place, point in enumerate(points):
        others = [other for index, other in enumerate(points) if index != place]
        scale = math.prod(point - other for other in others)
        weights.append([point**power / scale for power in range(TAPS)])
        data.append([*np.poly(others)[::-1], 0.0])
    weights.append([0.0] * (TAPS - 1) + [1.0])
    data.append([*np.poly(points)[::-1]])
    return Matrices(restore=np.array(restore), weights=np.array(weights), data=np.array(data))


def transform_weights(weight: np.ndarray, outputs: int, block: int) -> np.ndarray:
    """F×C×3×3 → F/block × (m+2) × (m+2) × C × block in float32; computed in float64."""
    by = matrices(outputs).weights
    channels, inputs = weight.shape[:2]
    found = np.einsum("ia,fcab,jb->fijc", by, weight.astype(np.float64), by, optimize=True)
    parted = found.reshape(channels // block, block, *found.shape[1:3], inputs)
    return np.ascontiguousarray(np.moveaxis(parted, 1, -1)).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class Winograd:
    """A convolution computed as F(m×m, 3×3), m being `outputs`: `conv.weight` are the transformed weights.

    They lie as `transform_weights` gives them. Tile (i, j) of the output begins in row i·m and column j·m.
    """

    conv: Convolution
    outputs: int

    @property
    def inputs(self) -> int:
        """Rows and columns of a tile of the input: m + 2."""
        return self.outputs + TAPS - 1

    @property
    def tiles(self) -> tuple[int, int]:
        """Down and across a map."""
        return tiles_of(self.conv, self.outputs)

    @property
    def macs(self) -> int:
        """Multiply-adds of the products."""
        return products_of(self.conv, self.outputs)


def tiles_of(conv: Convolution, outputs: int) -> tuple[int, int]:
    """Tiles of m×m outputs down and across a map."""
    down, across = (math.ceil(length / outputs) for length in conv.out_size)
    return down, across


def products_of(conv: Convolution, outputs: int) -> int:
    """Multiply-adds of the products of F(m×m, 3×3), without the transforms."""
    taken = (outputs + TAPS - 1) ** 2
    return conv.batch * math.prod(tiles_of(conv, outputs)) * taken * conv.in_channels * conv.channels


def serves(conv: Convolution) -> bool:
    """Whether a convolution is one that these transforms compute: 3×3, side by side, over all channels."""
    plain = conv.kernel == (TAPS, TAPS) and conv.stride == (1, 1) and conv.dilation == (1, 1)
    return plain and conv.groups == 1 and not conv.depthwise


def define(func: tirx.PrimFunc, outputs: int) -> tirx.PrimFunc:
    """`func`, the kernel of one convolution with weights in blocks, as F(m×m, 3×3) of transformed weights.

    The sum's block becomes three: the transformed inputs, their products summed over the channels, and the outputs.
    What is before and behind it stays. Rules that know nothing of it take it for what it is, a kernel of three sums.
    """
    (conv,) = read_convolutions(func)
    assert serves(conv)
    sch = s_tir.Schedule(func)
    names = sch.get_child_blocks(sch.get_sblock("root"))
    place = next(place for place, name in enumerate(names) if is_reduction(sch.get(name)))
    core = sch.get(names[place])
    factors = product_of(core)
    assert factors is not None
    bordered = next(load.source for load in factors if not load.source.same_as(conv.weight))
    total = core.writes[0].source
    steps = _steps(bordered, conv, total, outputs)
    given, weight, result = steps.params
    replaced = {given: bordered, result: total}
    made = tvm_ffi.structural_map(steps.body.block, (tirx.Var, lambda var: replaced.get(var, var)), order="post")
    root = func.body.block
    stages = list(root.body.seq) if len(names) > 1 else [root.body]
    body = tirx.SeqStmt([*stages[:place], *made.body.seq, *stages[place + 1 :]])
    whole = s_tir.SBlock([], [], [], "root", body, alloc_buffers=[*root.alloc_buffers, *made.alloc_buffers])
    params = [weight if param.same_as(conv.weight) else param for param in func.params]
    defined = tirx.PrimFunc(params, s_tir.SBlockRealize([], True, whole), func.ret_type, attrs=func.attrs)
    return defined.with_attr(ATTRIBUTE, outputs)


def _steps(bordered: tirx.Buffer, conv: Convolution, total: tirx.Buffer, outputs: int) -> tirx.PrimFunc:
    """The three sums from the bordered input, or the input itself, and the weights to the convolution's sum."""
    by, taken, block = matrices(outputs), outputs + TAPS - 1, conv.weight_block
    down, across = tiles_of(conv, outputs)
    data = te.placeholder(static_shape(bordered), "float32", name="given")
    shape = (conv.channels // block, taken, taken, conv.in_channels, block)
    weight = te.placeholder(shape, "float32", name=conv.weight.name)
    size = plain_shape(bordered, 1)
    assert size is not None
    row, column, channel = (te.reduce_axis((0, length)) for length in (taken, taken, conv.in_channels))

    def transformed(i: Expr, j: Expr, n: Expr, y: Expr, x: Expr, c: Expr) -> Expr:
        at = y * outputs + row, x * outputs + column
        inside = tirx.all(at[0] < size[2], at[1] < size[3])  # the last tiles reach beyond the map
        element = tirx.if_then_else(inside, data[blocked(bordered, n, c, *at)], tirx.const(0, "float32"))
        return te.sum(_entry(by.data, i, row) * _entry(by.data, j, column) * element, [row, column])

    def restored(*place: Expr) -> Expr:
        n, f, y, x = place if len(place) == 4 else (place[0], place[1] * conv.out_block + place[4], *place[2:4])
        (ty, dy), (tx, dx) = ((tirx.floordiv(at, outputs), tirx.floormod(at, outputs)) for at in (y, x))
        weight = _entry(by.restore, dy, row_back) * _entry(by.restore, dx, column_back)
        return te.sum(weight * made[row_back, column_back, n, ty, tx, f], [row_back, column_back])

    seen = te.compute((taken, taken, conv.batch, down, across, conv.in_channels), transformed, name=TRANSFORMED)
    made = te.compute(
        (taken, taken, conv.batch, down, across, conv.channels),
        lambda i, j, n, y, x, f: te.sum(
            seen[i, j, n, y, x, channel] * weight[tirx.floordiv(f, block), i, j, channel, tirx.floormod(f, block)],
            channel,
        ),
        name=PRODUCTS,
    )
    row_back, column_back = (te.reduce_axis((0, taken)) for _ in range(2))
    result = te.compute(static_shape(total), restored, name=RESTORED)
    return te.create_prim_func([data, weight, result])


def _entry(matrix: np.ndarray, row: Expr, column: Expr) -> Expr:
    """An entry of a constant matrix, chosen by its indices."""
    found = tirx.const(0, "float32")
    for (i, j), value in np.ndenumerate(matrix):
        if value:
            here = tirx.all(tirx.EQ(row, i), tirx.EQ(column, j))
            found = tirx.Select(here, tirx.const(float(value), "float32"), found)
    return found


@functools.lru_cache(maxsize=512)
def read_winograd(func: tirx.PrimFunc) -> Winograd | None:
    """What `define` made a kernel of, or None."""
    if ATTRIBUTE not in (func.attrs or {}):
        return None
    outputs = int(func.attrs[ATTRIBUTE])
    sch = s_tir.Schedule(func)
    names = sch.get_child_blocks(sch.get_sblock("root"))
    hints = [sch.get(name).name_hint for name in names]
    if outputs not in POINTS or not {TRANSFORMED, PRODUCTS, RESTORED} <= set(hints):
        return None  # it has a schedule
    first, last = hints.index(TRANSFORMED), hints.index(RESTORED)
    for name in names[last + 1 : -1]:
        sch.compute_inline(name)
    before, after = [sch.get(name) for name in names[:first]], [sch.get(name) for name in names[last + 1 :][-1:]]
    source = next(load.source for load in loads(sch.get(names[first]).body))
    total = sch.get(names[last]).writes[0].source
    border = border_of(before[0]) if before else (source, (0, 0))
    output, finish = (after[0].writes[0].source, finish_of(after[0], total)) if after else (total, unchanged)
    products = loads(sch.get(names[first + 1]).body)
    weight = next((load.source for load in products if param_of(func, load.source) is not None), None)
    if border is None or finish is None or weight is None:
        return None
    source, pad = border
    shape, result = plain_shape(source, 1), plain_shape(output, 1)
    if shape is None or result is None:
        return None
    conv = Convolution(
        func=func,
        data=source,
        weight=weight,
        output=output,
        batch=shape[0],
        in_channels=shape[1],
        channels=result[1],
        size=(shape[2], shape[3]),
        out_size=(result[2], result[3]),
        kernel=(TAPS, TAPS),
        stride=(1, 1),
        dilation=(1, 1),
        pad=pad,
        depthwise=False,
        finish=finish,
    )
    return Winograd(conv=conv, outputs=outputs)
