"""A quantised network as exact integer arithmetic: what every backend has to compute, bit for bit.

All zero points are 0 and padding is with 0. A layer reads int8 or uint8, sums products with its int8 weights in int32,

    acc[o] = Σ x·weight[o] + bias[o],

and requantises to int8 or uint8 by one of two schemes:

- "per-channel", for processors: `y = clip((acc·multiplier[o] + 2³¹) >> 32, minimum, maximum)` with a 64-bit product and
  an arithmetic shift, so that halves are rounded up, towards +∞. The multiplier is 2·round(scale·2³¹), thus even, and
  the scale lies between 0 and ½. One SMMULR does it on Cortex-M4 and M7, SQRDMULH by half the multiplier on NEON.
- "power-of-two", for hardware that only shifts: `y = clip((acc + 2^(s−1)) >> s, minimum, maximum)` with s = shift[o],
  again rounding halves up; nothing is added where s is 0.

`minimum` and `maximum` saturate: they are the range of the output's dtype, or begin at 0 where a ReLU is. No sum
overflows int32, in whatever order its terms are added; that is checked when an `IntegerNetwork` is made.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, overload

import numpy as np

from tvmflow.spec import Preprocessing, UserError
from tvmflow.system import limits, scratch, untrusted
from tvmflow.system.untrusted import MalformedError, UnusableFileError

if TYPE_CHECKING:
    from tvmflow.integer.chain import FloatLayer

Scheme = Literal["per-channel", "power-of-two"]
SCHEMES: tuple[Scheme, ...] = get_args(Scheme)
RANGES = {"int8": (-128, 127), "uint8": (0, 255)}
FORMAT = 1
"""Of the files that `save` writes."""

MAX_SHIFT = 31
BATCH = 16
"""Images that the reference computes at once: few enough for the caches, enough for vectors to be long."""
CACHED = 1 << 16
"""Outputs of a depthwise layer that it computes at once."""

Cut = tuple[int, int, tuple[int, ...]]
"""First output along an axis, how many, and the taps that meet the input there."""


@dataclass(frozen=True, kw_only=True, eq=False)
class IntegerLayer:
    """A convolution (any stride, dilation, groups), a global average pool or a dense layer, with its requantisation.

    `name` is the module that has the weights, `modules` all whose work is done; `inputs` are names of layers, or
    "input". `weight` is int8 O×(I/groups)×KH×KW: 1×1 for a dense layer, ones of the map's size for a pool, which has
    as many groups as channels. `bias` is int32 O, in units of the accumulator. `multiplier` and `shift` are int32 O;
    a layer has the one that its network's scheme asks for. `dtype` and `scale` are of the output: real = q · scale.
    Shapes are 1×C×H×W, also those of dense layers (1×C×1×1).
    """

    name: str
    modules: tuple[str, ...]
    kind: Literal["conv2d", "pool", "dense"]
    inputs: tuple[str, ...]
    weight: np.ndarray
    bias: np.ndarray
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    multiplier: np.ndarray | None = None
    shift: np.ndarray | None = None
    minimum: int
    maximum: int
    dtype: str
    scale: float
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]

    @property
    def factor(self) -> np.ndarray:
        """int32 O: the multipliers or the shifts of the output channels."""
        found = self.multiplier if self.multiplier is not None else self.shift
        assert found is not None
        return found

    @property
    def macs(self) -> int:
        """Multiply-adds for one image; a pool's are additions."""
        return int(np.prod(self.output_shape)) * self.weight[0].size

    @property
    def live_macs(self) -> int:
        """Those of them that read the input and not its border."""
        return live_macs(self)


