"""One layer as instructions: which part of it is on chip at a time, and in which order the parts come.

A convolution is a sum over taps; for one tap, the outputs for which it lies on the map are a rectangle, and so are the
inputs that it reads there. So a tap is one GEMM instruction whose loops walk both rectangles, whatever the stride and
the dilation; what a tap would read of the padding is never multiplied, and taps that only read padding don't exist.
A depthwise layer multiplies with diagonal tiles: the hardware has no elementwise product. Biases, with the rounding's
half, are one more product, with a tile of ones. ReLU and saturation, shift and store follow in pieces, so that the
store queue works while the ALU does.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol

import numpy as np

from tvmflow.integer.layers import AnyIntegerLayer, IntegerLayer, accumulator_range
from tvmflow.targets.vta.check import HLS_DISTANCE
from tvmflow.targets.vta.emit import Infeasible, Loop, Stream
from tvmflow.targets.vta.isa import Memory, Operation, Uop
from tvmflow.targets.vta.layout import (
    FEW,
    ONES,
    WIDE,
    Tensor,
    bias_lanes,
    bias_tiles,
    is_diagonal,
    ones_at,
    shared_bias_tiles,
    weight_tiles,
    wide_bias_tiles,
)

ONCE = Loop(1)

MAX_SHIFT = 15
"""The HLS core takes the amount of a shift for a signed number of five bits."""


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """How a layer is cut: `out_blocks` × `rows` of the output are accumulated at once, from `in_blocks` at a time.

    `order` is the outer loop: over "channels", so that weights are loaded once, or over "rows". `pieces` are the parts
    in which the last tile is finished and stored, so that the next layer needn't wait for all of it. The weights of the
    first `ahead` tiles are loaded before any input, for which they may have to wait. With `buffers` 1 each buffer holds
    one thing at a time, and transfers and computing take turns; with 2 they overlap.
    """

    out_blocks: int
    rows: int
    in_blocks: int
    order: Literal["channels", "rows"] = "channels"
    pieces: int = 1
    ahead: int = 1
    buffers: int = 2


@dataclass(frozen=True, kw_only=True)
class Window:
    """One tap along one axis: `count` outputs from `first` on, every `step`th, read inputs from `start` on."""

    first: int
    count: int
    start: int
    step: int = 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Work:
    """A layer as the accelerator sees it: blocks of channels, live taps, weights as tiles."""

    layer: IntegerLayer
    source: Tensor
    target: Tensor
    lowest: int
    """The least of what it reads."""
    highest: int
    """The most of it."""
    kept: int = 0
    """Tiles of what it reads that may be on chip already, as an earlier layer reads them, too."""
    written: IntegerLayer | None = None
    """The network's layer, where `layer` is that of packed maps."""

    @property
    def network_layer(self) -> IntegerLayer:
        """The layer as the network has it."""
        return self.written or self.layer

    @property
    def block(self) -> int:
        return self.source.block

    @property
    def sources(self) -> tuple[Tensor, ...]:
        return (self.source,)

    @property
    def pool(self) -> bool:
        return self.layer.kind == "pool"

    @cached_property
    def diagonal(self) -> bool:
        return is_diagonal(self.layer)

    @cached_property
    def taps(self) -> tuple[tuple[int, Window, Window], ...]:
        """The taps that read something of the map, and whose weights aren't all 0: number, rows and columns."""
        height, width = self.layer.weight.shape[2:]
        found = []
        for number in range(height * width):
            rows, columns = self._window(0, number // width), self._window(1, number % width)
            if rows.count and columns.count and self.layer.weight[:, :, number // width, number % width].any():
                found.append((number, rows, columns))
        return tuple(found)

    def _window(self, axis: int, tap: int) -> Window:
        layer, size, out_size = self.layer, self.source.shape[1 + axis], self.target.shape[1 + axis]
        stride, offset = layer.stride[axis], tap * layer.dilation[axis] - layer.padding[axis]
        first = max(0, -(offset // stride))
        count = max(0, min(out_size, (size - 1 - offset) // stride + 1) - first)
        return Window(first=first, count=count, start=first * stride + offset)

    @cached_property
    def weights(self) -> np.ndarray:
        """int8 outputs' blocks × inputs' blocks × live taps × block × block; a pool has one tile for all."""
        if self.pool:
            return np.eye(self.block, dtype=np.int8)[None, None, None]
        return weight_tiles(self.layer, self.block)[:, :, [number for number, _, _ in self.taps]]

    @cached_property
    def shifts(self) -> tuple[int, ...]:
        """Of each block of outputs. Raises Infeasible if channels of a block differ."""
        assert self.layer.shift is not None
        shifts = []
        for start in range(0, len(self.layer.shift), self.block):
            values = set(self.layer.shift[start : start + self.block].tolist())
            if len(values) > 1:
                raise Infeasible(
                    f"{self.layer.name} has more than one shift among {self.block} output channels, "
                    "which the ALU can't do."
                )
            shifts.append(values.pop())
        return tuple(shifts)

    @cached_property
    def biases(self) -> np.ndarray:
        """int64 O: biases and the half that makes the shift round."""
        assert self.layer.shift is not None
        return self.layer.bias.astype(np.int64) + ((1 << self.layer.shift.astype(np.int64)) >> 1)

    @cached_property
    def constant(self) -> int | None:
        """The bias that all outputs have, if there is one that an ALU instruction can hold."""
        value = int(self.biases[0])
        return value if (self.biases == value).all() and -(2**15) <= value < 2**15 else None

    @cached_property
    def start(self) -> tuple[int, int]:
        """What accumulators begin with, and how much everything after the shift is moved by that.

        ACC tiles hold what was computed in them last, outputs from −128 to 127. One ALU instruction makes them a
        constant that is beyond all these values (MAX or MIN); for others it takes two. Where the constant is between
        them, outputs are moved by −256, which leaves the byte that is stored as it is.
        """
        if self.constant is None:
            return 0, 0
        return moved_start(self.constant, self.shifts[0]) if len(set(self.shifts)) == 1 else (self.constant, 0)

    @cached_property
    def bias_lanes(self) -> int | None:
        """Lanes that a bias takes, so that several blocks' share a tile; None if tiles aren't shared."""
        return bias_lanes(self.biases, self.block)

    def bias_weights(self, blocks: range) -> np.ndarray:
        """int8 … × block × block: what these blocks of outputs take for their biases.

        They are shared, or of each block there are `bias_count`: two if `wide_bias`, between which ALU shifts left.
        """
        biases = self.biases[blocks.start * self.block : blocks.stop * self.block]
        if self.bias_lanes is not None:
            return shared_bias_tiles(biases, self.bias_lanes, self.block)
        made = wide_bias_tiles if self.wide_bias else bias_tiles
        tiles = made(biases, self.block)
        missing = self.bias_count - tiles.shape[1]  # where other blocks have larger biases
        return np.pad(tiles, ((0, 0), (0, missing), (0, 0), (0, 0))) if missing else tiles

    def bias_tiles(self, blocks: int) -> int:
        """How many tiles that are, for so many blocks."""
        if not self.bias_count:
            return 0
        return blocks * self.bias_count if self.bias_lanes is None else -(-blocks * self.bias_lanes // self.block)

    @cached_property
    def wide_bias(self) -> bool:
        """Whether high and low bits of a bias, or of the half that rounds a large shift, are products by themselves."""
        return int(abs(self.biases).max()) > FEW * ONES * ONES * (self.block - 1)

    @cached_property
    def bias_count(self) -> int:
        """Products by which an output tile gets its biases."""
        if self.constant is not None:
            return 0
        if self.bias_lanes is not None:
            return 1
        most = ONES * ONES * (self.block - 1)
        return 2 if self.wide_bias else int(-(-abs(self.biases).max() // most))

    @cached_property
    def in_place_weights(self) -> np.ndarray | None:
        """`weights` of outputs that are added to what accumulators hold already, None if that can't be.

        An accumulator that holds the input of the output's own channel and pixel needs no beginning if the tap that
        reads just that has a weight less by 1.
        """
        shape, layer = self.source.shape[1:], self.layer
        centre = [
            number
            for number, (_, *windows) in enumerate(self.taps)
            if all(
                window.first == window.start == 0 and window.count == size
                for window, size in zip(windows, shape, strict=True)
            )
        ]
        if self.pool or tuple(layer.stride) != (1, 1) or self.target.shape[1:] != shape or len(centre) != 1:
            return None
        weights = self.weights.copy()  # −127 at least
        for block in range(self.in_place_blocks):
            lanes = min(self.block, self.target.shape[0] - block * self.block)
            part = weights[block, 0 if self.diagonal else block, centre[0]]
            part[range(lanes), range(lanes)] -= 1
        return weights

    @property
    def in_place_blocks(self) -> int:
        """How many of the outputs' blocks have an input of the same number in each lane: beyond a tensor's channels
        accumulators hold anything."""
        outputs, inputs = self.target.shape[0], self.source.shape[0]
        return self.target.blocks if outputs <= inputs else inputs // self.block

    @cached_property
    def saturates(self) -> tuple[bool, bool]:
        """Whether an accumulator can come to lie under the minimum or over the maximum, for any input at all."""
        low, high = accumulator_range(self.layer, self.lowest, self.highest)
        shift = np.asarray(self.layer.shift, np.int64)
        half = (1 << shift) >> 1
        least, most = ((low + half) >> shift).min(), ((high + half) >> shift).max()
        return bool(least < self.layer.minimum), bool(most > self.layer.maximum)

    @cached_property
    def passes(self) -> int:
        """ALU instructions that a tile is finished by, at least."""
        shifts = min(-(-shift // MAX_SHIFT) for shift in self.shifts)
        return max(1, shifts + sum(self.saturates))

    @property
    def tiles(self) -> int:
        """Tiles of the output."""
        return self.target.tiles

    @property
    def read_tiles(self) -> int:
        """Tiles of the input that have to be read."""
        return max(0, self.source.tiles - self.kept)

    @property
    def weight_count(self) -> int:
        """Tiles of weights and biases."""
        return self.weights.size // self.block**2 + self.bias_tiles(self.target.blocks)

    @cached_property
    def compute_cycles(self) -> int:
        """Cycles of the compute queue without any overhead: products, biases and the ALU's passes over each tile."""
        begun = self.bias_count + (self.wide_bias and self.bias_count > 0)
        fresh = self.target.blocks - (0 if self.in_place_weights is None else self.in_place_blocks)
        return self.steps + self.target.tiles * (begun + self.passes) + fresh * self.target.pixels

    @cached_property
    def steps(self) -> int:
        """Micro-ops of the products alone: the GEMM core's cycles at its best."""
        outputs = self.target.blocks * (1 if self.diagonal else self.source.blocks)
        return outputs * sum(rows.count * columns.count for _, rows, columns in self.taps)


def moved_start(constant: int, shift: int) -> tuple[int, int]:
    """`Work.start` of outputs that all have this shift."""
    moved = constant - (256 << shift)
    return (moved, -256) if -128 < constant < 127 and -(2**15) <= moved <= -256 - 128 else (constant, 0)


def input_rows(work: Work, start: int, stop: int) -> tuple[int, int]:
    """The rows of the input that rows `start` … `stop` of the output read."""
    stride = work.layer.stride[0]
    first, last = work.source.shape[1], 0
    for _, rows, _ in work.taps:
        low, high = max(start, rows.first), min(stop, rows.first + rows.count)
        if low < high:
            first = min(first, rows.start + (low - rows.first) * stride)
            last = max(last, rows.start + (high - 1 - rows.first) * stride + 1)
    return (first, last) if first < last else (0, 1)


def parts(size: int) -> list[int]:
    """Sizes of parts that cut `size` into equal parts, but for the last."""
    return sorted({-(-size // count) for count in range(1, size + 1)})


class Weights:
    """The weights of a program in the order in which they are loaded, and where the chunks of it lie in memory."""

    def __init__(self) -> None:
        self.tiles: list[np.ndarray] = []
        self.count = 0
        self._known: dict[object, tuple[int, int]] = {}

    def chunk(self, key: object, make: Sequence[np.ndarray]) -> tuple[int, int]:
        """Place and size, in tiles, of what `make` holds, which is written at its first use."""
        if key not in self._known:
            tiles = np.concatenate([part.reshape(-1, *part.shape[-2:]) for part in make])
            self.tiles.append(tiles)
            self._known[key] = (self.count, len(tiles))
            self.count += len(tiles)
        return self._known[key]


def tiles_of(stream: Stream, weights: Weights, work: Work, tiling: Tiling) -> list[WeightedTile]:
    """The parts of a layer, in the order in which they are computed."""
    cut = enumerate(_tiles(work, tiling))
    return [
        WeightedTile(stream, weights, work, tiling, blocks, rows, backward=number % 2 == 1)
        for number, (blocks, rows) in cut
    ]


def _tiles(work: Work, tiling: Tiling) -> Iterator[tuple[range, range]]:
    blocks, height = work.target.blocks, work.target.shape[1]
    over_blocks = [range(b, min(b + tiling.out_blocks, blocks)) for b in range(0, blocks, tiling.out_blocks)]
    over_rows = [range(y, min(y + tiling.rows, height)) for y in range(0, height, tiling.rows)]
    if tiling.order == "channels":
        yield from ((block, row) for block in over_blocks for row in over_rows)
    else:
        yield from ((block, row) for row in over_rows for block in over_blocks)


@dataclass(frozen=True, kw_only=True, eq=False)
class Chunk:
    """Weights that are loaded together: those of some of the inputs' blocks, and the biases if `bias`."""

    key: Hashable
    inputs: range
    bias: bool
    parts: tuple[np.ndarray, ...]

    @property
    def count(self) -> int:
        return sum(part.size // part.shape[-1] // part.shape[-2] for part in self.parts)


class Finished(Protocol):
    """What finishing an output has to know of its layer, whether it has weights or none."""

    @property
    def layer(self) -> AnyIntegerLayer: ...

    @property
    def target(self) -> Tensor: ...

    @property
    def shifts(self) -> tuple[int, ...]: ...

    @property
    def start(self) -> tuple[int, int]: ...

    @property
    def saturates(self) -> tuple[bool, bool]: ...


class OutputTile:
    """Some blocks and rows of a layer's output, in ACC from `acc` on: how they are finished, and planes loaded."""

    def __init__(self, stream: Stream, memory: Weights, finished: Finished, blocks: range, rows: range) -> None:
        self.stream, self.memory, self.finished = stream, memory, finished
        self.blocks, self.rows = blocks, rows
        self.width = finished.target.shape[2]
        self.pixels = len(rows) * self.width
        self.acc = 0

    def load_planes(self, source: Tensor, channels: range, rows: range) -> int:
        """Where these blocks of these rows of a tensor are on chip, planes one behind the other."""
        key = (source.name, channels, rows)
        found = self.stream.inp.find(key)
        if found is not None:
            return found
        _, height, width = source.shape
        count, row = len(channels), len(rows) * width
        inp = self.stream.inp.take(count * row, key)
        dram = source.tile + (channels.start * height + rows.start) * width
        if len(rows) == height:  # the planes lie one behind the other
            self.stream.load(Memory.INP, inp, dram, 1, count * row, count * row)
        else:
            self.stream.load(Memory.INP, inp, dram, count, row, height * width)
        return inp

    def finish(self, pieces: int) -> None:
        """Shift, saturate and store, piece by piece."""
        target, layer, moved = self.finished.target, self.finished.layer, self.finished.start[1]
        for blocks, pixels in self._pieces(pieces):
            start = self.acc + blocks.start * self.pixels + pixels.start
            self.shift(start, blocks, len(pixels))
            count = len(blocks) * len(pixels)
            under, over = self.finished.saturates
            shifted = any(self.finished.shifts[self.blocks.start + block] for block in blocks)
            if under or not (over or shifted):  # OUT holds what the ALU wrote last
                self.stream.alu(Operation.MAX, start, count, layer.minimum + moved)
            if over:
                self.stream.alu(Operation.MIN, start, count, layer.maximum + moved)
            dram = target.tile + (self.blocks.start + blocks.start) * target.pixels
            dram += self.rows.start * self.width + pixels.start
            whole = len(pixels) == target.pixels
            stored = (1, count, count) if whole else (len(blocks), len(pixels), target.pixels)
            self.stream.store(start, dram, *stored)
            if not moved:
                self.stream.equal(start, dram, *stored)

    def shift(self, start: int, blocks: range, pixels: int) -> None:
        """Shift each run of blocks that have the same shift."""
        shifts = [self.finished.shifts[self.blocks.start + block] for block in blocks]
        first = 0
        for last in range(1, len(shifts) + 1):
            if last < len(shifts) and shifts[last] == shifts[first]:
                continue
            left = shifts[first]
            while left:
                amount = min(left, MAX_SHIFT)
                self.stream.alu(Operation.SHR, start + first * pixels, (last - first) * pixels, amount)
                left -= amount
            first = last

    def _pieces(self, wanted: int) -> Iterator[tuple[range, range]]:
        """Blocks and pixels of the tile that are finished together: whole blocks, or parts of one."""
        count = len(self.blocks)
        if count >= wanted:
            size = -(-count // wanted)
            for block in range(0, count, size):
                yield range(block, min(block + size, count)), range(self.pixels)
            return
        size = -(-self.pixels // -(-wanted // count))
        for block in range(count):
            for pixel in range(0, self.pixels, size):
                yield range(block, block + 1), range(pixel, min(pixel + size, self.pixels))


class WeightedTile(OutputTile):
    """The same of a layer with weights."""

    def __init__(
        self,
        stream: Stream,
        memory: Weights,
        work: Work,
        tiling: Tiling,
        blocks: range,
        rows: range,
        *,
        backward: bool = False,
    ) -> None:
        super().__init__(stream, memory, work, blocks, rows)
        self.work, self.tiling, self.backward = work, tiling, backward

    def emit(self, pieces: int) -> None:
        count = len(self.blocks) * self.pixels
        held = self.held()
        if held is None:
            self.acc = self.stream.acc.take(count)
            self.stream.constant(self.acc, count, self.work.start[0])
        else:
            self.acc = held
            self.stream.acc.take_at(held, count)
        for chunk in self.weights(in_place=held is not None):
            wgt = self.load_weights(chunk)
            if chunk.bias:  # comes first: a wide one is shifted
                self._load_first_inputs(chunk)
                self._add_biases(wgt + chunk.count - self.work.bias_tiles(len(self.blocks)))
            if self.work.pool:
                self._pool(wgt)
            elif self.work.diagonal:
                self._diagonal(wgt)
            else:
                self._dense(wgt, chunk.inputs)
        self.finish(pieces)

    # ----------------------------------------------------------------------------------------------------- products

    @property
    def adds(self) -> bool:
        """Whether it can be added to the inputs of its own channels and pixels, where ACC holds them."""
        work = self.work
        return work.in_place_weights is not None and self.blocks.stop <= work.in_place_blocks and work.start == (0, 0)

    def held(self) -> int | None:
        """Where ACC holds what it can be added to, if it does."""
        source = self.work.source
        if not self.adds:
            return None
        dram = source.tile + (self.blocks.start * source.pixels) + self.rows.start * self.width
        return self.stream.holding(dram, len(self.blocks), self.pixels, source.pixels)

    def weights(self, *, in_place: bool = False) -> list[Chunk]:
        """All weights of the tile at once, if that leaves room for the next tile's, else as the inputs come."""
        work, inputs, taps = self.work, self.work.source.blocks, len(self.work.taps)
        tiles = work.in_place_weights if in_place else work.weights
        assert tiles is not None
        chosen = slice(self.blocks.start, self.blocks.stop)
        biases = (work.bias_weights(self.blocks),) if work.bias_count else ()
        if not taps and not biases:  # what reads its border alone
            return []
        if work.diagonal:
            parts = (tiles if work.pool else tiles[chosen], *biases)
            whole_key = (work.layer.name, self.blocks, in_place)
            return [Chunk(key=whole_key, inputs=self.blocks, bias=bool(biases), parts=parts)]
        whole = len(self.blocks) * inputs * taps + work.bias_tiles(len(self.blocks))
        together = inputs if 2 * whole <= self.stream.wgt.depth else self.tiling.in_blocks
        chunks = []
        for start in range(0, inputs, together):
            part = range(start, min(start + together, inputs))
            parts = (tiles[chosen, part.start : part.stop], *(biases if start == 0 else ()))
            key = (work.layer.name, self.blocks, part, in_place)
            chunks.append(Chunk(key=key, inputs=part, bias=start == 0 and bool(biases), parts=parts))
        return chunks

    def _dense(self, wgt: int, inputs: range) -> None:
        taps = len(self.work.taps)
        for channels in self._parts(inputs):
            inp, rows = self._load_inputs(channels)
            first = wgt + (channels.start - inputs.start) * taps
            self._multiply_dense(inp, rows, channels, first, len(inputs) * taps)

    def _parts(self, inputs: range) -> list[range]:
        """The inputs' blocks as they are multiplied.

        Every other tile begins with what the one before ended with, which is on chip still where not all of it is.
        """
        starts = range(inputs.start, inputs.stop, self.tiling.in_blocks)
        parts = [range(start, min(start + self.tiling.in_blocks, inputs.stop)) for start in starts]
        return parts[::-1] if self.backward else parts

    def _multiply_dense(self, inp: int, rows: range, channels: range, wgt: int, wgt_step: int) -> None:
        taps = len(self.work.taps)
        plane = len(rows) * self.work.source.shape[2]
        outputs = Loop(len(self.blocks), self.pixels, 0, wgt_step)
        for number in range(taps):
            for loops, dst, src in self._rectangle(number, rows):
                begin = Uop(self.acc + dst, inp + src, wgt + number)
                self._multiply([*loops, outputs], begin, Loop(len(channels), 0, plane, taps))

    def _diagonal(self, wgt: int) -> None:
        inp, rows = self._load_inputs(self.blocks)
        plane, taps = len(rows) * self.work.source.shape[2], len(self.work.taps)
        for number in range(taps):
            for loops, dst, src in self._rectangle(number, rows):
                begin = Uop(self.acc + dst, inp + src, wgt + number)
                self._multiply([*loops, Loop(len(self.blocks), self.pixels, plane, taps)], begin)

    def _pool(self, wgt: int) -> None:
        source = self.work.source
        _, height, width = source.shape
        at_once = max(1, self.stream.inp.depth // (len(self.blocks) * width))
        if at_once < height:  # half of the buffer, so that the next rows are loaded meanwhile
            at_once = max(1, at_once // 2)
        for first in range(0, height, at_once):
            rows = range(first, min(first + at_once, height))
            inp, pixels = self.load_planes(source, self.blocks, rows), len(rows) * width
            self._multiply([Loop(len(self.blocks), 1, pixels)], Uop(self.acc, inp, wgt), Loop(pixels, 0, 1))

    def _load_first_inputs(self, chunk: Chunk) -> None:
        """Load what is multiplied first before the biases are added, if it is stored by then: it comes meanwhile."""
        if self.work.pool or not self.work.taps or self.tiling.buffers == 1:
            return
        source, rows = self.work.source, range(*input_rows(self.work, self.rows.start, self.rows.stop))
        first = self.blocks if self.work.diagonal else self._parts(chunk.inputs)[0]
        dram = source.tile + (first.start * source.shape[1] + rows.start) * source.shape[2]
        stored = self.stream.stored_by(dram, len(first), len(rows) * source.shape[2], source.pixels)
        if stored <= self.stream.computed_by:
            self._load_ones(self.work.bias_lanes or self.work.block)
            self.load_planes(source, first, rows)

    def _add_biases(self, wgt: int) -> None:
        lanes = self.work.bias_lanes
        if lanes is not None:
            each = self.work.block // lanes
            ones = self._load_ones(lanes)
            for number, first in enumerate(range(0, len(self.blocks), each)):
                blocks = Loop(min(each, len(self.blocks) - first), self.pixels, 1)
                self._multiply([Loop(self.pixels, 1), blocks], Uop(self.acc + first * self.pixels, ones, wgt + number))
            return
        if not self.work.wide_bias:
            self._add_bias(wgt, self.work.bias_count)
            return
        self._add_bias(wgt, 1)
        self.stream.alu(Operation.SHR, self.acc, len(self.blocks) * self.pixels, -WIDE)
        self._add_bias(wgt + 1, 1)

    def _add_bias(self, wgt: int, count: int) -> None:
        """The products of `count` tiles for each block, which are there for `bias_count`."""
        ones = self._load_ones(self.work.block)
        loops = [Loop(self.pixels, 1), Loop(len(self.blocks), self.pixels, 0, self.work.bias_count)]
        self._multiply(loops, Uop(self.acc, ones, wgt), Loop(count, 0, 0, 1))

    def _load_ones(self, lanes: int) -> int:
        """Where the tiles of ones with so many lanes are on chip."""
        block = self.work.block
        found, count = self.stream.inp.find(("ones", lanes)), block // lanes
        if found is not None:
            self.stream.inp.touch(slice(found, found + count))
        else:
            found = self.stream.inp.take(count, ("ones", lanes))
            self.stream.load(Memory.INP, found, ones_at(lanes, block), 1, count, count)
        return found

    def _rectangle(self, tap: int, rows: range) -> Iterator[tuple[list[Loop], int, int]]:
        """The loops of a tap over this tile's part of the map, and where they begin in ACC and INP, if anywhere.

        `rows` are those of the input that are loaded.
        """
        _, down, across = self.work.taps[tap]
        stride_y, stride_x = self.work.layer.stride
        width = self.work.source.shape[2]
        first, last = max(self.rows.start, down.first), min(self.rows.stop, down.first + down.count)
        if first >= last:
            return
        from_row = down.start + (first - down.first) * stride_y - rows.start
        dst = (first - self.rows.start) * self.width + across.first
        src = from_row * width + across.start
        if stride_x == stride_y == 1 and across.count == width == self.width:
            yield [Loop((last - first) * width, 1, 1)], dst, src
        else:
            yield (
                [Loop(last - first, self.width, stride_y * width), Loop(across.count, across.step, stride_x)],
                dst,
                src,
            )

    def _multiply(self, loops: Sequence[Loop], begin: Uop, reduction: Loop = ONCE) -> None:
        """GEMM over all combinations of `loops` and, around them, of `reduction`, which adds up in the same tiles."""
        longest = sorted((loop for loop in loops if loop.times > 1), key=lambda loop: loop.times)
        within = int(np.prod([loop.times for loop in longest])) if longest else 1
        if reduction.times > 1 and (len(longest) > 2 or within < HLS_DISTANCE):
            for step in range(reduction.times):
                moved = Uop(begin.dst, begin.src + step * reduction.src, begin.wgt + step * reduction.wgt)
                self._multiply(loops, moved)
            return
        inner = longest.pop() if longest else ONCE
        outer = reduction if reduction.times > 1 else longest.pop() if longest else ONCE
        uops = [begin]
        for loop in longest:
            uops = [
                Uop(uop.dst + step * loop.dst, uop.src + step * loop.src, uop.wgt + step * loop.wgt)
                for uop in uops
                for step in range(loop.times)
            ]
        self.stream.gemm(outer, inner, uops)

    # ------------------------------------------------------------------------------------------------------ transfers

    def load_weights(self, chunk: Chunk) -> int:
        """Where these weights are on chip."""
        return self.load_some_weights(chunk, chunk.count)

    def load_some_weights(self, chunk: Chunk, count: int) -> int:
        """The same of the next `count` tiles of these weights, if so many aren't there."""
        buffer, partly = self.stream.wgt, self.stream.partly
        wgt = buffer.find(chunk.key)
        if wgt is None:
            wgt, partly[chunk.key] = buffer.take(chunk.count, chunk.key), 0
        buffer.touch(slice(wgt, wgt + chunk.count))
        there = partly.pop(chunk.key, chunk.count)
        more = min(count, chunk.count - there)
        if more:
            dram, _ = self.memory.chunk(chunk.key, chunk.parts)
            self.stream.load(Memory.WGT, wgt + there, dram + there, 1, more, more)
        if there + more < chunk.count:
            partly[chunk.key] = there + more
        return wgt

    def _load_inputs(self, channels: range) -> tuple[int, range]:
        """Where these blocks of the rows that the tile reads are on chip, and the rows."""
        source = self.work.source
        rows = range(*input_rows(self.work, self.rows.start, self.rows.stop))
        return self.load_planes(source, channels, rows), rows
