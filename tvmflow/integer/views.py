"""Where the elements of a Relax variable lie, and what else is read off Relax: constants, shapes, clamps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tvmflow.integer.network import canonical
from tvmflow.integer.operators import Shape

UNARY: frozenset[str] = frozenset(
    """
    abs acos acosh asin asinh astype atan atanh ceil clip cos cosh erf exp floor isfinite isinf isnan
    log logical_not negative nn.gelu nn.gelu_tanh nn.leakyrelu nn.relu nn.relu6 nn.selu nn.silu
    nn.softplus round rsqrt sigmoid sign sin sinh sqrt square tan tanh trunc
    """.split()  # noqa: SIM905 (a list of as many lines as words)
)
"""Relax's operators on one tensor, element by element."""
BINARY: frozenset[str] = frozenset(
    """
    add atan2 divide equal floor_divide floor_mod greater greater_equal less less_equal logical_and
    logical_or maximum minimum mod multiply not_equal power subtract where
    """.split()  # noqa: SIM905
)
"""Those on several, which are broadcast."""


@dataclass(frozen=True, kw_only=True)
class View:
    """Where the elements of a Relax variable lie: in the result of a layer, in its order or at `places` of it.

    `shape` is the variable's. `sole`: nobody but those who read this variable reads the layer's result. `outside` is
    what elements are that lie nowhere.
    """

    layer: str
    shape: Shape
    places: np.ndarray | None = None
    sole: bool = True
    outside: float = 0.0


def inside(shape: Shape) -> Shape:
    """The shape 1×C×H×W in which a layer has the elements of that one: what isn't 1 in a batch's place is channels."""
    return canonical(shape if len(shape) < 2 or shape[0] == 1 else (1, *shape))


def order_of(shape: Shape) -> np.ndarray:
    return np.arange(math.prod(shape), dtype=np.int32).reshape(shape)


def places_of_view(view: View, own: Shape) -> np.ndarray:
    return np.arange(math.prod(own)) if view.places is None else view.places


def unless_ordered(places: np.ndarray, own: Shape) -> np.ndarray | None:
    count = math.prod(own)
    return None if places.size == count and np.array_equal(places.reshape(-1), np.arange(count)) else places


def is_permutation(places: np.ndarray, count: int) -> bool:
    flat = places.reshape(-1)
    return flat.size == count and flat.min() >= 0 and len(np.unique(flat)) == count


def is_injection(places: np.ndarray) -> bool:
    return places.min() >= 0 and len(np.unique(places)) == places.size


def covers(view: View, own: Shape) -> bool:
    """Whether every element of the layer is in the view, once."""
    return view.places is None or is_permutation(view.places, math.prod(own))


def added(first: Sequence[int], second: Sequence[int]) -> tuple[int, int, int, int]:
    """Two borders, one around the other."""
    top, left, bottom, right = (one + other for one, other in zip(first, second, strict=True))
    return top, left, bottom, right


def limits_of(name: str, call: Any) -> tuple[float, float] | None:
    """Between which numbers an operator clamps."""
    if name == "nn.relu":
        return 0.0, math.inf
    if name == "nn.relu6":
        return 0.0, 6.0
    if name == "clip":
        low, high = (float(getattr(arg, "value", arg)) for arg in call.args[1:3])
        return low, high
    if name in ("maximum", "minimum"):
        given = [array for array in map(constant_of, call.args) if array is not None]
        if len(given) == 1 and given[0].size == 1:
            value = float(given[0].reshape(-1)[0])
            return (value, math.inf) if name == "maximum" else (-math.inf, value)
    return None


def read_by(value: Any) -> list[Any]:
    """The variables that an expression reads, each as often as it does."""
    from tvm import relax

    if isinstance(value, relax.Var):
        return [value]
    if isinstance(value, relax.TupleGetItem):
        return read_by(value.tuple_value)
    fields = value.args if isinstance(value, relax.Call) else getattr(value, "fields", ())
    return [var for field in fields for var in read_by(field)]


def constant_of(value: Any) -> np.ndarray | None:
    """The array of a constant, float64; None if it is computed from the input."""
    held: Any = getattr(value, "value", None)
    return np.asarray(held.numpy(), np.float64) if hasattr(held, "numpy") else None


def shape_of(value: Any) -> Shape:
    return tuple(int(dim) for dim in value.ty.shape.values)
