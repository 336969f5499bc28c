"""Instructions of a part of the output of a pool: each tap of the window is one MAX of two tiles."""

from __future__ import annotations

from tvmflow.integer.operators import MaxPool
from tvmflow.targets.vta.emit import Loop
from tvmflow.targets.vta.isa import Operation, Uop
from tvmflow.targets.vta.moved_tiles import NodeTile
from tvmflow.targets.vta.moves import Run, spanned
from tvmflow.targets.vta.tiles import ONCE


class Pooled(NodeTile):
    """Of the largest values of windows."""

    def emit(self, pieces: int) -> None:
        (source,), blocks = self.work.sources, len(self.blocks)
        read = self.work.rows_read(0, self.rows)
        plane, count = len(read) * source.shape[2], blocks * self.pixels
        taps = self.work.taps(self.rows)
        first = next((tap for tap in taps if tap[0].count * tap[1].count == self.pixels), None)
        others = [tap for tap in taps if tap is not first]
        # both at once: what is taken after another may take its place
        self.acc = self.stream.acc.take(count + (blocks * plane if others else 0))
        copies = self.acc + count
        unit = self.load_tiles([0])
        inp = self.load_planes(source, self.blocks, read)
        if others:
            self.stream.constant(copies, blocks * plane, 0)
            self.stream.gemm(ONCE, Loop(blocks * plane, 1, 1), [Uop(copies, inp, unit)])
            self.stream.known(copies, blocks * plane, -128, 127)
        if first is None:
            self.stream.constant(self.acc, count, -128)
        else:
            self.stream.constant(self.acc, count, 0)
            outer, inner, uops = self._tap(first, inp, plane, read.start, unit)
            self.stream.gemm(outer, inner, uops)
            self.stream.known(self.acc, count, -128, 127)
        for tap in others:
            outer, inner, uops = self._tap(tap, copies, plane, read.start, 0)
            self.stream.combine(Operation.MAX, outer, inner, uops)
        self.finish(pieces)

    def _tap(self, tap: tuple[Run, Run], begin: int, plane: int, row: int, wgt: int) -> tuple[Loop, Loop, list[Uop]]:
        outer, inner, dst, src = self.loops(*tap, self.work.sources[0].shape[2], row)
        uops = [
            Uop(self.acc + block * self.pixels + dst, begin + block * plane + src, wgt)
            for block in range(len(self.blocks))
        ]
        return outer, inner, uops


class PooledByAxis(NodeTile):
    """The same in two steps: in ACC behind each other lie outputs, the largest of each row's windows, and the input."""

    def emit(self, pieces: int) -> None:
        (source,), blocks, width = self.work.sources, len(self.blocks), self.width
        operator, in_width = self.work.operator, self.work.sources[0].shape[2]
        assert isinstance(operator, MaxPool)
        read = self.work.rows_read(0, self.rows)
        plane, between, count = len(read) * in_width, len(read) * width, blocks * self.pixels
        self.acc = self.stream.acc.take(count + blocks * (between + plane))
        largest = self.acc + count
        copies = largest + blocks * between
        unit = self.load_tiles([0])
        inp = self.load_planes(source, self.blocks, read)
        self.stream.constant(copies, blocks * plane, 0)
        self.stream.gemm(ONCE, Loop(blocks * plane, 1, 1), [Uop(copies, inp, unit)])
        self.stream.known(copies, blocks * plane, -128, 127)

        columns = [spanned(*operator.window.span(1, tap)) for tap in range(operator.window.kernel[1])]
        columns = [run for run in columns if run.count]
        first = next((run for run in columns if run.count == width), None)
        every = Loop(len(read) * blocks, width, in_width)  # rows of all blocks lie behind each other
        self.stream.constant(largest, blocks * between, -128 if first is None else 0)
        if first is not None:
            begin = Uop(largest + first.first, inp + first.start, unit)
            self.stream.gemm(every, Loop(first.count, 1, first.stride), [begin])
            self.stream.known(largest, blocks * between, -128, 127)
        for run in columns:
            if run is not first:
                begin = Uop(largest + run.first, copies + run.start)
                self.stream.combine(Operation.MAX, every, Loop(run.count, 1, run.stride), [begin])

        self.stream.constant(self.acc, count, -128)
        for tap in range(operator.window.kernel[0]):
            span = spanned(*operator.window.span(0, tap))
            rows = span.within(self.rows) if span.count else None
            if rows is None:
                continue
            outer = Loop(rows.count, width, rows.stride * width)
            dst, src = (rows.first - self.rows.start) * width, (rows.start - read.start) * width
            uops = [
                Uop(self.acc + block * self.pixels + dst, largest + block * between + src) for block in range(blocks)
            ]
            self.stream.combine(Operation.MAX, outer, Loop(width, 1, 1), uops)
        self.finish(pieces)
