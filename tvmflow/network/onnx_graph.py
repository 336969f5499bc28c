"""Corrections of an ONNX model before it is imported: what files of many makers have in common is left."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import inliner

from tvmflow.network.foreign import first_line
from tvmflow.spec import UserError


def load(path: Path) -> onnx.ModelProto:
    """Read and check a file, with external data from beside it. Raises UserError."""
    try:
        model = onnx.load(path)
    except Exception as error:  # protobuf, checker and file errors share no base class
        raise UserError(f"{path} is no valid ONNX model: {first_line(error)}.") from error
    if model.HasField("graph") and not model.graph.node and not model.graph.output:
        raise UserError(f"{path} is no valid ONNX model: its graph is empty.")
    left_open = [
        (entry, _copied(entry.type))
        for entry in model.graph.output
        if entry.type.WhichOneof("value") in (None, "tensor_type")
    ]
    for entry, _ in left_open:  # the checker wants a type and a shape of outputs, which follow from the nodes
        entry.type.tensor_type.elem_type = entry.type.tensor_type.elem_type or onnx.TensorProto.FLOAT
        entry.type.tensor_type.shape.SetInParent()
    try:
        onnx.checker.check_model(model)
    except Exception as error:
        raise UserError(f"{path} is no valid ONNX model: {first_line(error)}.") from error
    for entry, written in left_open:
        entry.type.CopyFrom(written)
    return model


def _copied(written: onnx.TypeProto) -> onnx.TypeProto:
    copy = onnx.TypeProto()
    copy.CopyFrom(written)
    return copy


def fix_shapes(model: onnx.ModelProto, shapes: dict[str, tuple[int, ...]]) -> None:
    """Give the inputs the shapes that the network is built for; what was inferred for open ones is forgotten."""
    for entry in model.graph.input:
        if entry.name in shapes:
            dims = entry.type.tensor_type.shape
            dims.ClearField("dim")
            dims.SetInParent()
            for size in shapes[entry.name]:
                dims.dim.add().dim_value = size
    for entry in model.graph.output:
        if any(not dim.HasField("dim_value") or dim.dim_value < 1 for dim in entry.type.tensor_type.shape.dim):
            entry.type.tensor_type.ClearField("shape")
    model.graph.ClearField("value_info")


def inline_functions(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """The file's own functions in place of the nodes that call them. Raises UserError."""
    if not model.functions:
        return model
    try:
        return inliner.inline_local_functions(model)
    except Exception as error:
        raise UserError(
            f"The functions of {path} can't be put in place of their calls: {first_line(error)}."
        ) from error


def needed_nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The nodes that the graph's outputs come from, in order; files keep what an exporter left behind."""
    wanted, needed = {entry.name for entry in graph.output}, []
    for node in reversed(graph.node):
        if wanted.intersection(node.output):
            needed.append(node)
            wanted |= names_read(node)
    return needed[::-1]


def names_read(node: onnx.NodeProto) -> set[str]:
    """A node's inputs, and what its subgraphs read from around them."""
    graphs = [graph for attribute in node.attribute for graph in (attribute.g, *attribute.graphs)]
    inner = (name for graph in graphs for part in graph.node for name in names_read(part))
    outer = (entry.name for graph in graphs for entry in graph.output)
    return {name for name in (*node.input, *inner, *outer) if name}


def expand(node: onnx.NodeProto, model: onnx.ModelProto, types: dict[str, onnx.TypeProto]) -> onnx.GraphProto | None:
    """A graph of simpler operators for a node, as ONNX's own definition of the operator has it; None if it has none."""
    graph = onnx.helper.make_graph(
        [node],
        "one",
        [onnx.helper.make_value_info(name, types[name]) for name in dict.fromkeys(node.input) if name],
        [onnx.helper.make_empty_tensor_value_info(name) for name in node.output if name],
    )
    one = onnx.helper.make_model(graph, opset_imports=model.opset_import)
    try:
        made = inliner.inline_selected_functions(one, [(node.domain, node.op_type)], inline_schema_functions=True)
    except Exception:  # no such function, or not for these types
        return None
    return None if [inner.op_type for inner in made.graph.node] == [node.op_type] else made.graph
