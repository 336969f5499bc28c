"""ONNX files become Programs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tvmflow.network.foreign import first_line, quiet
from tvmflow.network.names import name_outputs
from tvmflow.network.onnx_reference import open_reference
from tvmflow.network.shapes import InputShape, assign_shapes
from tvmflow.network.vectors import make_vectors, output_specs
from tvmflow.spec import Program, TensorSpec, TvmflowError, UserError
from tvmflow.system import limits

if TYPE_CHECKING:
    import onnx

INPUT_TYPES = {
    1: "float32",
    2: "uint8",
    3: "int8",
    4: "uint16",
    5: "int16",
    6: "int32",
    7: "int64",
    9: "bool",
    10: "float16",
    11: "float64",
    12: "uint32",
    13: "uint64",
    16: "bfloat16",
}
"""What an input may hold, by ONNX's numbers of element types."""


def from_onnx(path: Path, input_shapes: Sequence[InputShape]) -> Program:
    """Read an ONNX file. Raises UserError, UnsupportedOperatorError, MissingDependencyError."""
    from tvmflow.network import onnx_graph
    from tvmflow.network.onnx_operators import import_graph

    model = onnx_graph.load(path)
    initializers = {tensor.name: tensor for tensor in model.graph.initializer}
    inputs = onnx_inputs(model, set(initializers), input_shapes, path)
    limits.check_inputs({spec.name: spec.shape for spec in inputs}, str(path))
    onnx_graph.fix_shapes(model, {spec.name: spec.shape for spec in inputs})
    onnx_graph.keep_needed_nodes(model)
    with quiet():
        try:
            module = import_graph(onnx_graph.inline_functions(model, path), inputs)
        except TvmflowError:
            raise
        except Exception as error:
            raise UserError(f"{path} can't be imported: {first_line(error)}.") from error
        reference = open_reference(model, str(path), {spec.name: np.zeros(spec.shape, spec.dtype) for spec in inputs})

    def run(*arrays: np.ndarray) -> tuple[np.ndarray, ...]:
        return reference.run({spec.name: array for spec, array in zip(inputs, arrays, strict=True)})

    try:
        vectors = make_vectors(inputs, run, None)
    except Exception as error:
        raise UserError(f"{path} can't be run by {reference.name}: {first_line(error)}.") from error
    return Program(
        name=path.stem,
        source=str(path),
        module=name_outputs(module),
        inputs=inputs,
        outputs=output_specs(vectors),
        vectors=vectors,
        parameters=sum(
            int(np.prod(tensor.dims)) for tensor in initializers.values() if tensor.data_type in (1, 10, 11)
        ),
        reference=reference.name,
        original=run,
    )


def onnx_inputs(
    model: onnx.ModelProto, initializers: set[str], given: Sequence[InputShape], path: Path
) -> tuple[TensorSpec, ...]:
    """What a network takes, in the shapes that the file or the user gives; a batch that nobody gives is 1.

    Raises UserError.
    """
    from onnx import TensorProto

    graph_inputs = [entry for entry in model.graph.input if entry.name not in initializers]
    shapes = assign_shapes(given, [entry.name for entry in graph_inputs], str(path))
    specs, kinds = [], ", ".join(INPUT_TYPES.values())
    for entry in graph_inputs:
        if entry.type.WhichOneof("value") != "tensor_type":
            raise UserError(f"{path} takes {entry.name!r}, which is no tensor; inputs are tensors of {kinds}.")
        dims = [max(0, dim.dim_value) for dim in entry.type.tensor_type.shape.dim]  # some write −1 for an open one
        shape = shapes.get(entry.name)
        if shape is None and len(dims) > 1 and not dims[0] and all(dims[1:]):
            shape = (1, *dims[1:])  # exporters leave the batch open whatever was exported
        if shape is None and not all(dims):
            raise UserError(
                f"{path} leaves the shape of its input {entry.name!r} open "
                f"({'×'.join(str(dim or '?') for dim in dims)}); give it with --input-shape {entry.name}=…."
            )
        if (
            shape is not None
            and dims
            and (len(shape) != len(dims) or any(dim and dim != ours for dim, ours in zip(dims, shape, strict=True)))
        ):
            raise UserError(
                f"{path} wants {'×'.join(str(dim or '?') for dim in dims)} for its input {entry.name!r}; "
                f"--input-shape {'x'.join(map(str, shape))} doesn't fit."
            )
        number = entry.type.tensor_type.elem_type
        dtype = INPUT_TYPES.get(number)
        if dtype is None:
            known = number in TensorProto.DataType.values()
            named = TensorProto.DataType.Name(number) if known else "which ONNX doesn't have"
            raise UserError(f"{path} takes {entry.name!r} of the element type {number}, {named}; inputs are {kinds}.")
        specs.append(TensorSpec(name=entry.name, shape=shape or tuple(dims), dtype=dtype))
    return tuple(specs)
