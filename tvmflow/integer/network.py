"""A quantised network: layers in execution order, its inputs and outputs, and what it was made from.

[layers](layers.py) says what each has to compute, bit for bit; [reference](reference.py) computes it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, overload

import numpy as np

from tvmflow.integer.layers import (
    ALL_SCHEMES,
    RANGES,
    SCHEMES,
    AnyIntegerLayer,
    Bounds,
    IntegerLayer,
    IntegerNode,
    Scheme,
    accumulator_range,
    problem,
)
from tvmflow.integer.operators import Shape
from tvmflow.integer.reference import BATCH, accumulate, quantize, requantize, run_layer
from tvmflow.integer.tail import Tail
from tvmflow.spec import Preprocessing, TensorSpec, UserError
from tvmflow.system import untrusted

__all__ = [
    "BATCH",
    "RANGES",
    "SCHEMES",
    "AnyIntegerLayer",
    "IntegerLayer",
    "IntegerNetwork",
    "IntegerNode",
    "Port",
    "Scheme",
    "State",
    "accumulate",
    "accumulator_range",
    "canonical",
    "quantize",
    "requantize",
    "run_layer",
]

Arrays = tuple[np.ndarray, ...]


@dataclass(frozen=True, kw_only=True)
class Port:
    """An input or an output of a network: `shape` as the user has it, with a batch of 1, and one step's real value.

    Real numbers are (q − `zero_point`) · `scale`; inputs are of `dtype`, outputs of that of their layer. An output's
    `source` is the layer that gives it; an input is read by its `name`. Values lie in the order that the tensor inside
    has, 1×C×H×W.
    """

    name: str
    shape: Shape
    scale: float
    source: str = ""
    zero_point: int = 0
    dtype: str = "int8"


@dataclass(frozen=True, kw_only=True)
class State:
    """What a network is to be given again: the output is the input at the next call; `initial` fills the first one."""

    input: str
    output: str
    initial: int


def canonical(shape: Shape) -> Shape:
    """The shape that a tensor has inside, 1×C×H×W, with its elements in the same order."""
    batch, *rest = shape if len(shape) > 1 else (1, *shape)
    if len(rest) == 1:
        return (batch, rest[0], 1, 1)
    if len(rest) == 2:
        return (batch, rest[0], 1, rest[1])
    return (batch, rest[0], rest[1], math.prod(rest[2:])) if rest else (batch, 1, 1, 1)


@dataclass(frozen=True, kw_only=True, eq=False)
class IntegerNetwork:
    """Layers in execution order, each of which reads inputs of the network or layers before it.

    The inputs are int8, real = q · their scale, but for those of files that say otherwise; outputs have the dtypes of
    the layers that give them. With a `tail` they are what it reads, and what it gives is the network's answer. `facts`
    say how the network was quantised. Raises UserError if a layer doesn't fit its inputs or the scheme, or could
    overflow.
    """

    name: str
    scheme: Scheme
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    layers: tuple[AnyIntegerLayer, ...]
    preprocessing: Preprocessing | None = None
    labels: tuple[str, ...] = ()
    state: tuple[State, ...] = ()
    tail: Tail | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check(self)

    @staticmethod
    def chain(
        *,
        name: str,
        scheme: Scheme,
        input_shape: Shape,
        input_scale: float,
        layers: tuple[AnyIntegerLayer, ...],
        **more: Any,
    ) -> IntegerNetwork:
        """A network of one input, called "input", and one output: that of the last layer, 1×C if its maps are pixels
        of a dense layer."""
        if not layers:
            raise UserError(f"{name} has no layers.")
        last = layers[-1]
        shape = last.output_shape[:2] if last.kind == "dense" else last.output_shape
        return IntegerNetwork(
            name=name,
            scheme=scheme,
            inputs=(Port(name="input", shape=tuple(input_shape), scale=input_scale),),
            outputs=(Port(name="output", shape=shape, scale=last.scale, source=last.name),),
            layers=layers,
            **more,
        )

    @property
    def input_shape(self) -> Shape:
        """Of the first input, as it is inside: 1×C×H×W."""
        return canonical(self.inputs[0].shape)

    @property
    def input_scale(self) -> float:
        """Real value of one step of the first input."""
        return self.inputs[0].scale

    @property
    def output_scale(self) -> float:
        """Real value of one step of the first output."""
        return self.output_scales[0]

    @property
    def output_scales(self) -> tuple[float, ...]:
        """Real value of one step of each output of `answers`; those of a tail are real values themselves."""
        return tuple(1.0 for _ in self.tail.outputs) if self.tail else tuple(port.scale for port in self.outputs)

    @property
    def answers(self) -> tuple[TensorSpec, ...]:
        """What the user gets, as `answer` gives it for one input: float32 where there is a tail."""
        if self.tail is not None:
            return self.tail.outputs
        dtypes = self.dtypes
        return tuple(
            TensorSpec(name=port.name, shape=tuple(port.shape), dtype=dtypes[port.source]) for port in self.outputs
        )

    @property
    def output_shape(self) -> Shape:
        """Of the first output, as the user has it, for one input."""
        return self.answers[0].shape

    @property
    def by_name(self) -> dict[str, AnyIntegerLayer]:
        return {layer.name: layer for layer in self.layers}

    @property
    def shapes(self) -> dict[str, Shape]:
        """Of every tensor, 1×C×H×W."""
        inputs = {port.name: canonical(port.shape) for port in self.inputs}
        return inputs | {layer.name: layer.output_shape for layer in self.layers}

    @property
    def dtypes(self) -> dict[str, str]:
        """Of every tensor."""
        return {port.name: port.dtype for port in self.inputs} | {layer.name: layer.dtype for layer in self.layers}

    def readers(self, name: str) -> list[AnyIntegerLayer]:
        """The layers that read a tensor."""
        return [layer for layer in self.layers if name in layer.inputs]

    def is_output(self, name: str) -> bool:
        return any(port.source == name for port in self.outputs)

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights, biases, requantisation and tables; a pool's weights, all 1, need not be kept."""
        tail = 4 * self.tail.parameters if self.tail else 0
        return sum(layer.constant_bytes for layer in self.layers) + tail

    @property
    def parameters(self) -> int:
        """Weights and biases."""
        weighted = (layer for layer in self.layers if isinstance(layer, IntegerLayer) and layer.kind != "pool")
        own = sum(layer.weight.size + layer.bias.size for layer in weighted)
        return own + (self.tail.parameters if self.tail else 0)

    def quantize_input(self, real: np.ndarray) -> np.ndarray:
        """float32, the first input → its dtype: divided by its scale in float64, rounded half to even, saturated."""
        port = self.inputs[0]
        return quantize(real, port.scale, port.zero_point, port.dtype)

    @overload
    def run(self, q: np.ndarray, keep: Literal[False] = False) -> np.ndarray: ...

    @overload
    def run(self, q: np.ndarray, keep: Literal[True]) -> tuple[np.ndarray, dict[str, np.ndarray]]: ...

    def run(self, q: np.ndarray, keep: bool = False) -> np.ndarray | tuple[np.ndarray, dict[str, np.ndarray]]:
        """`run_all` of a network of one input: its first output, and with `keep` every tensor.

        int8 N×C×H×W → N×classes, or whatever the output's shape is. Raises UserError if the input is another's.
        """
        outputs, kept = self._run((q,), keep)
        return (outputs[0], kept) if keep else outputs[0]

    def run_all(self, inputs: Arrays) -> Arrays:
        """As many of each input, of its dtype → as many of each output, of the ports' shapes but for the batch.

        Raises UserError if the inputs are another's.
        """
        return self._run(tuple(inputs), False)[0]

    def answer(self, inputs: Arrays) -> Arrays:
        """What the user gets: `run_all`, and with a tail what that makes of it, one input after the other.

        Raises UserError if the inputs are another's, MissingDependencyError if nothing here can run the tail.
        """
        found = self.run_all(inputs)
        if self.tail is None:
            return found
        each = [self.tail.run(*(array[place : place + 1] for array in found)) for place in range(len(found[0]))]
        shaped = zip(zip(*each, strict=True), self.answers, strict=True)
        return tuple(np.concatenate([part.reshape(-1, *spec.shape[1:]) for part in parts]) for parts, spec in shaped)

    def run_kept(self, inputs: Arrays) -> tuple[Arrays, dict[str, np.ndarray]]:
        """`run_all`, and every tensor by its name, N×C×H×W."""
        return self._run(tuple(inputs), True)

    def _run(self, inputs: Arrays, keep: bool) -> tuple[Arrays, dict[str, np.ndarray]]:
        batches = list(self._batches(inputs, keep))
        kept = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
        return tuple(kept[port.source].reshape(-1, *port.shape[1:]) for port in self.outputs), kept

    def _batches(self, inputs: Arrays, keep: bool) -> Iterator[dict[str, np.ndarray]]:
        if len(inputs) != len(self.inputs):
            raise UserError(f"{self.name} takes {len(self.inputs)} inputs, not {len(inputs)}.")
        for port, q in zip(self.inputs, inputs, strict=True):
            if q.dtype != port.dtype or q.shape[1:] != port.shape[1:] or not len(q) or len(q) != len(inputs[0]):
                wanted = "×".join(map(str, port.shape[1:]))
                raise UserError(
                    f"{self.name} takes {port.dtype} N×{wanted}, not {q.dtype} {'×'.join(map(str, q.shape))}."
                )
        last = {name: step for step, layer in enumerate(self.layers) for name in layer.inputs}
        wanted_outputs = {port.source for port in self.outputs}
        for start in range(0, len(inputs[0]), BATCH):
            tensors = {
                port.name: q[start : start + BATCH].reshape(-1, *canonical(port.shape)[1:])
                for port, q in zip(self.inputs, inputs, strict=True)
            }
            for step, layer in enumerate(self.layers):
                tensors[layer.name] = run_layer(layer, *(tensors[name] for name in layer.inputs))
                if not keep:
                    for name in layer.inputs:
                        if last[name] == step and name not in wanted_outputs:
                            tensors.pop(name, None)
            yield tensors if keep else {name: tensors[name] for name in wanted_outputs}


