"""What of an ONNX file is computed from constants alone: shapes, and weights that are moved before they are used."""

from __future__ import annotations

import math

import numpy as np

from tvmflow.integer.quantised.onnx_graph import Node
from tvmflow.integer.quantised.onnx_operators import Reading, shape_of
from tvmflow.integer.quantised.values import Constant, check_elements
from tvmflow.system.untrusted import MalformedError, reason

EVALUATED = (
    *("Abs", "Add", "And", "Cast", "Ceil", "Concat", "Div", "Equal", "Exp", "Expand", "Floor", "Gather", "Greater"),
    *("Less", "Log", "Max", "Min", "Mod", "Mul", "Neg", "Not", "Or", "Pow", "Range", "Reciprocal", "ReduceMax"),
    *("ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "Size", "Split", "Sqrt", "Sub", "Tile", "Where"),
)
"""Operators that are computed by ONNX's reference evaluator if all that they read is constant."""


KINDS = (*EVALUATED, "Constant", "ConstantOfShape", "Shape")


def fold(reading: Reading, node: Node) -> bool:
    """Whether a node's results are constants, which are known from then on. Raises MalformedError."""
    if node.kind == "Constant":
        found = [_constant(node)]
    elif node.kind == "Shape" and node.inputs[:1] and node.inputs[0] in reading.tensors:
        shape = shape_of(reading.tensors[node.inputs[0]])
        found = [np.array(shape[slice(node.get("start", 0), node.get("end"))], np.int64)]
    elif not all(isinstance(reading.tensors.get(name), Constant) for name in node.inputs if name) or not node.inputs:
        return False
    elif node.kind == "ConstantOfShape":
        found = [_filled(reading, node)]
    elif node.kind in EVALUATED:
        found = _evaluated(reading, node)
    else:
        return False
    for name, array in zip(node.outputs, found, strict=False):
        reading.tensors[name] = Constant(array=array)
    return True


def _constant(node: Node) -> np.ndarray:
    for name, dtype in (
        ("value", None),
        ("value_float", np.float32),
        ("value_floats", np.float32),
        ("value_int", np.int64),
        ("value_ints", np.int64),
    ):
        if node.get(name) is not None:
            return np.asarray(node.get(name), dtype)
    raise MalformedError(f"{node} has no value that is taken")


def _filled(reading: Reading, node: Node) -> np.ndarray:
    shape, value = reading.integers(node, 0) or [], node.get("value")
    check_elements(*shape)
    filled = np.zeros(1, np.float32) if value is None else np.asarray(value)
    if filled.size != 1:
        raise MalformedError(f"{node} has {filled.size} values")
    return np.full(shape, filled.reshape(-1)[0], filled.dtype)


def _evaluated(reading: Reading, node: Node) -> list[np.ndarray]:
    from onnx import helper
    from onnx.reference import ReferenceEvaluator

    arrays = {name: reading.tensors[name].array for name in node.inputs if name}  # type: ignore[union-attr]
    _check_result(node, [arrays[name] for name in node.inputs if name])
    made = helper.make_node(node.kind, list(node.inputs), list(node.outputs), **node.attributes)
    types = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in arrays.items()
    ]
    results = [helper.make_empty_tensor_value_info(name) for name in node.outputs if name]
    try:
        graph = helper.make_graph([made], "one", types, results)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", node.opset)])
        found = ReferenceEvaluator(model).run(None, arrays)
    except Exception as error:  # the evaluator lets out whatever its operators raise
        raise MalformedError(f"{node} can't be computed of its constants ({reason(error)})") from error
    return [np.asarray(array) for array in found]


def _check_result(node: Node, arrays: list[np.ndarray]) -> None:
    """Raises MalformedError before more elements are made than a device has room for."""
    lengths = [array.size for array in arrays]
    if node.kind == "Range":
        first, last, step = (float(array.reshape(-1)[0]) for array in arrays)
        lengths = [math.ceil(abs((last - first) / step))] if step else []
    elif node.kind in ("Expand", "Tile") and len(arrays) > 1:
        counts = [max(1, int(number)) for number in arrays[1].reshape(-1)[:16]]
        lengths = [arrays[0].size * math.prod(counts)]
    elif node.kind == "Gather" and len(arrays) > 1:
        lengths = [arrays[0].size * max(1, arrays[1].size)]
    elif len(arrays) > 1 and node.kind not in ("Concat", "Split"):
        lengths = [math.prod(np.broadcast_shapes(*(array.shape for array in arrays)))]
    check_elements(sum(lengths))
