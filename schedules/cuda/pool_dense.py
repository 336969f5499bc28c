"""Average of whole maps and the fully connected layer that alone reads it, as one kernel.

1. A block has some outputs of one row, as in `dense`. Its threads take the channels in turns and keep their averages in
   shared memory.
2. After a barrier the block goes on as `dense` does, from there.

Each block computes all averages of its row, so that the two are worth a launch less only where these are few bytes.

Registers: under 32. Shared memory: 4 bytes a channel and 4 a thread. Checked without a GPU; no figure is given where
none was measured.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tvm import s_tir, tirx
from tvm.ir import TensorLoad
from tvm.s_tir import Schedule
from tvm.script.ir_builder import tirx as T

from tvmflow.schedules.convolutions import all_equal, is_plain, is_reduction, loads, param_of, static_shape, unfuse
from tvmflow.schedules.cpu.dense import Product, read_product
from tvmflow.schedules.cuda._grid import WARP, launch, local, multiprocessors, pieces, shared, shared_bytes, when
from tvmflow.schedules.cuda.dense import MOST_ROWS, share_depth

if TYPE_CHECKING:
    from tvmflow.spec import Target

MOST_BYTES = 128 << 10
"""Of the maps that a block reads: one SM does so in the time of a launch."""
MOST_OUTPUTS = 16

Tile = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Pool:
    """averages[m, k] = Σ data[m, k, …] / divisor, the sum over all further axes, whose lengths are `window`."""

    data: tirx.Buffer
    averages: tirx.Buffer
    window: tuple[int, ...]
    divisor: float


def pool_dense(func: tirx.PrimFunc, target: Target, tile: Tile | None = None) -> Schedule | None:
    """`tile` is (outputs, threads of a block)."""
    both, possible = _read(func), tiles(func, target)
    if both is None or not possible:
        return None
    return Schedule(_loops(func, *both, *(tile or possible[0])))


def tiles(func: tirx.PrimFunc, target: Target) -> list[Tile]:
    """What `tile` may be for this kernel, the most promising first."""
    both = _read(func)
    if both is None or not _possible(*both, target):
        return []
    found = [
        (outputs, threads)
        for outputs in (1, 2, 4, 8, MOST_OUTPUTS)
        for threads in (64, 128, 256, 512)
        if outputs == 1 or outputs // 2 < both[1].outputs
    ]
    return sorted(found, key=functools.partial(_cost, *both, multiprocessors(target)))


def pays(first: tirx.PrimFunc, second: tirx.PrimFunc, place: int, target: Target) -> bool:
    """Whether two kernels are such a pair, the second reading the first by its argument at `place`."""
    pool, product = read_pool(first), read_product(second)
    if pool is None or product is None or not second.params[place].same_as(product.data):
        return False
    return _possible(pool, product, target)


def _possible(pool: Pool, product: Product, target: Target) -> bool:
    few = 4 * product.inputs * math.prod(pool.window) <= MOST_BYTES and product.rows <= MOST_ROWS
    blocks = product.rows * math.ceil(product.outputs / MOST_OUTPUTS)
    return few and blocks <= multiprocessors(target) and 4 * (product.inputs + 512) <= shared_bytes(target)


def _cost(pool: Pool, product: Product, processors: int, tile: Tile) -> float:
    """Loads that a multiprocessor waits for."""
    outputs, threads = tile
    waves = math.ceil(product.rows * math.ceil(product.outputs / outputs) / processors)
    averages = math.ceil(product.inputs / threads) * math.prod(pool.window)
    return waves * (averages + math.ceil(product.inputs * outputs / threads) + (threads / WARP) ** 0.5)


def read_pool(func: tirx.PrimFunc) -> Pool | None:
    """The average over whole maps that is the first thing `func` computes, or None."""
    sch = s_tir.Schedule(func)
    names = sch.get_child_blocks(sch.get_sblock("root"))[:2]
    if len(names) < 2 or not all(is_plain(sch, name) for name in names):
        return None
    core, tail = (sch.get(name) for name in names)
    if not is_reduction(core) or is_reduction(tail):
        return None
    spatial = [axis.var for axis in core.iter_vars if axis.iter_type == tirx.IterVar.DataPar]
    reduced = [axis.var for axis in core.iter_vars if axis.iter_type == tirx.IterVar.CommReduce]
    total, value, start = core.writes[0].source, core.body.value, core.init.value
    read = [load for load in loads(value) if not load.source.same_as(total)]
    if len(spatial) != 2 or not isinstance(value, tirx.Add) or len(read) != 1 or float(getattr(start, "value", 1)):
        return None
    if {type(value.a), type(value.b)} != {TensorLoad} or not all_equal(core.body.indices, spatial, core):
        return None
    if not all_equal(read[0].indices, (*spatial, *reduced), core) or not isinstance(tail.body.value, tirx.Div):
        return None
    above, below = tail.body.value.a, tail.body.value.b
    rows = [axis.var for axis in tail.iter_vars]
    if not isinstance(above, TensorLoad) or not above.source.same_as(total) or not isinstance(below, tirx.FloatImm):
        return None
    if not all_equal(above.indices, rows, tail) or not all_equal(tail.body.indices, rows, tail):
        return None
    data, averages = read[0].source, tail.writes[0].source
    shape, extents = static_shape(data), {axis.var: int(axis.dom.extent) for axis in core.iter_vars}
    if param_of(func, data) is None or shape != tuple(extents[axis] for axis in (*spatial, *reduced)):
        return None
    if static_shape(averages) != shape[:2] or {str(buffer.dtype) for buffer in (data, total, averages)} != {"float32"}:
        return None
    return Pool(data=data, averages=averages, window=shape[2:], divisor=float(below.value))


def _read(func: tirx.PrimFunc) -> tuple[Pool, Product] | None:
    pool = read_pool(func)
    if pool is None or param_of(func, pool.averages) is not None:
        return None
    root = func.body.block
    own = [buffer for buffer in root.alloc_buffers if not buffer.same_as(pool.averages)]
    if len(root.body.seq) < 3:
        return None
    rest = tirx.SeqStmt(list(root.body.seq)[2:]) if len(root.body.seq) > 3 else root.body.seq[2]
    if any(load.source.same_as(pool.data) for load in loads(rest)):
        return None  # a normalisation, not a layer of the averages alone
    params = [pool.averages, *(param for param in func.params if not param.same_as(pool.data))]
    block = s_tir.SBlock([], [], [], root.name_hint, rest, None, own)
    product = read_product(tirx.PrimFunc(params, s_tir.SBlockRealize([], True, block)))
    return (pool, product) if product is not None and product.data.same_as(pool.averages) else None


def _loops(func: tirx.PrimFunc, pool: Pool, product: Product, outputs: int, threads: int) -> tirx.PrimFunc:
    tiles_ = math.ceil(product.outputs / outputs)
    with launch(func, product.rows * tiles_, threads) as (builder, block, thread):
        averages, total = shared(product.inputs), local(1)
        m, n0 = tirx.floordiv(block, tiles_), tirx.floormod(block, tiles_) * outputs
        for k, inside in pieces(product.inputs, threads, thread):
            with when(inside):
                T.buffer_store(total, T.float32(0), [0])
                with T.serial(0, math.prod(pool.window)) as step:
                    T.buffer_store(total, total[0] + pool.data[(m, k, *unfuse(step, *pool.window))], [0])
                T.buffer_store(averages, total[0] / T.float32(pool.divisor), [k])
        share_depth(product, lambda k: averages[k], (m, n0), thread, outputs, threads // outputs)
    return builder.get()
