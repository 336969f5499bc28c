"""The layers of a quantised network: what each has to compute, bit for bit, whatever computes it.

Padding is with 0. A layer reads int8 or uint8 and gives int8 or uint8, saturated at its `minimum` and `maximum`: those
of the dtype, or nearer where a ReLU or another clamp is. Real numbers are q · `scale`; only the scheme "tflite" has
zero points other than 0, and there they are (q − `zero_point`) · `scale`.

An `IntegerLayer` sums products with its int8 weights in int32, `acc[o] = Σ x·weight[o] + bias[o]`, and requantises by
one of three schemes:

- "per-channel", for processors: `y = clip((acc·multiplier[o] + 2³¹) >> 32, minimum, maximum)` with a 64-bit product and
  an arithmetic shift, so that halves are rounded up, towards +∞. The multiplier is 2·round(scale·2³¹), thus even, and
  the scale lies between 0 and ½. One SMMULR does it on Cortex-M4 and M7, SQRDMULH by half the multiplier on NEON.
- "power-of-two", for hardware that only shifts: `y = clip((acc + 2^(s−1)) >> s, minimum, maximum)` with s = shift[o],
  again rounding halves up; nothing is added where s is 0.
- "tflite", for files of TensorFlow Lite: `y = clip(twice(acc, multiplier[o], shift[o]) + zero_point, …)`, where
  `twice(x, m, s)` rounds two times. The first, `t = (x·m + 2^(30−l)) >> (31−l)` with l = max(s, 0), rounds halves up;
  the second divides t by 2^r, r = max(−s, 0), and rounds halves away from 0: `(t + 2^(r−1) − (t < 0)) >> r`, or t
  itself where r is 0. Zero points of what is read are in the bias.

An `IntegerNode` has no weights. Its operator says what it does:

- Sum: `clip((Σ x[i]·factors[i] + 2^(shift−1)) >> shift)`. With powers of two as factors it needs shifts alone.
- Product: `clip((a·b·factors[0] + 2^(shift−1)) >> shift)`.
- Resample: `clip((Σ rows·columns·x + 2^(shift−1)) >> shift)` with the operator's integer weights.
- Function: `table[x & 255]`, negative numbers in two's complement; of 256 columns, a row for each channel if these
  differ.
- Softmax, uint8: `min(255, (2·n·e + s·2^m) div (2·s·2^m))` with e = table[largest x on the axis − x] and s = Σ e; n
  and m are its factors, or 256 and 0, and n·2^−m are the steps of 1.
- LogSoftmax: `clip(((x − largest)·factors[0] − k·factors[1] + 2^(shift−1)) >> shift)`, where k of the 255 thresholds
  behind the 256 exponentials of its table are at most s, as above.
- Normalise: with the sums s of a box's n elements and q of their squares, `w = max(1, n·q − s² + ε)`, where ε is
  factors[0]·2^factors[1], and z how often w can be multiplied by 4 below 2⁶², `root = ⌊√(w·4^z ÷ 2³²)⌋` and
  `r = 2³⁰ div root`: `clip((((n·x − s)·r·table[0, c] >> (38 − z + shift)) + table[1, c] + 128) >> 8)` with 64-bit
  products. r·2^(z−46) is 1 ÷ √w to four digits.
- MatMul: `clip((Σ a·b · factors[0] + 2^(shift−1)) >> shift)` with a 64-bit product of the sum and its factor.
- MaxPool, Concat and Gather pass values on, clipped; what is outside is 0, or what Gather says of it, or nothing to a
  maximum.
- AveragePool: the sum of what lies in the window and on the map, divided by how many these are, halves away from 0.
- ArgMax: which is the first of the largest along the axis.

In the scheme "tflite" Sum and Product have a row of `factors` for each input, and one for the result, each of an
offset, a multiplier and a shift:

- Sum: `clip(twice(Σ ± twice((x[i] + offset[i]) << shift, m[i], s[i]), m, s) + offset)`.
- Product: `clip(twice((a + offset[0])·(b + offset[1]), m, s) + offset)`.
- Resample rounds halves away from 0 where its operator says so.
- Probabilities, TensorFlow Lite's softmax, is described in `reference`.

No sum overflows int32, in whatever order its terms are added.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from tvmflow.integer.operators import (
    ArgMax,
    Function,
    LogSoftmax,
    MatMul,
    Normalise,
    Operator,
    Probabilities,
    Product,
    Resample,
    Shape,
    Softmax,
    Sum,
)
from tvmflow.integer.window import Window

Scheme = Literal["per-channel", "power-of-two", "tflite"]
ALL_SCHEMES: tuple[Scheme, ...] = get_args(Scheme)
SCHEMES: tuple[Scheme, ...] = ("per-channel", "power-of-two")
"""Those that the quantiser makes; "tflite" comes with the files that have it."""
RANGES = {"int8": (-128, 127), "uint8": (0, 255)}
MAX_SHIFT = 31
SOFTMAX_SCALE = 1 / 256
"""Of the probabilities that Softmax gives."""
THRESHOLDS = 255
"""Of a LogSoftmax: the logarithm of a sum is how many of them it reaches."""
MOST_GAMMA = (1 << 15) - 1
"""Of a Normalise, in units of its table."""
MOST_EPSILON = 1 << 60

Bounds = tuple[int, int]
"""The least and the most that an element of a tensor can be."""


@dataclass(frozen=True, kw_only=True, eq=False)
class IntegerLayer:
    """A convolution (any stride, dilation, groups), a global average pool or a dense layer, with its requantisation.

    `name` is the module that has the weights, `modules` all whose work is done; `inputs` are names of layers, or of the
    network's inputs. `weight` is int8 O×(I/groups)×KH×KW: 1×1 for a dense layer, ones of the map's size for a pool,
    which has as many groups as channels. `bias` is int32 O, in units of the accumulator. `multiplier` and `shift` are
    int32 O; a layer has the one that its network's scheme asks for, or both. `dtype`, `scale` and `zero_point` are of
    the output. `padding` is above, left, below, right; two numbers stand for both sides. Shapes are 1×C×H×W, also those
    of dense layers (1×C×1×1).
    """

    name: str
    modules: tuple[str, ...]
    kind: Literal["conv2d", "pool", "dense"]
    inputs: tuple[str, ...]
    weight: np.ndarray
    bias: np.ndarray
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    multiplier: np.ndarray | None = None
    shift: np.ndarray | None = None
    minimum: int
    maximum: int
    dtype: str
    scale: float
    zero_point: int = 0
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.padding) == 2:
            object.__setattr__(self, "padding", (*self.padding, *self.padding))

    @property
    def factor(self) -> np.ndarray:
        """int32 O: the multipliers or the shifts of the output channels."""
        found = self.multiplier if self.multiplier is not None else self.shift
        assert found is not None
        return found

    @property
    def factors(self) -> tuple[np.ndarray, ...]:
        """int32 O each: by what sums are requantised, multipliers or shifts, or both."""
        return tuple(array for array in (self.multiplier, self.shift) if array is not None)

    @property
    def twice(self) -> bool:
        """Whether the sum is rounded two times, as TensorFlow Lite does."""
        return self.multiplier is not None and self.shift is not None

    @property
    def window(self) -> Window:
        return window_of(self)

    @property
    def input_shapes(self) -> tuple[Shape, ...]:
        return (self.input_shape,)

    @property
    def macs(self) -> int:
        """Multiply-adds for one image; a pool's are additions."""
        return int(np.prod(self.output_shape)) * self.weight[0].size

    @property
    def live_macs(self) -> int:
        """Those of them that read the input and not its border."""
        return self.window.live_taps() * self.output_shape[1] * self.weight.shape[1]

    @property
    def constant_bytes(self) -> int:
        """Bytes of weights, biases and requantisation; a pool's weights, all 1, need not be kept."""
        weight = 0 if self.kind == "pool" else self.weight.nbytes
        return weight + self.bias.nbytes + sum(array.nbytes for array in self.factors)


