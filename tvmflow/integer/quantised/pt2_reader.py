"""A `.pt2` file of a network that PyTorch's quantisers converted becomes an IntegerNetwork of the scheme "tflite"."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tvmflow.integer.network import IntegerNetwork
from tvmflow.integer.quantised import operations, refusals
from tvmflow.integer.quantised.finish import finished
from tvmflow.integer.quantised.pt2_operators import CHECKS, CONVERTERS, Call, Inputs, evaluated
from tvmflow.integer.quantised.refusals import Refusals
from tvmflow.integer.quantised.values import Constant, Graph, Real
from tvmflow.integer.tflite.values import Refused
from tvmflow.network import pt2_archive
from tvmflow.network.foreign import report_unsupported
from tvmflow.system import untrusted
from tvmflow.system.untrusted import MalformedError

SUFFIX = ".pt2"
PATHS = "nn_module_stack"


def read(path: Path) -> IntegerNetwork:
    """Raises UserError and UnsupportedOperatorError: all that isn't taken, at once, or what is wrong with the file."""
    exported = pt2_archive.load(path)
    with refusals.sentence(path):
        return _network(exported, path)


def _network(exported: Any, path: Path) -> IntegerNetwork:
    graph, inputs, wrong = Graph(), Inputs(), Refusals()
    values: dict[Any, Any] = {}
    nodes = list(exported.graph_module.graph.nodes)
    _check_operators(nodes)
    known = _weights(exported)
    outputs: list[tuple[str, Any]] = []
    for node in nodes:
        if node.op == "placeholder":
            if node.name in known:
                values[node] = Constant(array=known[node.name])
                continue
            values[node] = inputs.real(node.name, _shape(node))
        elif node.op == "output":
            for place, result in enumerate(_flat(node.args)):
                if result in values and not wrong.spoils([result]):
                    outputs.append((f"output{place}" if place else "output", values[result]))
        elif node.op == "call_function" and not wrong.spoils(node.all_input_nodes, [node]):
            with wrong.of(f"{_kind(node.target)} ({_name(node)})", [node]):
                found = _converted(graph, node, values)
                if found is not None:
                    values[node] = found
    for label, real in outputs:
        if isinstance(real, Real) and not operations.is_read(real):
            wrong.add(f"the output {label} of {operations.described(real)}, which isn't quantised")
    wrong.report()
    unread = [number for number, ports in enumerate(inputs.ports) if not ports]
    if unread:
        raise Refused("inputs that nothing quantises")
    return finished(path.stem, graph, [port for ports in inputs.ports for port in ports], outputs)


def _weights(exported: Any) -> dict[str, np.ndarray]:
    """Parameters, buffers and constants by the names of their placeholders."""
    signature = exported.graph_signature
    named = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    tensors = {**exported.state_dict, **exported.constants}
    found = {}
    for place, name in named.items():
        if name not in tensors:
            raise MalformedError(f"the weight {untrusted.shown(name)} isn't there")
        found[place] = tensors[name].detach().contiguous().numpy()
    return found


def _shape(node: Any) -> tuple[int, ...]:
    tensor = node.meta.get("val")
    shape = tuple(getattr(tensor, "shape", ()))
    if tensor is None or not all(isinstance(length, int) for length in shape):
        raise Refused(f"the input {untrusted.shown(node.name)}, whose sizes are left open")
    if str(tensor.dtype) != "torch.float32":
        raise Refused(f"the input {untrusted.shown(node.name)} of {str(tensor.dtype).removeprefix('torch.')}")
    return shape


def _flat(value: Any) -> list[Any]:
    if isinstance(value, (list, tuple)):
        return [one for part in value for one in _flat(part)]
    return [value]


def _check_operators(nodes: list[Any]) -> None:
    missing: dict[str, list[str]] = {}
    for node in nodes:
        if node.op not in ("placeholder", "output", "call_function"):
            missing.setdefault(node.op, []).append(node.name)
        if node.op == "call_function" and node.users and _kind(node.target) not in {*CONVERTERS, "getitem"}:
            missing.setdefault(_kind(node.target), []).append(_name(node))
    report_unsupported(missing)


def _kind(target: Any) -> str:
    schema = getattr(target, "_schema", None)
    if schema is None:
        return str(getattr(target, "__name__", target))
    name = str(schema.name.partition("::")[2])
    return name.removesuffix("_") if not name.endswith("__") else name


def _name(node: Any) -> str:
    """The module that an operator is of, if that is one of PyTorch's own with nothing but this in it."""
    stack = list((node.meta.get(PATHS) or {}).values())
    path = stack[-1][0] if stack else ""
    weighted = any(argument.name in ("weight", "running_mean") for argument in _arguments(node.target))
    return str(path) if path and weighted else str(node.name)


def _arguments(target: Any) -> list[Any]:
    schema = getattr(target, "_schema", None)
    return list(schema.arguments) if schema is not None else []


def _converted(graph: Graph, node: Any, values: dict[Any, Any]) -> Any:
    """What a node gives: a tensor, or several."""
    if _kind(node.target) in CHECKS:
        return None
    if _kind(node.target) == "getitem":
        return values[node.args[0]][node.args[1]]

    def read_(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [read_(one) for one in value]
        return values[value] if hasattr(value, "all_input_nodes") else value

    names = [argument.name for argument in _arguments(node.target)]
    arguments = {name: read_(value) for name, value in zip(names, node.args, strict=False)}
    arguments |= {name: read_(value) for name, value in node.kwargs.items()}
    call = Call(graph, node.target, operations.plain(_name(node)), arguments)
    tensors = [value for value in _flat(list(arguments.values())) if isinstance(value, Real | Constant)]
    convert: Callable[[Call], Any]
    if all(isinstance(value, Constant) for value in tensors) and not _dequantises(node):
        moved = [value for value in tensors if value.integers is not None]
        convert = CONVERTERS[call.kind] if moved else evaluated
    else:
        convert = CONVERTERS[call.kind]
    found = convert(call)
    several = isinstance(node.meta.get("val"), (list, tuple))
    if several:
        return found if isinstance(found, (list, tuple)) else [found]
    return found[0] if isinstance(found, (list, tuple)) else found


def _dequantises(node: Any) -> bool:
    return _kind(node.target).startswith("dequantize")
