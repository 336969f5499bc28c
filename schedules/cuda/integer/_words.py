"""Words of four channels: how threads read, take apart and store them, and the grid around every rule's loops."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from tvmflow.schedules.cuda._grid import when
from tvmflow.schedules.cuda.integer import BYTES
from tvmflow.schedules.integer_tasks import Task, Tensor
from tvmflow.schedules.integers import kernel_of_many, plain_place, requantised

if TYPE_CHECKING:
    from tvmflow.integer.layers import IntegerLayer

Expr = Any
"""A tvm.ir.Expr or a Python number."""


@contextmanager
def launch(task: Task, constants: Sequence[np.ndarray], blocks: int, threads: int) -> Iterator[tuple[Any, ...]]:
    """(builder, source, constants, result, block, thread) of a kernel on a one-dimensional grid."""
    with launch_of_many(task, constants, blocks, threads) as (builder, given, *rest):
        yield builder, given[0], *rest


@contextmanager
def launch_of_many(task: Task, constants: Sequence[np.ndarray], blocks: int, threads: int) -> Iterator[tuple[Any, ...]]:
    """`launch` with all sources."""
    with (
        kernel_of_many(task, constants) as (builder, given, factors, out),
        T.thread_binding(0, blocks, thread="blockIdx.x") as block,
        T.thread_binding(0, threads, thread="threadIdx.x") as thread,
    ):
        yield builder, given, factors, out, block, thread


def packed(array: np.ndarray) -> np.ndarray:
    """int8 …×4n → int32 …×n, the first of four in the lowest byte."""
    return np.ascontiguousarray(array.astype(np.int8)).view("<i4")


def zero_word(tensor: Tensor) -> int:
    """Four zeros of the network, as `tensor` has them."""
    return int(np.full(4, tensor.offset, np.int64).astype(np.uint8).view("<i4")[0])


def word(tensor: Tensor, buffer: Any, pixel: Expr, place: Expr) -> Expr:
    """Four channels of a pixel; beyond the last there may be anything."""
    if tensor.packed:
        return buffer[pixel, place]
    value = 0
    for lane in range(BYTES):
        channel = tirx.min(place * BYTES + lane, tensor.channels - 1)
        one = T.cast(buffer[tuple(plain_place(tensor, channel, pixel))], "int32") & T.int32(255)
        value = (one << (8 * lane)) | value if lane else one
    return value


def finish(
    task: Task, out: Any, totals: Sequence[Expr], by: Sequence[Sequence[Expr]], pixel: Expr, place: Expr
) -> None:
    """Requantise four sums, each by the factors of its channel, and store them."""
    values = [requantised(task.layers[-1], total, *factors) for total, factors in zip(totals, by, strict=True)]
    store(task.result, out, values, pixel, place)


def store(result: Tensor, out: Any, values: Sequence[Expr], pixel: Expr, place: Expr) -> None:
    """Four of the network's values as one word, or one by one where the user gets them."""
    if result.packed:
        whole: Expr = 0
        for lane, value in enumerate(values):
            byte = ((value + result.offset) & T.int32(255)) << (8 * lane)
            whole = whole | byte if lane else byte
        T.buffer_store(out, whole, [pixel, place])
        return
    for lane, value in enumerate(values):
        channel = place * BYTES + lane
        with when(channel < result.channels if result.channels % BYTES else None):
            T.buffer_store(out, T.cast(value, result.dtype), plain_place(result, channel, pixel))


def words_out(task: Task) -> int:
    """Words of a pixel that a kernel has to store."""
    return task.result.shape[1] if task.result.packed else -(-task.result.channels // BYTES)


def live(layer: IntegerLayer, axis: int) -> range:
    """The taps along an axis that meet the input itself, not only its border, for at least one output."""
    taps = [tap for tap in range(layer.weight.shape[2 + axis]) if any(layer.window.meets(axis, tap))]
    return range(taps[0], taps[-1] + 1) if taps else range(0)


def inside(layer: IntegerLayer, y: Expr, x: Expr) -> Expr | None:
    """Whether an input that a live tap reads lies on the map; None if all do."""
    conditions = []
    for axis, place in enumerate((y, x)):
        if not all(all(layer.window.meets(axis, tap)) for tap in live(layer, axis)):
            conditions += [place >= 0, place < layer.input_shape[2 + axis]]
    return tirx.all(*conditions) if conditions else None