@dataclass(frozen=True, kw_only=True, eq=False)
class IntegerNode:
    """An operator without weights. `factors` and `table`, int32, are what the module's text says of the operator."""

    name: str
    modules: tuple[str, ...]
    operator: Operator
    inputs: tuple[str, ...]
    factors: np.ndarray | None = None
    shift: int = 0
    table: np.ndarray | None = None
    minimum: int
    maximum: int
    dtype: str
    scale: float
    zero_point: int = 0
    input_shapes: tuple[Shape, ...]
    output_shape: Shape

    @property
    def kind(self) -> str:
        return self.operator.kind

    @property
    def input_shape(self) -> Shape:
        """Of the first input."""
        return self.input_shapes[0]

    @property
    def macs(self) -> int:
        """What isn't multiplied by weights isn't counted, as in float."""
        return 0

    live_macs = macs

    @property
    def constant_bytes(self) -> int:
        """Bytes of its tables and factors."""
        return sum(array.nbytes for array in (self.factors, self.table) if array is not None)


AnyIntegerLayer = IntegerLayer | IntegerNode


def window_of(layer: object) -> Window:
    """Of a layer with weights, integer or float."""
    return Window(
        kernel=layer.weight.shape[2:],  # type: ignore[attr-defined]
        stride=layer.stride,  # type: ignore[attr-defined]
        padding=layer.padding,  # type: ignore[attr-defined]
        dilation=layer.dilation,  # type: ignore[attr-defined]
        size=tuple(layer.input_shape[2:]),  # type: ignore[attr-defined]
    )


