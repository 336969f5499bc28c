"""What operators make of real numbers and constants, in whatever format they stand."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tvmflow.integer.file import MAX_TERMS
from tvmflow.integer.operators import OUTSIDE, Normalise, Resample, Shape
from tvmflow.integer.quantised.cores import (
    Average,
    Elementwise,
    Given,
    Joined,
    Largest,
    Linear,
    MatrixProduct,
    Normal,
    Resized,
    Shares,
    Times,
    Total,
    joined,
    largest,
)
from tvmflow.integer.quantised.factors import NEARLY
from tvmflow.integer.quantised.values import (
    Constant,
    Graph,
    Real,
    Steps,
    check_elements,
    inside,
    steps_of,
)
from tvmflow.integer.tflite.values import Refused, Value, plain_name
from tvmflow.integer.window import Window
from tvmflow.system.untrusted import MalformedError

Pair = tuple[int, int]
Sides = tuple[int, int, int, int]
MAX_TAPS = 1 << 20
"""What the outputs of a pool along an axis read there together."""
MAX_SIDE = 1 << 16
"""Of windows, strides, dilations and borders."""
Function = Callable[[np.ndarray], np.ndarray]


def reading(value: Value, **more: Any) -> Real:
    """A value's real numbers."""
    return Real(shape=value.shape, core=Elementwise(value=value), **more)


def is_read(real: Real) -> bool:
    """Whether these are the real numbers of integers."""
    return isinstance(real.core, Elementwise) and real.core.of is None and not real.limited and real.places is None


def value_of(graph: Graph, real: Real) -> Value:
    """The integers of which these are the real numbers. Raises Refused if they aren't quantised."""
    if is_read(real):
        value: Value = real.core.value
        return value
    if isinstance(real.core, Elementwise) and not real.limited and (exact := real.core.exact()) is not None:
        return graph.quantised(real, exact)
    raise Refused(f"what {described(real)} gives, which isn't quantised before")


def plain(name: str) -> str:
    """A file's name in letters that layers may have."""
    return plain_name(name)


def described(real: Real) -> str:
    if isinstance(real.core, Given):
        return f"the input {real.core.name}"
    return real.names[-1] if real.names else "a tensor"


def named(real: Real, name: str, **changes: Any) -> Real:
    """With one more node whose work it is."""
    return replace(real, names=(*real.names, name), integers=False, stored=None, **changes)


# ------------------------------------------------------------------------------------------------------- quantisation


def quantize(graph: Graph, real: Real, steps: Steps) -> Real:
    if real.integers:
        raise MalformedError("integers are quantised")
    own = steps if isinstance(real.core, Given) else steps.inside
    value = graph.quantised(real, own)
    return stored(value, steps)


def stored(value: Value, steps: Steps) -> Real:
    """Integers of the file, which it has in `steps` and layers perhaps as the other type."""
    raw = replace(value, scale=1.0, zero_point=value.zero_point - steps.zero_point)
    return reading(raw, integers=True, stored=steps)


def dequantize(graph: Graph, real: Real, scale: float, zero_point: int) -> Real:
    if not real.integers or real.stored is None:
        raise Refused("real numbers, where integers belong")
    if not is_read(real):
        plain = Steps(dtype=real.stored.dtype, scale=1.0, zero_point=0)
        real = stored(graph.quantised(real, plain), plain)
    value = real.core.value
    found = replace(value, scale=scale, zero_point=zero_point + value.zero_point)
    assert real.stored is not None
    return reading(found, stored=Steps(dtype=real.stored.dtype, scale=scale, zero_point=zero_point))


def on_integers(graph: Graph, real: Real, of: Callable[[Real], Real]) -> Real:
    """What an operator makes of integers that it reads as they are: in their steps."""
    if not real.integers or real.stored is None:
        return of(real)
    steps = real.stored
    return quantize(graph, of(dequantize(graph, real, steps.scale, steps.zero_point)), steps)


# -------------------------------------------------------------------------------------------------------------- moves


def moved(graph: Graph, real: Real, how: Callable[[np.ndarray], np.ndarray]) -> Real:
    """Elements at other places: `how` takes and gives an array of places, in which OUTSIDE is a 0."""
    if is_read(real):
        value = graph.moved_to(real.core.value, np.asarray(how(graph.places(real.core.value))))
        return replace(real, shape=value.shape, core=Elementwise(value=value))
    places = real.places if real.places is not None else graph.natural(real.core.shape)
    places = np.asarray(how(places))
    check_elements(*places.shape)
    return replace(real, shape=tuple(places.shape), places=places)


