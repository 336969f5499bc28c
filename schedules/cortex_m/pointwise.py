"""Whole convolutions of integers, 1×1 above all, to a map of four pixels or more, four pixels at a time.

1. What four neighbouring pixels meet, channel by channel and tap by tap, is gathered into a scratch buffer, in the
   order in which it is used. That is done once for all output channels. Where four don't divide the map, the last four
   overlap the ones before.
2. With DSP, a word of weights has two input channels of two output channels, a and b, as halfwords of 256·b + a + 128.
   SMLAD with two channels of a pixel adds up 256·b + a + 128, and with the upper bytes, which one SXTB16 takes out,
   b alone: of eight products per word, one instruction unpacks. What is too much in the first sum, 256·b and 128 times
   the sum of the pixel, is taken off at the end; sums modulo 2³² lose nothing. Unpacking every weight by itself,
   as is usual, takes twice as many instructions besides the products. Weights, biases and multipliers are one stream.
3. With MVE, VMLADAV adds sixteen products of one output channel and one pixel to a general register; four pixels share
   a load of weights. VMLADAV has no signed by unsigned form: unsigned inputs have 128 taken off, and the bias makes up.
4. Four sums of one channel are four neighbouring pixels of the result. They can lie where the input was, if nobody
   else reads that: of a 1×1 convolution nothing meets those pixels any more, whatever the number of channels. Of
   others, as many rows as the taps have are copied first, with a border of zeros, if the memory is worth it.

1024 to 1024 channels of 4×4: 0.83 instructions for each multiply-add on a Cortex-M7, 0.16 on a Cortex-M55, counted
under qemu-system-arm 7.2; of the network with depthwise layers 0.93 and 0.20, in place. TVM 0.27.0, 2026-11-30.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from tvmflow.integer.layers import IntegerLayer
from tvmflow.schedules.cortex_m._kernel import (
    AnyLayer,
    Expr,
    Kernel,
    Pointer,
    block_start,
    border_of,
    constant_pointers,
    finish,
    function,
    intrinsic,
    is_pointwise,
    met_by,
    parameters,
    pixels_of,
    requantize_vector,
    sizes,
    tap_of,
    wrapping,
)

PIXELS = 4
DSP_UNROLL = 16
"""Pairs of input channels in one step: what LLVM keeps on the stack between steps is paid once for all."""
DSP_PITCH = 6
PLACES = (0, 1, 3, 4)
"""Where the words of four pixels lie among DSP_PITCH: LLVM makes LDRD of two neighbouring loads, not of more."""
TWICE_MINUS_128 = 0xFF80FF80 - (1 << 32)
LANES = 16
MVE_UNROLL = 4


def pointwise(
    layers: Sequence[AnyLayer], dtypes: Sequence[str], core: str, writable: Sequence[bool], frugal: bool
) -> Kernel | None:
    if len(layers) != 1 or core not in ("dsp", "mve"):
        return None
    layer = layers[0]
    if not isinstance(layer, IntegerLayer) or layer.kind == "pool" or layer.groups != 1 or pixels_of(layer) < PIXELS:
        return None
    alone = is_pointwise(layer)
    window = KeptRows.of(layer) if writable[0] and frugal and not alone else None
    # signed or unsigned, a byte is one; with DSP the code in place is a little longer, with vectors it is the same
    in_place = writable[0] and (window is not None or (alone and (frugal or core == "mve")))
    return (_dsp if core == "dsp" else _mve)(layer, dtypes[0], in_place, window)


@dataclass(frozen=True, kw_only=True)
class KeptRows:
    """As many rows of the input as the taps have, with a border left and right: what a row of the result meets.

    That row then lies where the input was. Row y of the input, counted from the first of the border, is at y modulo
    `rows`.
    """

    channels: int
    rows: int
    columns: int
    left: int
    pitch: int
    above: int
    border: int

    @classmethod
    def of(cls, layer: IntegerLayer) -> KeptRows | None:
        """For a layer whose result's map is as large as its input's, and meets its neighbours."""
        _, channels, height, width = layer.input_shape
        top, left, _, right = layer.padding
        rows, _ = layer.weight.shape[2:]
        if layer.output_shape[2:] != (height, width) or width < PIXELS or layer.stride != (1, 1):
            return None
        if layer.dilation != (1, 1) or not top < rows:
            return None
        return cls(
            channels=channels,
            rows=rows,
            columns=width,
            left=left,
            pitch=left + width + right,
            above=top,
            border=border_of(layer),
        )

    @property
    def bytes(self) -> int:
        return -(-self.channels * self.rows * self.pitch // LANES) * LANES

    def clear(self, buffer: tirx.Buffer) -> None:
        with T.serial(0, self.bytes) as place:
            T.buffer_store(buffer, tirx.const(self.border, buffer.dtype), [place])

    def take(self, source: tirx.Buffer, height: int, buffer: tirx.Buffer, y: Expr) -> None:
        """Row `y` of the input, in all channels, or the border where there is none."""
        slot = tirx.truncmod(y + self.above, self.rows)

        def rows(value: Callable[[Expr, Expr], Expr]) -> None:
            with T.serial(0, self.channels) as c, T.serial(0, self.columns) as x:
                at = (c * self.rows + slot) * self.pitch + self.left + x
                T.buffer_store(buffer, value(c, x), [at])

        with T.If(y < height):
            with T.Then():
                rows(lambda c, x: source[(c * height + y) * self.columns + x])
            with T.Else():
                rows(lambda c, x: tirx.const(self.border, buffer.dtype))

    def element(self, buffer: tirx.Buffer, tap: tuple[Expr, Expr, Expr], y: Expr, x: Expr) -> Expr:
        """What the pixel at row `y` and column `x` of the result meets at a channel, row and column of the weights."""
        channel, row, column = tap
        return buffer[(channel * self.rows + tirx.truncmod(y + row, self.rows)) * self.pitch + x + column]


Met = Callable[[Expr, int], Expr]
"""What the pixel of that number in a block meets as the value of that number."""
Emit = Callable[[Expr, int, Met], None]
"""Emits the work on a block: its first pixel, how many there are, and what they meet."""


def _in_blocks(layer: IntegerLayer, given: Mapping[str, tirx.Buffer], window: KeptRows | None, emit: Emit) -> None:
    """All pixels in blocks of four.

    Where four don't divide them, the last block overlaps the one before, or it is smaller, if the one before has
    overwritten what it meets.
    """
    pixels, in_place = pixels_of(layer), "data" in given
    source = given["data" if in_place else "source"]
    if window is None:
        count = pixels // PIXELS if in_place else -(-pixels // PIXELS)

        def met(first: Expr) -> Met:
            return lambda number, j: met_by(layer, source, tap_of(layer, number), first + j)

        with T.serial(0, count) as block:
            first = block * PIXELS if in_place else block_start(block, PIXELS, pixels)
            emit(first, PIXELS, met(first))
        if in_place and pixels % PIXELS:
            first = T.int32(pixels - pixels % PIXELS)
            emit(first, pixels % PIXELS, met(first))
        return
    buffer, (height, width) = given["rows"], layer.output_shape[2:]
    window.clear(buffer)
    below = window.rows - 1 - window.above
    for y in range(below):
        window.take(source, height, buffer, T.int32(y))
    with T.serial(0, height) as y:
        window.take(source, height, buffer, y + below)
        with T.serial(0, -(-width // PIXELS)) as block:
            x = block_start(block, PIXELS, width)
            emit(y * width + x, PIXELS, _of_window(layer, window, buffer, y, x))


def _of_window(layer: IntegerLayer, window: KeptRows, buffer: tirx.Buffer, y: Expr, x: Expr) -> Met:
    return lambda number, j: window.element(buffer, tap_of(layer, number), y, x + j)


def _pointers(layer: IntegerLayer, dtype: str, in_place: bool, window: KeptRows | None) -> dict[str, Pointer]:
    """Of the input and the result, and of what is kept of the input."""
    before, after = sizes(layer)
    found: dict[str, Pointer] = {"source": (dtype, before), "destination": (layer.dtype, after)}
    if in_place:
        found = {"data": (dtype, max(before, after))}
    return found if window is None else {**found, "rows": (dtype, window.bytes)}


def _dsp(layer: IntegerLayer, dtype: str, in_place: bool, window: KeptRows | None) -> Kernel:
    inputs, outputs, pixels = layer.weight[0].size, layer.output_shape[1], pixels_of(layer)
    pairs, steps, header = -(-outputs // 2), -(-inputs // 2), 2 + 2 * len(layer.factors)
    constants = {"stream": stream_of(layer)}
    pointers = {
        **_pointers(layer, dtype, in_place, window),
        "scratch": ("int32", DSP_PITCH * steps),
        **constant_pointers(constants),
    }
    unroll = next(count for count in (DSP_UNROLL, 8, 4, 2, 1) if steps % count == 0)
    with function(pointers) as (builder, given):
        stream, scratch = given["stream"], given["scratch"]
        destination = given["data" if in_place else "destination"]
        begin = T.alloc_buffer((PIXELS,), "int32", scope="local")
        both, second = (T.alloc_buffer((PIXELS,), "int32", scope="local") for _ in range(2))

        def emit(first: Expr, several: int, met: Met) -> None:
            _gather_pairs(layer, scratch, begin, several, met)
            with T.serial(0, pairs) as pair:
                base = pair * (header + steps)
                for j in range(several):
                    T.buffer_store(both, wrapping(operator.add, begin[j], stream[base]), [j])
                    T.buffer_store(second, stream[base + 1], [j])
                with T.serial(0, steps // unroll) as many:
                    for one in range(unroll):
                        step = many * unroll + one
                        word = T.bind(stream[base + header + step])
                        upper = T.bind(intrinsic("sxtb16", rotate_right(word, 8)))
                        for j in range(several):
                            x = T.bind(scratch[step * DSP_PITCH + PLACES[j]])
                            T.buffer_store(both, intrinsic("smlad", word, x, both[j]), [j])
                            T.buffer_store(second, intrinsic("smlad", upper, x, second[j]), [j])
                for number in range(2):

                    def store(number: int = number) -> None:
                        for j in range(several):
                            total = (
                                second[j]
                                if number
                                else wrapping(operator.sub, both[j], tirx.shift_left(second[j], T.int32(8)))
                            )
                            by = tuple(stream[base + place + number] for place in range(2, header, 2))
                            value = finish(layer, total, by)
                            at = (2 * pair + number) * pixels + first + j
                            T.buffer_store(destination, T.Cast(destination.dtype, value), [at])

                    if number and outputs % 2:
                        with T.If(pair < pairs - 1), T.Then():
                            store()
                    else:
                        store()

        _in_blocks(layer, given, window, emit)
    return Kernel(
        schedule="pointwise",
        layers=(layer,),
        func=builder.get(),
        constants=constants,
        scratch={**_kept(window), "scratch": 4 * DSP_PITCH * steps},
        in_place=0 if in_place else None,
    )


def _kept(window: KeptRows | None) -> dict[str, int]:
    return {} if window is None else {"rows": window.bytes}


def stream_of(layer: IntegerLayer) -> np.ndarray:
    """int32: for each pair of output channels two beginnings of sums, two of each factor, and the words of weights."""
    weight = layer.weight.reshape(len(layer.weight), -1).astype(np.int64)
    weight = np.pad(weight, [(0, weight.shape[0] % 2), (0, weight.shape[1] % 2)])
    a, b = weight[0::2], weight[1::2]
    halves = (256 * b + a + 128) & 0xFFFF
    words = halves[:, 0::2] | halves[:, 1::2] << 16
    begin, *by = np.pad(parameters(layer).astype(np.int64), [(0, layer.output_shape[1] % 2), (0, 0)]).T
    # `begin` of the first sum is of both channels, as the sum is
    pairs = (factor[number::2] for factor in by for number in (0, 1))
    header = np.stack([begin[0::2] + 256 * begin[1::2], begin[1::2], *pairs], 1)
    return np.concatenate([header, words], 1).astype(np.uint32).view(np.int32)


def _gather_pairs(layer: IntegerLayer, scratch: tirx.Buffer, begin: tirx.Buffer, several: int, met: Met) -> None:
    """Two values of some pixels at a time; `begin` becomes −128 times the sum of each pixel."""
    inputs = layer.weight[0].size
    for j in range(several):
        T.buffer_store(begin, T.int32(0), [j])

    def gather(step: Expr, values: int) -> None:
        for j in range(several):
            low, high = (T.Cast("int32", met(2 * step + half, j)) if half < values else T.int32(0) for half in range(2))
            word = T.bind(tirx.bitwise_or(tirx.bitwise_and(low, 0xFFFF), tirx.shift_left(high, T.int32(16))))
            T.buffer_store(scratch, word, [step * DSP_PITCH + PLACES[j]])
            T.buffer_store(begin, intrinsic("smlad", word, T.int32(TWICE_MINUS_128), begin[j]), [j])

    with T.serial(0, inputs // 2) as step:
        gather(step, 2)
    if inputs % 2:
        gather(inputs // 2, 1)


def _mve(layer: IntegerLayer, dtype: str, in_place: bool, window: KeptRows | None) -> Kernel:
    inputs, outputs, pixels = layer.weight[0].size, layer.output_shape[1], pixels_of(layer)
    steps = -(-inputs // LANES)
    excess = 128 if dtype == "uint8" else 0
    # whatever lies in the lanes beyond the last channel is multiplied by 0
    weight = np.pad(layer.weight.reshape(outputs, -1), [(0, 0), (0, LANES * steps - inputs)])
    table = parameters(layer)
    # wraps as the sums do
    begin = table[:, 0].astype(np.int64) + excess * weight.sum(1, dtype=np.int64)
    table = np.concatenate([begin.astype(np.uint32).view(np.int32)[:, None], table[:, 1:]], 1)
    columns = table.shape[1]
    constants = {"parameters": table, "weight": weight}
    pointers = {
        **_pointers(layer, dtype, in_place, window),
        "scratch": ("int8", PIXELS * LANES * steps),
        **constant_pointers(constants),
    }
    unroll = next(count for count in (MVE_UNROLL, 2, 1) if steps % count == 0)
    with function(pointers) as (builder, given):
        scratch, destination = given["scratch"], given["data" if in_place else "destination"]
        totals = T.alloc_buffer((PIXELS,), "int32", scope="local")

        def emit(first: Expr, several: int, met: Met) -> None:
            with T.serial(0, inputs) as c:
                row = tirx.floordiv(c, LANES) * (PIXELS * LANES) + tirx.floormod(c, LANES)
                for j in range(several):
                    value = T.Cast("int32", met(c, j)) - excess
                    T.buffer_store(scratch, T.Cast("int8", value), [row + j * LANES])
            with T.serial(0, outputs) as o:
                for j in range(PIXELS):
                    T.buffer_store(totals, given["parameters"][columns * o], [j])
                with T.serial(0, steps // unroll) as many:
                    for one in range(unroll):
                        step = many * unroll + one
                        factors = T.bind(given["weight"][T.ramp((o * steps + step) * LANES, 1, LANES)])
                        for j in range(PIXELS):
                            x = scratch[T.ramp((step * PIXELS + j) * LANES, 1, LANES)]
                            T.buffer_store(totals, multiply_add_across(totals[j], factors, x), [j])
                sums = T.bind(T.Shuffle([totals[j] for j in range(PIXELS)], list(range(PIXELS))))
                by = tuple(given["parameters"][columns * o + place] for place in range(1, columns))
                value = requantize_vector(layer, sums, by)
                if several == PIXELS:
                    at = T.ramp(o * pixels + first, 1, PIXELS)
                    T.buffer_store(destination, T.Cast(f"{destination.dtype}x{PIXELS}", value), [at])
                    return
                vector = T.bind(value)
                for j in range(several):  # the other sums are of what a block before left
                    one = T.Cast(destination.dtype, T.Shuffle([vector], [j]))
                    T.buffer_store(destination, one, [o * pixels + first + j])

        _in_blocks(layer, given, window, emit)
    return Kernel(
        schedule="pointwise",
        layers=(layer,),
        func=builder.get(),
        constants=constants,
        scratch={**_kept(window), "scratch": PIXELS * LANES * steps},
        in_place=0 if in_place else None,
    )


def multiply_add_across(total: Expr, a: Expr, b: Expr) -> Expr:
    """Σ a·b + total of sixteen int8 lanes, in int32: signed, added, not exchanged."""
    signed, added, straight = T.uint32(0), T.uint32(0), T.uint32(0)
    return intrinsic("mve.vmldava", signed, added, straight, total, a, b)


def rotate_right(word: Expr, bits: int) -> Expr:
    return tirx.call_llvm_pure_intrin("int32", "llvm.fshr", word, word, T.int32(bits))
