"""What computes real numbers of a quantised file, and the layers that give them in integers of given steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tvmflow.integer.layers import RANGES, IntegerLayer
from tvmflow.integer.network import Port
from tvmflow.integer.operators import (
    OUTSIDE,
    AveragePool,
    Concat,
    Gather,
    LogSoftmax,
    MatMul,
    MaxPool,
    Normalise,
    Product,
    Resample,
    Shape,
    Softmax,
    Sum,
)
from tvmflow.integer.quantised.factors import of_sum, single, snapped, together
from tvmflow.integer.quantised.values import Graph, Real, Steps, inside, steps_of
from tvmflow.integer.tflite.fixed_point import factor
from tvmflow.integer.tflite.plain import WIDER
from tvmflow.integer.tflite.values import Refused, Value, check_batch
from tvmflow.integer.window import Window
from tvmflow.system import untrusted
from tvmflow.system.untrusted import MalformedError

MOST = 127
"""Of a weight, in either direction."""
MOST_SLOTS = 1 << 22
"""Entries of a function's tables: a network of more channels is none of a device's."""
MOST_SHARES = 1 << 16
"""Of the sums of a softmax, in units of the largest exponential, which has 15 bits."""
Limits = tuple[int, int]
Names = tuple[str, ...]


def _about(names: Names, limits: Limits, **more: Any) -> dict[str, Any]:
    return {"modules": names, "minimum": limits[0], "maximum": limits[1], **more}


def _largest(value: Value) -> int:
    low, high = RANGES[value.dtype]
    return max(value.zero_point - low, high - value.zero_point)


@dataclass(frozen=True, kw_only=True, eq=False)
class Given:
    """An input in float32, which is of the steps that the file quantises it to."""

    name: str
    shape: Shape
    ports: list[Port]

    def make(self, graph: Graph, steps: Steps, limits: Limits, names: Names) -> Value:
        if self.ports:
            raise Refused(f"the input {untrusted.shown(self.name)}, which is quantised in several ways")
        if limits != RANGES[steps.dtype]:
            raise Refused(f"the input {untrusted.shown(self.name)}, which is clipped before it is quantised")
        return given(graph, self, steps)


def given(graph: Graph, input_: Given, steps: Steps) -> Value:
    """The port of an input, and what is read of it."""
    if not math.prod(input_.shape):
        raise MalformedError(f"the input {untrusted.shown(input_.name)} has no elements")
    check_batch(input_.shape)
    name = graph.unused(input_.name)
    port = Port(name=name, shape=input_.shape, scale=steps.scale, zero_point=steps.zero_point, dtype=steps.dtype)
    input_.ports.append(port)
    graph.shapes[name] = inside(input_.shape)
    return graph.value_of(name, input_.shape, steps)


@dataclass(frozen=True, kw_only=True, eq=False)
class Elementwise:
    """A function of each element of a value, or its real numbers themselves; constants are broadcast to its shape.

    `of` takes float32 with a leading dimension, and gives such. One is `uniform` if all elements have the same.
    """

    value: Value
    of: Callable[[np.ndarray], np.ndarray] | None = None
    uniform: bool = True

    @property
    def shape(self) -> Shape:
        return self.value.shape

    def real(self) -> np.ndarray:
        """float32 256 × the value's dimensions, or 1s: of all 256 values by their bits, as tables have them."""
        value, numbers = self.value, np.arange(256, dtype=np.int64)
        if value.dtype == "int8":
            numbers = numbers.astype(np.int8).astype(np.int64)
        real = (numbers - value.zero_point).astype(np.float32) * np.float32(value.scale)
        real = real.reshape(256, *[1] * len(value.shape))
        if self.of is None:
            return real
        with np.errstate(all="ignore"):
            return np.asarray(self.of(real), np.float32)

    def exact(self) -> Steps | None:
        """The steps of what is read, if all results lie on them and in their range."""
        own = steps_of(self.value)
        real = self.real().astype(np.float64) / own.scale + own.zero_point
        low, high = RANGES[own.dtype]
        fits = np.isfinite(real).all() and (np.abs(real - np.rint(real)) < 1e-3).all()
        return own if fits and real.min() > low - 0.5 and real.max() < high + 0.5 else None

    def make(self, graph: Graph, steps: Steps, limits: Limits, names: Names) -> Value:
        value, table = self.value, steps.rounded(self.real()).clip(*limits).astype(np.int32)
        name = names[0] if names else f"{value.source}.rescaled"
        numbers = np.arange(256).astype(value.dtype).astype(np.int32)
        if steps_of(value) == steps and (table == numbers.reshape(256, *[1] * (table.ndim - 1))).all():
            return value
        axes = [axis for axis, length in enumerate(table.shape[1:]) if length > 1]
        about = {"modules": names} if names else {}
        if not axes:
            return graph.mapped(value, table.reshape(256), steps, name, **about)
        if len(axes) > 1:
            raise Refused("constants that differ along several axes")
        (axis,) = axes
        if table.size > MOST_SLOTS:
            raise Refused(f"constants for {value.shape[axis]:,} channels")
        source, back = graph.along_channels(value, axis)
        rows = np.ascontiguousarray(table.reshape(256, -1).T)
        whole = replace(value, source=source, places=None)
        mapped = graph.mapped(whole, rows, steps, name, **about)
        natural = back.shape == value.shape and np.array_equal(back, graph.natural(value.shape))
        if natural and graph.shapes[source] == inside(value.shape):
            return replace(mapped, shape=value.shape, places=None)
        return replace(mapped, shape=value.shape, places=back)