def accumulator_range(layer: IntegerLayer, lowest: int, highest: int) -> tuple[np.ndarray, np.ndarray]:
    """Bounds of every partial sum in whatever order, int64 O each, if inputs lie in `lowest`…`highest` (or are 0)."""
    weight = layer.weight.reshape(len(layer.weight), -1).astype(np.int64)
    bias = layer.bias.astype(np.int64)
    ends = np.stack([weight * min(lowest, 0), weight * max(highest, 0)])
    return ends.min(0).sum(1) + bias.clip(None, 0), ends.max(0).sum(1) + bias.clip(0, None)


def problem(layer: AnyIntegerLayer, scheme: Scheme, tensors: Mapping[str, tuple[Shape, Bounds]]) -> str:
    """What is wrong with a layer that reads some of `tensors`, or an empty string."""
    if layer.name in tensors or not layer.inputs or not all(name in tensors for name in layer.inputs):
        return "doesn't read earlier layers, or has another's name"
    limits = RANGES.get(layer.dtype)
    if limits is None or not limits[0] <= layer.minimum < layer.maximum <= limits[1]:
        return f"saturates at {layer.minimum} and {layer.maximum}, which {layer.dtype} can't hold"
    if layer.input_shapes != tuple(tensors[name][0] for name in layer.inputs):
        shapes = [tensors[name][0] for name in layer.inputs]
        return f"reads {list(layer.input_shapes)}, but its inputs have {shapes}"
    bounds = [tensors[name][1] for name in layer.inputs]
    if isinstance(layer, IntegerLayer):
        return _weighted_problem(layer, scheme, bounds)
    return _node_problem(layer, bounds)


def _weighted_problem(layer: IntegerLayer, scheme: Scheme, bounds: list[Bounds]) -> str:
    if len(bounds) != 1:
        return "has weights and doesn't read exactly one layer"
    if layer.weight.dtype != np.int8 or layer.weight.ndim != 4 or layer.bias.dtype != np.int32:
        return "has weights that aren't int8 O×I×KH×KW or biases that aren't int32"
    count, inputs, *kernel = layer.weight.shape
    channels, size = layer.input_shape[1], layer.input_shape[2:]
    extents = layer.window.out_size()
    if layer.output_shape != (1, count, *extents) or min(extents) < 1:
        fitting = (1, count, *extents)
        return f"has shapes {layer.input_shape} → {layer.output_shape}, but {layer.input_shape} → {fitting} fit"
    if inputs * layer.groups != channels or count % layer.groups or layer.bias.shape != (count,):
        return f"has {layer.groups} groups, weights {layer.weight.shape} and {len(layer.bias)} biases, which don't fit"
    if layer.kind == "pool" and not (layer.groups == count == channels and tuple(kernel) == size):
        return "isn't a pool of the whole map"
    biased = layer.bias.any() and scheme != "tflite"
    if layer.kind == "pool" and not (np.all(layer.weight == 1) and not biased and not any(layer.padding)):
        return "is a pool with weights other than 1, with biases or with padding"
    if layer.kind == "dense" and not (tuple(kernel) == size == (1, 1) and layer.groups == 1):
        return "is dense, but its maps aren't single pixels"
    if layer.weight.min() < -127:
        return "has a weight of −128; −127 is the least"
    least, most = accumulator_range(layer, *bounds[0])
    if scheme == "tflite":
        if layer.multiplier is None or layer.shift is None:
            return "needs multipliers and shifts"
        wrong = _twice_problem(layer.multiplier, layer.shift, np.maximum(-least, most))
        if wrong or layer.multiplier.shape != (count,):
            return wrong or "has not as many multipliers as outputs"
    elif scheme == "per-channel":
        multiplier = layer.multiplier
        if layer.shift is not None or multiplier is None:
            return "needs multipliers, and no shifts"
        if (
            multiplier.dtype != np.int32
            or multiplier.shape != (count,)
            or multiplier.min() < 2
            or (multiplier % 2).any()
        ):
            return "has multipliers that aren't positive even int32"
    else:
        shift = layer.shift
        if layer.multiplier is not None or shift is None or layer.dtype != "int8":
            return "needs shifts, no multipliers, and int8 as its output"
        if shift.dtype != np.int32 or shift.shape != (count,) or shift.min() < 0 or shift.max() > MAX_SHIFT:
            return f"has shifts that aren't int32 between 0 and {MAX_SHIFT}"
        most = most + ((1 << shift.astype(np.int64)) >> 1)
    if least.min() < -(2**31) or most.max() >= 2**31:
        return f"could overflow int32: its sums reach {least.min():,} and {most.max():,}"
    return ""