def padded(graph: Graph, real: Real, widths: Sequence[Pair], number: float, mode: str = "constant") -> Real:
    """`widths` are those before and after, along each axis; negative ones cut."""
    shape = [length + before + after for length, (before, after) in zip(real.shape, widths, strict=True)]
    check_elements(*shape)
    check_elements(*(length + max(0, a) + max(0, b) for length, (a, b) in zip(real.shape, widths, strict=True)))
    if mode == "constant" and number and any(side for pair in widths for side in pair):
        raise Refused("a border of another number than 0")
    cut = tuple(
        slice(max(0, -before), length - max(0, -after))
        for length, (before, after) in zip(real.shape, widths, strict=True)
    )
    wide = [(max(0, before), max(0, after)) for before, after in widths]

    def how(places: np.ndarray) -> np.ndarray:
        if mode == "constant":
            return np.pad(places[cut], wide, constant_values=OUTSIDE)
        return np.pad(places[cut], wide, mode=mode)  # type: ignore[call-overload]

    return moved(graph, real, how)


def with_zeros(graph: Graph, parts: Sequence[Real | Constant], axis: int) -> list[Real]:
    """Tensors to be concatenated: constants of zeros are borders of what is beside them. Raises Refused for others."""
    made: list[Real] = []
    before = 0
    for part in parts:
        if isinstance(part, Real):
            made.append(_lengthened(graph, part, axis, before, 0) if before else part)
            before = 0
            continue
        if part.array.any() or part.array.dtype.kind != "f":
            raise Refused("a constant beside tensors")
        if made:
            made[-1] = _lengthened(graph, made[-1], axis, 0, part.array.shape[axis])
        else:
            before += part.array.shape[axis]
    return made


def _lengthened(graph: Graph, real: Real, axis: int, before: int, after: int) -> Real:
    widths = [(before, after) if place == axis else (0, 0) for place in range(len(real.shape))]
    return padded(graph, real, widths, 0.0)


def concatenated(graph: Graph, reals: Sequence[Real], axis: int, name: str) -> Real:
    rests = {real.shape[:axis] + real.shape[axis + 1 :] for real in reals}
    if len(rests) != 1 or len({len(real.shape) for real in reals}) != 1:
        raise MalformedError("tensors that don't fit together")
    if len(reals) == 1:
        return reals[0]
    shape = (*reals[0].shape[:axis], sum(real.shape[axis] for real in reals), *reals[0].shape[axis + 1 :])
    check_elements(*shape)
    integers = {real.integers for real in reals} == {True}
    kept: dict[str, Any] = {"integers": integers, "stored": reals[0].stored if integers else None}
    if all(map(is_read, reals)):
        values = [value_of(graph, real) for real in reals]
        if len({steps_of(value) for value in values}) == 1:
            return reading(joined(graph, values, axis, steps_of(values[0]), (name,)), **kept)
    core = Joined(parts=tuple(reals), axis=axis, shape=shape)
    return Real(shape=shape, core=core, names=(name,), **kept)


# -------------------------------------------------------------------------------------------------- element by element


def rooted(graph: Graph, real: Real) -> Elementwise:
    """The function of each element that this is. Raises Refused."""
    core = real.core
    if not isinstance(core, Elementwise):
        raise Refused(f"what {described(real)} gives, which isn't quantised before")
    low, high = real.low, real.high
    if real.places is not None:
        if not core.uniform or real.beyond:
            raise Refused(f"what {described(real)} gives, which isn't quantised before")
        core = replace(core, value=graph.selected(core.value, real.places))
    if real.limited:
        core = _composed(core, lambda x: np.clip(x, np.float32(low), np.float32(high)))
    return core


def _composed(core: Elementwise, of: Function, uniform: bool = True) -> Elementwise:
    before = core.of
    function = of if before is None else lambda x: of(before(x))
    return replace(core, of=function, uniform=core.uniform and uniform)


def elementwise(graph: Graph, real: Real, of: Function, name: str, uniform: bool = True) -> Real:
    """`of` takes and gives float32; unless it is uniform, its constants are broadcast to the real numbers' shape."""
    core = rooted(graph, real)
    return Real(shape=core.shape, core=_composed(core, of, uniform), names=(*real.names, name))


def clipped(graph: Graph, real: Real, low: float, high: float, name: str) -> Real:
    """Between limits, which a layer that isn't quantised yet takes over."""
    if math.isnan(low) or math.isnan(high):
        raise MalformedError("limits that are no numbers")
    if isinstance(real.core, Elementwise) and not real.integers:
        return elementwise(graph, real, lambda x: np.minimum(np.maximum(x, np.float32(low)), np.float32(high)), name)
    if real.beyond and not low <= 0 <= high:
        raise Refused("a border that is clipped")
    limits = {"low": min(max(real.low, low), high), "high": min(max(real.high, low), high)}
    return replace(named(real, name, **limits), integers=real.integers, stored=real.stored)