@dataclass(frozen=True, kw_only=True, eq=False)
class Linear:
    """A convolution, a dense layer or a mean: `weight` int32 O×(I/groups)×KH×KW less its zero points.

    `unit` float64 O is the real number of one step of a sum, `bias` float64 O counts in it.
    """

    x: Value
    weight: np.ndarray
    unit: np.ndarray
    bias: np.ndarray
    shape: Shape
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    kind: str = "conv2d"

    def scaled(self, factors: np.ndarray) -> Linear:
        """All results times factors, float64 O."""
        if not np.isfinite(factors).all() or (factors == 0).any():
            raise Refused("a factor of 0")
        signs = np.where(factors < 0, -1, 1)
        return replace(
            self,
            weight=self.weight * signs.astype(np.int32).reshape(-1, 1, 1, 1),
            bias=self.bias * signs,
            unit=self.unit * np.abs(factors),
        )

    def make(self, graph: Graph, steps: Steps, limits: Limits, names: Names) -> Value:
        unit, bias = self.unit.copy(), self.bias.copy()
        dead = ~self.weight.any((1, 2, 3))
        # without weights any unit will do, and files have some in which the bias leaves int32
        bias[dead] *= unit[dead] / (steps.scale / 1024)
        unit[dead] = steps.scale / 1024
        weight, kind = self.weight, self.kind
        x, padding = bordered(graph, self.x, self.padding)
        if np.abs(weight).max() > MOST:
            x, weight = halved(graph, x, weight, self.groups)
            kind = "conv2d"
        sums = weight.reshape(len(weight), -1).sum(1, dtype=np.int64)
        if not np.isfinite(bias).all() or np.abs(np.rint(bias) - x.zero_point * sums).max() >= 2**31:
            raise Refused("a bias that, with the zero point, leaves int32")
        multipliers, shifts = together(unit / steps.scale)
        source, name = graph.read(x), graph.unused(names[0])
        graph.add(
            IntegerLayer(
                name=name,
                modules=names,
                kind=kind,  # type: ignore[arg-type]
                inputs=(source,),
                weight=np.ascontiguousarray(weight, np.int8),
                bias=(np.rint(bias).astype(np.int64) - x.zero_point * sums).astype(np.int32),
                stride=self.stride,
                padding=padding,
                dilation=self.dilation,
                groups=self.groups,
                multiplier=multipliers,
                shift=shifts,
                minimum=limits[0],
                maximum=limits[1],
                dtype=steps.dtype,
                scale=steps.scale,
                zero_point=steps.zero_point,
                input_shape=graph.shapes[source],
                output_shape=inside(self.shape),
            )
        )
        return graph.value_of(name, self.shape, steps)


