"""Parts of a network that stay in float32 when it is quantised: where it is cut in two, and its end as a Tail."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from tvmflow.integer.graph import AnyFloatLayer, FloatGraph, FloatLayer, FloatNode
from tvmflow.integer.network import Port
from tvmflow.integer.onnx_writer import (
    Writer,
    convolved,
    gathered,
    matrix_of,
    normalised,
    pooled,
    resampled,
)
from tvmflow.integer.operators import (
    Concat,
    Function,
    Gather,
    LogSoftmax,
    MatMul,
    MaxPool,
    Normalise,
    Product,
    Resample,
    Softmax,
    Sum,
)
from tvmflow.integer.tail import Tail
from tvmflow.spec import UserError

LEAST = float(np.finfo(np.float32).min)
"""Around maps whose largest numbers are looked for."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Cut:
    """A float graph in two. `head` gives what `end` reads, and those of the network's outputs that it computes itself.

    The inputs of `end` are named like the layers of the head that give them, in the order of the head's outputs.
    """

    head: FloatGraph
    end: FloatGraph

    @property
    def inner(self) -> frozenset[str]:
        """Outputs of the head that aren't the network's."""
        return frozenset({port.source for port in self.head.outputs} - {port.source for port in self.end.outputs})


def cut(graph: FloatGraph, names: Sequence[str]) -> Cut:
    """Before the layers and modules of these names: they, and all that comes after them, are the end.

    Raises UserError for a name that nothing has, where the end would read the network's input, and for functions that
    no Tail can have.
    """
    kept: set[str] = set()
    for name in names:
        kept |= _named(graph, name)
    for layer in graph.layers:
        if not kept.isdisjoint(layer.inputs):
            kept.add(layer.name)
    first = tuple(layer for layer in graph.layers if layer.name not in kept)
    last = tuple(layer for layer in graph.layers if layer.name in kept)
    given = {port.name for port in graph.inputs}
    for layer in last:
        if found := given.intersection(layer.inputs):
            raise UserError(
                f"{', '.join(names)} can't stay in float32: {layer.name} reads the network's input {', '.join(found)}, "
                "and what stays in float32 comes after integer layers; name later ones."
            )
    if unsaid := [layer.name for layer in last if _is_unsaid(layer)]:
        raise UserError(
            f"{', '.join(names)} can't stay in float32, for what these layers compute of single elements has no form "
            f"there: {', '.join(unsaid)}; name layers behind them."
        )
    wanted = {read for layer in last for read in layer.inputs} | {port.source for port in graph.outputs}
    given_on = [Port(name=layer.name, shape=layer.output_shape, scale=1.0) for layer in first if layer.name in wanted]
    return Cut(
        head=replace(graph, outputs=tuple(replace(port, source=port.name) for port in given_on), layers=first),
        end=replace(graph, inputs=tuple(given_on), layers=last),
    )


def _is_unsaid(layer: AnyFloatLayer) -> bool:
    return isinstance(layer, FloatNode) and isinstance(layer.operator, Function) and layer.operator.steps is None


def _named(graph: FloatGraph, name: str) -> set[str]:
    """The layers that have a name, or do the work of a module of that name or of one inside it."""
    known = {layer.name: (layer.name, *layer.modules) for layer in graph.layers}
    found = {own for own, words in known.items() if any(word == name or word.startswith(f"{name}.") for word in words)}
    if not found:
        every = dict.fromkeys(word for words in known.values() for word in words)
        near = difflib.get_close_matches(name, every, cutoff=0.0)
        raise UserError(
            f"{graph.name} has no layer or module {name!r} that could stay in float32; the nearest of {len(every)} "
            f"names are {', '.join(near)}."
        )
    return found


# ------------------------------------------------------------------------------------------------------------ writing


