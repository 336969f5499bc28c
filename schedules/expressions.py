"""Indices and conditions of TensorIR in numbers, for many values of their variables at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tvm
from tvm import tirx


def evaluate(node: Any, values: Mapping[Any, np.ndarray]) -> np.ndarray | None:
    """`node` where its variables are the arrays `values`; None if it depends on anything else."""
    if isinstance(node, (int, tirx.IntImm)):
        return np.asarray(int(node))
    if isinstance(node, tirx.Var):
        return values.get(node)
    if isinstance(node, (tirx.Cast, tirx.Broadcast)):
        return evaluate(node.value, values)
    if isinstance(node, tirx.Not):
        value = evaluate(node.a, values)
        return None if value is None else value == 0
    operation: Callable[..., np.ndarray] | None = OPERATIONS.get(type(node).__name__)
    operands: list[Any] = parts(node)
    if isinstance(node, tirx.Select):
        operation, operands = CALLS["if_then_else"], [node.condition, node.true_value, node.false_value]
    if isinstance(node, tvm.ir.Call):
        operation, operands = CALLS.get(getattr(node.op, "name", "").rpartition(".")[2]), list(node.args)
    if operation is None:
        return None
    found = [evaluate(part, values) for part in operands]
    return None if any(value is None for value in found) else operation(*found)


OPERATIONS: dict[str, Callable[..., np.ndarray]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "FloorDiv": np.floor_divide,
    "FloorMod": np.mod,
    "Div": np.floor_divide,
    "Mod": np.mod,
    "Min": np.minimum,
    "Max": np.maximum,
    "EQ": np.equal,
    "NE": np.not_equal,
    "LT": np.less,
    "LE": np.less_equal,
    "GT": np.greater,
    "GE": np.greater_equal,
    "And": np.logical_and,
    "Or": np.logical_or,
}
"""Nodes of two operands."""

CALLS: dict[str, Callable[..., np.ndarray]] = {
    "shift_right": np.right_shift,
    "shift_left": np.left_shift,
    "bitwise_and": np.bitwise_and,
    "bitwise_or": np.bitwise_or,
    "if_then_else": lambda condition, yes, no: np.asarray(np.where(condition != 0, yes, no)),
}


def parts(node: Any) -> list[Any]:
    """The operands of a node; a number of Python's is none."""
    found = [getattr(node, name) for name in ("a", "b", "value") if hasattr(node, name)]
    return [part for part in found if not isinstance(part, (int, float))]
