"""The end of a quantised network that stays in float32, as it is kept, checked and run.

It is an ONNX model that reads integers of the layers before it, makes real numbers of them, and gives all of the
network's outputs. A file's is checked before anything believes it: it has the operators that `keep_float` writes, and
nothing beside numbers for them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from tvmflow.spec import TensorSpec
from tvmflow.system.untrusted import MalformedError, reason, shown

if TYPE_CHECKING:
    import onnx

Arrays = tuple[np.ndarray, ...]

MOST_ELEMENTS = 1 << 24
"""Of any tensor in a tail, as of the integer layers' maps."""
DTYPES = {1: "float32", 2: "uint8", 3: "int8", 7: "int64", 9: "bool"}
"""What tensors may be of, by ONNX's numbers."""
OPERATORS = frozenset(
    {
        *("Abs", "Acos", "Acosh", "Add", "And", "Asin", "Asinh", "Atan", "Atanh", "Cast", "Ceil", "Clip", "Concat"),
        *("Conv", "Cos", "Cosh", "Div", "Equal", "Erf", "Exp", "Floor", "Gather", "Gemm"),
        *("GlobalAveragePool", "Greater", "GreaterOrEqual", "Identity", "LeakyRelu", "Less", "LessOrEqual", "Log"),
        *("LogSoftmax", "MatMul", "Max", "MaxPool", "Min", "Mul", "Neg", "Not", "Or", "Pad", "Pow", "Reciprocal"),
        *("ReduceMean", "Relu", "Reshape", "Round", "Sigmoid", "Sign", "Sin", "Sinh", "Softmax", "Sqrt", "Sub", "Tan"),
        *("Tanh", "Where"),
    }
)
"""Of ONNX's, those that a tail may have."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Tail:
    """`content` is the ONNX model. What it reads are the integer network's outputs, in their order.

    Its first nodes, a Cast and a Mul for each input, make real numbers of them; nothing else reads integers. (ONNX's
    evaluator has no DequantizeLinear of this version.)
    """

    content: bytes

    @cached_property
    def model(self) -> onnx.ModelProto:
        """Raises MalformedError unless it is one that could have been written here."""
        return _checked(self.content)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return tuple(map(_spec, self.model.graph.input))

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Those of the whole network, float32, for one input."""
        return tuple(map(_spec, self.model.graph.output))

    @property
    def nodes(self) -> Sequence[onnx.NodeProto]:
        """Those behind the first ones."""
        return self.model.graph.node[2 * len(self.model.graph.input) :]

    @property
    def read(self) -> tuple[str, ...]:
        """What the inputs are called as real numbers."""
        return tuple(node.output[0] for node in self.model.graph.node[1 : 2 * len(self.model.graph.input) : 2])

    @property
    def layers(self) -> tuple[str, ...]:
        """The names of what is computed in float32, in order."""
        outputs = {entry.name for entry in self.model.graph.output}
        return tuple(dict.fromkeys(node.name for node in self.nodes if node.output[0] not in outputs))

    @property
    def parameters(self) -> int:
        """Float32 numbers that it has: weights, biases and other constants."""
        return sum(math.prod(tensor.dims) for tensor in self.model.graph.initializer if tensor.data_type == 1)

    @cached_property
    def _reference(self) -> Callable[[Mapping[str, np.ndarray]], Arrays]:
        from tvmflow.network.onnx_reference import open_reference

        zeros = {spec.name: np.zeros(spec.shape, spec.dtype) for spec in self.inputs}
        return open_reference(self.model, "what stays in float32", zeros).run

    def run(self, *inputs: np.ndarray) -> Arrays:
        """The outputs for one of each integer input, by ONNX Runtime or ONNX's own evaluator.

        Raises UserError, MissingDependencyError.
        """
        given = zip(self.inputs, inputs, strict=True)
        return self._reference({spec.name: array.reshape(spec.shape) for spec, array in given})


def _spec(entry: onnx.ValueInfoProto) -> TensorSpec:
    kind = entry.type.tensor_type
    return TensorSpec(
        name=entry.name, shape=tuple(dim.dim_value for dim in kind.shape.dim), dtype=DTYPES.get(kind.elem_type, "")
    )


def _reads_inputs_first(graph: onnx.GraphProto) -> bool:
    arrays, first, count = {tensor.name for tensor in graph.initializer}, [], 2 * len(graph.input)
    for entry, cast, scaled in zip(graph.input, graph.node[:count:2], graph.node[1:count:2], strict=True):
        pair = [cast.op_type, *cast.input, scaled.op_type, scaled.input[0]]
        if pair != ["Cast", entry.name, "Mul", cast.output[0]] or scaled.input[1] not in arrays:
            return False
        first += [entry.name, cast.output[0]]
    others = {name for node in graph.node[count:] for name in node.input} | {entry.name for entry in graph.output}
    return others.isdisjoint(first)


def _checked(content: bytes) -> onnx.ModelProto:
    import onnx
    from google.protobuf.message import DecodeError

    from tvmflow.integer.onnx_writer import OPSET

    try:
        model = onnx.ModelProto.FromString(content)
    except DecodeError as error:
        raise MalformedError(f"its float part is no ONNX model: {reason(error)}") from error
    graph = model.graph
    if [(entry.domain, entry.version) for entry in model.opset_import] != [("", OPSET)]:
        raise MalformedError(f"its float part isn't of ONNX's operators, version {OPSET}")
    if model.functions or model.training_info or graph.sparse_initializer or graph.quantization_annotation:
        raise MalformedError("its float part is more than a graph of nodes")
    for node in graph.node:
        # no graph and no tensor in attributes: numbers alone
        plain = all(len(attribute.ListFields()) <= 3 and attribute.type in (1, 2, 6, 7) for attribute in node.attribute)
        if node.domain or node.op_type not in OPERATORS or not plain or len(node.output) != 1:
            raise MalformedError(f"its float part has a node {shown(node.op_type)}, which it can't have")
    for tensor in graph.initializer:
        if tensor.data_type not in DTYPES or tensor.external_data or tensor.data_location:
            raise MalformedError(f"its float part has the array {shown(tensor.name)} of another type or place")
        if min(tensor.dims, default=1) < 1 or math.prod(tensor.dims) > MOST_ELEMENTS:
            raise MalformedError(f"its float part has the array {shown(tensor.name)} of no possible size")
    try:
        onnx.checker.check_model(model, full_check=True)
        inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True).graph
    except Exception as error:  # of the checker's and of inference's own classes
        raise MalformedError(f"its float part is no valid ONNX model: {reason(error)}") from error
    known = [_spec(entry) for entry in (*inferred.input, *inferred.output, *inferred.value_info)]
    for spec in known:
        if not spec.dtype or min(spec.shape, default=1) < 1 or math.prod(spec.shape) > MOST_ELEMENTS:
            raise MalformedError(f"its float part has the tensor {shown(spec.name)} of no possible size")
    if len({spec.name for spec in known}) < len({name for node in graph.node for name in node.output}):
        raise MalformedError("its float part has tensors of which nothing says how large they are")
    if not graph.input or not graph.output:
        raise MalformedError("its float part has no inputs or no outputs")
    if not _reads_inputs_first(graph):
        raise MalformedError("its float part doesn't begin with its inputs as real numbers")
    if any(spec.dtype not in ("int8", "uint8") for spec in map(_spec, graph.input)):
        raise MalformedError("its float part reads something else than int8 and uint8")
    if any(spec.dtype != "float32" for spec in map(_spec, graph.output)):
        raise MalformedError("its float part gives something else than float32")
    return model
