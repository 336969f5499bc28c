"""Layers without weights in parts that fit the buffers, and the instructions of each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tvmflow.integer.operators import MaxPool
from tvmflow.targets.vta.config import Config
from tvmflow.targets.vta.emit import Stream
from tvmflow.targets.vta.moved_tiles import Moved, NodeTile
from tvmflow.targets.vta.nodes import NodeWork
from tvmflow.targets.vta.pooled_tiles import Pooled, PooledByAxis
from tvmflow.targets.vta.tiles import Tiling, Weights, parts

LEAST_TILES, MOST_TILES, PIECE = 32, 256, 64
"""Of the output: how many are computed at once by default, and how many of the last are finished and stored at once."""


def emit(stream: Stream, memory: Weights, work: NodeWork, tiling: Tiling) -> None:
    """The instructions of a layer without weights. Raises Infeasible if the tiling's parts don't fit."""
    for buffer in (stream.inp, stream.wgt, stream.acc):
        buffer.single = tiling.buffers == 1
    made: type[NodeTile] = Moved
    if isinstance(work.operator, MaxPool):
        made = PooledByAxis if work.separable else Pooled
    tiles = [made(stream, memory, work, tiling, blocks, rows) for blocks, rows in _tiles(work, tiling)]
    for tile in tiles:
        tile.emit(tiling.pieces if tile is tiles[-1] else 1)


def default_tiling(work: NodeWork, config: Config) -> Tiling:
    """Four parts or so, of which half of each buffer holds one while the other half is being filled."""
    blocks, width = max(map(len, work.blocks), default=1), work.target.shape[2]
    wanted = max(LEAST_TILES, min(MOST_TILES, work.tiles // 4))
    if isinstance(work.operator, MaxPool) and work.separable:
        wanted = MOST_TILES  # rows that two parts read are compared twice
    for halves in (2, 1):
        acc, inp = config.acc_depth // halves, config.inp_depth // halves
        for rows in reversed(parts(work.target.shape[1])):
            planes = _planes(work, rows)
            if planes.inp > inp or planes.acc > acc or (rows > 1 and rows * width > wanted):
                continue
            weights = config.wgt_depth // halves // max(1, work.tiles_of_a_block)
            out_blocks = max(1, min(blocks, acc // planes.acc, weights, wanted // (rows * width)))
            if isinstance(work.operator, MaxPool):
                out_blocks = max(1, min(out_blocks, inp // max(1, planes.inp)))
            pieces = max(1, out_blocks * rows * width // PIECE)
            return Tiling(out_blocks=out_blocks, rows=rows, in_blocks=max(1, inp // max(1, planes.inp)), pieces=pieces)
    return Tiling(out_blocks=1, rows=1, in_blocks=1)


@dataclass(frozen=True, kw_only=True)
class _Planes:
    """Tiles that a block of the output takes of ACC, and a block of an input of INP."""

    acc: int
    inp: int


def _planes(work: NodeWork, rows: int) -> _Planes:
    height, width = work.target.shape[1:]
    cuts = [range(first, min(first + rows, height)) for first in range(0, height, rows)]
    read = [max(len(work.rows_read(number, cut)) for cut in cuts) for number in range(len(work.sources))]
    inp = max((count * source.shape[2] for count, source in zip(read, work.sources, strict=True)), default=0)
    acc = rows * width
    if isinstance(work.operator, MaxPool):
        acc += inp + (read[0] * width if work.separable else 0)
    return _Planes(acc=acc, inp=inp)


def _tiles(work: NodeWork, tiling: Tiling) -> Iterator[tuple[range, range]]:
    height = work.target.shape[1]
    for blocks in work.blocks:
        for first in range(blocks.start, blocks.stop, tiling.out_blocks):
            for row in range(0, height, tiling.rows):
                yield (
                    range(first, min(first + tiling.out_blocks, blocks.stop)),
                    range(row, min(row + tiling.rows, height)),
                )