def limited(graph: Graph, real: Real, low: float, high: float) -> Real:
    """Between limits that are no node's work."""
    if isinstance(real.core, Elementwise):
        core = rooted(graph, real)
        return replace(real, core=core, places=None, low=low, high=high)
    return replace(real, low=min(max(real.low, low), high), high=max(min(real.high, high), low))


ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "add": np.add,
    "subtract": np.subtract,
    "multiply": np.multiply,
    "divide": np.divide,
}


def arithmetic(graph: Graph, kind: str, a: Real | Constant, b: Real | Constant, name: str) -> Real:
    """One of ARITHMETIC, of which at least one side isn't constant."""
    if isinstance(a, Real) and isinstance(b, Real):
        return _of_two(graph, kind, a, b, name)
    real, constant, turned = (a, b, False) if isinstance(a, Real) else (b, a, True)
    assert isinstance(real, Real)
    assert isinstance(constant, Constant)
    array = np.asarray(constant.array, np.float32)
    if np.broadcast_shapes(real.shape, array.shape) != real.shape:
        return _of_constant(graph, kind, real, array, turned, name)
    of = ARITHMETIC[kind]
    if is_read(real) and not real.integers and (factor := _scale(kind, array, turned)) > 0:
        scaled = replace(real.core.value, scale=float(np.float32(real.core.value.scale * factor)))
        return reading(scaled, names=(*real.names, name))
    if isinstance(real.core, Elementwise):
        one = array.reshape(-1)[0] if array.size == 1 else array
        function: Function = (lambda x: of(one, x)) if turned else (lambda x: of(x, one))
        return elementwise(graph, real, function, name, uniform=array.size == 1)
    if kind == "divide" and not turned:
        with np.errstate(divide="ignore"):
            return _absorbed(graph, "multiply", real, 1 / array.astype(np.float64), False, name)
    return _absorbed(graph, kind, real, array.astype(np.float64), turned, name)


def _scale(kind: str, array: np.ndarray, turned: bool) -> float:
    """By what a constant scales, if it is one number and does nothing else; or 0."""
    if array.size != 1 or not (kind == "multiply" or (kind == "divide" and not turned)):
        return 0.0
    number = float(array.reshape(-1)[0])
    factor = number if kind == "multiply" or not number else 1 / number
    return factor if 0 < factor < math.inf else 0.0


def _of_constant(graph: Graph, kind: str, real: Real, array: np.ndarray, turned: bool, name: str) -> Real:
    """With a constant that it is broadcast to."""
    shape = np.broadcast_shapes(real.shape, array.shape)
    check_elements(*shape)
    wide = moved(graph, real, lambda places: np.ascontiguousarray(np.broadcast_to(places, shape)))
    other = Constant(array=array)
    return arithmetic(graph, kind, other, wide, name) if turned else arithmetic(graph, kind, wide, other, name)


def _absorbed(graph: Graph, kind: str, real: Real, array: np.ndarray, turned: bool, name: str) -> Real:
    """A constant that the layer takes over which isn't quantised yet."""
    if turned and kind == "subtract":
        real, kind = _absorbed(graph, "multiply", real, np.array(-1.0), False, name), "add"
        real = replace(real, names=real.names[:-1])
    if kind not in ("add", "subtract", "multiply") or not np.isfinite(array).all():
        raise Refused(f"what {described(real)} gives, which isn't quantised before")
    if kind == "subtract":
        array = -array
    number = float(array.reshape(-1)[0])
    single = bool((array == number).all())
    positive = kind == "multiply" and single and number > 0
    limits: dict[str, float] = {}
    if real.limited:
        if not positive:
            raise Refused(f"what {described(real)} gives, which isn't quantised before")
        limits = {"low": real.low * number, "high": real.high * number}
    if kind == "add" and real.beyond:
        raise Refused("a border that something is added to")
    core = real.core
    if isinstance(core, Linear):
        factors = _by_channel(graph, real, array)
        made: Any = core.scaled(factors) if kind == "multiply" else replace(core, bias=core.bias + factors / core.unit)
    elif isinstance(core, Total) and single:
        terms = tuple((weight * number, value) for weight, value in core.terms)
        if kind == "multiply":
            made = replace(core, terms=terms, constant=core.constant * number)
        else:
            made = replace(core, constant=core.constant + number)
    elif isinstance(core, Resized) and single and kind == "add":
        made = replace(core, constant=core.constant + number)
    elif isinstance(core, Times | MatrixProduct) and single:
        if kind == "multiply":
            made = replace(core, weight=core.weight * number, constant=core.constant * number)
        else:
            made = replace(core, constant=core.constant + number)
    else:
        raise Refused(f"what {described(real)} gives, which isn't quantised before")
    return named(real, name, core=made, **limits)