def bordered(graph: Graph, x: Value, padding: tuple[int, int, int, int]) -> tuple[Value, tuple[int, int, int, int]]:
    """A map with its border, and what of the padding is left for the layer: all of it where the zero point is 0."""
    if not any(padding) or x.zero_point == 0:
        return x, padding
    top, left, bottom, right = padding
    _, channels, height, width = inside(x.shape)
    if channels * (height + top + bottom) * (width + left + right) > 1 << 24:
        raise MalformedError("a map with its border is too large")
    places = graph.laid(graph.places(x))
    places = np.pad(places, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=OUTSIDE)
    return graph.moved_to(x, places), (0, 0, 0, 0)


def halved(graph: Graph, x: Value, weight: np.ndarray, groups: int) -> tuple[Value, np.ndarray]:
    """Weights beyond int8 as two each, for which their channels are read twice."""
    if np.abs(weight).max() > 2 * MOST:
        raise Refused("weights that are more than 254 steps from their zero point")
    count = weight.shape[1]
    most = np.abs(weight.reshape(groups, -1, *weight.shape[1:])).max((1, 3, 4))
    # all groups have as many channels, so those are repeated that any group needs
    (again,) = np.nonzero((most > MOST).any(0))
    order = np.concatenate([np.arange(count), again])
    places = graph.laid(graph.places(x))
    split = places.reshape(1, groups, count, *places.shape[2:])[:, :, order]
    first = weight.clip(-MOST, MOST)
    made = np.concatenate([first, (weight - first)[:, again]], 1)
    return graph.moved_to(x, split.reshape(1, -1, *places.shape[2:])), made


def expanded(graph: Graph, value: Value, shape: Shape) -> Value:
    """Broadcast to a shape if its own lengths of 1, and leading ones, don't do."""
    rank = len(shape)
    full = (*[1] * (rank - len(value.shape)), *value.shape)
    if full != value.shape:
        value = graph.moved_to(value, graph.places(value).reshape(full))
    return value


def _spread(graph: Graph, kind: Sum | Product, values: Sequence[Value], shape: Shape) -> tuple[str, ...]:
    """What an operator of several tensors reads, spread over each other."""
    wide = [expanded(graph, value, shape) for value in values]
    names = tuple(map(graph.read, wide))
    try:
        if kind.out_shape(*(graph.shapes[name] for name in names)) == inside(shape):
            return names
    except ValueError:
        pass
    return tuple(
        graph.read(graph.moved_to(value, np.ascontiguousarray(np.broadcast_to(graph.places(value), shape))))
        for value in wide
    )


def _check_constant(constant: float, least: float) -> None:
    """Raises Refused for what is added to a sum, in steps of its result, but for a part of the `least` that sums differ
    by, a power of two below 1: that rounds halves up, as they are anyway."""
    most = 0.75 * least if least < 1 and math.frexp(least)[0] == 0.5 else 0.5 * (least == 1)
    if constant and not 0 < constant < most:
        raise Refused("a constant that is added to what isn't quantised before")