@dataclass(frozen=True, kw_only=True, eq=False)
class IntegerNetwork:
    """A chain of integer layers, in execution order, and what it was made from.

    The input is int8 of `input_shape` (1×C×H×W), real = q · `input_scale`; the output is int8, real = q ·
    `output_scale`. `facts` say how the network was quantised. Raises UserError if a layer doesn't fit its neighbours or
    the scheme, or could overflow.
    """

    name: str
    scheme: Scheme
    input_shape: tuple[int, ...]
    input_scale: float
    layers: tuple[IntegerLayer, ...]
    preprocessing: Preprocessing | None = None
    labels: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check(self)

    @property
    def output_scale(self) -> float:
        """Real value of one step of the output."""
        return self.layers[-1].scale

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Of `run`'s result for one image: 1×classes after a dense layer, else 1×C×H×W."""
        last = self.layers[-1]
        return last.output_shape[:2] if last.kind == "dense" else last.output_shape

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights, biases and requantisation; a pool's weights, all 1, need not be kept."""
        return sum(
            (0 if layer.kind == "pool" else layer.weight.nbytes) + layer.bias.nbytes + layer.factor.nbytes
            for layer in self.layers
        )

    def quantize_input(self, real: np.ndarray) -> np.ndarray:
        """float32 N×C×H×W → int8: divided by `input_scale` in float64, rounded half to even, saturated."""
        return quantize(real, self.input_scale)

    @overload
    def run(self, q: np.ndarray, keep: Literal[False] = False) -> np.ndarray: ...

    @overload
    def run(self, q: np.ndarray, keep: Literal[True]) -> tuple[np.ndarray, dict[str, np.ndarray]]: ...

    def run(self, q: np.ndarray, keep: bool = False) -> np.ndarray | tuple[np.ndarray, dict[str, np.ndarray]]:
        """int8 N×C×H×W → int8 N×classes (N×C×H×W where the last layer isn't dense).

        With `keep` also every layer's output by its name, N×C×H×W, and the "input" itself. Raises UserError if the
        input is another's.
        """
        batches = list(self._batches(q, keep))
        kept = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
        logits = kept[self.layers[-1].name].reshape(-1, *self.output_shape[1:])
        return (logits, kept) if keep else logits

    def _batches(self, q: np.ndarray, keep: bool) -> Iterator[dict[str, np.ndarray]]:
        if q.dtype != np.int8 or q.shape[1:] != self.input_shape[1:] or not len(q):
            wanted = "×".join(map(str, self.input_shape[1:]))
            raise UserError(f"{self.name} takes int8 N×{wanted}, not {q.dtype} {'×'.join(map(str, q.shape))}.")
        for start in range(0, len(q), BATCH):
            activations = {"input": q[start : start + BATCH]}
            for layer in self.layers:
                activations[layer.name] = run_layer(layer, activations[layer.inputs[0]])
            yield activations if keep else {layer.name: activations[layer.name]}


def quantize(real: np.ndarray, scale: float) -> np.ndarray:
    """Real numbers → int8, rounded half to even and saturated."""
    return np.rint(np.asarray(real, np.float64) / scale).clip(-128, 127).astype(np.int8)


def run_layer(layer: IntegerLayer, x: np.ndarray) -> np.ndarray:
    """N×C×H×W of integers → the layer's output, N×O×OH×OW of its dtype."""
    return requantize(layer, accumulate(layer, x))


