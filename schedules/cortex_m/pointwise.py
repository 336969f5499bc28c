"""Whole convolutions of integers and dense layers, four pixels at a time.

1. What four neighbouring pixels meet is gathered into a scratch buffer, in the order in which it is used. That is done
   once for all output channels. `_met` has how values are found; where they are neighbours, a word or a vector of them
   is taken at once.
2. With DSP, a word of weights has two input channels of two output channels, a and b, as halfwords of 256·b + a + 128.
   SMLAD with two channels of a pixel adds up 256·b + a + 128, and with the upper bytes, which one SXTB16 takes out,
   b alone: of eight products per word, one instruction unpacks. What is too much in the first sum, 256·b and 128 times
   the sum of the pixel, is taken off at the end; sums modulo 2³² lose nothing. Unpacking every weight by itself,
   as is usual, takes twice as many instructions besides the products. Weights, biases and multipliers are one stream.
3. With MVE, VMLADAV adds sixteen products of one output channel and one pixel to a general register; four pixels share
   a load of weights, or four output channels a load of the one pixel that there is, unless they are depthwise. VMLADAV
   has no signed by unsigned form: unsigned inputs have 128 taken off, and the bias makes up.
4. Four sums of one channel are four neighbouring pixels of the result. They can lie where the input was, if nobody
   else reads that: of a 1×1 convolution nothing meets those pixels any more, whatever the number of channels, and of
   others all rows that are still met were moved before.

1024 to 1024 channels of 4×4: 0.83 instructions for each multiply-add on a Cortex-M7, 0.16 on a Cortex-M55, counted
under qemu-system-arm 7.2; of the network with depthwise layers 0.93 and 0.20, in place. TVM 0.27.0, 2026-11-30.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from tvmflow.integer.layers import IntegerLayer
from tvmflow.schedules.cortex_m._kernel import (
    AnyLayer,
    Expr,
    Kernel,
    Pointer,
    constant_pointers,
    finish,
    function,
    intrinsic,
    parameters,
    pixels_of,
    requantize_vector,
    rounds_shortly,
    scatter,
    sizes,
    wrapping,
)
from tvmflow.schedules.cortex_m._met import PIXELS, Met, Planes, Runs, Values, met_of, pairs_of, turned
from tvmflow.schedules.integers import round_up

MOST_UNROLLED = 16
"""Steps at once: what LLVM keeps on the stack between steps is paid once for all."""
MANY_STEPS = 128
"""A layer of so many steps, whose weights are many times the code, takes twice as many at once."""
PLACES = {1: (0,), PIXELS: (0, 1, 3, 4)}
"""Where the words of the pixels of a block lie in a step: LLVM makes LDRD of two neighbouring loads, not of more."""
PITCH = {1: 1, PIXELS: 6}
TWICE_MINUS_128 = 0xFF80FF80 - (1 << 32)
LANES = 16
MVE_UNROLL = 4
OUTPUTS = 4
"""Channels at a time of a single pixel, with MVE."""


def pointwise(
    layers: Sequence[AnyLayer], dtypes: Sequence[str], core: str, writable: Sequence[bool], frugal: bool
) -> Kernel | None:
    if len(layers) != 1 or core not in ("dsp", "mve"):
        return None
    layer = layers[0]
    if not isinstance(layer, IntegerLayer) or layer.kind == "pool":
        return None
    single = core == "mve" and pixels_of(layer) == 1
    if layer.groups != 1 and not (single and _is_apart(layer)):
        return None
    if single and layer.twice and not rounds_shortly(layer):
        return None
    if layer.groups != 1:
        return _mve_single(layer, Planes(layer=layer), dtypes[0], False)
    met = met_of(turned(layer), SIGN if core == "mve" and dtypes[0] == "uint8" else 0)
    # with DSP a 1×1 convolution in place takes a little more code, all others take the same
    in_place = writable[0] and met.keeps and (frugal or core == "mve" or not isinstance(met, Planes))
    make = _dsp if core == "dsp" else _mve_single if single else _mve
    return make(layer, met, dtypes[0], in_place)


SIGN = 128
"""What is taken off a byte without a sign so that it has one."""


def _pointers(layer: IntegerLayer, met: Met, dtype: str, in_place: bool, rows: str) -> dict[str, Pointer]:
    """Of the input and the result, and of what is kept of the input."""
    before, after = sizes(layer)
    found: dict[str, Pointer] = {"source": (dtype, before), "destination": (layer.dtype, after)}
    if in_place:
        found = {"data": (dtype, max(before, after))}
    return {**found, "rows": (rows, met.bytes)} if met.bytes else found


def _scratch(met: Met, count: int) -> dict[str, int]:
    return {**({"rows": met.bytes} if met.bytes else {}), "scratch": count}


def _ends(given: Mapping[str, tirx.Buffer], in_place: bool) -> tuple[tirx.Buffer, tirx.Buffer]:
    return (given["data"], given["data"]) if in_place else (given["source"], given["destination"])


def _dsp(layer: IntegerLayer, met: Met, dtype: str, in_place: bool) -> Kernel:
    pixels, outputs = pixels_of(layer), layer.output_shape[1]
    several = 1 if pixels == 1 else PIXELS
    taken = pairs_of(met, layer.weight[0].size)
    steps = _unrollable(len(taken))
    together = 2 if pixels == 1 and outputs > 2 else 1
    unroll = _unrolled(steps)
    groups, header = -(-outputs // (2 * together)), together * (2 + 2 * len(layer.factors))
    pitch, places = PITCH[several], PLACES[several]
    constants = {"stream": stream_of(layer, taken, steps, together)}
    pointers = {
        **_pointers(layer, met, dtype, in_place, dtype),
        "scratch": ("int32", pitch * steps),
        **constant_pointers(constants),
    }
    with function(pointers) as (builder, given):
        stream, scratch = given["stream"], given["scratch"]
        source, destination = _ends(given, in_place)
        begin = T.alloc_buffer((several,), "int32", scope="local")
        both, second = (T.alloc_buffer((several * together,), "int32", scope="local") for _ in range(2))

        def keep(step: Expr, j: int, word: Expr) -> None:
            word = T.bind(word)
            T.buffer_store(scratch, word, [step * pitch + places[j]])
            T.buffer_store(begin, intrinsic("smlad", word, T.int32(TWICE_MINUS_128), begin[j]), [j])

        for step in range(len(taken), steps):
            for place in places:
                T.buffer_store(scratch, T.int32(0), [step * pitch + place])

        def emit(first: Expr, count: int, values: Runs | Values) -> None:
            each = [(pair, j, pair * several + j) for pair in range(together) for j in range(count)]
            for j in range(count):
                T.buffer_store(begin, T.int32(0), [j])
            if isinstance(values, Runs):
                _words_of_runs(values, count, keep)
            else:
                _words_of_values(values, layer.weight[0].size, count, keep)
            with T.serial(0, groups) as group:
                base = group * (header + together * steps)
                for pair, j, at in each:
                    T.buffer_store(both, wrapping(operator.add, begin[j], stream[base + 2 * pair]), [at])
                    T.buffer_store(second, stream[base + 2 * pair + 1], [at])
                with T.serial(0, steps // unroll) as many:
                    first_word, first_step = base + header + many * (unroll * together), many * unroll
                    words = _loaded(stream, first_word, unroll * together)
                    met_there = _loaded(scratch, first_step, unroll) if several == 1 else iter(())
                    for one in range(unroll):
                        step = first_step + one
                        of_step = [next(words) for _ in range(together)]
                        uppers = [T.bind(intrinsic("sxtb16", rotate_right(word, 8))) for word in of_step]
                        alone = [next(met_there)] if several == 1 else []
                        for pair, j, at in each:
                            x = alone[0] if alone else T.bind(scratch[step * pitch + places[j]])
                            T.buffer_store(both, intrinsic("smlad", of_step[pair], x, both[at]), [at])
                            T.buffer_store(second, intrinsic("smlad", uppers[pair], x, second[at]), [at])

                def store(number: int) -> None:
                    pair, upper = divmod(number, 2)
                    for j in range(count):
                        at = pair * several + j
                        total = (
                            second[at]
                            if upper
                            else wrapping(operator.sub, both[at], tirx.shift_left(second[at], T.int32(8)))
                        )
                        by = tuple(stream[base + place + number] for place in range(2 * together, header, 2 * together))
                        value = T.Cast(destination.dtype, finish(layer, total, by))
                        T.buffer_store(destination, value, [(group * (2 * together) + number) * pixels + first + j])

                filled = outputs - (groups - 1) * 2 * together
                for number in range(filled):
                    store(number)
                if filled < 2 * together:
                    with T.If(group < groups - 1), T.Then():
                        for number in range(filled, 2 * together):
                            store(number)

        met.blocks(source, given.get("rows"), emit)
    return Kernel(
        schedule="pointwise",
        layers=(layer,),
        func=builder.get(),
        constants=constants,
        scratch=_scratch(met, 4 * pitch * steps),
        in_place=0 if in_place else None,
    )


def _loaded(buffer: tirx.Buffer, first: Expr, count: int) -> Iterator[Expr]:
    """Neighbouring words, each when it is asked for. As halves of 64 bits they take LLVM fewer copies on the stack."""
    for place in range(0, count - 1, 2):
        two = T.bind(tirx.reinterpret("int64", buffer[T.ramp(first + place, 1, 2)]))
        yield T.bind(T.Cast("int32", two))
        yield T.bind(T.Cast("int32", tirx.shift_right(two, T.int64(32))))
    if count % 2:
        yield T.bind(buffer[first + count - 1])


def _unrollable(steps: int) -> int:
    """As many steps, or up to three more, that many can be taken at once."""

    return min(range(steps, steps + 4), key=lambda count: count * (1 + 1 / _unrolled(count)))


def _unrolled(steps: int) -> int:
    most = MOST_UNROLLED * (2 if steps >= MANY_STEPS else 1)
    return max(count for count in range(1, most + 1) if steps % count == 0)


def stream_of(layer: IntegerLayer, taken: Sequence[tuple[int, int | None]], steps: int, together: int) -> np.ndarray:
    """int32: for some pairs of output channels `together`, two beginnings of sums each, factors, and words of weights.

    A word is of two of the values that a pixel meets, which are `taken` together; beyond them weights are 0.
    """
    several = 2 * together
    filled = -len(layer.weight) % several
    weight = np.pad(layer.weight.reshape(len(layer.weight), -1).astype(np.int64), [(0, filled), (0, 1)])
    nothing = weight.shape[1] - 1
    order = [nothing if number is None else number for pair in taken for number in pair]
    weight = weight[:, order + [nothing] * (2 * steps - len(order))]
    a, b = weight[0::2], weight[1::2]
    halves = (256 * b + a + 128) & 0xFFFF
    words = halves[:, 0::2] | halves[:, 1::2] << 16
    begin, *by = np.pad(parameters(layer).astype(np.int64), [(0, filled), (0, 0)]).T
    # `begin` of the first sum is of both channels, as the sum is
    begin = np.stack([begin[0::2] + 256 * begin[1::2], begin[1::2]], 1)
    groups = len(weight) // several
    header = [array.reshape(groups, several) for array in (begin, *by)]
    words = words.reshape(groups, together, steps).transpose(0, 2, 1).reshape(groups, -1)
    return np.concatenate([*header, words], 1).astype(np.uint32).view(np.int32)


Keep = Callable[[Expr, int, Expr], None]
"""Keeps a word: (number of the step, of the pixel in the block, two values)."""


def _words_of_values(values: Values, inputs: int, several: int, keep: Keep) -> None:
    """Two values of some pixels at a time."""

    def gather(step: Expr, count: int) -> None:
        for j in range(several):
            low, high = (
                T.Cast("int32", values.at(2 * step + half, j)) if half < count else T.int32(0) for half in range(2)
            )
            keep(step, j, _halves(low, high))

    with T.serial(0, inputs // 2) as step:
        gather(step, 2)
    if inputs % 2:
        gather(inputs // 2, 1)


def _words_of_runs(runs: Runs, several: int, keep: Keep) -> None:
    """Four neighbours of some pixels at a time, in the order of `pairs_of`: a word, wherever it begins.

    Cores with DSP instructions load words that aren't aligned as well as others, unless they are told to trap them.
    """
    widen = "uxtb16" if str(runs.buffer.dtype) == "uint8" else "sxtb16"
    whole, rest = divmod(runs.length, 4)
    steps = 2 * whole + -(-rest // 2)
    with T.serial(0, runs.count) as run:
        begins = [T.bind(runs.at(run, j)) for j in range(several)]
        with T.serial(0, whole) as four:
            for j in range(several):
                word = T.bind(tirx.reinterpret("int32", runs.buffer[T.ramp(begins[j] + 4 * four, 1, 4)]))
                keep(run * steps + 2 * four, j, intrinsic(widen, word))
                keep(run * steps + 2 * four + 1, j, intrinsic(widen, rotate_right(word, 8)))
        for first in range(4 * whole, runs.length, 2):
            for j in range(several):
                low, high = (
                    T.Cast("int32", runs.buffer[begins[j] + place]) if place < runs.length else T.int32(0)
                    for place in (first, first + 1)
                )
                keep(run * steps + first // 2, j, _halves(low, high))


def _halves(low: Expr, high: Expr) -> Expr:
    return tirx.bitwise_or(tirx.bitwise_and(low, 0xFFFF), tirx.shift_left(high, T.int32(16)))


def _packed(length: int) -> int:
    """How many runs of a length lie in one vector."""
    return max(LANES // length, 1)


def _room(met: Met, vectors: int) -> int:
    """Bytes for what is gathered: where runs are packed, a vector is written behind the last."""
    return (vectors + bool(met.runs and _packed(len(met.runs[0])) > 1)) * LANES


def _lanes_of(met: Met, inputs: int) -> list[int | None]:
    """Which of the values that a pixel meets is in which lane of the vectors that are gathered."""
    runs = met.runs or (tuple(range(inputs)),)
    several = _packed(len(runs[0]))
    packed = [sum(runs[first : first + several], ()) for first in range(0, len(runs), several)]
    return [number for run in packed for number in (*run, *[None] * (-len(run) % LANES))]


def _vectors(layer: IntegerLayer, met: Met, excess: int) -> tuple[np.ndarray, np.ndarray]:
    """int8 weights, O × lanes, and the parameters, whose first are the sums' beginnings with the `excess` put back."""
    outputs = layer.output_shape[1]
    weight = np.pad(layer.weight.reshape(outputs, -1), [(0, 0), (0, 1)])
    # whatever lies in the lanes beyond the last value is multiplied by 0
    lanes = [weight.shape[1] - 1 if number is None else number for number in _lanes_of(met, weight.shape[1] - 1)]
    weight, table = weight[:, lanes], parameters(layer)
    # wraps as the sums do
    begin = table[:, 0].astype(np.int64) + excess * weight.sum(1, dtype=np.int64)
    return weight, np.concatenate([begin.astype(np.uint32).view(np.int32)[:, None], table[:, 1:]], 1)