def _check_state(network: IntegerNetwork) -> None:
    inputs, outputs = ({port.name: port for port in ports} for ports in (network.inputs, network.outputs))
    for state in network.state:
        before, after = inputs.get(state.input), outputs.get(state.output)
        low, high = RANGES[before.dtype] if before is not None else (0, -1)
        if before is None or after is None or before.shape != after.shape or not low <= state.initial <= high:
            raise _wrong(f"The state {state.input} of {network.name} isn't an input and an output that are alike.")


def _check(network: IntegerNetwork) -> None:
    if network.scheme not in ALL_SCHEMES:
        raise _wrong(f"{network.name} has the scheme {network.scheme!r}; there are {', '.join(ALL_SCHEMES)}.")
    if not network.layers:
        raise _wrong(f"{network.name} has no layers.")
    if not network.inputs or not network.outputs or len({port.name for port in network.inputs}) != len(network.inputs):
        raise _wrong(f"{network.name} needs inputs of different names, and outputs.")
    tensors: dict[str, tuple[Shape, Bounds]] = {}
    for port in network.inputs:
        tensors[port.name] = (canonical(port.shape), RANGES[port.dtype])
    for layer in network.layers:
        if wrong := problem(layer, network.scheme, tensors):
            raise _wrong(f"Layer {layer.name} of {network.name} {wrong}.")
        tensors[layer.name] = (layer.output_shape, (layer.minimum, layer.maximum))
    layers = network.by_name
    for port in network.outputs:
        source = layers.get(port.source)
        if source is None or canonical(port.shape) != source.output_shape:
            raise _wrong(f"The output {port.name} of {network.name} is no layer's, or has another shape.")
        free = network.scheme == "tflite" or network.tail is not None
        if isinstance(source, IntegerLayer) and source.dtype != "int8" and not free:
            raise _wrong(f"The output of {network.name} is {source.dtype} instead of int8.")
    _check_state(network)
    if network.tail is not None:
        dtypes = network.dtypes
        given = [(canonical(port.shape), dtypes[port.source]) for port in network.outputs]
        if [(spec.shape, spec.dtype) for spec in network.tail.inputs] != given or network.state:
            raise _wrong(f"What stays in float32 of {network.name} doesn't read what its integer layers give.")
    if not all(np.isfinite(port.scale) and port.scale > 0 for port in (*network.inputs, *network.outputs)):
        raise _wrong(f"The scales of {network.name}'s inputs and outputs aren't positive.")


def _wrong(sentence: str) -> UserError:
    """With names that a file gives, which may have anything in them."""
    return UserError(untrusted.printable(sentence))
