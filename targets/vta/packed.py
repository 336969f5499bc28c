"""Maps of few channels: several pixels of a row share a tile, so that neither products nor passes are of empty lanes.

A tile of three channels has 13 lanes that nothing is in. Where two layers or more follow each other on such a map, the
first stores P pixels that lie beside each other as one tile of P·C lanes, and the last reads them one by one. A layer
between computes on a map of a Pth of the columns, with a dense filter in which the lanes of a tile read each other.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from tvmflow.integer.layers import RANGES, IntegerLayer
from tvmflow.integer.network import IntegerNetwork
from tvmflow.targets.vta.layout import Tensor
from tvmflow.targets.vta.tiles import Window, Work

Packs = Mapping[str, int]
"""How many pixels share a tile, of tensors of which more than one do."""


def packs_of(network: IntegerNetwork, block: int) -> Packs:
    """Which tensors are packed: those of runs of layers that take fewer cycles so."""
    packs: dict[str, int] = {}
    for layers in _runs(network, block):
        found = [
            (cost, first, last)
            for first, last in itertools.combinations(range(len(layers)), 2)
            if (cost := _gain(layers[first : last + 1], block)) > 0
        ]
        if found:
            _, first, last = max(found)
            packs |= {layer.name: _pixels(layer, block) for layer in layers[first:last]}
    return packs


def packed_work(work: Work, reads: int, gives: int) -> Work:
    """The work of a layer of which `reads` pixels of the input share a tile, and `gives` of the output."""
    if reads == gives == 1:
        return work
    if gives == 1:
        known = {name: getattr(work, name) for name in ("layer", "source", "target", "lowest", "highest", "kept")}
        return Unpacked(**known, written=work.layer, pack=reads)
    made = packed_layer(work.layer, reads, gives)
    assert made is not None
    return replace(work, layer=made, written=work.layer)


def packed_layer(layer: IntegerLayer, reads: int, gives: int) -> IntegerLayer | None:
    """The layer on packed maps: P·C lanes, lane p·C + c the channel c of the pixel p of a tile.

    None if it can't be one, because it leaves out the last columns of what it reads.
    """
    outputs, inputs, (height, width) = len(layer.weight), layer.input_shape[1], layer.weight.shape[2:]
    left = layer.padding[1]
    steps = [tap * layer.dilation[1] - left for tap in range(width)]
    step = gives // reads  # of a column of the output, in columns of the input
    places = {(pixel, tap): divmod(pixel + steps[tap], reads) for pixel in range(gives) for tap in range(width)}
    first, last = (end(group for group, _ in places.values()) for end in (min, max))
    columns, out_columns = layer.input_shape[3] // reads, layer.output_shape[3] // gives
    right = (out_columns - 1) * step + last - (columns - 1)
    if first > 0 or right < 0:
        return None
    each = layer.weight.shape[1]
    weight = np.zeros((gives * outputs, reads * inputs, height, last - first + 1), np.int8)
    for (pixel, tap), (group, lane) in places.items():
        for output in range(outputs):
            begin = lane * inputs + output // (outputs // layer.groups) * each
            weight[pixel * outputs + output, begin : begin + each, :, group - first] = layer.weight[output, :, :, tap]
    assert layer.shift is not None
    return replace(
        layer,
        weight=weight,
        bias=np.tile(layer.bias, gives),
        shift=np.tile(layer.shift, gives),
        groups=1,
        stride=(layer.stride[0], step),
        padding=(layer.padding[0], -first, layer.padding[2], right),
        dilation=(layer.dilation[0], 1),
        input_shape=(1, reads * inputs, layer.input_shape[2], columns),
        output_shape=(1, gives * outputs, layer.output_shape[2], out_columns),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Unpacked(Work):
    """A layer that reads `pack` pixels from a tile and gives one: each has products of its own."""

    pack: int

    @property
    def diagonal(self) -> bool:
        return False

    @cached_property
    def _places(self) -> tuple[tuple[Window, Window, int, int, int], ...]:
        """Rows and columns of a tap, and which it is: the filter's row and column, and the pixel of a tile it reads."""
        height, width = self.layer.weight.shape[2:]
        found = []
        for row, tap, pixel in itertools.product(range(height), range(width), range(self.pack)):
            rows = self._window(0, row)
            group, lane = divmod(pixel + tap * self.layer.dilation[1] - self.layer.padding[1], self.pack)
            out_columns, columns = -(-(self.target.shape[2] - pixel) // self.pack), self.source.shape[2]
            first = max(0, -group)
            count = max(0, min(out_columns, columns - group) - first)
            across = Window(first=first * self.pack + pixel, count=count, start=first + group, step=self.pack)
            if rows.count and count and self.layer.weight[:, :, row, tap].any():
                found.append((rows, across, row, tap, lane))
        return tuple(found)

    @property
    def taps(self) -> tuple[tuple[int, Window, Window], ...]:
        return tuple((number, rows, columns) for number, (rows, columns, *_) in enumerate(self._places))

    @cached_property
    def weights(self) -> np.ndarray:
        block, layer = self.block, self.layer
        outputs, each, inputs = len(layer.weight), layer.weight.shape[1], layer.input_shape[1]
        tiles = np.zeros((self.target.blocks * block, len(self._places), block), np.int8)
        for number, (*_, row, tap, lane) in enumerate(self._places):
            for output in range(outputs):
                begin = lane * inputs + output // (outputs // layer.groups) * each
                tiles[output, number, begin : begin + each] = layer.weight[output, :, row, tap]
        shaped = tiles.reshape(self.target.blocks, block, len(self._places), block)
        return np.ascontiguousarray(shaped.transpose(0, 2, 1, 3))[:, None]


def _runs(network: IntegerNetwork, block: int) -> Iterator[list[IntegerLayer]]:
    """Layers that follow each other on maps that could be packed alike, with the one that reads the last of these."""
    readers = Counter(name for layer in network.layers for name in layer.inputs)
    kept = {port.source for port in network.outputs}
    run: list[IntegerLayer] = []
    for layer in network.layers:
        if not isinstance(layer, IntegerLayer) or layer.kind != "conv2d" or layer.stride[1] != 1:
            yield run
            run = []
            continue
        if run and layer.inputs != (run[-1].name,):
            yield run
            run = []
        run.append(layer)
        alone = readers[layer.name] == 1 and layer.name not in kept
        alike = len(run) < 2 or _shape(run[-2], block) == _shape(layer, block)
        if not (alone and alike and _pixels(layer, block) > 1):
            yield run
            run = []
    yield run


def _pixels(layer: IntegerLayer, block: int) -> int:
    """How many pixels of its output fit a tile and divide a row."""
    _, channels, _, width = layer.output_shape
    return max((pixels for pixels in range(1, block // channels + 1) if width % pixels == 0), default=1)


def _shape(layer: IntegerLayer, block: int) -> tuple[int, int]:
    return _pixels(layer, block), layer.output_shape[3]


def _gain(layers: Sequence[IntegerLayer], block: int) -> int:
    """Cycles that are saved where the outputs of all of these but the last are packed; 0 if they can't be."""
    pixels = [1, *(_pixels(layer, block) for layer in layers[:-1]), 1]
    saved = 0
    for layer, reads, gives in zip(layers, pixels, pixels[1:], strict=False):
        if gives > 1 and packed_layer(layer, reads, gives) is None:
            return 0
        saved += _cycles(layer, 1, 1, block) - _cycles(layer, reads, gives, block)
    return saved


def _cycles(layer: IntegerLayer, reads: int, gives: int, block: int) -> int:
    low, high = RANGES["int8"]
    source, target = (
        Tensor(name=name, tile=0, shape=packed_shape(shape[1:], pack), block=block, pack=pack)
        for name, shape, pack in (("source", layer.input_shape, reads), ("target", layer.output_shape, gives))
    )
    work = Work(layer=layer, source=source, target=target, lowest=low, highest=high)
    return packed_work(work, reads, gives).compute_cycles


def packed_shape(shape: Sequence[int], pack: int) -> tuple[int, int, int]:
    """C×H×W of a tensor of which so many pixels share a tile."""
    channels, height, width = shape
    return channels * pack, height, width // pack
