"""Operators of a `.tflite` file by CMSIS-NN: what TensorFlow Lite for Microcontrollers calls the library with.

Each operator for which the library has a kernel runs alone, on random integers, so that what it makes can be held to
the integer reference of that operator. What only moves values (reshapes, slices, concatenations, variables, borders of
their own) and what has no kernel there (the logistic function, means) isn't counted: it counts for nothing in the sum.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.cmsis_nn import Call, Library, Peer
from tvmflow.integer.network import IntegerNetwork
from tvmflow.integer.tflite import fixed_point
from tvmflow.integer.tflite.model import ABSENT, FileGraph, FileOperator, read_model
from tvmflow.integer.tflite.plain import WIDER
from tvmflow.integer.tflite.reader import network_of
from tvmflow.integer.tflite.weighted import factors, limits_of, padding_of

SEED = 20261130


@dataclass(frozen=True, kw_only=True)
class Counted:
    """An operator of a file: its instructions by the library, and whether its integers are the file's."""

    kind: str
    name: str
    instructions: int
    exact: bool


def count(path: Path, library: Library) -> tuple[list[Counted], list[str]]:
    """The file's operators that the library has kernels for, in order; and the kinds of all others.

    Raises UserError.
    """
    graph = read_model(path)[0]
    found = [
        (operator, MAKERS[operator.kind](graph, operator)) for operator in graph.operators if operator.kind in MAKERS
    ]
    others = [operator.kind for operator in graph.operators if operator.kind not in MAKERS]
    random = np.random.default_rng(SEED)
    with tempfile.TemporaryDirectory(prefix="tvmflow-") as scratch:
        peer = Peer(library, [call for _, call in found], Path(scratch))
        return list(_counted(graph, [operator for operator, _ in found], peer, random)), others


def _counted(
    graph: FileGraph, operators: list[FileOperator], peer: Peer, random: np.random.Generator
) -> Iterator[Counted]:
    for number, operator in enumerate(operators):
        reference, read = _alone(graph, operator)
        given = [random.integers(-128, 128, graph.tensors[one].shape, np.int8) for one in read]
        made, executed = peer.executed(number, b"".join(array.tobytes() for array in given))
        (expected,) = reference.run_all(tuple(given))
        name = graph.tensors[operator.outputs[0]].name
        exact = made == np.asarray(expected, np.int8).tobytes()
        yield Counted(kind=operator.kind, name=name.split(";")[0], instructions=executed, exact=exact)


def _alone(graph: FileGraph, operator: FileOperator) -> tuple[IntegerNetwork, list[int]]:
    """A network of one operator, and the tensors that are its inputs."""
    read = [number for number in operator.inputs if number != ABSENT and graph.tensors[number].data is None]
    inputs = tuple(dict.fromkeys(read))
    alone = FileGraph(tensors=graph.tensors, operators=(operator,), inputs=inputs, outputs=operator.outputs)
    return network_of((alone,), "operator"), list(inputs)


