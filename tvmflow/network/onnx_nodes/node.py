"""A node of an ONNX graph as a converter sees it, and what converters share."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.relax import op

from tvmflow.spec import UnsupportedOperatorError

Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Node:
    """One node with its inputs in Relax: None where one is left out, a list where it is an ONNX sequence.

    `opset` is the version of the operator's own domain, `results` the number of outputs that have a name. `bind` gives
    an expression a name in the function that is being made, `call_te` makes a kernel beside it. `borders` remembers of
    the results of Pad with zeros what was padded and by how much, for a convolution that takes the border over.
    """

    operator: str
    name: str
    opset: int
    attributes: Mapping[str, Any]
    inputs: Sequence[Any]
    results: int
    bind: Callable[[relax.Expr], relax.Var]
    call_te: Callable[..., relax.Call]
    borders: MutableMapping[relax.Var, tuple[relax.Expr, Sequence[int]]]

    def get(self, attribute: str, default: Any = None) -> Any:
        return self.attributes.get(attribute, default)

    def given(self, index: int) -> bool:
        return index < len(self.inputs) and self.inputs[index] is not None

    def optional(self, index: int) -> Any:
        return self.inputs[index] if self.given(index) else None

    def shape(self, index: int = 0) -> Shape:
        return shape_of(self.inputs[index])

    def dtype(self, index: int = 0) -> str:
        return dtype_of(self.inputs[index])

    def constant(self, index: int, what: str) -> np.ndarray | None:
        """The value of an input that has to be known now; None where it is left out.

        Raises UnsupportedOperatorError where it isn't known.
        """
        if not self.given(index):
            return None
        value = self.inputs[index]
        if not is_constant(value):
            raise self.refusal(
                f"what it has as {what} depends on the network's inputs, but shapes and weights are fixed at build time"
            )
        return value.value.numpy()

    def required(self, index: int, what: str) -> np.ndarray:
        """`constant` of an input that can't be left out. Raises UnsupportedOperatorError."""
        value = self.constant(index, what)
        if value is None:
            raise self.refusal(f"it has no {what}")
        return value

    def integers(self, index: int, attribute: str) -> list[int] | None:
        """What newer opsets have as an input and older ones as an attribute; None where there is neither."""
        value = self.constant(index, attribute)
        given = self.get(attribute) if value is None else value.reshape(-1).tolist()
        return None if given is None else [int(number) for number in given]

    def like(self, value: float | np.ndarray, index: int = 0) -> relax.Expr:
        """A constant of an input's dtype."""
        return constant(value, self.dtype(index))

    def kernel(self, make: Callable[..., Any], *tensors: Any, facts: Mapping[str, Any]) -> relax.Var:
        """A kernel: `make` gets Relax values and arrays as te.Tensor and gives what is computed from them.

        `facts` become its attributes.
        """
        given = (constant(value) if isinstance(value, np.ndarray) else value for value in tensors)
        return self.bind(self.call_te(make, *given, primfunc_name_hint=self.operator.lower(), primfunc_attrs=facts))

    def refusal(self, reason: str) -> UnsupportedOperatorError:
        return UnsupportedOperatorError(
            f"The network's {self.operator} ({self.name}) is not supported: {reason}.", {self.operator: (self.name,)}
        )


def constant(value: Any, dtype: str | None = None) -> relax.Expr:
    array = np.asarray(value)
    return relax.const(array if dtype is None else array.astype(dtype), dtype or str(array.dtype))


def is_constant(value: Any) -> bool:
    return isinstance(value, tvm.ir.GenericConst)


def shape_of(value: relax.Expr) -> Shape:
    return tuple(int(dim) for dim in value.ty.shape)


def dtype_of(value: relax.Expr) -> str:
    return str(value.ty.dtype)


def is_float(dtype: str) -> bool:
    return "float" in dtype


def permute(value: relax.Expr, axes: Sequence[int]) -> relax.Expr:
    """Permuted dimensions: of a weight at once, for a kernel that did it would have to be compiled first."""
    if is_constant(value):
        return constant(np.ascontiguousarray(value.value.numpy().transpose(axes)))
    return op.permute_dims(value, list(axes))


def reshape(value: relax.Expr, shape: Sequence[int]) -> relax.Expr:
    if is_constant(value):
        return constant(value.value.numpy().reshape(shape))
    return value if shape_of(value) == tuple(shape) else op.reshape(value, list(shape))


def convert(value: relax.Expr, dtype: str) -> relax.Expr:
    return value if dtype_of(value) == dtype else op.astype(value, dtype)


def piece(value: relax.Expr, axis: int, begin: int, end: int, step: int = 1) -> relax.Expr:
    """`value[begin:end:step]` along an axis, with 0 ≤ begin ≤ end ≤ its extent and a positive step."""
    return op.strided_slice(value, [axis], [begin], [end], [step], assume_inbound=True)


def padded(value: relax.Expr, before: Sequence[int], after: Sequence[int], fill: float = 0.0) -> relax.Expr:
    """`value` with a constant border; where a border is negative, that much is cut off."""
    shape = shape_of(value)
    axes = [axis for axis in range(len(shape)) if before[axis] < 0 or after[axis] < 0]
    if axes:
        value = op.strided_slice(
            value,
            axes,
            [max(0, -before[axis]) for axis in axes],
            [shape[axis] - max(0, -after[axis]) for axis in axes],
            assume_inbound=True,
        )
    width = [max(0, border) for pair in zip(before, after, strict=True) for border in pair]
    return op.nn.pad(value, width, "constant", fill) if any(width) else value


def mean_and_deviation(
    bind: Callable[[relax.Expr], relax.Var], data: relax.Expr, axes: Sequence[int]
) -> tuple[relax.Var, relax.Var]:
    """The mean, and how far `data` is from it: the difference of large squares has no digits left far from zero.

    Both are computed from the distances to the first element, so that equal elements are at no distance at all.
    """
    first = bind(op.strided_slice(data, list(axes), [0] * len(axes), [1] * len(axes), assume_inbound=True))
    distance = bind(op.subtract(data, first))
    mean = bind(op.mean(distance, list(axes), keepdims=True))
    return bind(op.add(first, mean)), bind(op.subtract(distance, mean))


def standardized(
    bind: Callable[[relax.Expr], relax.Var], data: relax.Expr, axes: Sequence[int], epsilon: float
) -> relax.Var:
    """`(data − mean) / sqrt(variance + epsilon)`, in two passes."""
    _, centered = mean_and_deviation(bind, data, axes)
    variance = bind(op.mean(op.multiply(centered, centered), list(axes), keepdims=True))
    dtype = dtype_of(data)
    return bind(op.divide(centered, op.sqrt(op.add(variance, constant(epsilon, dtype)))))


def elements(shape: Sequence[int]) -> int:
    return math.prod(shape)