@dataclass(frozen=True, kw_only=True, eq=False)
class Total:
    """Σ weight · value, broadcast, and a constant."""

    terms: tuple[tuple[float, Value], ...]
    shape: Shape
    constant: float = 0.0

    def make(self, graph: Graph, steps: Steps, limits: Limits, names: Names) -> Value:
        weights, values = [weight for weight, _ in self.terms], [value for _, value in self.terms]
        if 0.0 in weights or not np.isfinite(weights).all():
            raise Refused("a factor of 0")
        operator = Sum(signs=tuple(1 if weight > 0 else -1 for weight in weights))
        if self.constant:
            values = [centred(graph, value) for value in values]
        ratios = [weight * value.scale / steps.scale for weight, value in zip(weights, values, strict=True)]
        least = 1.0
        if not steps.zero_point and not any(value.zero_point for value in values):
            factors, shift = of_sum(ratios, [_largest(value) for value in values])
            least = 2.0**-shift
        else:
            factors, shift = _rows(ratios, values, steps), WIDER
        _check_constant(self.constant / steps.scale, least)
        given = _spread(graph, operator, values, self.shape)
        about = _about(names, limits, factors=factors, shift=shift)
        return graph.value_of(graph.node(operator, given, steps, names[0], **about), self.shape, steps)


def _rows(ratios: Sequence[float], values: Sequence[Value], steps: Steps) -> np.ndarray:
    """int32, for each term of a sum and its result: offset, multiplier, shift."""
    largest = max(map(abs, ratios))
    wide = 2.0 ** math.ceil(math.log2(len(ratios)))
    try:
        rows = [
            (-value.zero_point, *factor(snapped(abs(ratio) / largest) / wide))
            for ratio, value in zip(ratios, values, strict=True)
        ]
        rows.append((steps.zero_point, *factor(snapped(largest) * wide / (1 << WIDER))))
    except ValueError as error:
        raise MalformedError(f"a sum is scaled by {error}") from error
    return np.array(rows, np.int32)


def centred(graph: Graph, value: Value) -> Value:
    """The same integers around a zero point of 0, if the other type has one."""
    own = steps_of(value)
    if not own.zero_point or own.inside.zero_point:
        return value
    return rescaled(graph, value, own.inside, RANGES[own.inside.dtype])


@dataclass(frozen=True, kw_only=True, eq=False)
class Times:
    """a · b · weight, broadcast, and a constant."""

    a: Value
    b: Value
    shape: Shape
    weight: float = 1.0
    constant: float = 0.0

    def make(self, graph: Graph, steps: Steps, limits: Limits, names: Names) -> Value:
        if self.weight <= 0:
            raise Refused("a product times what isn't positive")
        ratio = snapped(self.a.scale * self.b.scale * self.weight / steps.scale)
        _check_constant(self.constant / steps.scale, ratio)
        multiplier, shift = single(ratio)
        rows = [(-self.a.zero_point, 0, 0), (-self.b.zero_point, 0, 0), (steps.zero_point, multiplier, shift)]
        given = _spread(graph, Product(), (self.a, self.b), self.shape)
        about = _about(names, limits, factors=np.array(rows, np.int32))
        return graph.value_of(graph.node(Product(), given, steps, names[0], **about), self.shape, steps)


@dataclass(frozen=True, kw_only=True, eq=False)
class MatrixProduct:
    """Matrices a · b · weight, 1×…×rows×columns with the same leading dimensions, and a constant."""

    a: Value
    b: Value
    shape: Shape
    weight: float = 1.0
    constant: float = 0.0

    def make(self, graph: Graph, steps: Steps, limits: Limits, names: Names) -> Value:
        values = [centred(graph, value) for value in (self.a, self.b)]
        if any(value.zero_point for value in values) or steps.zero_point or self.weight <= 0:
            raise Refused("a product of two tensors whose zero points aren't 0")
        ratio = snapped(self.a.scale * self.b.scale * self.weight / steps.scale)
        _check_constant(self.constant / steps.scale, ratio)
        factors, shift = of_sum([ratio], [1])
        batch = math.prod(self.shape[:-2])
        given = []
        for value in values:
            places = graph.places(value).reshape(1, batch, *value.shape[-2:])
            given.append(graph.ordered(value, places))
        about = _about(names, limits, factors=factors, shift=shift)
        return graph.value_of(graph.node(MatMul(), tuple(given), steps, names[0], **about), self.shape, steps)