def accumulate(layer: IntegerLayer, x: np.ndarray) -> np.ndarray:
    """N×C×H×W, int8 or uint8 → the accumulators with bias, int32 N×O×OH×OW.

    Computed in floating point, whose sums of integers are exact as long as none can leave the significand.
    """
    lowest, highest = accumulator_range(layer, *RANGES[x.dtype.name])
    largest = max(abs(int(lowest.min())), abs(int(highest.max())))
    real: Any = np.float32 if largest <= 2**24 else np.float64
    count, groups = len(x), layer.groups
    outputs, inputs, *kernel = layer.weight.shape
    height, width = layer.output_shape[2:]
    # The batch comes last: long vectors whatever the map's size, and one matrix product for the whole batch.
    planes = x.transpose(1, 2, 3, 0).astype(real).reshape(groups, inputs, *x.shape[2:], count)
    weight = layer.weight.astype(real).reshape(groups, outputs // groups, inputs, *kernel)
    acc = np.empty((groups, outputs // groups, height, width, count), real)
    acc[...] = layer.bias.reshape(groups, -1, 1, 1, 1)
    together = max(1, CACHED // (height * width * count))
    for row, column in np.ndindex(*kernel):
        to_rows, from_rows = _window(layer, 0, row, x.shape[2], height)
        to_columns, from_columns = _window(layer, 1, column, x.shape[3], width)
        if to_rows.start == to_rows.stop or to_columns.start == to_columns.stop:
            continue
        for first in range(0, groups, together):
            some = slice(first, first + together)
            part = planes[some, :, from_rows, from_columns]
            tap = weight[some, ..., row, column]
            if inputs == 1:
                products = tap[..., None, None] * part
            else:
                products = (tap @ part.reshape(len(part), inputs, -1)).reshape(len(part), -1, *part.shape[2:])
            acc[some, :, to_rows, to_columns] += products
    return np.ascontiguousarray(acc.reshape(outputs, height, width, count).transpose(3, 0, 1, 2)).astype(np.int32)


def cuts(layer: IntegerLayer | FloatLayer, axis: int) -> list[Cut]:
    """The outputs along an axis, cut where the set of taps that meet the input changes."""
    found: list[Cut] = []
    for out in range(layer.output_shape[2 + axis]):
        first = out * layer.stride[axis] - layer.padding[axis]
        taps = tuple(
            tap
            for tap in range(layer.weight.shape[2 + axis])
            if 0 <= first + tap * layer.dilation[axis] < layer.input_shape[2 + axis]
        )
        if found and found[-1][2] == taps:
            found[-1] = (found[-1][0], found[-1][1] + 1, taps)
        else:
            found.append((out, 1, taps))
    return found


def live_macs(layer: IntegerLayer | FloatLayer) -> int:
    """Multiply-adds for one image that read the input and not its border."""
    taps = [sum(count * len(live) for _, count, live in cuts(layer, axis)) for axis in (0, 1)]
    return int(np.prod(layer.output_shape[:2])) * layer.weight.shape[1] * int(np.prod(taps))


def _window(layer: IntegerLayer, axis: int, tap: int, size: int, out_size: int) -> tuple[slice, slice]:
    """Where the outputs are for which this tap lies on the map, and the inputs that it reads there."""
    stride, offset = layer.stride[axis], tap * layer.dilation[axis] - layer.padding[axis]
    first = max(0, -(offset // stride))
    count = max(0, min(out_size, (size - 1 - offset) // stride + 1) - first)
    start = first * stride + offset
    return slice(first, first + count), slice(start, start + count * stride, stride)


def requantize(layer: IntegerLayer, acc: np.ndarray) -> np.ndarray:
    """int32 N×O×… → the output of the layer's dtype, scaled, rounded and saturated."""
    wide = acc.astype(np.int64)
    per_channel = (-1, *[1] * (acc.ndim - 2))
    if layer.multiplier is not None:
        wide *= layer.multiplier.reshape(per_channel)
        wide += 1 << 31
        wide >>= 32
    else:
        assert layer.shift is not None
        shift = layer.shift.astype(np.int64).reshape(per_channel)
        wide += (1 << shift) >> 1
        wide >>= shift
    return wide.clip(layer.minimum, layer.maximum).astype(layer.dtype)


def accumulator_range(layer: IntegerLayer, lowest: int, highest: int) -> tuple[np.ndarray, np.ndarray]:
    """Bounds of every partial sum in whatever order, int64 O each, if inputs lie in `lowest`…`highest` (or are 0)."""
    weight = layer.weight.reshape(len(layer.weight), -1).astype(np.int64)
    bias = layer.bias.astype(np.int64)
    ends = np.stack([weight * min(lowest, 0), weight * max(highest, 0)])
    return ends.min(0).sum(1) + bias.clip(None, 0), ends.max(0).sum(1) + bias.clip(0, None)


def _check(network: IntegerNetwork) -> None:
    if network.scheme not in SCHEMES:
        raise UserError(f"{network.name} has the scheme {network.scheme!r}; there are {', '.join(SCHEMES)}.")
    if not network.layers:
        raise UserError(f"{network.name} has no layers.")
    outputs = {"input": (network.input_shape, *RANGES["int8"])}
    for layer in network.layers:
        if problem := _problem(layer, network.scheme, outputs):
            raise UserError(f"Layer {layer.name} of {network.name} {problem}.")
        outputs[layer.name] = (layer.output_shape, layer.minimum, layer.maximum)
    if network.layers[-1].dtype != "int8":
        raise UserError(f"The output of {network.name} is {network.layers[-1].dtype} instead of int8.")
    if not all(np.isfinite(scale) and scale > 0 for scale in (network.input_scale, network.output_scale)):
        raise UserError(f"The scales of {network.name}'s input and output aren't positive.")


def _problem(layer: IntegerLayer, scheme: Scheme, outputs: Mapping[str, tuple[tuple[int, ...], int, int]]) -> str:
    """What is wrong with a layer, or an empty string."""
    count, inputs, *kernel = layer.weight.shape
    if len(layer.inputs) != 1 or layer.inputs[0] not in outputs or layer.name in outputs:
        return "doesn't read exactly one earlier layer, or has another's name"
    shape, lowest, highest = outputs[layer.inputs[0]]
    if layer.weight.dtype != np.int8 or layer.weight.ndim != 4 or layer.bias.dtype != np.int32:
        return "has weights that aren't int8 O×I×KH×KW or biases that aren't int32"
    extents = [
        (size + 2 * padding - dilation * (taps - 1) - 1) // stride + 1
        for size, padding, dilation, taps, stride in zip(
            shape[2:], layer.padding, layer.dilation, kernel, layer.stride, strict=True
        )
    ]
    if layer.input_shape != shape or layer.output_shape != (1, count, *extents) or min(extents) < 1:
        return f"has shapes {layer.input_shape} → {layer.output_shape}, but {shape} → {(1, count, *extents)} fit"
    if inputs * layer.groups != shape[1] or count % layer.groups or layer.bias.shape != (count,):
        return f"has {layer.groups} groups, weights {layer.weight.shape} and {len(layer.bias)} biases, which don't fit"
    if layer.kind == "pool" and not (layer.groups == count == shape[1] and tuple(kernel) == shape[2:]):
        return "isn't a pool of the whole map"
    if layer.kind == "pool" and not (np.all(layer.weight == 1) and not layer.bias.any() and layer.padding == (0, 0)):
        return "is a pool with weights other than 1, with biases or with padding"
    if layer.kind == "dense" and not (tuple(kernel) == shape[2:] == (1, 1) and layer.groups == 1):
        return "is dense, but its maps aren't single pixels"
    if layer.weight.min() < -127:
        return "has a weight of −128; −127 is the least"
    limits = RANGES.get(layer.dtype)
    if limits is None or not limits[0] <= layer.minimum < layer.maximum <= limits[1]:
        return f"saturates at {layer.minimum} and {layer.maximum}, which {layer.dtype} can't hold"
    least, most = accumulator_range(layer, lowest, highest)
    if scheme == "per-channel":
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


ARRAYS = ("weight", "bias", "multiplier", "shift")

MAX_MAP_ELEMENTS = 1 << 24
"""Of a layer's input or output: what a file says is allocated, and no board that runs integers holds more."""


def _schema() -> dict[str, Any]:
    """What a file says beside its arrays."""
    text: dict[str, Any] = {"type": "string", "maxLength": 1000, "pattern": r"^[^\x00-\x1f\x7f-\x9f]*\Z"}
    texts: dict[str, Any] = {"type": "array", "items": text}
    numbers: dict[str, Any] = {"type": "array", "items": {"type": "number"}, "minItems": 1}
    size: dict[str, Any] = {"type": "integer", "minimum": 1, "maximum": 1 << 16}
    shape: dict[str, Any] = {"type": "array", "prefixItems": [{"const": 1}], "items": size}
    shape |= {"minItems": 4, "maxItems": 4}
    pair: dict[str, Any] = {"type": "array", "items": size, "minItems": 2, "maxItems": 2}
    layer: dict[str, Any] = {
        "name": text,
        "modules": texts,
        "kind": {"enum": ["conv2d", "pool", "dense"]},
        "inputs": texts,
        "stride": pair,
        "padding": {**pair, "items": {**size, "minimum": 0}},
        "dilation": pair,
        "groups": size,
        "minimum": {"type": "integer"},
        "maximum": {"type": "integer"},
        "dtype": {"enum": list(RANGES)},
        "scale": {"type": "number", "exclusiveMinimum": 0},
        "input_shape": shape,
        "output_shape": shape,
    }
    optional = ("stride", "padding", "dilation", "groups")
    network: dict[str, Any] = {
        "name": text,
        "scheme": {"enum": list(SCHEMES)},
        "input_shape": shape,
        "input_scale": {"type": "number", "exclusiveMinimum": 0},
        "layers": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": [key for key in layer if key not in optional],
                "properties": layer,
                "additionalProperties": False,
            },
        },
        "preprocessing": {
            "type": ["object", "null"],
            "required": ["mean", "std"],
            "properties": {"mean": numbers, "std": {**numbers, "items": {"type": "number", "exclusiveMinimum": 0}}},
        },
        "labels": texts,
        "facts": {"type": "object", "properties": {"sqnr_db": {"type": "object"}}},
    }
    return {
        "type": "object",
        "required": ["name", "scheme", "input_shape", "input_scale", "layers", "preprocessing"],
        "properties": network,
        "additionalProperties": False,
    }


SCHEMA = untrusted.Schema(_schema)


def save(network: IntegerNetwork, path: Path) -> None:
    """Write a safetensors file: the arrays as LAYER.weight, …, all else as JSON in its metadata. Atomic."""
    from safetensors.numpy import save as to_bytes

    layers = [{key: value for key, value in vars(layer).items() if key not in ARRAYS} for layer in network.layers]
    content = {**vars(network), "format": FORMAT, "layers": layers}
    if network.preprocessing is not None:
        content["preprocessing"] = dataclasses.asdict(network.preprocessing)
    arrays = {
        f"{layer.name}.{key}": np.ascontiguousarray(getattr(layer, key))
        for layer in network.layers
        for key in ARRAYS
        if getattr(layer, key) is not None and not (layer.kind == "pool" and key == "weight")
    }
    with scratch.replacing(path) as made:
        made.write_bytes(to_bytes(arrays, {"tvmflow": json.dumps(content, ensure_ascii=False, sort_keys=True)}))


def load(path: Path) -> IntegerNetwork:
    """Read what `save` wrote. Raises UserError."""
    metadata, arrays = untrusted.read_tensors(path)
    try:
        content = untrusted.parse_json(metadata.get("tvmflow", "{}"), limits.MANIFEST, non_finite=True)
        if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
            raise UnusableFileError(path, "is no quantised network of this version of tvmflow")
        SCHEMA.check(content)
        layers = tuple(_layer(fields, arrays) for fields in content.pop("layers"))
        given = content.pop("preprocessing")
        preprocessing = given and Preprocessing(mean=tuple(given["mean"]), std=tuple(given["std"]))
        return IntegerNetwork(**_tuples(content), layers=layers, preprocessing=preprocessing)
    except MalformedError as error:
        raise UnusableFileError(path, f"is damaged: {error}", "quantise the network again") from error


def _layer(fields: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> IntegerLayer:
    found = {key: arrays.get(f"{fields['name']}.{key}") for key in ARRAYS}
    for key in ("input_shape", "output_shape"):
        if (elements := math.prod(fields[key])) > MAX_MAP_ELEMENTS:
            raise MalformedError(
                f"the {key} of {untrusted.shown(fields['name'])} has {elements:,} elements of {MAX_MAP_ELEMENTS:,}"
            )
    if fields["kind"] == "pool":
        _, channels, height, width = fields["input_shape"]
        found["weight"] = np.ones((channels, 1, height, width), np.int8)
    for key, kind, ndim in (("weight", np.int8, 4), ("bias", np.int32, 1)):
        array = found[key]
        if array is None or array.dtype != kind or array.ndim != ndim or not array.size:
            raise MalformedError(
                f"the {key} of {untrusted.shown(fields['name'])} is no array of {np.dtype(kind)} of {ndim} dimensions"
            )
    return IntegerLayer(**_tuples(fields), **found)  # type: ignore[arg-type]


def _tuples(fields: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
