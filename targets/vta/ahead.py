"""The tiles of a layer one after the other, and loads of weights that run ahead of their layers.

A load waits for the store of what it reads, and those behind it in the queue with it. Weights wait for nobody but for
room, so as many of them as a rough clock says go first.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from tvmflow.targets.vta.emit import Stream
from tvmflow.targets.vta.tiles import Chunk, WeightedTile


def emit(stream: Stream, tiles: Sequence[WeightedTile], ahead: RunAhead) -> None:
    """The instructions of a layer's `tiles_of`. Raises Infeasible if they don't fit."""
    tiling = tiles[0].tiling
    for buffer in (stream.inp, stream.wgt, stream.acc):
        buffer.single = tiling.buffers == 1
    room = stream.wgt.depth
    for tile in tiles[: tiling.ahead]:
        chunks = tile.weights(in_place=tile.held() is not None)
        room -= sum(chunk.count for chunk in chunks)
        if room >= 0:
            for chunk in chunks:
                tile.load_weights(chunk)
    for tile in tiles:
        ahead.begin(tile)
        tile.emit(tiling.pieces if tile is tiles[-1] else 1)


LEAST_AHEAD = 16
"""Tiles of weights that are loaded ahead at once, where a tile's aren't fewer."""


class RunAhead:
    """Loads of weights that run ahead of their layers, while the load queue would stand still.

    `tiles` are all of a program's that have weights, in their order. What they will want next is loaded as far as it
    fits without taking the place of what is wanted before.
    """

    def __init__(self, stream: Stream, tiles: Sequence[WeightedTile]) -> None:
        self.stream = stream
        self._tiles = tiles
        self._numbers = {id(tile): number for number, tile in enumerate(tiles)}
        self._at, self._since = -1, 0
        likely = _likely_in_place(tiles)
        self._chunks = [tile.weights(in_place=likely[number]) for number, tile in enumerate(tiles)]

    def begin(self, tile: WeightedTile) -> None:
        """This tile is computed next."""
        self._at, self._since = self._numbers[id(tile)], self.stream.wgt.now
        self.stream.fill = None if tile.tiling.buffers == 1 else self._fill
        self._keep()

    def end(self) -> None:
        """Nothing runs ahead of what comes next."""
        self.stream.fill = None
        self.stream.wgt.kept = set()

    def _keep(self) -> tuple[WeightedTile, Chunk] | None:
        """Keep what is there of what is wanted, and say what is wanted first of what isn't."""
        kept: set[Hashable] = set()
        self.stream.wgt.kept = kept
        for tile, chunks in zip(self._tiles[self._at + 1 :], self._chunks[self._at + 1 :], strict=True):
            if tile.tiling.buffers == 1:
                return None
            for chunk in chunks:
                there = self.stream.wgt.find(chunk.key) is not None
                if there:
                    kept.add(chunk.key)
                if not there or chunk.key in self.stream.partly:
                    return tile, chunk
        return None

    def _fill(self, until: int) -> None:
        while (wanted := self._keep()) is not None:
            tile, chunk = wanted
            start, there = self.stream.wgt.find(chunk.key), 0
            if start is None:
                start = self.stream.wgt.room(chunk.count, self._since)
            else:
                there = self.stream.partly[chunk.key]
            if start is None:
                return
            some = self.stream.loadable(start + there, chunk.count - there, until)
            if some < min(chunk.count - there, LEAST_AHEAD):
                return
            tile.load_some_weights(chunk, some)


def _likely_in_place(tiles: Sequence[WeightedTile]) -> list[bool]:
    """Whether each tile will be added to its input, which the layer before has left in ACC."""
    found, before = [], set[tuple[str, range, range]]()
    names = [tile.work.layer.name for tile in tiles]
    for number, tile in enumerate(tiles):
        if number and names[number] != names[number - 1]:
            last = tiles[number - 1].work
            fits = last.target.tiles <= tile.stream.acc.depth
            before = {
                (last.layer.name, other.blocks, other.rows) for other in tiles[:number] if fits and other.work is last
            }
        found.append(tile.adds and (tile.work.source.name, tile.blocks, tile.rows) in before)
    return found