def _by_channel(graph: Graph, real: Real, array: np.ndarray) -> np.ndarray:
    """A constant that is broadcast to real numbers, as one for each channel of their layer. Raises Refused."""
    shape = real.core.shape
    channels = inside(shape)[1]
    if array.size == 1:
        return np.full(channels, float(array.reshape(-1)[0]))
    places = real.places if real.places is not None else graph.natural(shape)
    laid = np.full(math.prod(shape), np.nan)
    chosen = places.reshape(-1)
    laid[chosen[chosen != OUTSIDE]] = np.broadcast_to(array, real.shape).reshape(-1)[chosen != OUTSIDE]
    rows = laid.reshape(channels, -1)
    low, high = np.fmin.reduce(rows, 1), np.fmax.reduce(rows, 1)
    seen = ~np.isnan(low)
    if (low != high)[seen].any():
        raise Refused("a constant that differs from place to place")
    return np.where(seen, low, 1.0)


def _of_two(graph: Graph, kind: str, a: Real, b: Real, name: str) -> Real:
    if (same := _of_one(graph, kind, a, b, name)) is not None:
        return same
    try:
        shape = tuple(np.broadcast_shapes(a.shape, b.shape))
    except ValueError as error:
        raise MalformedError("tensors that don't fit together") from error
    check_elements(*shape)
    if kind == "divide":
        raise Refused("a quotient of two tensors")
    if kind == "multiply":
        return Real(shape=shape, core=Times(a=value_of(graph, a), b=value_of(graph, b), shape=shape), names=(name,))
    terms = [*_terms(graph, a), *((weight if kind == "add" else -weight, value) for weight, value in _terms(graph, b))]
    if len(terms) > MAX_TERMS:
        raise Refused(f"a sum of {len(terms)} tensors that isn't quantised before")
    return Real(shape=shape, core=Total(terms=tuple(terms), shape=shape), names=(name,))


def _terms(graph: Graph, real: Real) -> tuple[tuple[float, Value], ...]:
    core = real.core
    if isinstance(core, Total) and real.places is None and not real.limited and not core.constant:
        return core.terms
    if (factor := _negated(real)) is not None:
        return ((factor, real.core.value),)
    return ((1.0, value_of(graph, real)),)


def _negated(real: Real) -> float | None:
    """By what integers' real numbers are multiplied, if that is all that is done to them."""
    core = real.core
    if (
        not isinstance(core, Elementwise)
        or core.of is None
        or not core.uniform
        or real.limited
        or real.places is not None
    ):
        return None
    x, y = replace(core, of=None).real().astype(np.float64), core.real().astype(np.float64)
    largest = np.abs(x).argmax()
    factor = float(y.flat[largest] / x.flat[largest])
    return factor if factor and np.allclose(y, factor * x, rtol=1e-6, atol=0) else None


def _of_one(graph: Graph, kind: str, a: Real, b: Real, name: str) -> Real | None:
    """Of two functions of the same integers, such as x · sigmoid(x), the function of these."""
    if not isinstance(a.core, Elementwise) or not isinstance(b.core, Elementwise) or a.shape != b.shape:
        return None
    try:
        first, second = rooted(graph, a), rooted(graph, b)
    except Refused:
        return None
    if not (_alike(first.value, second.value) and first.uniform and second.uniform):
        return None
    of = ARITHMETIC[kind]

    def both(x: np.ndarray) -> np.ndarray:
        left, right = (x if core.of is None else core.of(x) for core in (first, second))
        return np.asarray(of(left, right))

    names = tuple(dict.fromkeys((*a.names, *b.names, name)))
    return Real(shape=a.shape, core=Elementwise(value=first.value, of=both), names=names)


def _alike(a: Value, b: Value) -> bool:
    if a.source != b.source or a.shape != b.shape or steps_of(a) != steps_of(b):
        return False
    if a.places is None or b.places is None:
        return a.places is b.places
    return np.array_equal(a.places, b.places)


def normalised(graph: Graph, real: Real, factor: np.ndarray, moved_by: np.ndarray, name: str) -> Real:
    """x · factor + moved_by, with a number for each channel: what a batch normalisation does."""
    shape = (-1, *[1] * (len(real.shape) - 2))
    if len(real.shape) < 2 or len(factor) != real.shape[1]:
        raise MalformedError("a normalisation of another number of channels")
    if not (np.isfinite(factor).all() and np.isfinite(moved_by).all()):
        raise MalformedError("a normalisation by numbers that are infinite or none")
    if isinstance(real.core, Elementwise):
        by, more = factor.astype(np.float32).reshape(shape), moved_by.astype(np.float32).reshape(shape)
        return elementwise(graph, real, lambda x: x * by + more, name, uniform=False)
    scaled = _absorbed(graph, "multiply", real, factor.reshape(shape), False, name)
    return replace(_absorbed(graph, "add", scaled, moved_by.reshape(shape), False, name), names=scaled.names)


# ----------------------------------------------------------------------------------------------- layers with weights