def _gather_vectors(
    values: Runs | Values, inputs: int, count: int, scratch: tirx.Buffer, several: int, excess: int
) -> None:
    """What `count` pixels meet, sixteen values of each of `several` pixels one behind the other.

    Another vector may be written behind the last.
    """
    if not isinstance(values, Runs):
        neighbours = values.neighbours if count == several == PIXELS else None
        with T.serial(0, inputs) as c:
            row = tirx.floordiv(c, LANES) * (several * LANES) + tirx.floormod(c, LANES)
            if neighbours is not None:
                four = T.Cast("int32x4", neighbours(c)) - T.Broadcast(T.int32(excess), PIXELS)
                scatter(scratch, row, T.ramp(T.int32(0), LANES, PIXELS), four)
                return
            for j in range(count):
                value = T.Cast("int32", values.at(c, j)) - excess
                T.buffer_store(scratch, T.Cast("int8", value), [row + j * LANES])
        return
    buffer, length = values.buffer, values.length
    unsigned = str(buffer.dtype) == "uint8"
    packed, vectors, whole = _packed(length) if values.readable else 1, -(-length // LANES), length // LANES

    def move(source: Expr, destination: Expr) -> None:
        lanes = buffer[T.ramp(source, 1, LANES)]
        if unsigned:
            lanes = tirx.bitwise_xor(tirx.reinterpret("int8x16", lanes), T.Broadcast(tirx.const(-SIGN, "int8"), LANES))
        T.buffer_store(scratch, lanes, [T.ramp(destination, 1, LANES)])

    with T.serial(0, -(-values.count // packed)) as some:
        # what a vector brings along of what is behind a run is overwritten by the next one
        for j in range(count):
            for number in range(packed):
                begin = T.bind(values.at(some * packed + number, j))
                place = (some * vectors * several + j) * LANES + number * length
                if packed > 1:
                    move(begin, place)
                    continue
                with T.serial(0, vectors if values.readable else whole) as vector:
                    move(begin + vector * LANES, place + vector * (several * LANES))
                for tail in range(length if values.readable else whole * LANES, length):
                    value = T.Cast("int32", buffer[begin + tail]) - (SIGN if unsigned else 0)
                    T.buffer_store(scratch, T.Cast("int8", value), [place + whole * several * LANES + tail % LANES])


def _mve(layer: IntegerLayer, met: Met, dtype: str, in_place: bool) -> Kernel:
    inputs, outputs, pixels = layer.weight[0].size, layer.output_shape[1], pixels_of(layer)
    excess = SIGN if dtype == "uint8" else 0
    weight, table = _vectors(layer, met, excess)
    steps, columns = weight.shape[1] // LANES, table.shape[1]
    room = _room(met, PIXELS * steps)
    constants = {"parameters": table, "weight": weight}
    pointers = {
        **_pointers(layer, met, dtype, in_place, "int8"),
        "scratch": ("int8", room),
        **constant_pointers(constants),
    }
    unroll = next(count for count in (MVE_UNROLL, 3, 2, 1) if steps % count == 0)
    with function(pointers) as (builder, given):
        scratch, (source, destination) = given["scratch"], _ends(given, in_place)
        totals = T.alloc_buffer((PIXELS,), "int32", scope="local")

        def emit(first: Expr, several: int, values: Runs | Values) -> None:
            _gather_vectors(values, inputs, several, scratch, PIXELS, excess)
            with T.serial(0, outputs) as o:
                for j in range(several):
                    T.buffer_store(totals, given["parameters"][columns * o], [j])
                with T.serial(0, steps // unroll) as many:
                    for one in range(unroll):
                        step = many * unroll + one
                        factors = T.bind(given["weight"][T.ramp((o * steps + step) * LANES, 1, LANES)])
                        for j in range(several):
                            x = scratch[T.ramp((step * PIXELS + j) * LANES, 1, LANES)]
                            T.buffer_store(totals, multiply_add_across(totals[j], factors, x), [j])
                sums = T.bind(T.Shuffle([totals[min(j, several - 1)] for j in range(PIXELS)], list(range(PIXELS))))
                by = tuple(given["parameters"][columns * o + place] for place in range(1, columns))
                value = requantize_vector(layer, sums, by)
                if several == PIXELS:
                    at = T.ramp(o * pixels + first, 1, PIXELS)
                    T.buffer_store(destination, T.Cast(f"{destination.dtype}x{PIXELS}", value), [at])
                    return
                vector = T.bind(value)
                for j in range(several):
                    one = T.Cast(destination.dtype, T.Shuffle([vector], [j]))
                    T.buffer_store(destination, one, [o * pixels + first + j])

        met.blocks(source, given.get("rows"), emit)
    return Kernel(
        schedule="pointwise",
        layers=(layer,),
        func=builder.get(),
        constants=constants,
        scratch=_scratch(met, room),
        in_place=0 if in_place else None,
    )


def _is_apart(layer: IntegerLayer) -> bool:
    """Whether each channel is by itself, and its one pixel meets all of the channel."""
    _, channels, height, width = layer.input_shape
    alone = layer.groups == channels == layer.output_shape[1] and layer.weight[0].size == height * width
    return alone and not any(layer.padding)


def _mve_single(layer: IntegerLayer, met: Met, dtype: str, in_place: bool) -> Kernel:
    """The one pixel of a layer, in four output channels at a time; of a depthwise one each meets values of its own."""
    inputs, outputs, apart = layer.weight[0].size, layer.output_shape[1], layer.groups > 1
    excess = SIGN if dtype == "uint8" else 0
    weight, table = _vectors(layer, met, excess)
    steps, groups = weight.shape[1] // LANES, -(-outputs // OUTPUTS)
    filled = groups * OUTPUTS - outputs
    # of four channels each parameter, and each step
    table = np.pad(table, [(0, filled), (0, 0)], mode="edge").reshape(groups, OUTPUTS, -1).transpose(0, 2, 1)
    weight = np.pad(weight, [(0, filled), (0, 0)]).reshape(groups, OUTPUTS, steps, LANES).transpose(0, 2, 1, 3)
    constants = {"parameters": np.ascontiguousarray(table), "weight": np.ascontiguousarray(weight)}
    columns, room = table.shape[1], _room(met, steps)
    if apart:  # all channels, and what the vectors of the last read behind it
        room = round_up(groups * OUTPUTS * inputs, LANES) + LANES * steps
    pointers = {
        **_pointers(layer, met, dtype, in_place, "int8"),
        "scratch": ("int8", room),
        **constant_pointers(constants),
    }
    with function(pointers) as (builder, given):
        scratch, (source, destination) = given["scratch"], _ends(given, in_place)
        totals = T.alloc_buffer((OUTPUTS,), "int32", scope="local")

        def parameter(group: Expr, column: int) -> Expr:
            return given["parameters"][T.ramp((group * columns + column) * OUTPUTS, 1, OUTPUTS)]

        def emit(first: Expr, several: int, values: Runs | Values) -> None:
            if apart:
                whole_input = outputs * inputs
                values = Runs(buffer=source, count=1, length=whole_input, at=lambda run, j: T.int32(0), readable=False)
            _gather_vectors(values, inputs, 1, scratch, 1, excess)
            with T.serial(0, groups) as group:
                for number in range(OUTPUTS):
                    T.buffer_store(totals, given["parameters"][group * (columns * OUTPUTS) + number], [number])
                with T.serial(0, steps) as step:
                    shared = None if apart else T.bind(scratch[T.ramp(step * LANES, 1, LANES)])
                    for number in range(OUTPUTS):
                        own = (group * OUTPUTS + number) * inputs + step * LANES
                        x = scratch[T.ramp(own, 1, LANES)] if shared is None else shared
                        at = ((group * steps + step) * OUTPUTS + number) * LANES
                        factors = given["weight"][T.ramp(at, 1, LANES)]
                        T.buffer_store(totals, multiply_add_across(totals[number], factors, x), [number])
                sums = T.bind(T.Shuffle([totals[number] for number in range(OUTPUTS)], list(range(OUTPUTS))))
                by = tuple(parameter(group, column) for column in range(1, columns))
                value = T.bind(T.Cast(f"{destination.dtype}x{OUTPUTS}", requantize_vector(layer, sums, by)))

                def last(count: int) -> None:
                    for number in range(count):
                        T.buffer_store(destination, T.Shuffle([value], [number]), [group * OUTPUTS + number])

                def whole() -> None:
                    T.buffer_store(destination, value, [T.ramp(group * OUTPUTS, 1, OUTPUTS)])

                if not filled:
                    whole()
                else:
                    with T.If(group < groups - 1):
                        with T.Then():
                            whole()
                        with T.Else():
                            last(OUTPUTS - filled)

        met.blocks(source, given.get("rows"), emit)
    return Kernel(
        schedule="pointwise",
        layers=(layer,),
        func=builder.get(),
        constants=constants,
        scratch=_scratch(met, room),
        in_place=0 if in_place else None,
    )


def multiply_add_across(total: Expr, a: Expr, b: Expr) -> Expr:
    """Σ a·b + total of sixteen int8 lanes, in int32: signed, added, not exchanged."""
    signed, added, straight = T.uint32(0), T.uint32(0), T.uint32(0)
    return intrinsic("mve.vmldava", signed, added, straight, total, a, b)


def rotate_right(word: Expr, bits: int) -> Expr:
    return tirx.call_llvm_pure_intrin("int32", "llvm.fshr", word, word, T.int32(bits))
