"""Corrections of an ONNX model before it is imported: what files of many makers have in common is left."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

import onnx
from onnx import inliner
from onnx.external_data_helper import load_external_data_for_model

from tvmflow.network.foreign import first_line
from tvmflow.spec import UserError
from tvmflow.system import limits


def load(path: Path) -> onnx.ModelProto:
    """Read and check a file, with external data from beside it. Raises UserError."""
    limits.check_file_size(path.stat().st_size, path)
    try:
        model = onnx.load(path, format="protobuf", load_external_data=False)
    except Exception as error:  # protobuf, checker and file errors share no base class
        raise UserError(f"{path} is no valid ONNX model: {first_line(error)}.") from error
    _check_tensors(model, path)
    try:
        load_external_data_for_model(model, str(path.parent))
    except Exception as error:
        raise UserError(f"The data beside {path} can't be read: {first_line(error)}.") from error
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
    check_functions(model, path)
    return model


def _check_tensors(model: onnx.ModelProto, path: Path) -> None:
    """Raises UserError for tensors that are too large, or whose data isn't in a file beside the model."""
    outside = 0
    for tensor in _tensors(model):
        what = f"{path}: the tensor {tensor.name!r}"
        if any(dim < 0 for dim in tensor.dims):
            raise UserError(f"{what} has the shape {'×'.join(map(str, tensor.dims))}, which is none.")
        limits.check_tensor(tensor.dims, what)
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            outside += _external_bytes(tensor, path.parent, what)
            limits.check_file_size(path.stat().st_size + outside, path)


def _external_bytes(tensor: onnx.TensorProto, folder: Path, what: str) -> int:
    """How many bytes a tensor has in the file that it names. Raises UserError unless that is a file in `folder`."""
    named = {entry.key: entry.value for entry in tensor.external_data}
    location = named.get("location", "")
    parts = PurePosixPath(location).parts
    if not parts or location[0] in "/\\" or ".." in parts or re.search(r"[\\:\x00-\x1f]", location):
        raise UserError(f"{what} has its data in {location!r}; data is read from the model's own folder only.")
    place = folder
    try:
        for part in parts:
            place /= part
            found = place.lstat()
            if stat.S_ISLNK(found.st_mode):
                raise UserError(f"{what} has its data in {location!r}, a symbolic link; put the file itself there.")
    except OSError as error:
        raise UserError(f"{what} has its data in {place}, which can't be read: {error.strerror}.") from error
    if not stat.S_ISREG(found.st_mode):
        raise UserError(f"{what} has its data in {location!r}, which is no file.")
    try:
        offset = int(named.get("offset", 0))
        length = int(named["length"]) if "length" in named else found.st_size - offset
    except ValueError as error:
        raise UserError(f"{what} has its data at a place that is no number ({first_line(error)}).") from error
    if min(offset, length) < 0 or offset + length > found.st_size:
        raise UserError(
            f"{what} has its data in bytes {offset:,} to {offset + length:,} of {location!r}, which has "
            f"{found.st_size:,}."
        )
    return length


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """All that a file holds, in whatever part of it."""
    graphs = [model.graph, *(graph for info in model.training_info for graph in (info.initialization, info.algorithm))]
    nodes = [node for function in model.functions for node in function.node]
    for function in model.functions:
        nodes += [onnx.NodeProto(attribute=function.attribute_proto)]
    while graphs or nodes:
        sparse: list[onnx.SparseTensorProto] = []
        for graph in graphs:
            yield from graph.initializer
            sparse += graph.sparse_initializer
            nodes += graph.node
        attributes = [attribute for node in nodes for attribute in node.attribute]
        graphs, nodes = [], []
        for attribute in attributes:
            yield from ([attribute.t] if attribute.HasField("t") else [])
            yield from attribute.tensors
            sparse += [*([attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else [])]
            sparse += attribute.sparse_tensors
            graphs += [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]
        for tensor in sparse:
            yield from (tensor.values, tensor.indices, onnx.TensorProto(name=tensor.values.name, dims=tensor.dims))


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


def keep_needed_nodes(model: onnx.ModelProto) -> None:
    """Take out the nodes that no output comes from; a reference would run them all the same."""
    needed = needed_nodes(model.graph)
    del model.graph.node[:]
    model.graph.node.extend(needed)


def check_functions(model: onnx.ModelProto, path: Path) -> None:
    """Raises UserError if functions call themselves, or make more nodes of a small file than are taken."""
    functions = {(function.domain, function.name): function for function in model.functions}
    counts: dict[tuple[str, str], int] = {}

    def count(nodes: Iterable[onnx.NodeProto], callers: tuple[tuple[str, str], ...]) -> int:
        total = 0
        for node in nodes:
            key = (node.domain, node.op_type)
            inner = [part for attribute in node.attribute for part in (attribute.g, *attribute.graphs)]
            total += 1 + sum(count(graph.node, callers) for graph in inner)
            if key in callers or len(callers) > limits.GRAPH.depth:
                raise UserError(f"{path} is no valid ONNX model: its function {node.op_type!r} calls itself.")
            if key in functions:
                if key not in counts:
                    counts[key] = count(functions[key].node, (*callers, key))
                total += counts[key]
        return total

    if (total := count(model.graph.node, ())) > limits.GRAPH.elements:
        raise UserError(
            f"{path} has {total:,} nodes, its functions put in; at most {limits.GRAPH.elements:,} are taken."
        )


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