def _map(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Rows, columns and channels of a tensor of up to four dimensions, of a batch of 1."""
    rows, columns, channels = (1, 1, 1, *shape)[-3:]
    return rows, columns, channels


def _convolution(graph: FileGraph, operator: FileOperator) -> Call:
    x, weights, result = (graph.tensors[number] for number in (*operator.inputs[:2], operator.outputs[0]))
    assert weights.data is not None
    alone = operator.kind == "DEPTHWISE_CONV_2D"
    kernel = (weights.shape[1], weights.shape[2])
    stride, dilation = (
        (operator.integer(f"{name}_h"), operator.integer(f"{name}_w")) for name in ("stride", "dilation")
    )
    top, left, *_ = padding_of(operator, (x.shape[1], x.shape[2]), kernel, stride, dilation)
    low, high = limits_of(result, operator.integer("fused"))
    multiplier, shift, bias = _factors(graph, operator)
    return Call(
        kind="DEPTHWISE" if alone else "CONVOLUTION",
        input_shape=_map(x.shape),
        output_shape=_map(result.shape),
        kernel=kernel,
        stride=stride,
        padding=(top, left),
        dilation=dilation,
        input_offset=-x.zero_point,
        output_offset=result.zero_point,
        least=low,
        most=high,
        weight=weights.data,
        bias=bias,
        multiplier=multiplier,
        shift=shift,
    )


def _factors(graph: FileGraph, operator: FileOperator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Multipliers, shifts and biases of an operator with weights, int32 for each output."""
    x, weights, result = (graph.tensors[number] for number in (*operator.inputs[:2], operator.outputs[0]))
    outputs = result.shape[-1]
    multiplier, shift = factors(x.scale * np.broadcast_to(weights.scales, outputs).astype(np.float64) / result.scale)
    given = [graph.tensors[number].data for number in operator.inputs[2:] if number != ABSENT]
    return multiplier, shift, given[0] if given and given[0] is not None else np.zeros(outputs, np.int32)


def _dense(graph: FileGraph, operator: FileOperator) -> Call:
    x, weights, result = (graph.tensors[number] for number in (*operator.inputs[:2], operator.outputs[0]))
    assert weights.data is not None
    outputs, inputs = weights.shape
    low, high = limits_of(result, operator.integer("fused"))
    multiplier, shift, bias = _factors(graph, operator)
    return Call(
        kind="DENSE",
        input_shape=(1, math.prod(x.shape) // inputs, inputs),
        output_shape=(1, math.prod(x.shape) // inputs, outputs),
        input_offset=-x.zero_point,
        output_offset=result.zero_point,
        of_channels=len(weights.scales) > 1,
        least=low,
        most=high,
        weight=weights.data,
        bias=bias,
        multiplier=multiplier,
        shift=shift,
    )


def _pool(graph: FileGraph, operator: FileOperator) -> Call:
    x, result = graph.tensors[operator.inputs[0]], graph.tensors[operator.outputs[0]]
    kernel = operator.integer("filter_height"), operator.integer("filter_width")
    stride = operator.integer("stride_h"), operator.integer("stride_w")
    top, left, *_ = padding_of(operator, (x.shape[1], x.shape[2]), kernel, stride, (1, 1))
    low, high = limits_of(result, operator.integer("fused"))
    return Call(
        kind="MAX_POOL" if operator.kind == "MAX_POOL_2D" else "POOL",
        input_shape=_map(x.shape),
        output_shape=_map(result.shape),
        kernel=kernel,
        stride=stride,
        padding=(top, left),
        least=low,
        most=high,
    )


def _add(graph: FileGraph, operator: FileOperator) -> Call:
    first, second, result = (graph.tensors[number] for number in (*operator.inputs[:2], operator.outputs[0]))
    largest = 2 * max(first.scale, second.scale)
    scales = first.scale / largest, second.scale / largest, largest / ((1 << WIDER) * result.scale)
    multiplier, shift = factors(np.array(scales))
    low, high = limits_of(result, operator.integer("fused"))
    return Call(
        kind="ADD",
        input_shape=_map(first.shape),
        output_shape=_map(result.shape),
        input_offset=-first.zero_point,
        second_offset=-second.zero_point,
        output_offset=result.zero_point,
        least=low,
        most=high,
        multiplier=multiplier,
        shift=shift,
    )


def _softmax(graph: FileGraph, operator: FileOperator) -> Call:
    x = graph.tensors[operator.inputs[0]]
    bits = fixed_point.EXP_BITS
    real = float(operator.options["beta"]) * x.scale * 2.0 ** (31 - bits)
    multiplier, shift = fixed_point.factor(min(real, float(fixed_point.LARGEST)))
    return Call(
        kind="SOFTMAX",
        input_shape=_map(x.shape),
        output_shape=_map(x.shape),
        least=-fixed_point.reach(bits, shift),
        multiplier=np.array([multiplier], np.int32),
        shift=np.array([shift], np.int32),
    )


MAKERS: dict[str, Callable[[FileGraph, FileOperator], Call]] = {
    "CONV_2D": _convolution,
    "DEPTHWISE_CONV_2D": _convolution,
    "FULLY_CONNECTED": _dense,
    "AVERAGE_POOL_2D": _pool,
    "MAX_POOL_2D": _pool,
    "ADD": _add,
    "SOFTMAX": _softmax,
}
"""The call that an operator of a file becomes."""