def _twice_problem(multiplier: np.ndarray, shift: np.ndarray, largest: np.ndarray) -> str:
    """What is wrong with rounding sums of up to `largest`, int64, two times."""
    if multiplier.dtype != np.int32 or shift.dtype != np.int32 or multiplier.shape != shift.shape:
        return "has multipliers or shifts that aren't int32, one of each for an output"
    if multiplier.min() < 0 or shift.min() < -MAX_SHIFT or shift.max() >= MAX_SHIFT:
        return f"has negative multipliers, or shifts that aren't between −{MAX_SHIFT} and {MAX_SHIFT - 1}"
    # the shifted sum, and the first rounding's result with half a step of the second
    wide = largest.astype(object) << shift.clip(0, None).astype(object)
    scaled = (wide * multiplier.astype(object) >> 31) + 1 + (1 << (-shift).clip(0, None).astype(object) >> 1)
    if max(wide.max(), scaled.max()) >= 2**31:
        return f"could overflow int32: its scaled sums reach {max(wide.max(), scaled.max()):,}"
    return ""


def _node_problem(node: IntegerNode, bounds: list[Bounds]) -> str:
    operator = node.operator
    try:
        fitting = operator.out_shape(*node.input_shapes)
    except ValueError:  # what can't be broadcast, or a number of inputs that it doesn't take
        fitting = ()
    if not fitting or node.output_shape != fitting:
        return f"makes {node.output_shape} of {list(node.input_shapes)}, which its operator {node.kind} doesn't"
    if not 0 <= node.shift < MAX_SHIFT:
        return f"has a shift of {node.shift}, which isn't between 0 and {MAX_SHIFT - 1}"
    largest = [max(abs(low), abs(high)) for low, high in bounds]
    half = (1 << node.shift) >> 1
    if isinstance(operator, Sum | Product) and node.factors is not None and node.factors.ndim == 2:
        return _rescaled_problem(node, bounds)
    if isinstance(operator, Sum | Product):
        wanted = len(operator.signs) if isinstance(operator, Sum) else 1
        if node.factors is None or node.factors.dtype != np.int32 or node.factors.shape != (wanted,):
            return f"needs {wanted} factors, int32"
        factors = [abs(int(factor)) for factor in node.factors]
        if isinstance(operator, Sum):
            most = sum(factor * value for factor, value in zip(factors, largest, strict=True))
        else:
            most = factors[0] * largest[0] * largest[1]
        if most + half >= 2**31:
            return f"could overflow int32: its sums reach {most + half:,}"
        return ""
    if isinstance(operator, Resample):
        return "" if operator.bits and node.shift == 2 * operator.bits else "has weights that could overflow int32"
    if isinstance(operator, LogSoftmax):
        return _log_softmax_problem(node, operator)
    if isinstance(operator, Normalise):
        return _normalise_problem(node, operator, largest[0])
    if isinstance(operator, MatMul):
        if node.factors is None or node.factors.dtype != np.int32 or node.factors.shape != (1,):
            return "needs 1 factor, int32"
        most = node.input_shapes[0][3] * largest[0] * largest[1]
        return "" if most < 2**31 else f"could overflow int32: its sums reach {most:,}"
    if isinstance(operator, Probabilities):
        if node.table is None or node.table.dtype != np.int32 or node.table.shape != (256,):
            return "needs a table of 256 int32"
        count = node.output_shape[operator.axis]
        fine = node.table.min() >= 0 and node.table[0] > 2**30 and count <= operator.MOST
        return "" if fine else "has a table of exponentials that could overflow int32, or none of 1"
    if isinstance(operator, ArgMax):
        fine = node.dtype == "uint8" and node.input_shapes[0][operator.axis] <= 256
        return "" if fine else "has an index that uint8 can't hold"
    if isinstance(operator, Function | Softmax):
        rows = (node.output_shape[1], 256) if isinstance(operator, Function) else (256,)
        if node.table is None or node.table.dtype != np.int32 or node.table.shape not in ((256,), rows):
            return "needs a table of 256 int32"
        low, high = int(node.table.min()), int(node.table.max())
        if isinstance(operator, Function):
            held = node.minimum <= low and high <= node.maximum
            return "" if held else f"has a table from {low} to {high}, beyond what it saturates at"
        count = node.output_shape[operator.axis]
        if isinstance(operator, Softmax) and node.factors is not None:
            given = node.factors
            if given.dtype != np.int32 or given.shape != (2,) or given[0] < 1 or not 0 <= given[1] < MAX_SHIFT:
                return "needs 2 factors, int32, of which the second is a shift"
        share, bits = shares_of(node)
        most = high * max(2 * share + (count << bits), 2 * count << bits)
        fine = node.table[0] == high and low >= 0 and high > 0 and most < 2**31 and node.dtype == "uint8"
        return "" if fine else "has a table of exponentials that could overflow int32, or no uint8 output"
    return ""