@dataclass(frozen=True, kw_only=True, eq=False)
class Joined:
    """Tensors one after the other along an axis, each quantised in the steps of the result."""

    parts: tuple[Real, ...]
    axis: int
    shape: Shape

    def make(self, graph: Graph, steps: Steps, limits: Limits, names: Names) -> Value:
        low, high = ((limit - steps.zero_point) * steps.scale for limit in limits)
        clipped = limits != RANGES[steps.dtype]
        values = []
        for part in self.parts:
            if clipped:
                part = replace(part, low=max(part.low, low), high=min(part.high, high))
            values.append(graph.quantised(part, steps))
        return joined(graph, values, self.axis, steps, names)


def joined(graph: Graph, values: Sequence[Value], axis: int, steps: Steps, names: Names) -> Value:
    """Values in the same steps one after the other, which all layers inside have along one of three axes."""
    first = values[0].shape
    shape = (*first[:axis], sum(value.shape[axis] for value in values), *first[axis + 1 :])
    direct = inside(shape) == (1, *shape[1:]) + (1,) * (4 - len(shape)) and axis > 0 and len(shape) in (2, 4)
    before, after = math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
    place = axis if direct else 2
    given = []
    for value in values:
        if direct:
            given.append(graph.read(value))
            continue
        given.append(graph.ordered(value, graph.places(value).reshape(1, before, value.shape[axis], after)))
    name = graph.node(Concat(axis=place), tuple(given), steps, names[0], modules=names)
    return graph.value_of(name, shape, steps)


@dataclass(frozen=True, kw_only=True, eq=False)
class Largest:
    """The largest in each window: of the integers as well, in whatever steps."""

    x: Real
    window: Window
    shape: Shape

    def make(self, graph: Graph, steps: Steps, limits: Limits, names: Names) -> Value:
        value = graph.quantised(self.x, steps)
        return largest(graph, value, self.window, self.shape, names, limits)


def largest(
    graph: Graph, value: Value, window: Window, shape: Shape, names: Names, limits: Limits | None = None
) -> Value:
    about = _about(names, limits or RANGES[value.dtype])
    name = graph.node(MaxPool(window=window), (graph.read(value),), value, names[0], **about)
    return graph.value_of(name, shape, value)


@dataclass(frozen=True, kw_only=True, eq=False)
class Average:
    """The mean of what lies in each window and on the map."""

    x: Value
    window: Window
    shape: Shape

    def make(self, graph: Graph, steps: Steps, limits: Limits, names: Names) -> Value:
        operator = AveragePool(window=self.window)
        name = graph.node(operator, (graph.read(self.x),), self.x, names[0], modules=names)
        return rescaled(graph, graph.value_of(name, self.shape, self.x), steps, limits)


def rescaled(graph: Graph, value: Value, steps: Steps, limits: Limits) -> Value:
    """A value in other steps, or clipped."""
    return Elementwise(value=value).make(graph, steps, limits, ())


@dataclass(frozen=True, kw_only=True, eq=False)
class Resized:
    """Weighted sums of few rows and columns."""

    x: Value
    operator: Resample
    shape: Shape
    constant: float = 0.0

    def make(self, graph: Graph, steps: Steps, limits: Limits, names: Names) -> Value:
        operator, x = self.operator, self.x
        _check_constant(self.constant / x.scale, 2.0 ** (-2 * operator.bits))
        if any((np.abs(weights.sum(1) - 1) > 1e-3).any() for _, weights in operator.axes):
            x = centred(graph, x)
            if x.zero_point:
                raise Refused("weights that don't add up to 1, of what has a zero point")
        about = {"modules": names, "shift": 2 * operator.bits}
        name = graph.node(operator, (graph.read(x),), x, names[0], **about)
        return rescaled(graph, graph.value_of(name, self.shape, x), steps, limits)


