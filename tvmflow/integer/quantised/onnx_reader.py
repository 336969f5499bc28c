"""A quantised ONNX file becomes an IntegerNetwork of the scheme "tflite"."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tvmflow.integer.network import IntegerNetwork, Port
from tvmflow.integer.quantised import onnx_constants, operations, refusals
from tvmflow.integer.quantised.cores import Given
from tvmflow.integer.quantised.finish import finished
from tvmflow.integer.quantised.onnx_graph import FileGraph, Node, read_graph
from tvmflow.integer.quantised.onnx_operators import CONVERTERS, Reading
from tvmflow.integer.quantised.refusals import Refusals
from tvmflow.integer.quantised.values import Real, Steps
from tvmflow.integer.tflite.values import Refused
from tvmflow.network.foreign import report_unsupported
from tvmflow.network.shapes import InputShape
from tvmflow.system import untrusted

REMEDY = "--dtype float32 computes its nodes as they stand"


def read(path: Path, shapes: Sequence[InputShape] = ()) -> IntegerNetwork:
    """Raises UserError and UnsupportedOperatorError: all that isn't taken, at once, or what is wrong with the file."""
    graph = read_graph(path, shapes)
    with refusals.sentence(path, REMEDY):
        return _network(graph, path)


def _network(graph: FileGraph, path: Path) -> IntegerNetwork:
    reading, wrong, nodes = Reading(graph.constants), Refusals(), list[Node]()
    for node in graph.nodes:
        with wrong.of(str(node), node.outputs):
            if not onnx_constants.fold(reading, node):
                nodes.append(node)
    inputs = {spec.name: _input(reading, graph, number) for number, spec in enumerate(graph.inputs)}
    _check_operators(nodes)
    for node in nodes:
        if not wrong.spoils(node.inputs, node.outputs):
            with wrong.of(str(node), node.outputs):
                _convert(reading, node)
    given = {name: node for node in nodes for name in node.outputs}
    for name in graph.outputs:
        real = reading.tensors.get(name)
        if isinstance(real, Real) and name in given and not operations.is_read(real):
            wrong.add(f"{given[name]}: its result, the output {untrusted.shown(name)}, isn't quantised")
    wrong.report()
    ports = [port for found in inputs.values() for port in found]
    if len(ports) != len(inputs):
        unread = [name for name, found in inputs.items() if not found]
        raise Refused(f"the inputs {', '.join(map(untrusted.shown, unread))}, which nothing quantises")
    outputs = [(name, reading.tensors.get(name)) for name in graph.outputs]
    return finished(path.stem, reading.graph, ports, outputs)


def _input(reading: Reading, graph: FileGraph, number: int) -> list[Port]:
    """A place for the port of an input, which is made when it is known in which steps the input is."""
    spec, ports = graph.inputs[number], list[Port]()
    if spec.dtype not in ("float32", "int8", "uint8"):
        raise Refused(f"the input {untrusted.shown(spec.name)} of {spec.dtype}")
    core = Given(name=spec.name, shape=spec.shape, ports=ports)
    real = Real(shape=spec.shape, core=core)
    if spec.dtype != "float32":
        steps = _steps_of_input(reading, graph, spec.name, spec.dtype)
        value = core.make(reading.graph, steps, (-128, 127) if spec.dtype == "int8" else (0, 255), ())
        real = operations.stored(value, steps)
    reading.tensors[spec.name] = real
    return ports


def _steps_of_input(reading: Reading, graph: FileGraph, name: str, dtype: str) -> Steps:
    """By the first node that says it of what it reads: of integers that the network takes."""
    for node in graph.nodes:
        for place, read_ in enumerate(node.inputs):
            quantises = node.kind == "DequantizeLinear" or node.kind.startswith("QLinear") or node.kind == "QGemm"
            if (
                read_ == name
                and quantises
                and all(other in reading.tensors for other in node.inputs[place + 1 : place + 3])
            ):
                found = reading.steps(node, place + 1, place + 2, dtype)
                return Steps(dtype=dtype, scale=found.scale, zero_point=found.zero_point)
    return Steps(dtype=dtype, scale=1.0, zero_point=0)


def _check_operators(nodes: Sequence[Node]) -> None:
    """Raises UnsupportedOperatorError, for all operators that aren't taken at once."""
    missing: dict[str, list[str]] = {}
    for node in nodes:
        if node.kind not in CONVERTERS and node.kind not in onnx_constants.KINDS:
            missing.setdefault(untrusted.shortened(node.kind), []).append(untrusted.shortened(node.label))
    report_unsupported(missing)


def _convert(reading: Reading, node: Node) -> None:
    if onnx_constants.fold(reading, node):
        return
    if node.kind not in CONVERTERS:
        raise Refused("an operator that is taken of constants alone")
    found = CONVERTERS[node.kind](reading, node)
    for name, value in zip(node.outputs, found, strict=False):
        if name:
            reading.tensors[name] = value
