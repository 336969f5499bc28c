"""Depthwise convolution in NCHW through shared memory, one phase of the dilation at a time, its gaps left out.

1. A block has some channels, and of each some output rows that lie as far apart as the dilation (dilation 5, stride 1:
   every fifth). Such rows meet the same input rows, which follow each other in shared memory: the rows between, which
   only other phases need, are neither loaded nor given room.
2. Of a row the columns are copied that some tap meets: with a stride and a dilation that share a factor only every
   such column. The border of zeros is copied along, so that no sum asks for it.
3. A thread has `columns` outputs of a row side by side; its weights, but for taps that meet nothing but the border, are
   in registers, its inputs in shared memory.
4. What follows element by element is applied in registers.

`depthwise_direct` loads an input from global memory once for each row of taps, or more often; this one once. On small
maps the L1 cache does the same without the barrier, so this rule is for a search to choose.

Registers: the weights and `columns` sums, under 40. Shared memory: channels × input rows × padded columns, at most
what the board allows a block. Checked without a GPU; no figure is given where none was measured.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.script.ir_builder import tirx as T

from tvmflow.schedules.convolutions import Convolution, unfuse
from tvmflow.schedules.cuda._grid import launch, live_taps, local, pieces, read_convolution, shared, shared_bytes, when

if TYPE_CHECKING:
    from tvmflow.spec import Target

MOST_TAPS = 25
MOST_ROUNDS = 8
"""Outputs' rounds of a block's threads, which are unrolled."""

Tile = tuple[int, int, int, int]


@dataclass(frozen=True, kw_only=True)
class _Stage:
    """What a block has in shared memory for `rows` output rows of one phase of a channel."""

    conv: Convolution
    rows: int
    vertical: list[int]
    horizontal: list[int]

    @property
    def phases(self) -> int:
        return self.conv.dilation[0] // math.gcd(self.conv.dilation[0], self.conv.stride[0])

    @property
    def groups(self) -> int:
        """Blocks' worth of rows of one phase."""
        return math.ceil(math.ceil(self.conv.out_size[0] / self.phases) / self.rows)

    @property
    def down(self) -> int:
        """Staged rows from one output row to the next."""
        return self.conv.stride[0] // math.gcd(self.conv.dilation[0], self.conv.stride[0])

    @property
    def height(self) -> int:
        return (self.rows - 1) * self.down + self.vertical[-1] - self.vertical[0] + 1

    @property
    def apart(self) -> int:
        """Columns of the input from one staged column to the next."""
        return math.gcd(self.conv.stride[1], self.conv.dilation[1])

    @property
    def width(self) -> int:
        first = self.horizontal[0] * self.conv.dilation[1]
        last = (self.conv.out_size[1] - 1) * self.conv.stride[1] + self.horizontal[-1] * self.conv.dilation[1]
        return (last - first) // self.apart + 1

    def column(self, x, tap: int):
        """The staged column that a tap meets for output column x."""
        away = (tap - self.horizontal[0]) * self.conv.dilation[1] // self.apart
        return x * (self.conv.stride[1] // self.apart) + away


def depthwise_staged(func: tirx.PrimFunc, target: Target, tile: Tile | None = None) -> Schedule | None:
    """`tile` is (channels, rows, columns, threads of a block)."""
    possible = tiles(func, target)
    if not possible:
        return None
    conv = read_convolution(func)
    assert conv is not None
    return Schedule(_loops(conv, tile or possible[0]))


def tiles(func: tirx.PrimFunc, target: Target) -> list[Tile]:
    """What `tile` may be for this kernel, the most promising first."""
    conv = read_convolution(func)
    if conv is None or not conv.depthwise:
        return []
    if not 0 < len(live_taps(conv, 0)) * len(live_taps(conv, 1)) <= MOST_TAPS:
        return []
    found = [
        (channels, rows, columns, threads)
        for channels in (1, 2, 4, 8)
        for rows in (1, 2, 4, 8, 16, 32)
        for columns in (1, 2, 4)
        for threads in (32, 64, 128, 256)
        if _fits(conv, channels, rows, columns, threads, target)
    ]
    return sorted(found, key=functools.partial(_cost, conv))


def _stage(conv: Convolution, rows: int) -> _Stage:
    return _Stage(conv=conv, rows=rows, vertical=live_taps(conv, 0), horizontal=live_taps(conv, 1))


def _fits(conv: Convolution, channels: int, rows: int, columns: int, threads: int, target: Target) -> bool:
    stage = _stage(conv, rows)
    outputs = channels * rows * math.ceil(conv.out_size[1] / columns)
    if 4 * channels * stage.height * stage.width > shared_bytes(target):
        return False
    if channels > conv.channels or (rows > 1 and rows // 2 >= math.ceil(conv.out_size[0] / stage.phases)):
        return False
    return columns <= conv.out_size[1] and threads / 2 < max(outputs, 17) and outputs <= MOST_ROUNDS * threads


def _cost(conv: Convolution, tile: Tile) -> tuple[float, int]:
    """Elements staged for each output that is wanted, and how far a block is from a round of 128 threads."""
    channels, rows, columns, threads = tile
    stage = _stage(conv, rows)
    staged = stage.phases * stage.groups * stage.height * stage.width
    outputs = channels * rows * math.ceil(conv.out_size[1] / columns)
    return math.ceil(conv.channels / channels) * channels * staged, abs(outputs - 128) + abs(threads - 128)


def _loops(conv: Convolution, tile: Tile) -> tirx.PrimFunc:
    channels, rows, columns, threads = tile
    stage = _stage(conv, rows)
    taps = [(r, s) for r in stage.vertical for s in stage.horizontal]
    channel_groups = math.ceil(conv.channels / channels)
    blocks = conv.batch * channel_groups * stage.phases * stage.groups
    across = math.ceil(conv.out_size[1] / columns)
    with launch(conv.func, blocks, threads) as (builder, block, thread):
        window = shared(channels * stage.height * stage.width)
        weights, sums = local(len(taps)), local(columns)
        n, channel_group, phase, group = unfuse(block, conv.batch, channel_groups, stage.phases, stage.groups)
        c0, y0 = channel_group * channels, phase + group * (rows * stage.phases)
        top = y0 * conv.stride[0] + stage.vertical[0] * conv.dilation[0] - conv.pad[0]
        left = stage.horizontal[0] * conv.dilation[1] - conv.pad[1]
        for piece, condition in pieces(channels * stage.height * stage.width, threads, thread):
            with when(condition):
                c, row, column = unfuse(piece, channels, stage.height, stage.width)
                y, x = top + row * conv.dilation[0], left + column * stage.apart
                inside = [y >= 0, y < conv.size[0], x >= 0, x < conv.size[1]]
                inside += [] if conv.channels % channels == 0 else [c0 + c < conv.channels]
                value = T.if_then_else(tirx.all(*inside), conv.data[n, c0 + c, y, x], T.float32(0))
                T.buffer_store(window, value, [piece])
        for piece, condition in pieces(channels * rows * across, threads, thread):
            c, row, tile_column = unfuse(piece, channels, rows, across)
            y, x0 = y0 + row * stage.phases, tile_column * columns
            inside = [] if condition is None else [condition]
            inside += [] if conv.channels % channels == 0 else [c0 + c < conv.channels]
            inside += [] if conv.out_size[0] % (rows * stage.phases) == 0 else [y < conv.out_size[0]]
            with when(tirx.all(*inside) if inside else None):
                for place, (r, s) in enumerate(taps):
                    T.buffer_store(weights, conv.weight[c0 + c, 0, r, s], [place])
                for index in range(columns):
                    x = x0 + index
                    with when(None if conv.out_size[1] % columns == 0 else x < conv.out_size[1]):
                        for place, (r, s) in enumerate(taps):
                            above = row * stage.down + r - stage.vertical[0]
                            at = (c * stage.height + above) * stage.width + stage.column(x, s)
                            product = window[at] * weights[place]
                            T.buffer_store(sums, product if place == 0 else sums[index] + product, [index])
                        where = [n, c0 + c, y, x]
                        T.buffer_store(conv.output, conv.finish(sums[index], where), where)
    return builder.get()