def weights_of(constant: Constant | Real | None) -> tuple[np.ndarray, np.ndarray]:
    """int32 and float64 of its shape: integers less their zero points, and their scales. Raises Refused."""
    if not isinstance(constant, Constant):
        raise Refused("weights that aren't constant")
    if constant.integers is None or constant.scales is None:
        raise Refused("weights that aren't quantised")
    if not constant.integers.size:
        raise MalformedError("weights without elements")
    check_elements(constant.integers.size)
    return constant.integers.astype(np.int32), constant.scales.astype(np.float64)


def _unit(x: Value, scales: np.ndarray) -> np.ndarray:
    """float64 O: the real number of one in a sum, by the weights' scales, whose first axis is of the outputs."""
    rows = scales.reshape(len(scales), -1)
    if (rows != rows[:, :1]).any():
        raise Refused("weights with more scales than one for each output")
    if not np.isfinite(rows).all() or (rows[:, 0] <= 0).any():
        raise MalformedError("weights with scales that aren't positive")
    unit: np.ndarray = rows[:, 0] * x.scale
    return unit


def _bias(constant: Constant | Real | None, unit: np.ndarray) -> np.ndarray:
    """float64 O, in units of the sums."""
    if constant is None:
        return np.zeros(len(unit))
    if not isinstance(constant, Constant):
        raise Refused("a bias that isn't constant")
    if constant.array.size not in (1, len(unit)):
        raise MalformedError(f"{constant.array.size} biases for {len(unit)} outputs")
    if constant.integers is not None and constant.scales is not None:
        scales = np.broadcast_to(constant.scales.reshape(-1), len(unit)).astype(np.float64)
        integers = np.broadcast_to(constant.integers.reshape(-1), len(unit)).astype(np.float64)
        ratio = scales / unit
        return integers * np.where(np.abs(ratio - 1) < NEARLY, 1.0, ratio)
    return np.broadcast_to(constant.array.reshape(-1), len(unit)).astype(np.float64) / unit


def check_window(*numbers: int) -> None:
    """Raises MalformedError for strides, dilations or lengths that no map has."""
    if not all(1 <= number <= MAX_SIDE for number in numbers):
        raise MalformedError(f"a window of {', '.join(map(str, numbers))}")


def planes(shape: Shape) -> tuple[int, Pair]:
    """Channels, and rows and columns of a map. Raises Refused for what is none."""
    if len(shape) not in (3, 4) or not math.prod(shape):
        raise Refused(f"a map of {len(shape)} dimensions, or without elements")
    if shape[0] != 1:
        raise Refused(f"a batch of {shape[0]}")
    _, channels, height, width = inside(shape)
    return channels, (height, width)


def back(shape: Shape, found: Shape) -> Shape:
    """1×C×H×W as it is in a tensor of as many dimensions as `shape` has."""
    return found if len(shape) == 4 else (found[0], found[1], found[3])


def convolution(
    graph: Graph,
    real: Real,
    weight: Constant | Real | None,
    bias: Constant | Real | None,
    *,
    stride: Pair,
    padding: Sides,
    dilation: Pair,
    groups: int,
    name: str,
) -> Real:
    """Of a map 1×C×H×W, or 1×C×L as rows of one; `weight` is O×(I/groups)×KH×KW or O×(I/groups)×K."""
    integers, scales = weights_of(weight)
    if integers.ndim != len(real.shape):
        raise MalformedError("weights of another number of dimensions than the map")
    if integers.ndim == 3:
        integers, scales = integers[:, :, None], scales[:, :, None]
    channels, size = planes(real.shape)
    if groups < 1 or integers.shape[1] * groups != channels or len(integers) % groups:
        raise MalformedError(f"weights for {integers.shape[1]} channels of {groups} groups, and a map of {channels}")
    check_window(*stride, *dilation, *integers.shape[2:], *(side + 1 for side in padding))
    x = value_of(graph, real)
    window = Window(kernel=integers.shape[2:], stride=stride, padding=padding, dilation=dilation, size=size)
    extents = window.out_size()
    if min(extents) < 1:
        raise MalformedError("a window that is larger than its map")
    shape = back(real.shape, (1, len(integers), *extents))
    check_elements(*shape)
    unit = _unit(x, scales)
    core = Linear(
        x=x,
        weight=integers,
        unit=unit,
        bias=_bias(bias, unit),
        shape=shape,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
    )
    return Real(shape=shape, core=core, names=(name,))