@dataclass(frozen=True, kw_only=True, eq=False)
class Shares:
    """Softmax along an axis, or its logarithm."""

    x: Value
    axis: int
    logarithm: bool = False

    @property
    def shape(self) -> Shape:
        return self.x.shape

    def make(self, graph: Graph, steps: Steps, limits: Limits, names: Names) -> Value:
        from tvmflow.integer.post_training import exponentials, logarithms  # which takes PyTorch's seconds

        source, back = graph.along_channels(self.x, self.axis)
        count = self.x.shape[self.axis]
        if not self.logarithm:
            made = Steps(dtype="uint8", scale=steps.scale, zero_point=0)
            share, bits = _shares(1 / steps.scale, count)
            about = {
                "table": exponentials(self.x.scale, count, share, bits),
                "factors": np.array([share, bits], np.int32),
            }
            name = graph.node(Softmax(axis=1), (source,), made, names[0], modules=names, **about)
        else:
            # its zero point is 0 and its result negative: where the file has another, twice the steps reach as far
            made = Steps(dtype="int8", scale=steps.scale * (2 if steps.zero_point else 1), zero_point=0)
            about = logarithms(self.x.scale, made.scale, count)
            name = graph.node(LogSoftmax(axis=1), (source,), made, names[0], modules=names, **about)
        plain = self.x.places is None and graph.shapes[name] == inside(self.shape)
        places = None if plain and np.array_equal(back, graph.natural(self.shape)) else back
        value = Value(
            shape=self.shape,
            source=name,
            places=places,
            dtype=made.dtype,
            scale=made.scale,
            zero_point=made.zero_point,
        )
        return rescaled(graph, value, steps, limits)


@dataclass(frozen=True, kw_only=True, eq=False)
class Normal:
    """A normalisation of boxes of a map, or, with an `axis`, of the numbers along it."""

    x: Value
    operator: Normalise
    axis: int | None = None

    @property
    def shape(self) -> Shape:
        return self.x.shape

    def make(self, graph: Graph, steps: Steps, limits: Limits, names: Names) -> Value:
        from tvmflow.integer.post_training import normalised  # which takes PyTorch's seconds

        if self.axis is None:
            source, back = graph.read(self.x), graph.natural(self.shape)
        else:
            source, back = graph.along_channels(self.x, self.axis)
        lengths = self.operator.lengths
        about = normalised(self.operator, self.x.scale, steps.scale, graph.shapes[source][1])
        about["table"][1] += steps.zero_point << 8
        about = _about(names, limits, **about)
        name = graph.node(Normalise(lengths=lengths), (source,), steps, names[0], **about)
        plain = np.array_equal(back, graph.natural(self.shape)) and graph.shapes[name] == inside(self.shape)
        return replace(graph.value_of(name, self.shape, steps), places=None if plain else back)


def _shares(steps: float, count: int) -> tuple[int, int]:
    """The factors of a Softmax over so many numbers whose result has so many steps from 0 to 1. Raises Refused."""
    most = max(2 * steps + count, 2 * count)
    bits = max((bits for bits in range(7) if most * 2**bits < MOST_SHARES), default=0)
    if not 0.5 < steps < MOST_SHARES / 4 or count > MOST_SHARES:
        raise Refused("a softmax of such fine steps, or over so many numbers")
    return round(steps * 2**bits), bits


def copied(graph: Graph, value: Value, name: str) -> str:
    """The name of a layer, never of an input, that has a value's elements as they lie."""
    wanted = graph.laid(graph.places(value))
    found = graph.ordered(value, wanted)
    if any(layer.name == found for layer in graph.layers):
        return found
    return graph.node(Gather(places=np.ascontiguousarray(wanted)), (value.source,), value, name)
