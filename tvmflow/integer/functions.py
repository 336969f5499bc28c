"""Functions of single elements in ONNX's operators, for those that stay in float32."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tvmflow.integer.operators import Step

Operand = int | np.ndarray | float


class UnsaidError(Exception):
    """A function has a part that isn't said here."""


@dataclass
class Steps:
    """The steps so far; the number of one is its place, counted from 1, and 0 is what the function is of."""

    made: list[Step] = field(default_factory=list)

    def add(self, operator: str, *inputs: Operand, **attributes: float | int) -> int:
        arrays = tuple(read if isinstance(read, int) else np.asarray(read, np.float32) for read in inputs)
        self.made.append(Step(operator=operator, inputs=arrays, attributes=attributes))
        return len(self.made)


def steps_of(calls: Sequence[tuple[Any, str, Any]], root: Any, resolved: Any, constant: Any) -> tuple[Step, ...] | None:
    """What the last of `calls`, each a variable, its operator's name and the call, is of `root`; None if unsaid.

    `resolved` gives of a variable the one that it is another name of, `constant` of an array numbers of channels.
    """
    steps, places = Steps(), {root: 0}
    try:
        for var, name, call in calls:
            fields = call.args[1].fields if name.startswith("kernel.") else call.args
            places[var] = FUNCTIONS[name](
                steps, call, *(_operand(value, places, resolved, constant) for value in fields)
            )
    except (KeyError, UnsaidError):
        return None
    # a step more where the function is what it is of
    return tuple(steps.made) if places[calls[-1][0]] == len(steps.made) > 0 else None


def _operand(value: Any, places: Mapping[Any, Operand], resolved: Any, constant: Any) -> Operand:
    held = getattr(value, "value", None)
    if hasattr(held, "numpy"):
        return constant(value)
    # what is no tensor is a number, such as a limit
    return places[resolved(value)] if hasattr(value, "ty") and held is None else float(value if held is None else held)


def clamped(steps: Steps, x: Operand, low: float, high: float) -> Operand:
    """Between two numbers, of which either may be infinite."""
    if low > -math.inf:
        x = steps.add("Max", x, low)
    return steps.add("Min", x, high) if high < math.inf else x


def _gelu(steps: Steps, call: Any, x: Operand) -> int:
    half = steps.add("Mul", x, 0.5)
    return steps.add("Mul", half, steps.add("Add", steps.add("Erf", steps.add("Mul", x, math.sqrt(0.5))), 1.0))


def _gelu_tanh(steps: Steps, call: Any, x: Operand) -> int:
    cube = steps.add("Mul", steps.add("Mul", x, x), steps.add("Mul", x, 0.044715))
    inner = steps.add("Mul", steps.add("Add", x, cube), math.sqrt(2 / math.pi))
    return steps.add("Mul", steps.add("Mul", x, 0.5), steps.add("Add", steps.add("Tanh", inner), 1.0))


def _cast(steps: Steps, call: Any, x: Operand) -> int:
    if str(call.attrs.dtype) != "float32":
        raise UnsaidError
    return steps.add("Cast", x, to=1)


def _clip(steps: Steps, call: Any, x: Operand, low: float, high: float) -> Operand:
    return clamped(steps, x, low, high)


def _plain(operator: str) -> Callable[..., int]:
    return lambda steps, call, *operands: steps.add(operator, *operands)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{
        name: _plain(name.capitalize())
        for name in (
            *("abs", "acos", "acosh", "asin", "asinh", "atan", "atanh", "ceil", "cos", "cosh", "erf", "exp", "floor"),
            *("log", "round", "sigmoid", "sign", "sin", "sinh", "sqrt", "tan", "tanh", "equal", "greater", "less"),
        )
    },
    "negative": _plain("Neg"),
    "logical_not": _plain("Not"),
    "logical_and": _plain("And"),
    "logical_or": _plain("Or"),
    "greater_equal": _plain("GreaterOrEqual"),
    "less_equal": _plain("LessOrEqual"),
    "not_equal": lambda steps, call, x, y: steps.add("Not", steps.add("Equal", x, y)),
    "add": _plain("Add"),
    "subtract": _plain("Sub"),
    "multiply": _plain("Mul"),
    "divide": _plain("Div"),
    "maximum": _plain("Max"),
    "minimum": _plain("Min"),
    "power": _plain("Pow"),
    "where": _plain("Where"),
    "astype": _cast,
    "clip": _clip,
    "nn.gelu": _gelu,
    "nn.gelu_tanh": _gelu_tanh,
    "nn.leakyrelu": lambda steps, call, x: steps.add("LeakyRelu", x, alpha=float(call.attrs.alpha)),
    "nn.relu": _plain("Relu"),
    "nn.relu6": lambda steps, call, x: clamped(steps, x, 0.0, 6.0),
    "nn.silu": lambda steps, call, x: steps.add("Mul", x, steps.add("Sigmoid", x)),
    "rsqrt": lambda steps, call, x: steps.add("Reciprocal", steps.add("Sqrt", x)),
    "square": lambda steps, call, x: steps.add("Mul", x, x),
    "kernel.expm": lambda steps, call, x: steps.add("Sub", steps.add("Exp", x), 1.0),
    "kernel.gelu_of_infinity": lambda steps, call, x, result: result,
    "kernel.log1p": lambda steps, call, x: steps.add("Log", steps.add("Add", x, 1.0)),
    "kernel.tanh": _plain("Tanh"),
}
"""Relax's operators, and kernels of our own with a number behind their names left out → the steps that they are."""

RECIPROCAL = (Step(operator="Reciprocal", inputs=(0,)),)
"""Of one element."""
