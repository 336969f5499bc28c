"""An ONNX file's graph as plain values: nodes with their attributes, constants as arrays, and the network's inputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tvmflow.integer.tflite.values import plain_name
from tvmflow.network.foreign import first_line
from tvmflow.network.shapes import InputShape
from tvmflow.spec import TensorSpec, UserError
from tvmflow.system import limits, untrusted
from tvmflow.system.untrusted import MalformedError, UnusableFileError

if TYPE_CHECKING:
    import onnx

SUFFIX = ".onnx"
OWN = ("", "ai.onnx")
MICROSOFT = "com.microsoft"
QUANTISED = ("QuantizeLinear", "QGemm")
"""Operators, with those whose names begin with QLinear, by which a file is known for quantised."""
DYNAMIC = "DynamicQuantizeLinear"
"""By which it is known for one that takes its scales of every input anew: its tensors have none."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Node:
    """`kind` is the operator, with its domain if that isn't ONNX's or ONNX Runtime's own; "" is an input left out.

    `label` is the file's name, `name` that of layers.
    """

    kind: str
    label: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]
    opset: int

    @property
    def name(self) -> str:
        return plain_name(self.label)

    def get(self, attribute: str, default: Any = None) -> Any:
        return self.attributes.get(attribute, default)

    def integers(self, attribute: str, default: Sequence[int]) -> tuple[int, ...]:
        return tuple(int(value) for value in self.attributes.get(attribute, default))

    def __str__(self) -> str:
        return f"{untrusted.shortened(self.kind)} ({untrusted.shortened(self.label)})"


@dataclass(frozen=True, kw_only=True, eq=False)
class FileGraph:
    nodes: tuple[Node, ...]
    constants: dict[str, np.ndarray]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[str, ...]


def is_quantised(path: Path) -> bool:
    """Whether a file can be read and has quantised tensors, of scales that it says."""
    import onnx

    try:
        limits.check_file_size(path.stat().st_size, path)
        model = onnx.load(path, format="protobuf", load_external_data=False)
    except Exception:  # protobuf's errors share no base class; who reads the file says what is wrong
        return False
    nodes = (*model.graph.node, *(node for function in model.functions for node in function.node))
    kinds = {_text(node.op_type) for node in nodes}
    return DYNAMIC not in kinds and any(kind in QUANTISED or kind.startswith("QLinear") for kind in kinds)


def read_graph(path: Path, given: Sequence[InputShape] = ()) -> FileGraph:
    """Nodes that outputs come from, the file's functions put in. An open first dimension is a batch of 1.

    Raises UserError.
    """
    from onnx import numpy_helper

    from tvmflow.network import onnx_graph
    from tvmflow.network.onnx_file import onnx_inputs

    model = onnx_graph.inline_functions(onnx_graph.load(path), path)
    if model.graph.sparse_initializer:
        raise UserError(f"{path} isn't taken: it has sparse weights.")
    initializers = {tensor.name: tensor for tensor in model.graph.initializer}
    inputs = onnx_inputs(model, set(initializers), given, path)
    limits.check_inputs({spec.name: spec.shape for spec in inputs}, str(path))
    onnx_graph.keep_needed_nodes(model)
    needed = {name for node in model.graph.node for name in node.input} | {entry.name for entry in model.graph.output}
    named = {name: _text(name) for name in needed}
    try:
        constants = {
            named[name]: numpy_helper.to_array(tensor) for name, tensor in initializers.items() if name in needed
        }
        versions = {entry.domain: entry.version for entry in model.opset_import}
        nodes = tuple(_node(node, versions) for node in model.graph.node)
    except MalformedError as error:
        raise UnusableFileError(path, f"is no network that can be read: {error}") from error
    except Exception as error:  # of a type that NumPy doesn't know, or of too few bytes
        raise UserError(f"{path} is no valid ONNX model: {first_line(error)}.") from error
    return FileGraph(
        nodes=nodes,
        constants=constants,
        inputs=tuple(replace(spec, name=_text(spec.name)) for spec in inputs),
        outputs=tuple(_text(entry.name) for entry in model.graph.output),
    )


def _text(value: str | bytes) -> str:
    """A text of a file, which protobuf gives as bytes if it isn't UTF-8."""
    return value if isinstance(value, str) else value.decode("utf-8", "replace")


def _node(node: onnx.NodeProto, versions: dict[str, int]) -> Node:
    from onnx import helper, numpy_helper

    operator, domain = _text(node.op_type), _text(node.domain)
    attributes: dict[str, Any] = {}
    for attribute in node.attribute:
        value = helper.get_attribute_value(attribute)
        if attribute.HasField("t"):
            value = numpy_helper.to_array(attribute.t)
        elif isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
        if isinstance(value, float) and not math.isfinite(value):
            raise MalformedError(f"the {untrusted.shown(attribute.name)} of {operator} is {value}")
        attributes[_text(attribute.name)] = value
    kind = operator if domain in (*OWN, MICROSOFT) else f"{domain}.{operator}"
    opset = next((versions[domain] for domain in OWN if domain in versions), 1)
    return Node(
        kind=kind,
        label=_text(node.name or next(iter(node.output), "")) or operator,
        inputs=tuple(map(_text, node.input)),
        outputs=tuple(map(_text, node.output)),
        attributes=attributes,
        opset=opset if domain in OWN else 1,
    )
