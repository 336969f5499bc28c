"""Whole convolutions and dense layers of float32: a tile of pixels × output channels, whose sums stay in registers.

1. What the pixels of a tile meet, channel by channel and tap by tap, is gathered into a scratch buffer, zeros for what
   is beyond the border; that is done once for all output channels.
2. Biases and weights are one stream, in the order in which the tiles of output channels use them.
3. Each of these values is a few loads and one multiply-add for each sum. Of 32 single registers 24 hold sums; with MVE,
   six vectors of eight do, and weights come from general registers, as VFMA takes them.
4. Where the tiles don't divide pixels or channels, the last overlaps the one before.

Larger tiles spill, and smaller ones load more often: 4×4 sums take 1.58 instructions for each multiply-add of 256 to
256 channels of 4×4 on a Cortex-M7, 5×4 1.54, 6×4 1.49; on a Cortex-M55 one vector × 6 channels takes 0.58, 3×2 0.72 and
2×3 0.48. Of the paper's network loops as TVM makes them by itself take 4.0 and 3.8, these and its depthwise layers 1.50
and 0.49. Counted under qemu-system-arm 7.2; TVM 0.27.0, 2026-11-27.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tvm.script.ir_builder import tirx as T

from tvmflow.integer.graph import FloatLayer
from tvmflow.schedules.cortex_m._kernel import (
    AnyLayer,
    Kernel,
    Pointer,
    block_start,
    constant_pointers,
    finish,
    finish_vector,
    function,
    is_pointwise,
    lanes_at,
    met_by,
    multiply_add,
    pixels_of,
    sizes,
)


@dataclass(frozen=True, kw_only=True)
class Tile:
    """`vectors` of `lanes` neighbouring pixels each, times `outputs` channels."""

    lanes: int
    vectors: int
    outputs: int
    unroll: int


TILES = {"dsp": Tile(lanes=1, vectors=4, outputs=6, unroll=8), "mve": Tile(lanes=4, vectors=2, outputs=3, unroll=4)}


def convolution_float(
    layers: Sequence[AnyLayer], dtypes: Sequence[str], core: str, writable: Sequence[bool], frugal: bool
) -> Kernel | None:
    if len(layers) != 1 or core not in TILES:
        return None
    layer, tile = layers[0], TILES[core]
    if not isinstance(layer, FloatLayer) or layer.kind == "pool" or layer.groups != 1 or pixels_of(layer) < tile.lanes:
        return None
    before, after = sizes(layer)
    (dtype,) = dtypes
    inputs, outputs, pixels = layer.weight[0].size, layer.output_shape[1], pixels_of(layer)
    lanes, vectors, together = tile.lanes, min(tile.vectors, pixels // tile.lanes), min(tile.outputs, outputs)
    width = vectors * lanes
    unroll = next(count for count in range(tile.unroll, 0, -1) if inputs % count == 0)
    constants = {"stream": stream_of(layer, together)}
    # all blocks gather their own pixels, and nothing else meets these
    in_place = writable[0] and is_pointwise(layer) and pixels % width == 0
    ends: dict[str, Pointer] = {"source": (dtype, before), "destination": (layer.dtype, after)}
    pointers = {
        **({"data": (dtype, max(before, after))} if in_place else ends),
        "scratch": (dtype, width * inputs),
        **constant_pointers(constants),
    }
    places = [(t, v, lanes_at((t * vectors + v) * lanes, lanes)) for t in range(together) for v in range(vectors)]
    with function(pointers) as (builder, given):
        source, destination = (given["data" if in_place else name] for name in ends)
        scratch, stream = given["scratch"], given["stream"]
        sums = T.alloc_buffer((together * width,), "float32", scope="local")
        with T.serial(0, -(-pixels // width)) as block:
            first = block_start(block, width, pixels)
            if is_pointwise(layer):
                with T.serial(0, inputs) as i:
                    for v in range(0, width, lanes):
                        value = source[lanes_at(i * pixels + first + v, lanes)]
                        T.buffer_store(scratch, value, [lanes_at(i * width + v, lanes)])
            else:
                channels, rows, columns = layer.weight.shape[1:]
                with T.serial(0, channels) as i, T.serial(0, rows) as r, T.serial(0, columns) as s:
                    for v in range(width):
                        value = met_by(layer, source, (i, r, s), first + v)
                        T.buffer_store(scratch, value, [((i * rows + r) * columns + s) * width + v])
            with T.serial(0, -(-outputs // together)) as group:
                base = group * (together * (1 + inputs))
                for t, _, place in places:
                    bias = stream[base + t]
                    T.buffer_store(sums, T.Broadcast(bias, lanes) if lanes > 1 else bias, [place])
                with T.serial(0, inputs // unroll) as many:
                    for one in range(unroll):
                        i = many * unroll + one
                        x = [T.bind(scratch[lanes_at(i * width + v * lanes, lanes)]) for v in range(vectors)]
                        weights = [T.bind(stream[base + (1 + i) * together + t]) for t in range(together)]
                        for t, v, place in places:
                            weight = T.Broadcast(weights[t], lanes) if lanes > 1 else weights[t]
                            T.buffer_store(sums, multiply_add(core, sums[place], x[v], weight, lanes), [place])
                channel = block_start(group, together, outputs)
                for t, v, place in places:
                    value = (finish_vector if lanes > 1 else finish)(layer, T.bind(sums[place]), ())
                    at = (channel + t) * pixels + first + v * lanes
                    T.buffer_store(destination, value, [lanes_at(at, lanes)])
    return Kernel(
        schedule="convolution_float",
        layers=(layer,),
        func=builder.get(),
        constants=constants,
        scratch={"scratch": 4 * width * inputs},
        in_place=0 if in_place else None,
    )


def stream_of(layer: FloatLayer, together: int) -> np.ndarray:
    """float32: for each group of output channels their biases, then their weights of each value gathered."""
    outputs = layer.output_shape[1]
    firsts = np.minimum(np.arange(0, outputs, together), outputs - together)
    group = firsts[:, None] + np.arange(together)
    weights = layer.weight.reshape(outputs, -1)[group].transpose(0, 2, 1)
    return np.concatenate([layer.bias[group][:, None], weights], 1).astype(np.float32)
