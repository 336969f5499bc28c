"""Normalisations by the mean and variance of their own input, found among the operators that networks are imported as.

PyTorch's layer, group and instance normalisation become a subtraction, a root and a product, and so do ONNX's, in other
words. Each is one operator of quantised networks, as mean and variance of integers are exact, and what lies between
would lose its digits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import relax

from tvmflow.integer.finite import name_of
from tvmflow.integer.views import constant_of, shape_of


@dataclass(frozen=True, kw_only=True)
class Normalisation:
    """`source` is the variable that is normalised over `axes` of its own, and `epsilon` is added to its variances."""

    source: Any
    axes: tuple[int, ...]
    epsilon: float


def find(bindings: Sequence[Any], resolved: Callable[[Any], Any]) -> dict[Any, Normalisation]:
    """The bindings that give (x − mean) ÷ √(variance + ε), by their variables. `resolved` knows other names."""
    values = {binding.var: binding.value for binding in bindings}
    finder = _Finder(values, resolved)
    found = ((binding.var, finder.normalised(binding.value)) for binding in bindings)
    return {var: normalisation for var, normalisation in found if normalisation is not None}


class _Finder:
    def __init__(self, values: dict[Any, Any], resolved: Callable[[Any], Any]) -> None:
        self.values, self.resolved = values, resolved

    def call(self, value: Any, *names: str) -> Any:
        """The call that gives `value`, a variable or the call itself, if its operator or kernel is one of these."""
        if isinstance(value, relax.Var):
            value = self.values.get(self.resolved(value))
        return value if isinstance(value, relax.Call) and name_of(value) in names else None

    def normalised(self, value: Any) -> Normalisation | None:
        for centred, root in self.factors(value):
            distance = self.call(centred, "subtract")
            variance = None if distance is None else self.call(root, "add")
            if variance is None:
                continue
            epsilon = constant_of(variance.args[1])
            source, middle = distance.args
            if epsilon is None or epsilon.size != 1 or not self.is_mean(middle, source):
                continue
            if self.is_variance(variance.args[0], centred, source, middle):
                axes = tuple(
                    axis
                    for axis, (own, whole) in enumerate(zip(shape_of(middle), shape_of(source), strict=True))
                    if own != whole
                )
                if axes:
                    source = self.resolved(self.without_first(source, axes))
                    return Normalisation(source=source, axes=axes, epsilon=float(epsilon.reshape(-1)[0]))
        return None

    def factors(self, value: Any) -> list[tuple[Any, Any]]:
        """What may be the distance from the mean, and what the root is of that it is divided by."""
        if (call := self.call(value, "multiply")) is not None:
            pairs = [(call.args[0], call.args[1]), (call.args[1], call.args[0])]
            roots = [(centred, self.call(inverse, "rsqrt")) for centred, inverse in pairs]
        elif (call := self.call(value, "divide")) is not None:
            roots = [(call.args[0], self.call(call.args[1], "sqrt"))]
        else:
            roots = []
        return [(centred, root.args[0]) for centred, root in roots if root is not None]

    def is_mean(self, middle: Any, source: Any) -> bool:
        """Whether `middle` is the mean of `source` over axes that it keeps."""
        call = self.call(middle, "mean", "kernel.mean")
        if call is None or len(shape_of(middle)) != len(shape_of(source)):
            return False
        read = call.args[1].fields if name_of(call) == "kernel.mean" else call.args
        return len(read) == 1 and self.same(read[0], source)

    def is_variance(self, variance: Any, centred: Any, source: Any, middle: Any) -> bool:
        """Whether it is the mean of squared distances from `middle`, over the same axes."""
        if shape_of(variance) != shape_of(middle):
            return False
        if (call := self.call(variance, "kernel.variance")) is not None:
            read = call.args[1].fields
            return len(read) == 2 and self.same(read[0], source) and self.same(read[1], middle)
        call = self.call(variance, "mean")
        square = None if call is None else self.call(call.args[0], "multiply", "power", "square")
        if square is None or not self.same(square.args[0], centred):
            return False
        if name_of(square) == "square":
            return True
        exponent = constant_of(square.args[1])
        return bool((exponent == 2).all()) if exponent is not None else self.same(square.args[1], centred)

    def without_first(self, source: Any, axes: Sequence[int]) -> Any:
        """Of x less its first element along the axes, x: distances from means are the same."""
        call = self.call(source, "subtract")
        first = None if call is None else self.call(call.args[1], "strided_slice")
        if first is None or not self.same(first.args[0], call.args[0]):
            return source
        shape = [1 if axis in axes else length for axis, length in enumerate(shape_of(source))]
        return call.args[0] if list(shape_of(call.args[1])) == shape else source

    def same(self, first: Any, second: Any) -> bool:
        return (
            isinstance(first, relax.Var)
            and isinstance(second, relax.Var)
            and self.resolved(first) == self.resolved(second)
        )