def transposed_convolution(
    graph: Graph,
    real: Real,
    weight: Constant | Real | None,
    bias: Constant | Real | None,
    *,
    stride: Pair,
    padding: Sides,
    dilation: Pair,
    more: Pair,
    groups: int,
    name: str,
) -> Real:
    """A convolution over the map with zeros between its pixels, whose weights, I×(O/groups)×KH×KW, are turned round.

    `more` are rows and columns that come last.
    """
    arrays = list(weights_of(weight))
    channels, size = planes(real.shape)
    for number, array in enumerate(arrays):
        if array.ndim != len(real.shape) or array.shape[0] != channels or groups < 1 or channels % groups:
            raise MalformedError("weights that don't fit the map")
        maps = array[:, :, None] if array.ndim == 3 else array
        split = maps.reshape(groups, channels // groups, *maps.shape[1:]).swapaxes(1, 2)
        arrays[number] = split.reshape(-1, channels // groups, *maps.shape[2:])[:, :, ::-1, ::-1]
    integers, scales = arrays
    kernel = integers.shape[2:]
    check_window(*stride, *dilation, *kernel, *(abs(side) + 1 for side in (*padding, *more)))
    extents = []
    x = value_of(graph, real)
    places = graph.laid(graph.places(x))
    for axis in (0, 1):
        reach = dilation[axis] * (kernel[axis] - 1)
        extent = (size[axis] - 1) * stride[axis] + reach + 1 - padding[axis] - padding[axis + 2] + more[axis]
        if extent < 1:
            raise MalformedError("a map without elements")
        extents.append(extent)
        check_elements(channels, extent + reach, *(places.shape[3 - axis : 4 - axis]))
        at = np.arange(extent + reach) - (reach - padding[axis])
        valid = (at >= 0) & (at % stride[axis] == 0) & (at // stride[axis] < size[axis])
        places = np.take(places, np.where(valid, at // stride[axis], 0), 2 + axis)
        spread = [1, 1, 1, 1]
        spread[2 + axis] = -1
        places = np.where(valid.reshape(spread), places, OUTSIDE)
    shape = back(real.shape, (1, len(integers), extents[0], extents[1]))
    check_elements(*shape)
    unit = _unit(x, scales)
    core = Linear(
        x=graph.moved_to(x, places.astype(np.int32)),
        weight=np.ascontiguousarray(integers),
        unit=unit,
        bias=_bias(bias, unit),
        shape=shape,
        dilation=dilation,
        groups=groups,
    )
    return Real(shape=shape, core=core, names=(name,))


def dense(graph: Graph, real: Real, weight: Constant | Real | None, bias: Constant | Real | None, name: str) -> Real:
    """Of the last axis; `weight` is outputs × inputs."""
    integers, scales = weights_of(weight)
    if integers.ndim != 2:
        raise Refused("weights that are no matrix")
    outputs, inputs = integers.shape
    if not real.shape or real.shape[-1] != inputs or not math.prod(real.shape):
        raise MalformedError(f"weights for {inputs} numbers, and {real.shape[-1:]} of them")
    rows, shape = math.prod(real.shape[:-1]), (*real.shape[:-1], outputs)
    check_elements(*shape)
    x = value_of(graph, real)
    unit, places = _unit(x, scales), graph.places(x)
    whole, weights, kind = graph.shapes[x.source], integers[..., None, None], "conv2d"
    if rows == 1:
        flat = places.reshape(-1)
        if np.array_equal(np.sort(flat), np.arange(math.prod(whole))):
            # all values of a map in some order: the weights take it, as those of a convolution over the whole map
            found = np.empty_like(integers)
            found[:, flat] = integers
            weights = found.reshape(outputs, *whole[1:])
            x = replace(x, shape=whole, places=None)
        else:
            x = graph.moved_to(x, flat.reshape(1, inputs, 1, 1))
        kind = "dense" if weights.shape[2:] == (1, 1) else kind
    else:
        x = graph.moved_to(x, np.ascontiguousarray(places.reshape(rows, inputs).T).reshape(1, inputs, 1, rows))
    core = Linear(x=x, weight=weights, unit=unit, bias=_bias(bias, unit), shape=(1, outputs, 1, rows), kind=kind)
    order = np.arange(rows * outputs, dtype=np.int32).reshape(outputs, rows).T.reshape(shape)
    return Real(shape=shape, core=core, places=np.ascontiguousarray(order), names=(name,))


def matrix_product(graph: Graph, a: Real, b: Real, name: str) -> Real:
    """Of two tensors that are computed."""
    if len(a.shape) < 2 or len(b.shape) < 2 or a.shape[-1] != b.shape[-2] or not math.prod((*a.shape, *b.shape)):
        raise MalformedError("matrices that don't fit together")
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    shape = (*batch, a.shape[-2], b.shape[-1])
    check_elements(*shape)
    values = []
    for real in (a, b):
        value, full = value_of(graph, real), (*batch, *real.shape[-2:])
        check_elements(*full)
        if value.shape != full:
            value = graph.moved_to(value, np.ascontiguousarray(np.broadcast_to(graph.places(value), full)))
        values.append(value)
    return Real(shape=shape, core=MatrixProduct(a=values[0], b=values[1], shape=shape), names=(name,))


# -------------------------------------------------------------------------------------------------------------- pools


def window_of(real: Real, kernel: Pair, stride: Pair, padding: Sides, dilation: Pair = (1, 1)) -> tuple[Window, Shape]:
    """A pool's window, and the shape of what it gives."""
    channels, size = planes(real.shape)
    check_window(*kernel, *stride, *dilation, *(side + 1 for side in padding))
    window = Window(kernel=kernel, stride=stride, padding=padding, dilation=dilation, size=size)
    extents = window.out_size()
    if min(extents) < 1 or max(taps * outputs for taps, outputs in zip(kernel, extents, strict=True)) > MAX_TAPS:
        raise MalformedError("a window that is larger than its map, or a map that is too large")
    shape = back(real.shape, (1, channels, *extents))
    check_elements(*shape)
    return window, shape


def max_pool(graph: Graph, real: Real, kernel: Pair, stride: Pair, padding: Sides, dilation: Pair, name: str) -> Real:
    window, shape = window_of(real, kernel, stride, padding, dilation)
    if not meets_everywhere(window):
        raise Refused("a window that lies beside the map")
    if is_read(real):
        return reading(
            largest(graph, real.core.value, window, shape, (name,)), integers=real.integers, stored=real.stored
        )
    kept: dict[str, Any] = {"integers": real.integers, "stored": real.stored}
    return Real(shape=shape, core=Largest(x=real, window=window, shape=shape), names=(name,), **kept)


def meets_everywhere(window: Window) -> bool:
    """Whether every window has something of the map."""
    return all(taps for axis in (0, 1) for _, _, taps in window.cuts(axis))


def average_pool(
    graph: Graph, real: Real, kernel: Pair, stride: Pair, padding: Sides, include: bool, name: str
) -> Real:
    """`include` is whether the border counts, as zeros."""
    window, shape = window_of(real, kernel, stride, padding)
    x, (channels, size) = value_of(graph, real), planes(real.shape)
    if any(padding) and not include:
        if not meets_everywhere(window):
            raise Refused("a window that lies beside the map")
        return Real(shape=shape, core=Average(x=x, window=window, shape=shape), names=(name,))
    count = math.prod(kernel)
    check_elements(channels, count)
    whole = kernel == size and not any(padding)
    core = Linear(
        x=x,
        weight=np.ones((channels, 1, *kernel), np.int32),
        unit=np.full(channels, x.scale / count),
        bias=np.zeros(channels),
        shape=shape,
        stride=(1, 1) if whole else stride,
        padding=padding,
        groups=channels,
        kind="pool" if whole else "conv2d",
    )
    return Real(shape=shape, core=core, names=(name,))


def mean(graph: Graph, real: Real, axes: Sequence[int], keep: bool, name: str, *, total: bool = False) -> Real:
    """The mean along axes, or the `total`."""
    rank = len(real.shape)
    if any(not -rank <= axis < rank for axis in axes) or not math.prod(real.shape):
        raise MalformedError("axes that the tensor doesn't have")
    axes = sorted({axis % rank for axis in axes})
    kept = [axis for axis in range(rank) if axis not in axes]
    count, channels = (math.prod(real.shape[axis] for axis in some) for some in (axes, kept))
    shape = tuple(1 if axis in axes else length for axis, length in enumerate(real.shape) if keep or axis in kept)
    check_window(channels)
    x = value_of(graph, real)
    plain = inside(real.shape)
    if axes != list(range(rank - len(axes), rank)) or plain[1] != channels:
        places = graph.places(x).transpose(*kept, *axes).reshape(1, channels, 1, count)
        x = graph.moved_to(x, np.ascontiguousarray(places))
        plain = (1, channels, 1, count)
    core = Linear(
        x=x,
        weight=np.ones((channels, 1, *plain[2:]), np.int32),
        unit=np.full(channels, x.scale if total else x.scale / count),
        bias=np.zeros(channels),
        shape=(1, channels, 1, 1),
        groups=channels,
        kind="pool",
    )
    places = np.arange(channels, dtype=np.int32).reshape(shape)
    return Real(shape=shape, core=core, places=places, names=(name,))


def largest_along(graph: Graph, real: Real, axes: Sequence[int], keep: bool, name: str) -> Real:
    """The largest along axes."""
    rank = len(real.shape)
    if any(not -rank <= axis < rank for axis in axes) or not math.prod(real.shape):
        raise MalformedError("axes that the tensor doesn't have")
    axes = sorted({axis % rank for axis in axes})
    kept = [axis for axis in range(rank) if axis not in axes]
    count, others = (math.prod(real.shape[axis] for axis in some) for some in (axes, kept))
    shape = tuple(1 if axis in axes else length for axis, length in enumerate(real.shape) if keep or axis in kept)
    flat = moved(graph, real, lambda places: places.transpose(*kept, *axes).reshape(1, others, 1, count))
    found = max_pool(graph, flat, (1, count), (1, 1), (0, 0, 0, 0), (1, 1), name)
    return moved(graph, found, lambda places: places.reshape(shape))


def softmax(graph: Graph, real: Real, axis: int, name: str, *, logarithm: bool = False) -> Real:
    if not math.prod(real.shape):
        raise MalformedError("a softmax of nothing")
    core = Shares(x=value_of(graph, real), axis=axis, logarithm=logarithm)
    return Real(shape=real.shape, core=core, names=(name,))


def layer_normalised(
    graph: Graph, real: Real, gamma: np.ndarray | None, beta: np.ndarray | None, epsilon: float, name: str
) -> Real:
    """Of the numbers along the last axis."""
    count = real.shape[-1] if real.shape else 0
    operator = _normalisation(real, (count, 1, 1), count, gamma, beta, epsilon)
    core = Normal(x=value_of(graph, real), operator=operator, axis=len(real.shape) - 1)
    return Real(shape=real.shape, core=core, names=(name,))


def group_normalised(
    graph: Graph,
    real: Real,
    groups: int,
    gamma: np.ndarray | None,
    beta: np.ndarray | None,
    epsilon: float,
    name: str,
) -> Real:
    """Of a map's channels in so many groups."""
    channels, size = planes(real.shape)
    if groups < 1 or channels % groups:
        raise MalformedError(f"{groups} groups of {channels} channels")
    operator = _normalisation(real, (channels // groups, *size), channels, gamma, beta, epsilon)
    core = Normal(x=value_of(graph, real), operator=operator)
    return Real(shape=real.shape, core=core, names=(name,))


def _normalisation(
    real: Real,
    lengths: tuple[int, int, int],
    count: int,
    gamma: np.ndarray | None,
    beta: np.ndarray | None,
    epsilon: float,
) -> Normalise:
    ones, zeros = np.ones(count), np.zeros(count)
    wide = [
        default if given is None else np.asarray(given, np.float64).reshape(-1)
        for given, default in ((gamma, ones), (beta, zeros))
    ]
    if not math.prod(real.shape) or any(len(array) != count or not np.isfinite(array).all() for array in wide):
        raise MalformedError("a normalisation by other numbers than one for each channel")
    if math.prod(lengths) * 255**2 >= 2**31:
        raise Refused("a normalisation over so many numbers")
    return Normalise(lengths=lengths, epsilon=max(0.0, epsilon), gamma=wide[0], beta=wide[1])


MOST_TAPS = 16
"""What an output of an interpolation reads along an axis."""


def interpolated(graph: Graph, real: Real, matrix: np.ndarray, axis: int, name: str) -> Real:
    """Rows or columns times a matrix of real numbers, outputs × inputs, of which few aren't 0."""
    if len(real.shape) not in (3, 4) or matrix.ndim != 2 or matrix.shape[1] != real.shape[axis]:
        raise Refused("weights that aren't quantised")
    most = max(1, int((matrix != 0).sum(1).max(initial=0)))
    if most > MOST_TAPS or not np.isfinite(matrix).all():
        raise Refused("weights that aren't quantised")
    places = np.argsort(matrix == 0, 1, kind="stable")[:, :most].astype(np.int32)
    table = places, np.take_along_axis(matrix, places, 1).astype(np.float64)
    core = real.core
    if isinstance(core, Resized) and real.places is None and not real.limited and axis == len(real.shape) - 1:
        # the columns of what has other rows already
        operator = Resample(rows=core.operator.rows, columns=table)
        if np.array_equal(core.operator.columns[0][:, 0], np.arange(len(matrix[0]))) and operator.bits:
            shape = (*real.shape[:-1], len(matrix))
            return named(real, name, shape=shape, core=replace(core, operator=operator, shape=shape))
    return resized(graph, real, {axis: table}, name)


def resized(graph: Graph, real: Real, tables: dict[int, tuple[np.ndarray, np.ndarray]], name: str) -> Real:
    """Along the axes of `tables`, which are rows and columns: places and weights, outputs × taps."""
    channels, size = planes(real.shape)
    first = len(real.shape) - 2
    rows, columns = (
        tables.get(first + axis, (np.arange(size[axis], dtype=np.int32)[:, None], np.ones((size[axis], 1))))
        if first + axis > 1
        else (np.arange(size[axis], dtype=np.int32)[:, None], np.ones((size[axis], 1)))
        for axis in (0, 1)
    )
    if set(tables) - {first, first + 1} or (first == 1 and 1 in tables):
        raise Refused("interpolation along other axes than rows and columns")
    shape = back(real.shape, (1, channels, len(rows[0]), len(columns[0])))
    check_elements(*shape)
    operator = Resample(rows=rows, columns=columns)
    if not operator.bits:
        raise Refused("weights of an interpolation that are too large")
    return Real(shape=shape, core=Resized(x=value_of(graph, real), operator=operator, shape=shape), names=(name,))
