"""A `.tflite` file becomes an IntegerNetwork of the scheme "tflite"."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from tvmflow.integer.network import IntegerNetwork, Port, canonical
from tvmflow.integer.tflite import functions, moves, plain, pools, resizing, state, weighted
from tvmflow.integer.tflite.model import FileGraph, FileOperator, read_model
from tvmflow.integer.tflite.values import Network, Refused, Value, check_batch, plain_name
from tvmflow.spec import UserError
from tvmflow.system import untrusted
from tvmflow.system.untrusted import MalformedError, UnusableFileError

Convert = Callable[[Network, FileOperator], None]
CONVERTERS: dict[str, Convert] = {
    **weighted.CONVERTERS,
    **pools.CONVERTERS,
    **plain.CONVERTERS,
    **functions.CONVERTERS,
    **resizing.CONVERTERS,
    **moves.CONVERTERS,
}
"""What each operator of a file becomes. An operator without a line is refused."""


def read(path: Path) -> IntegerNetwork:
    """Raises UserError: all operators that aren't taken, at once, or what is wrong with the file."""
    graphs = read_model(path)
    try:
        _check_operators(graphs[0])
        return network_of(graphs, path.stem)
    except Refused as refused:
        raise UserError(f"{untrusted.printable(str(path))} isn't taken: it has {refused}.") from refused
    except MalformedError as error:
        raise UnusableFileError(path, f"is no network that can be read: {error}") from error


def _check_operators(graph: FileGraph) -> None:
    kinds = dict.fromkeys(operator.kind for operator in graph.operators)
    taken = {*CONVERTERS, *state.KINDS, "DEQUANTIZE"}
    unknown = [kind for kind in kinds if kind not in taken]
    if unknown:
        raise Refused(f"the operators {', '.join(untrusted.shortened(kind) for kind in unknown)}, which aren't taken")


def network_of(graphs: tuple[FileGraph, ...], name: str) -> IntegerNetwork:
    """The first of the graphs; the others may be called by it. Raises Refused, MalformedError."""
    graph = graphs[0]
    network = Network(graph)
    inputs: list[Port] = []
    outputs: list[Port] = []
    first, operators = _inputs(graph)
    for number, given in first.items():
        port = network.input(graph.tensors[number].name, graph.tensors[given])
        network.values[given] = network.given(port)
        inputs.append(port)
    last: dict[int, int] = {}
    variables = state.Variables(network, graphs)
    for operator in operators:
        if operator.kind in state.KINDS:
            variables.convert(operator)
            continue
        if operator.kind == "DEQUANTIZE":
            last[_one(operator.outputs)] = _one(operator.inputs)
            continue
        CONVERTERS[operator.kind](network, operator)
    if any(number in last for operator in operators for number in operator.inputs):
        raise Refused("operators that compute in float32")
    for number in graph.outputs:
        found = last.get(number, number)
        if found not in network.values:
            raise Refused("an output that is a constant")
        called = plain_name(graph.tensors[number].name)
        while any(port.name == called for port in outputs):
            called += ".again"
        outputs.append(_output(network, network.values[found], called))
    kept = variables.states()
    if {port.name for port in outputs} & {one.output for one, _, _ in kept}:
        raise Refused("an output with the name of a variable")
    inputs += [port for _, port, _ in kept]
    outputs += [_state_output(network, value, one.output) for one, _, value in kept]
    return IntegerNetwork(
        name=name,
        scheme="tflite",
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        layers=tuple(network.layers),
        state=tuple(one for one, _, _ in kept),
    )


def _one(numbers: tuple[int, ...]) -> int:
    if len(numbers) != 1:
        raise MalformedError("an operator that changes the type of a tensor has none, or several")
    return numbers[0]


def _inputs(graph: FileGraph) -> tuple[dict[int, int], list[FileOperator]]:
    """Tensors by which the network's inputs are read, and the operators that are left.

    An input in float32 that is quantised at once is read as what it is quantised to.
    """
    found, left = {number: number for number in graph.inputs}, []
    for operator in graph.operators:
        number = operator.inputs[0] if operator.inputs else -1
        if operator.kind == "QUANTIZE" and number in found and graph.tensors[number].dtype == "float32":
            if found[number] != number:
                raise Refused("a float32 input that is quantised more than once")
            found[number] = _one(operator.outputs)
            continue
        left.append(operator)
    return found, left


def _state_output(network: Network, value: Value, name: str) -> Port:
    """What a variable is after a call, in the order of our own tensors."""
    places = network.laid(network.places(value))
    return Port(
        name=name,
        shape=places.shape,
        scale=value.scale,
        zero_point=value.zero_point,
        dtype=value.dtype,
        source=plain.copied(network, value, f"{value.source}.output", places),
    )


def _output(network: Network, value: Value, name: str) -> Port:
    """An output, in the order that the file has."""
    if not np.prod(value.shape):
        raise Refused("an output without elements")
    check_batch(value.shape)
    places = network.places(value).reshape(canonical(value.shape))
    source = plain.copied(network, value, f"{value.source}.output", places)
    return Port(
        name=name,
        shape=value.shape,
        scale=value.scale,
        zero_point=value.zero_point,
        dtype=value.dtype,
        source=source,
    )
