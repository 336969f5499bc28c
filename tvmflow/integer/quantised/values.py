"""Tensors of a quantised file while its operators are read: integers, constants, and real numbers not quantised yet.

What an operator between a DequantizeLinear and a QuantizeLinear gives becomes a layer when the QuantizeLinear is met,
for only then are the layer's steps known. Until then it is a `Real`: what computes it, where its elements lie in that,
and between which limits they are clipped.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from tvmflow.integer.layers import RANGES
from tvmflow.integer.network import canonical
from tvmflow.integer.operators import OUTSIDE, Shape
from tvmflow.integer.tflite.model import MAX_ELEMENTS
from tvmflow.integer.tflite.values import Layers, Refused, Typed, Value
from tvmflow.system.untrusted import MalformedError

UNSIGNED = 128
"""By how much the same bits are larger in uint8 than in int8, once the highest is turned."""


@dataclass(frozen=True, kw_only=True)
class Steps:
    """How real numbers are kept in integers: (q − `zero_point`) · `scale`, of int8 or uint8."""

    dtype: str
    scale: float
    zero_point: int

    @property
    def inside(self) -> Steps:
        """The same steps as layers have them: with a zero point of 0 if either type allows that, else in int8."""
        moved = {("uint8", False): -UNSIGNED, ("int8", True): UNSIGNED}
        least = self.zero_point == RANGES[self.dtype][0]
        more = moved.get((self.dtype, least), 0)
        if not more:
            return self
        other = "int8" if self.dtype == "uint8" else "uint8"
        return replace(self, dtype=other, zero_point=self.zero_point + more)

    def rounded(self, real: Any) -> np.ndarray:
        """int64: what QuantizeLinear makes of float32: divided in float32, rounded half to even, saturated."""
        with np.errstate(all="ignore"):
            q = np.rint(np.asarray(real, np.float32) / np.float32(self.scale)).astype(np.float64) + self.zero_point
        low, high = RANGES[self.dtype]
        return np.nan_to_num(q, nan=self.zero_point, posinf=high, neginf=low).clip(low, high).astype(np.int64)

    def limits(self, low: float, high: float) -> tuple[int, int]:
        """The least and the most that real numbers of these limits become. Raises Refused if they are one number."""
        least, most = (int(self.rounded(limit)) for limit in (low, high))
        if least >= most:
            raise Refused("limits that leave a single value")
        return least, most


def steps_of(typed: Typed) -> Steps:
    return Steps(dtype=typed.dtype, scale=typed.scale, zero_point=typed.zero_point)


@dataclass(frozen=True, kw_only=True, eq=False)
class Constant:
    """An array of the file. One that was dequantised has its `integers`, less their zero points, and their `scales`,
    each of the array's shape; `array` are then their products."""

    array: np.ndarray
    integers: np.ndarray | None = None
    scales: np.ndarray | None = None

    def moved(self, how: Any) -> Constant:
        """The same with `how` applied to each array, which moves elements only."""
        integers, scales = (None if array is None else how(array) for array in (self.integers, self.scales))
        return Constant(array=how(self.array), integers=integers, scales=scales)


class Core(Protocol):
    """What computes real numbers, in the natural order of a shape."""

    @property
    def shape(self) -> Shape: ...

    def make(self, graph: Graph, steps: Steps, limits: tuple[int, int], names: tuple[str, ...]) -> Value:
        """Add layers that give them in integers; `names` are the nodes of the file whose work that is.

        Raises Refused, MalformedError.
        """
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Real:
    """Real numbers of `shape`: what `core` gives, at `places` of its order (OUTSIDE is 0), between `low` and `high`.

    Integers of the file are such as well, in steps of 1. `stored` says how the file has them, and those that were
    dequantised last; of integers the file's real numbers are in these steps.
    """

    shape: Shape
    core: Any
    places: np.ndarray | None = None
    low: float = -math.inf
    high: float = math.inf
    names: tuple[str, ...] = ()
    integers: bool = False
    stored: Steps | None = None

    @property
    def limited(self) -> bool:
        return self.low > -math.inf or self.high < math.inf

    @property
    def beyond(self) -> bool:
        """Whether it has elements that its core doesn't."""
        return self.places is not None and bool((self.places == OUTSIDE).any())


@dataclass(eq=False)
class Made:
    """What was quantised already, with its core so that nothing else gets its identity."""

    core: Any
    value: Value


class Graph(Layers):
    """Layers of a file whose tensors lie as ours do, 1×C×H×W or of fewer dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[tuple[object, ...], Made] = {}

    def natural(self, shape: Shape) -> np.ndarray:
        return np.arange(math.prod(shape), dtype=np.int32).reshape(shape)

    def laid(self, places: np.ndarray) -> np.ndarray:
        return places.reshape(inside(tuple(places.shape)))

    def value_of(self, source: str, shape: Shape, steps: Typed) -> Value:
        """What the layer `source` gives, as a tensor of `shape`."""
        places = None if self.shapes[source] == inside(shape) else self.natural(shape)
        return Value(
            shape=shape,
            source=source,
            places=places,
            dtype=steps.dtype,
            scale=steps.scale,
            zero_point=steps.zero_point,
        )

    def quantised(self, real: Real, steps: Steps) -> Value:
        """Raises Refused, MalformedError."""
        limits = steps.limits(real.low, real.high)
        key = id(real.core), steps, limits
        if key not in self.made:
            made = real.core.make(self, steps, limits, real.names)
            self.made[key] = Made(real.core, made)
        value = self.made[key].value
        return value if real.places is None else self.selected(value, real.places)

    def selected(self, value: Value, places: np.ndarray) -> Value:
        """A value's elements at places of its own order."""
        own = self.places(value).reshape(-1)
        return self.moved_to(value, np.where(places == OUTSIDE, OUTSIDE, own[places]).astype(np.int32))

    def along_channels(self, value: Value, axis: int) -> tuple[str, np.ndarray]:
        """A tensor of ours whose channels are an axis of a value; and where the value's elements lie in it."""
        order = [axis, *(other for other in range(len(value.shape)) if other != axis)]
        count = value.shape[axis]
        places = self.places(value).transpose(order).reshape(1, count, 1, -1)
        plain = value.places is None and self.shapes[value.source][1] == inside(value.shape)[1] == count
        if plain and math.prod(value.shape[:axis]) == 1:
            return value.source, self.natural(value.shape)
        source = self.ordered(value, places)
        back = self.natural(tuple(value.shape[place] for place in order)).transpose(np.argsort(order))
        return source, back


def inside(shape: Shape) -> Shape:
    """1×C×H×W of a file's shape; without a batch of 1 its first dimension is the channels."""
    return canonical(shape if len(shape) > 1 and shape[0] == 1 else (1, *shape))


def check_elements(*lengths: int) -> None:
    """Raises MalformedError for a tensor of so many elements that no board has room for it."""
    if min(lengths, default=1) < 0 or math.prod(lengths) > MAX_ELEMENTS:
        raise MalformedError(f"a tensor of {'×'.join(map(str, lengths))}, with over {MAX_ELEMENTS:,} elements or none")