class _Real(Writer):
    """A graph of real numbers. Every node has the name of the `layer` that it is of."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = ""
        self.values: dict[str, str] = {}

    def name_of(self, wanted: str) -> str:
        return self.layer


def tail_of(end: FloatGraph, scales: Sequence[float], dtypes: Sequence[str]) -> Tail:
    """The end of a network that reads integers of these scales and dtypes."""
    made, inputs = _Real(), []
    names = [made.fresh(port.name) for port in end.outputs]
    for port, scale, dtype in zip(end.inputs, scales, dtypes, strict=True):
        made.layer, name = port.name, made.fresh(port.name)
        inputs.append(helper.make_tensor_value_info(name, getattr(TensorProto, dtype.upper()), port.shape))
        whole = made.node("Cast", [name], f"{name}.whole", to=TensorProto.FLOAT)
        made.values[port.name] = made.times(whole, scale, f"{name}.real")
    for layer in end.layers:
        made.layer = layer.name
        made.values[layer.name] = _clamped(made, layer, _said(made, layer))
    outputs = []
    for port, name in zip(end.outputs, names, strict=True):
        made.layer = port.source
        made.free(name)
        outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, port.shape))
        made.reshaped(made.values[port.source], tuple(port.shape), name)
    tail = Tail(content=made.model(end.name, inputs, outputs, "").SerializeToString())
    assert tail.model is not None  # looked at as a file's is
    return tail


def _said(made: _Real, layer: AnyFloatLayer) -> str:
    kind = layer.kind if isinstance(layer, FloatLayer) else type(layer.operator)
    return WRITERS[kind](made, layer, *(made.values[name] for name in layer.inputs))


def _clamped(made: _Real, layer: AnyFloatLayer, real: str) -> str:
    if not layer.limited:
        return real
    if (layer.low, layer.high) == (0.0, math.inf):
        return made.node("Relu", [real], f"{layer.name}.clipped")
    ends = {"low": layer.low, "high": layer.high}
    limits = [
        made.array(limit, "float32", f"{layer.name}.{end}") if math.isfinite(limit) else ""
        for end, limit in ends.items()
    ]
    return made.node("Clip", [real, *limits], f"{layer.name}.clipped")


def _weights(made: _Real, layer: FloatLayer) -> list[str]:
    weight = layer.weight[:, :, 0, 0] if layer.kind == "dense" else layer.weight
    return [
        made.array(weight, "float32", f"{layer.name}.weight"),
        made.array(layer.bias, "float32", f"{layer.name}.bias"),
    ]


def _dense(made: _Real, layer: FloatLayer, real: str) -> str:
    flat = made.reshaped(real, layer.input_shape[:2], f"{layer.name}.flat")
    sums = made.node("Gemm", [flat, *_weights(made, layer)], f"{layer.name}.rows", transB=1)
    return made.reshaped(sums, layer.output_shape, f"{layer.name}.sums")


def _sum(made: _Real, layer: FloatNode, *reals: str) -> str:
    assert isinstance(layer.operator, Sum)
    signs = layer.operator.signs
    total = reals[0] if signs[0] > 0 else made.node("Neg", [reals[0]], f"{layer.name}.negative")
    for sign, real in zip(signs[1:], reals[1:], strict=True):
        total = made.node("Add" if sign > 0 else "Sub", [total, real], f"{layer.name}.sum")
    return total


def _gather(made: _Real, layer: FloatNode, real: str) -> str:
    assert isinstance(layer.operator, Gather)
    return gathered(made, layer.name, layer.operator, layer.input_shape, real, layer.operator.outside)


def _max_pool(made: _Real, layer: FloatNode, real: str) -> str:
    assert isinstance(layer.operator, MaxPool)
    return pooled(made, layer.name, layer.operator.window, real, LEAST)


def _concat(made: _Real, layer: FloatNode, *reals: str) -> str:
    assert isinstance(layer.operator, Concat)
    return made.node("Concat", reals, f"{layer.name}.joined", axis=layer.operator.axis)


def _resample(made: _Real, layer: FloatNode, real: str) -> str:
    assert isinstance(layer.operator, Resample)
    pairs = zip(layer.operator.axes, layer.input_shape[2:], strict=True)
    rows, columns = (matrix_of(places, weights, length) for (places, weights), length in pairs)
    return resampled(made, layer.name, rows, columns, real)


def _function(made: _Real, layer: FloatNode, real: str) -> str:
    """By its steps, on the tensor as it is inside, so that channels are where the steps' constants have them."""
    assert isinstance(layer.operator, Function)
    assert layer.operator.steps is not None
    values = [real]
    for step in layer.operator.steps:
        inputs = [
            values[read] if isinstance(read, int) else made.array(read, "float32", f"{layer.name}.constant")
            for read in step.inputs
        ]
        wanted, attributes = f"{layer.name}.{step.operator.lower()}", dict[str, Any](step.attributes)
        values.append(made.node(step.operator, inputs, wanted, **attributes))
    return values[-1]


def _softmax(made: _Real, layer: FloatNode, real: str) -> str:
    assert isinstance(layer.operator, Softmax | LogSoftmax)
    kind = "LogSoftmax" if isinstance(layer.operator, LogSoftmax) else "Softmax"
    return made.node(kind, [real], f"{layer.name}.{kind.lower()}", axis=layer.operator.axis)


def _normalise(made: _Real, layer: FloatNode, real: str) -> str:
    operator = layer.operator
    assert isinstance(operator, Normalise)
    channels = layer.output_shape[1]
    gamma = np.ones(channels) if operator.gamma is None else operator.gamma
    beta = np.zeros(channels) if operator.beta is None else operator.beta
    return normalised(
        *(made, layer.name, operator.lengths, layer.output_shape, real),
        epsilon=operator.epsilon,
        gamma=gamma.reshape(-1, 1, 1),
        beta=beta.reshape(-1, 1, 1),
    )


def _matmul(made: _Real, layer: FloatNode, first: str, second: str) -> str:
    assert isinstance(layer.operator, MatMul)
    found = made.node("MatMul", [first, second], f"{layer.name}.product")
    return found if layer.operator.factor == 1 else made.times(found, layer.operator.factor, f"{layer.name}.scaled")


WRITERS: dict[str | type, Callable[..., str]] = {
    "conv2d": lambda made, layer, real: convolved(made, layer, [real, *_weights(made, layer)]),
    "dense": _dense,
    "pool": lambda made, layer, real: made.node("GlobalAveragePool", [real], f"{layer.name}.mean"),
    Sum: _sum,
    Product: lambda made, layer, *reals: made.node("Mul", reals, f"{layer.name}.product"),
    MaxPool: _max_pool,
    Concat: _concat,
    Gather: _gather,
    Resample: _resample,
    Function: _function,
    Softmax: _softmax,
    LogSoftmax: _softmax,
    Normalise: _normalise,
    MatMul: _matmul,
}
"""Kinds of layers with weights, and operators → what makes their real result, before it is clamped, of real inputs."""
