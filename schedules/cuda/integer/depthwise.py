"""A depthwise convolution or a pool in one pass: a thread has four channels of one pixel.

1. Neighbouring threads have neighbouring words of a pixel, so what a warp loads and stores lies together.
2. Each tap is one word of inputs and one of weights, taken apart into four products. Taps that meet nothing but the
   border at every output are left out: on a map of 4×4 with dilation 5 there is one load.
3. The four sums are requantised and stored as one word. No shared memory, no barrier.

Four taps could share a `__dp4a` once bytes are transposed, which takes more instructions than the products it saves.
Checked without a GPU; no figure is given where none was measured.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from tvm.script.ir_builder import tirx as T

from tvmflow.schedules.convolutions import unfuse
from tvmflow.schedules.cuda._grid import local, when
from tvmflow.schedules.cuda.integer import BYTES
from tvmflow.schedules.cuda.integer._words import finish, inside, launch, live, packed, word, words_out
from tvmflow.schedules.integer_tasks import Kernel, Task
from tvmflow.schedules.integers import byte_of, fill, first_sums

if TYPE_CHECKING:
    from tvmflow.spec import Target

THREADS = 128
MOST_UNROLLED = 25


def depthwise(task: Task, target: Target) -> Kernel | None:
    (layer,), source = task.layers, task.source
    taps = live(layer, 0), live(layer, 1)
    if not layer.groups == layer.input_shape[1] == layer.output_shape[1] or source.offset or not all(taps):
        return None
    height, width = layer.output_shape[2:]
    words = words_out(task)
    channels = words * BYTES
    weight = layer.weight[:, 0, taps[0].start : taps[0].stop, taps[1].start : taps[1].stop].transpose(1, 2, 0)
    constants = (
        packed(fill(weight, channels, 2)),
        fill(first_sums(layer).astype(np.int32), channels),
        *(fill(factor, channels) for factor in layer.factors),
    )
    work = height * width * words
    threads = min(THREADS, work)
    loop = T.unroll if len(taps[0]) * len(taps[1]) <= MOST_UNROLLED else T.serial
    with launch(task, constants, math.ceil(work / threads), threads) as (builder, given, factors, out, block, thread):
        weights, first, *by_channel = factors
        sums, both = local(BYTES, dtype="int32"), local(2, dtype="int32")
        index = block * threads + thread
        with when(index < work if work % threads else None):
            y, x, place = unfuse(index, height, width, words)
            for lane in range(BYTES):
                T.buffer_store(sums, first[place * BYTES + lane], [lane])
            with loop(0, len(taps[0])) as r, loop(0, len(taps[1])) as s:
                down = y * layer.stride[0] + (taps[0].start + r) * layer.dilation[0] - layer.padding[0]
                right = x * layer.stride[1] + (taps[1].start + s) * layer.dilation[1] - layer.padding[1]
                with when(inside(layer, down, right)):
                    pixel = down * layer.input_shape[3] + right
                    T.buffer_store(both, word(source, given, pixel, place), [0])
                    T.buffer_store(both, weights[r, s, place], [1])
                    for lane in range(BYTES):
                        product = byte_of(both[0], lane, source.dtype) * byte_of(both[1], lane, "int8")
                        T.buffer_store(sums, sums[lane] + product, [lane])
            by = [[factor[place * BYTES + lane] for factor in by_channel] for lane in range(BYTES)]
            finish(task, out, [sums[lane] for lane in range(BYTES)], by, y * width + x, place)
    return Kernel(func=builder.get(), constants=constants)
