"""Instructions of a part of a sum, of a concatenation, or of moved elements: products with tiles, and passes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from tvmflow.targets.vta.emit import Loop, Stream
from tvmflow.targets.vta.isa import Memory, Operation, Uop
from tvmflow.targets.vta.moves import DIGIT, Pair, Part, Run, ranges
from tvmflow.targets.vta.nodes import NodeWork
from tvmflow.targets.vta.tiles import MAX_SHIFT, ONCE, OutputTile, Tiling, Weights


class NodeTile(OutputTile):
    """Some blocks and rows of the output of a layer without weights."""

    def __init__(
        self, stream: Stream, memory: Weights, work: NodeWork, tiling: Tiling, blocks: range, rows: range
    ) -> None:
        super().__init__(stream, memory, work, blocks, rows)
        self.work, self.tiling = work, tiling

    def emit(self, pieces: int) -> None:
        """The tile's instructions."""
        raise NotImplementedError

    def load_tiles(self, numbers: Sequence[int]) -> int:
        """Where these weight tiles are on chip, one behind the other. Equal tiles are the same for all layers."""
        tiles = self.work.weights[list(numbers)]
        key = ("tiles", tiles.tobytes())
        found = self.stream.wgt.find(key)
        if found is not None:
            return found
        dram, count = self.memory.chunk(key, (tiles,))
        wgt = self.stream.wgt.take(count, key)
        self.stream.load(Memory.WGT, wgt, dram, 1, count, count)
        return wgt

    def loops(self, rows: Run, columns: Run, source_width: int, source_row: int) -> tuple[Loop, Loop, int, int]:
        """The loops over rows and columns of this tile, and where they begin in a block of ACC and of the source, of
        which the rows from `source_row` on are there."""
        outer = Loop(rows.count, rows.step * self.width, rows.stride * source_width) if rows.count > 1 else ONCE
        inner = Loop(columns.count, columns.step, columns.stride) if columns.count > 1 else ONCE
        dst = (rows.first - self.rows.start) * self.width + columns.first
        return outer, inner, dst, (rows.start - source_row) * source_width + columns.start


class Moved(NodeTile):
    """Of a sum, a concatenation or moved elements."""

    def emit(self, pieces: int) -> None:
        count = len(self.blocks) * self.pixels
        self.acc = self.stream.acc.take(count)
        self.stream.constant(self.acc, count, self.work.start[0])
        for number, level in enumerate(self.work.levels):
            if number:
                self.stream.alu(Operation.SHR, self.acc, count, -DIGIT)
            pairs = [pair for part in level for pair in part.pairs if pair.target in self.blocks]
            used = sorted({pair.tile for pair in pairs})
            if used:
                wgt = self.load_tiles(used)
                where = {tile: wgt + place for place, tile in enumerate(used)}
                for part in level:
                    self._add(part, where)
        self.finish(pieces)

    def _add(self, part: Part, where: Mapping[int, int]) -> None:
        source = self.work.sources[part.source]
        rows = [run for run in (run.within(self.rows) for run in part.rows) if run is not None]
        pairs = [pair for pair in part.pairs if pair.target in self.blocks]
        if not rows or not pairs:
            return
        read = range(min(run.reads.start for run in rows), max(run.reads.stop for run in rows))
        plane = len(read) * source.shape[2]
        for channels in ranges(sorted({pair.source for pair in pairs}), self.tiling.in_blocks):
            inp = self.load_planes(source, channels, read)
            for together in _apart([pair for pair in pairs if pair.source in channels]):
                for vertical, horizontal in itertools.product(rows, part.columns):
                    outer, inner, dst, src = self.loops(vertical, horizontal, source.shape[2], read.start)
                    uops = [
                        Uop(
                            self.acc + (pair.target - self.blocks.start) * self.pixels + dst,
                            inp + (pair.source - channels.start) * plane + src,
                            where[pair.tile],
                        )
                        for pair in together
                    ]
                    self.stream.gemm(outer, inner, uops)

    def shift(self, start: int, blocks: range, pixels: int) -> None:
        if not self.work.rounds_late:
            super().shift(start, blocks, pixels)
            return
        left, count = self.work.shifts[0] - 1, len(blocks) * pixels
        while left:
            amount = min(left, MAX_SHIFT)
            self.stream.alu(Operation.SHR, start, count, amount)
            left -= amount
        self.stream.alu(Operation.ADD, start, count, 1)
        self.stream.alu(Operation.SHR, start, count, 1)


def _apart(pairs: Sequence[Pair]) -> list[list[Pair]]:
    """The pairs in groups in which no two have the same target: in one instruction, these would be too near."""
    groups: list[list[Pair]] = []
    for pair in pairs:
        group = next((group for group in groups if all(other.target != pair.target for other in group)), None)
        if group is None:
            groups.append([pair])
        else:
            group.append(pair)
    return groups