def shares_of(node: IntegerNode) -> tuple[int, int]:
    """The factors n and m of a Softmax."""
    if node.factors is None:
        return round(1 / SOFTMAX_SCALE), 0
    share, bits = node.factors.tolist()
    return share, bits


def _log_softmax_problem(node: IntegerNode, operator: LogSoftmax) -> str:
    table, factors = node.table, node.factors
    if table is None or table.dtype != np.int32 or table.shape != (256 + THRESHOLDS,):
        return f"needs a table of {256 + THRESHOLDS} int32"
    if factors is None or factors.dtype != np.int32 or factors.shape != (2,):
        return "needs 2 factors, int32"
    exponentials, thresholds = table[:256].astype(np.int64), table[256:].astype(np.int64)
    falls = exponentials.min() >= 0 and exponentials.max() == exponentials[0] > 0
    if not falls or exponentials[0] * node.output_shape[operator.axis] >= 2**31 or (np.diff(thresholds) < 0).any():
        return "has a table of exponentials that could overflow int32, or of thresholds that fall"
    most = 255 * sum(abs(int(factor)) for factor in factors) + ((1 << node.shift) >> 1)
    return "" if most < 2**31 else f"could overflow int32: its sums reach {most:,}"


def _normalise_problem(node: IntegerNode, operator: Normalise, largest: int) -> str:
    table, factors = node.table, node.factors
    if table is None or table.dtype != np.int32 or table.shape != (2, node.output_shape[1]):
        return f"needs a table of 2×{node.output_shape[1]} int32"
    if factors is None or factors.dtype != np.int32 or factors.shape != (2,):
        return "needs 2 factors, int32"
    mantissa, exponent = (int(factor) for factor in factors)
    if mantissa < 0 or not 0 <= exponent < MAX_SHIFT or mantissa << exponent >= MOST_EPSILON:
        return "adds an epsilon to its variances that is negative or too large"
    if np.abs(table[0].astype(np.int64)).max() > MOST_GAMMA or np.abs(table[1].astype(np.int64)).max() >= 2**30:
        return "has a table of larger numbers than it can multiply"
    if node.shift > 15:
        return f"has a shift of {node.shift}, which isn't between 0 and 15"
    most = operator.count * largest**2
    return "" if most < 2**31 else f"could overflow int32: its sums reach {most:,}"


def _rescaled_problem(node: IntegerNode, bounds: list[Bounds]) -> str:
    """Of a Sum or Product whose factors are offsets, multipliers and shifts."""
    assert node.factors is not None
    if node.factors.dtype != np.int32 or node.factors.shape != (len(bounds) + 1, 3):
        return f"needs {len(bounds) + 1} rows of an offset, a multiplier and a shift, int32"
    offsets, multipliers, shifts = node.factors.T
    if np.abs(offsets).max() > 256:
        return "has offsets beyond 256"
    largest = [
        max(abs(low + offset), abs(high + offset))
        for (low, high), offset in zip(bounds, offsets.tolist(), strict=False)
    ]
    if isinstance(node.operator, Product):
        total = math.prod(largest)
    else:
        for number, value in enumerate(largest):
            wide, row = np.array([value << node.shift]), slice(number, number + 1)
            if wrong := _twice_problem(multipliers[row], shifts[row], wide):
                return wrong
        total = sum(
            _twice_bound(value << node.shift, int(m), int(s))
            for value, m, s in zip(largest, multipliers, shifts, strict=False)
        )
    if total >= 2**31:
        return f"could overflow int32: its sums reach {total:,}"
    return _twice_problem(multipliers[-1:], shifts[-1:], np.array([total]))


def _twice_bound(value: int, multiplier: int, shift: int) -> int:
    return ((value << max(shift, 0)) * multiplier >> 31 >> max(-shift, 0)) + 2
