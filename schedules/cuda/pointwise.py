"""1×1 convolution in NCHW, any stride, with what follows it element by element: weights × pixels as a matrix product.

The strategy and the budget of registers and shared memory are those of `_product`: tiles in shared memory, a tile of
sums in each thread's registers, double buffering, the depth split among threads where maps are small. A pixel's value
is one load, of 16 bytes where four pixels lie side by side; bias, ReLU and the like are applied to the sums in
registers. Checked without a GPU; no figure is given where none was measured.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from tvm import tirx
from tvm.s_tir import Schedule

from tvmflow.schedules.convolutions import Convolution, unfuse
from tvmflow.schedules.cuda._grid import read_convolution
from tvmflow.schedules.cuda._product import Product, choices, scheduled

if TYPE_CHECKING:
    from tvmflow.spec import Target


def pointwise(func: tirx.PrimFunc, target: Target, tile: tuple[int, ...] | None = None) -> Schedule | None:
    """`tile` is (rows, columns, depth, sums by rows, sums by columns, splits)."""
    return scheduled(_read(func), target, tile)


def tiles(func: tirx.PrimFunc, target: Target) -> list[tuple[int, ...]]:
    """What `tile` may be for this kernel."""
    return choices(_read(func), target)


def _read(func: tirx.PrimFunc) -> Product | None:
    conv = read_convolution(func)
    if conv is None or conv.depthwise or conv.kernel != (1, 1) or conv.pad != (0, 0):
        return None
    if any((out - 1) * s >= size for out, s, size in zip(conv.out_size, conv.stride, conv.size, strict=True)):
        return None
    dense = conv.stride == (1, 1)

    def value(k, p):
        n, y, x = pixel(conv, p)
        return conv.data[n, k, y * conv.stride[0], x * conv.stride[1]]

    aligned = math.prod(conv.out_size) % 4 == 0
    return Product(
        func=func,
        rows=conv.channels,
        columns=conv.batch * math.prod(conv.out_size),
        depth=conv.in_channels,
        weight=lambda f, k: conv.weight[f, k, 0, 0],
        value=value,
        store=storing(conv),
        weight_lanes=4 if conv.in_channels % 4 == 0 else 1,
        value_lanes=4 if dense and conv.size == conv.out_size and aligned else 1,
        store_lanes=4 if aligned else 1,
    )


def pixel(conv: Convolution, p):
    """(n, y, x) of the output's pixel p."""
    return unfuse(p, conv.batch, *conv.out_size)


def storing(conv: Convolution):
    """The `store` of a Product whose rows are the channels of a convolution."""
    from tvm.script.ir_builder import tirx as T

    def store(f, p, total) -> None:
        n, y, x = pixel(conv, p)
        where = [n, f, y, x]
        T.buffer_store(conv.output, conv.finish(total, where), where)

    return store
