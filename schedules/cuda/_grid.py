"""Blocks and threads of a CUDA kernel, and what rules ask of the GPU: the frame around every rule's loops."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import tvm
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from tvmflow.schedules import convolutions
from tvmflow.schedules.convolutions import Convolution, kernel
from tvmflow.schedules.gpu import Gpu

if TYPE_CHECKING:
    from tvmflow.spec import Target

Expr = Any
"""A tvm.ir.Expr or a Python number."""

WARP = 32
MOST_THREADS = 1024


def read_convolutions(func: tirx.PrimFunc) -> tuple[Convolution, ...]:
    """`tvmflow.schedules.convolutions.read_convolutions` of tensors that lie as NCHW."""
    found = convolutions.read_convolutions(func)
    return () if any(conv.data_block or conv.weight_block or conv.out_block for conv in found) else found


def read_convolution(func: tirx.PrimFunc) -> Convolution | None:
    """The one convolution of a kernel."""
    found = read_convolutions(func)
    return found[0] if len(found) == 1 else None


@contextmanager
def launch(func: tirx.PrimFunc, blocks: int, threads: int) -> Iterator[tuple[Any, Expr, Expr]]:
    """(builder, block, thread): a kernel with the arguments of `func` on a one-dimensional grid."""
    with (
        kernel(func) as builder,
        T.thread_binding(0, blocks, thread="blockIdx.x") as block,
        T.thread_binding(0, threads, thread="threadIdx.x") as thread,
    ):
        yield builder, block, thread


def local(*shape: int, dtype: str = "float32") -> tirx.Buffer:
    """Numbers of a thread. Indices into them have to be known once loops are unrolled, or they aren't in registers."""
    return T.sblock_alloc_buffer(shape, dtype, scope="local")


def shared(*shape: int, dtype: str = "float32") -> tirx.Buffer:
    """Numbers that the threads of a block share. TVM puts barriers between writes and reads of them."""
    return T.sblock_alloc_buffer(shape, dtype, scope="shared")


def shared_bytes(target: Target) -> int:
    """Shared memory that a block may have, static."""
    return int(target.tvm.get("max_shared_memory_per_block", 49152))


def tvm_target_of(target: Target) -> tvm.target.Target:
    return tvm.target.Target(dict(target.tvm))


def multiprocessors(target: Target) -> int:
    return Gpu.of(target).sms


def pieces(count: int, threads: int, thread: Expr) -> Iterator[tuple[Expr, Expr | None]]:
    """How a block's threads share `count` pieces of work, in rounds: the thread's piece, and whether it has one.

    None stands for a round in which all threads have one.
    """
    for first in range(0, count, threads):
        piece = first + thread
        yield piece, None if first + threads <= count else piece < count


@contextmanager
def when(condition: Expr | None) -> Iterator[None]:
    """Emit what is inside under a condition; None stands for always."""
    if condition is None:
        yield
        return
    with T.If(condition), T.Then():
        yield


def live_taps(conv: Convolution, axis: int) -> list[int]:
    """Taps along an axis that meet the input itself, not only its border, for at least one output."""
    return [
        tap
        for tap in range(conv.kernel[axis])
        if any(
            0 <= out * conv.stride[axis] + tap * conv.dilation[axis] - conv.pad[axis] < conv.size[axis]
            for out in range(conv.out_size[axis])
        )
    ]
