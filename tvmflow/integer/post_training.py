"""Post-training quantisation: a FloatGraph and inputs for calibration → integer layers.

1. Observe every layer's outputs on the calibration inputs.
2. Equalise: factors per channel, which ReLU lets through, move range from one layer with weights to the next, where
   nobody else reads what lies between, so that the channels of a tensor, which share a scale, have similar ranges.
3. Tie: what an operator only passes on is in the same steps before and after it; in powers of two, what is added up is
   in steps whose ratios are powers of two.
4. Layer by layer, with the integer layers before it already fixed: choose the output's scale and the weights' scales
   by least mean square error, round, and correct the bias by what rounding and saturation did to the mean. Where a
   layer can't give the steps that its result is tied to, a table of 256 entries converts its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from tvmflow.integer.graph import AnyFloatLayer, FloatGraph, FloatLayer, FloatNode
from tvmflow.integer.layers import (
    MAX_SHIFT,
    MOST_EPSILON,
    MOST_GAMMA,
    RANGES,
    SOFTMAX_SCALE,
    THRESHOLDS,
    AnyIntegerLayer,
    IntegerLayer,
    IntegerNode,
    Scheme,
)
from tvmflow.integer.network import Port, canonical
from tvmflow.integer.operators import (
    TIED,
    Function,
    Gather,
    LogSoftmax,
    MatMul,
    MaxPool,
    Normalise,
    Product,
    Resample,
    Softmax,
    Sum,
)
from tvmflow.integer.reference import accumulate, requantize, run_layer
from tvmflow.spec import UserError

BLOCK = 16
"""Output channels that share a shift in the power-of-two scheme: those that VTA computes at once."""


TINY = 1e-60
"""In place of a range of 0, far below whatever float32 holds and far above what float64 loses in a product of two."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """How to quantise. The defaults are what did best on training images that calibrated nothing (docs/int8.md)."""

    count: int = 512  # calibration images
    seed: int = 0  # which of them, and which of their values are looked at
    balance: float = (
        0.5  # 1 gives all range differences to the weights of the next layer, if they share a scale; 0 none
    )
    block: int = BLOCK
    quantile: float = 0.9995  # of a channel's magnitudes: what counts as its range when channels are equalised
    equalise: bool = True
    correct_bias: bool = True


@dataclass(frozen=True, kw_only=True, eq=False)
class Quantised:
    """Integer layers and the network's ports with their scales.

    `weights` has of each layer with weights these before rounding, `factors` what a channel's real values were divided
    by when channels were equalised, by the names of layers.
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    layers: tuple[AnyIntegerLayer, ...]
    weights: Mapping[str, np.ndarray]
    factors: Mapping[str, np.ndarray]


@dataclass(frozen=True, kw_only=True, eq=False)
class Observed:
    """Of a layer on the calibration inputs: values C×samples as it passes them on, means C of the sums before that."""

    values: np.ndarray
    means: np.ndarray


TOGETHER = 64
"""Images that a layer's sums are computed of at once."""

KEPT_BYTES = 1 << 29
"""Of a layer's sums on all inputs: more are computed twice rather than kept."""

SAMPLES = 4096
"""Values of a channel that are looked at."""

MOST_SHIFT = 20
"""Of a node's factors: more bits than a step of its result could show."""


class Ties:
    """Which tensors belong together: the sets of names, of which each is known by one of its own."""

    def __init__(self) -> None:
        self._of: dict[str, str] = {}

    def find(self, name: str) -> str:
        while (above := self._of.get(name, name)) != name:
            name = above
        return name

    def join(self, names: Iterable[str]) -> None:
        first, *others = map(self.find, names)
        for other in others:
            if other != first:
                self._of[other] = first


def quantize(
    graph: FloatGraph,
    inputs: tuple[np.ndarray, ...],
    scheme: Scheme,
    method: Method,
    inner: frozenset[str] = frozenset(),
) -> Quantised:
    """`inputs` are float32, preprocessed: many of each of the network's. Raises UserError for those that nothing can
    be learnt from. `inner` are layers that give outputs which no user sees, so that they are quantised like others."""
    for array in inputs:
        if not np.isfinite(array).all():
            raise UserError("The network can't be quantised: among the calibration inputs are NaN or infinity.")
        if not array.any():
            raise UserError(
                "The network can't be quantised: all calibration inputs are 0, which doesn't show how large inputs "
                "become."
            )
    observed = observe(graph, inputs, method.seed)
    for layer in graph.layers:
        seen = observed[layer.name]
        if not np.isfinite(seen.values).all() or not np.isfinite(seen.means).all():
            raise UserError(
                f"The network can't be quantised: on the calibration inputs the output of {layer.name} isn't finite."
            )
    factors = {layer.name: np.ones(layer.output_shape[1]) for layer in graph.layers}
    if method.equalise:
        graph, observed, factors = equalise(graph, observed, method)
    made = _Quantiser(graph, inputs, scheme, method, observed, inner)
    for layer in graph.layers:
        made.take(layer)
    outputs = tuple(
        replace(port, source=made.stands[port.source], scale=made.scales[made.stands[port.source]])
        for port in graph.outputs
    )
    given = tuple(replace(port, scale=made.scales[port.name]) for port in graph.inputs)
    return Quantised(inputs=given, outputs=outputs, layers=tuple(made.layers), weights=made.unrounded, factors=factors)


def observe(graph: FloatGraph, inputs: tuple[np.ndarray, ...], seed: int) -> dict[str, Observed]:
    """What the layers' outputs are on `inputs`, by the layers' names."""
    rng = np.random.default_rng(seed)
    count = len(inputs[0])
    batches = max(1, count // 64)
    values: dict[str, list[np.ndarray]] = {layer.name: [] for layer in graph.layers}
    sums: dict[str, list[np.ndarray]] = {layer.name: [] for layer in graph.layers}
    for batch in zip(*(np.array_split(array, batches) for array in inputs), strict=True):
        for layer, before, after in graph.run(graph.tensors_of(batch)):
            flat = after.transpose(0, 1).flatten(1)
            wanted = min(flat.shape[1], -(-SAMPLES // batches))
            values[layer.name].append(flat[:, rng.choice(flat.shape[1], wanted, replace=False)].numpy())
            sums[layer.name].append(before.mean((0, 2, 3), dtype=torch.float64).numpy() * len(batch[0]))
    return {
        name: Observed(values=np.concatenate(parts, 1), means=np.sum(sums[name], 0) / count)
        for name, parts in values.items()
    }


def equalise(
    graph: FloatGraph, observed: Mapping[str, Observed], method: Method
) -> tuple[FloatGraph, dict[str, Observed], dict[str, np.ndarray]]:
    """Divide each channel by a factor and multiply the weights that read it by the same.

    Where the next layer is depthwise its weights have a range per channel anyway, or as good as: there a factor is the
    channel's whole range. Where it sums over channels the factor is range^balance ÷ weights^(1 − balance), the balance
    between the rounding of activations and of weights. Inputs, outputs, and what has several readers or is clamped from
    above stay as they are; pools pass factors on.
    """
    layers, seen = graph.by_name, dict(observed)
    factors = {layer.name: np.ones(layer.output_shape[1]) for layer in graph.layers}
    for layer in graph.layers:
        if not isinstance(layer, FloatLayer) or layer.kind == "pool" or layer.high < math.inf or layer.low > 0:
            continue
        passing, reader = [layer.name], graph.sole_reader(layer.name)
        while reader is not None and _passes(reader):
            passing.append(reader.name)
            reader = graph.sole_reader(reader.name)
        if not isinstance(reader, FloatLayer):
            continue
        after = layers[reader.name]
        assert isinstance(after, FloatLayer)
        factor = _factor(seen[layer.name], after, method)
        own = layers[layer.name]
        assert isinstance(own, FloatLayer)
        layers[layer.name] = replace(own, weight=own.weight / factor[:, None, None, None], bias=own.bias / factor)
        layers[reader.name] = replace(after, weight=after.weight * _by_input(after, factor))
        for name in passing:
            values = (seen[name].values / factor[:, None]).astype(np.float32)
            seen[name] = Observed(values=values, means=seen[name].means / factor)
            factors[name] = factor
    return replace(graph, layers=tuple(layers[layer.name] for layer in graph.layers)), seen, factors


def _passes(layer: AnyFloatLayer) -> bool:
    """Whether a factor of each channel goes through."""
    if isinstance(layer, FloatLayer):
        return layer.kind == "pool"
    return isinstance(layer.operator, MaxPool) and not layer.limited


def _factor(seen: Observed, reader: FloatLayer, method: Method) -> np.ndarray:
    """The channels' factors, with a geometric mean of 1."""
    ranges = np.quantile(np.abs(seen.values), method.quantile, axis=1).astype(np.float64)
    ranges = np.maximum(ranges, ranges.max() * 1e-3 + TINY)  # a channel that is never on
    if not reader.alone:
        weights = _largest_by_input(reader)
        weights = np.maximum(weights, weights.max() * 1e-3 + TINY)
        ranges = ranges**method.balance / weights ** (1 - method.balance)
    return ranges / np.exp(np.log(ranges).mean())


def _by_input(layer: FloatLayer, factor: np.ndarray) -> np.ndarray:
    """A factor per input channel, to be multiplied with the weights."""
    grouped = np.repeat(factor.reshape(layer.groups, -1), layer.output_shape[1] // layer.groups, 0)
    return grouped[:, :, None, None]


def _largest_by_input(layer: FloatLayer) -> np.ndarray:
    """Each input channel's largest weight."""
    outputs, inputs = layer.weight.shape[:2]
    return np.abs(layer.weight).reshape(layer.groups, outputs // layer.groups, inputs, -1).max((1, 3)).ravel()


class _Quantiser:
    """Integer layers, made one after the other; `made` holds what those so far give on the calibration inputs."""

    def __init__(
        self,
        graph: FloatGraph,
        inputs: tuple[np.ndarray, ...],
        scheme: Scheme,
        method: Method,
        observed: Mapping[str, Observed],
        inner: frozenset[str],
    ) -> None:
        self.graph, self.scheme, self.method, self.observed = graph, scheme, method, observed
        self.layers: list[AnyIntegerLayer] = []
        self.unrounded: dict[str, np.ndarray] = {}
        self.scales: dict[str, float] = {}
        self.stands: dict[str, str] = {}  # a tensor → the one that is in the steps that it is tied to
        self.powers: dict[str, np.ndarray] = {}  # mean squares of channels
        self.made: dict[str, np.ndarray] = {}
        self.tied: dict[str, float] = {}  # a set of tensors → its scale
        self.base: dict[str, float] = {}  # a set of tensors that differ by powers of two → the scale of one of them
        self.steps, self.ratios, self.signs = Ties(), Ties(), Ties()
        self.last = {name: layer.name for layer in graph.layers for name in layer.inputs}
        self.outputs = {port.source for port in graph.outputs} - inner
        for layer in graph.layers:
            if isinstance(layer, FloatNode) and isinstance(layer.operator, TIED):
                self.steps.join((layer.name, *layer.inputs))
            if scheme == "power-of-two" and isinstance(layer, FloatNode) and isinstance(layer.operator, Sum):
                self.ratios.join((layer.name, *layer.inputs))
            if layer.kind == "pool" or (isinstance(layer, FloatNode) and isinstance(layer.operator, TIED)):
                self.signs.join((layer.name, *layer.inputs))
        for layer in graph.layers:
            for name in (layer.name, *layer.inputs):
                self.ratios.join((self.steps.find(name), name))
        self.signed = self._signed()
        self._take_inputs(inputs)

    def _signed(self) -> set[str]:
        """The sets of tensors that are int8: those that may be negative, inputs, outputs.

        In powers of two it is all of them but probabilities that no layer with weights reads, which takes int8 there.
        """
        weighted = {name for layer in self.graph.layers if isinstance(layer, FloatLayer) for name in layer.inputs}
        softmax = {layer.name for layer in self.graph.layers if layer.kind == Softmax.kind}
        signed = {self.signs.find(name) for name in {port.name for port in self.graph.inputs} | self.outputs - softmax}
        for layer in self.graph.layers:
            follows = isinstance(layer, FloatNode) and isinstance(layer.operator, TIED) and not _overshoots(layer)
            if layer.name in softmax and not (self.scheme == "power-of-two" and layer.name in weighted):
                continue
            if self.scheme == "power-of-two" or (layer.kind != "pool" and not follows and not self._positive(layer)):
                signed.add(self.signs.find(layer.name))
        return signed

    def _positive(self, layer: AnyFloatLayer) -> bool:
        """Whether a layer gives no negative number, whatever it reads."""
        if isinstance(layer, FloatNode) and isinstance(layer.operator, Function):
            (read,) = layer.inputs
            seen = self.observed.get(read)
            largest = float(np.abs(seen.values).max()) if seen is not None else 128.0
            grid = np.linspace(-largest, largest, 257, dtype=np.float32)
            return bool((_tabulated(layer, grid) >= 0).all())
        return layer.low >= 0 or (isinstance(layer, FloatNode) and isinstance(layer.operator, Softmax))

    def _take_inputs(self, inputs: tuple[np.ndarray, ...]) -> None:
        for port, array in zip(self.graph.inputs, inputs, strict=True):
            group, scale = self.steps.find(port.name), float(np.abs(array).max()) / 127
            self.tied[group] = max(self.tied.get(group, 0.0), scale)
        for port, array in zip(self.graph.inputs, inputs, strict=True):
            name, group = port.name, self.steps.find(port.name)
            scale = self.tied[group] = self._fitting(self.ratios.find(name), self.tied[group])
            shaped = array.reshape(-1, *canonical(port.shape)[1:])
            self.made[name] = np.rint(shaped / scale).clip(-128, 127).astype(np.int8)
            self.powers[name] = np.square(shaped, dtype=np.float64).mean((0, 2, 3))
            self.scales[name], self.stands[name] = scale, name

    def _fitting(self, ratio: str, scale: float) -> float:
        """The next scale from there on that differs from others of its set by powers of two."""
        if self.scheme != "power-of-two":
            return scale
        base = self.base.setdefault(ratio, scale)
        return float(base * 2.0 ** math.ceil(math.log2(scale / base) - 1e-9))

    def take(self, layer: AnyFloatLayer) -> None:
        """Quantise one layer, and forget what nobody reads any more."""
        read = tuple(self.stands[name] for name in layer.inputs)
        layer = replace(layer, inputs=read)
        group = self.steps.find(layer.name)
        dtype = "int8" if self.signs.find(layer.name) in self.signed else "uint8"
        self.powers[layer.name] = np.square(self.observed[layer.name].values, dtype=np.float64).mean(1)
        made: AnyIntegerLayer
        if isinstance(layer, FloatLayer):
            made, x = self._weighted(layer, group, dtype)
        else:
            made, x = self._node(layer, group, dtype)
        self._append(made, x)
        self.stands[layer.name] = made.name
        # probabilities are uint8; in int8 they need a bit less
        wanted = self.tied.setdefault(group, made.scale * (1 if made.dtype == dtype else 2))
        if (made.scale, made.dtype) != (wanted, dtype):
            self._rescale(made, wanted, dtype, layer.name)
        for name, before in zip(layer.inputs, self.graph.by_name[layer.name].inputs, strict=True):
            if self.last[before] == layer.name:
                self.made.pop(name, None)

    def _append(self, made: AnyIntegerLayer, x: np.ndarray) -> None:
        self.layers.append(made)
        self.made[made.name], self.scales[made.name] = x, made.scale

    def _rescale(self, made: AnyIntegerLayer, scale: float, dtype: str, name: str) -> None:
        """A table that converts a tensor into the steps that it is tied to."""
        numbers = np.concatenate([np.arange(128), np.arange(-128, 0)]) if made.dtype == "int8" else np.arange(256)
        low, high = RANGES[dtype]
        table = np.rint(numbers * (made.scale / scale)).clip(low, high).astype(np.int32)
        node = IntegerNode(
            name=f"{made.name}.rescale",
            modules=made.modules,
            operator=Function(),
            inputs=(made.name,),
            table=table,
            minimum=low,
            maximum=high,
            dtype=dtype,
            scale=scale,
            input_shapes=(made.output_shape,),
            output_shape=made.output_shape,
        )
        self._append(node, run_layer(node, self.made.pop(made.name)))
        self.powers[node.name], self.stands[name] = self.powers[name], node.name

    def _weighted(self, layer: FloatLayer, group: str, dtype: str) -> tuple[IntegerLayer, np.ndarray]:
        (read,) = layer.inputs
        x, x_scale = self.made[read], self.scales[read]
        # The largest weight must be no more than 127 steps, of which each is less than half a step of the output.
        least = 2.001 * x_scale * float(np.abs(layer.weight).max()) / (1 if layer.kind == "pool" else 127)
        y_scale = self._scale(layer, group, dtype, least)
        scales = _weight_scales(layer, self.powers[read], self.scheme, x_scale, y_scale, self.method.block)
        made, unrounded = _layer(layer, scales, self.scheme, x_scale, y_scale, dtype)
        # in parts, as what the reference works with is far larger than what comes out
        parts = np.array_split(x, -(-len(x) // TOGETHER))
        few = 4 * len(x) * math.prod(layer.output_shape) <= KEPT_BYTES
        kept: list[np.ndarray] = []
        if self.method.correct_bias and layer.kind != "pool":
            totals = np.zeros(len(layer.weight))
            for part in parts:
                sums = accumulate(made, part)
                totals += sums.sum((0, 2, 3), dtype=np.float64)
                if few:
                    kept.append(sums)
            means = totals / (len(x) * np.prod(layer.output_shape[2:]))
            missing = self.observed[layer.name].means / (x_scale * scales) - means
            bias = _int32(made.bias + missing)
            for sums in kept:
                sums += (bias - made.bias)[:, None, None]
            made = replace(made, bias=bias)
        self.unrounded[layer.name] = unrounded
        found = kept or (accumulate(made, part) for part in parts)
        return made, np.concatenate([requantize(made, sums) for sums in found])

    def _scale(self, layer: AnyFloatLayer, group: str, dtype: str, least: float) -> float:
        """The scale that the layer's result is tied to, if it can have it, else the best that it can have."""
        known = self.tied.get(group)
        if known is not None and known >= least and self._reaches(layer, known):
            return known
        producers = [layer.name]
        if known is None:
            producers = [
                other.name
                for other in self.graph.layers
                if self.steps.find(other.name) == group
                and not (isinstance(other, FloatNode) and isinstance(other.operator, TIED))
            ]
        seen = [(self.observed[name].values, self._importance(name)) for name in producers]
        limits = RANGES[dtype]
        largest = max(float(np.abs(values).max()) for values, _ in seen) / limits[1] + TINY
        candidates = np.maximum(least, largest * 2.0 ** (-np.arange(33) / 8))
        if any(self.steps.find(name) == group for name in self.outputs) and known is None:
            wanted = max(least, largest * 1.05)  # what saturates would be ties
            if not self._chooses(layer):
                return self._fitting(self.ratios.find(group), wanted)
            possible = self._possible(layer, group, candidates, least)
            return float(min((scale for scale in possible if scale >= wanted), default=possible.max()))
        candidates = self._possible(layer, group, candidates, least)
        errors = [
            sum(
                np.square(np.rint(values / scale).clip(*limits) * scale - values).mean(1) @ importance
                for values, importance in seen
            )
            for scale in candidates
        ]
        scale = float(candidates[int(np.argmin(errors))])
        if self.scheme == "power-of-two" and known is None:
            self.base.setdefault(self.ratios.find(group), scale)
        return scale

    def _possible(self, layer: AnyFloatLayer, group: str, candidates: np.ndarray, least: float) -> np.ndarray:
        """Those of the candidates that the scheme lets the layer have."""
        if self.scheme != "power-of-two":
            return candidates
        if layer.kind == "pool":
            assert isinstance(layer, FloatLayer)
            return self.scales[layer.inputs[0]] / layer.weight[0].size * 2.0 ** np.arange(12)
        base = self.base.get(self.ratios.find(group))
        if isinstance(layer, FloatNode) and isinstance(layer.operator, Product | MatMul):
            base = math.prod(self.scales[name] for name in layer.inputs) * getattr(layer.operator, "factor", 1.0)
        if base is None:
            return candidates
        powers = np.unique(np.rint(np.log2(candidates / base)))
        lowest = math.ceil(math.log2(max(least, TINY) / base) - 1e-9)
        if isinstance(layer, FloatNode) and isinstance(layer.operator, Product | MatMul):
            lowest = max(lowest, 0)
        return base * 2.0 ** np.unique(np.maximum(powers, lowest))

    def _chooses(self, layer: AnyFloatLayer) -> bool:
        """Whether the layer's own arithmetic leaves a choice of some scales only."""
        return self.scheme == "power-of-two" and layer.kind in ("pool", Product.kind, MatMul.kind)

    def _reaches(self, layer: AnyFloatLayer, scale: float) -> bool:
        """Whether the layer can give results in these steps."""
        if not self._chooses(layer):
            return True
        ratio = math.log2(scale / math.prod(self.scales[name] for name in layer.inputs))
        if isinstance(layer, FloatLayer):
            ratio += math.log2(layer.weight[0].size)
        elif isinstance(layer.operator, MatMul):
            ratio -= math.log2(layer.operator.factor)
        return abs(ratio - round(ratio)) < 1e-9 and ratio > -1e-9

    def _importance(self, name: str) -> np.ndarray:
        """How much the errors of each channel matter: by the weights that read it, where only such do."""
        count = self.observed[name].values.shape[0]
        readers = self.graph.readers(name)
        energy = np.zeros(count)
        for reader in readers:
            if not isinstance(reader, FloatLayer) or reader.kind == "pool":
                return np.ones(count)
            outputs, inputs = reader.weight.shape[:2]
            squares = np.square(reader.weight).reshape(reader.groups, outputs // reader.groups, inputs, -1)
            energy = energy + squares.sum((1, 3)).ravel()
        return energy if readers else np.ones(count)

    def _node(self, layer: FloatNode, group: str, dtype: str) -> tuple[IntegerNode, np.ndarray]:
        operator, scales = layer.operator, [self.scales[name] for name in layer.inputs]
        values: dict[str, Any] = {}
        if isinstance(operator, Softmax):
            scale, dtype = SOFTMAX_SCALE, "uint8"
            values["table"] = exponentials(scales[0], layer.output_shape[operator.axis])
        elif isinstance(operator, TIED):
            scale = scales[0]
            values["shift"] = 2 * operator.bits if isinstance(operator, Resample) else 0
        else:
            scale = self._scale(layer, group, dtype, 0.0)
        if isinstance(operator, Sum):
            ratios = [sign * given / scale for sign, given in zip(operator.signs, scales, strict=True)]
            most = [_largest(self.made[name].dtype) for name in layer.inputs]
            values["factors"], values["shift"] = _factors(ratios, most, exact=self.scheme == "power-of-two")
        elif isinstance(operator, Product):
            most = [math.prod(_largest(self.made[name].dtype) for name in layer.inputs)]
            ratio = math.prod(scales) / scale
            values["factors"], values["shift"] = _factors([ratio], most, exact=self.scheme == "power-of-two")
        elif isinstance(operator, MatMul):
            ratio = math.prod(scales) * operator.factor / scale
            values["factors"], values["shift"] = _factors(
                [ratio], [1], exact=self.scheme == "power-of-two", longest=MAX_SHIFT - 1
            )
            operator = MatMul()
        elif isinstance(operator, LogSoftmax):
            values |= logarithms(scales[0], scale, layer.output_shape[operator.axis])
        elif isinstance(operator, Normalise):
            values |= normalised(operator, scales[0], scale, layer.output_shape[1])
            operator = Normalise(lengths=operator.lengths)
        low, high = _limits(layer, scale, dtype)
        if isinstance(operator, Gather):
            operator = replace(operator, outside=int(np.rint(operator.outside / scale).clip(*RANGES[dtype])))
        if isinstance(operator, Function):
            x = self.made[layer.inputs[0]]
            numbers = np.concatenate([np.arange(128), np.arange(-128, 0)]) if x.dtype == np.int8 else np.arange(256)
            real = _tabulated(layer, (numbers * scales[0]).astype(np.float32))
            values["table"] = np.rint(real / scale).clip(low, high).astype(np.int32)
            operator = Function()
        made = IntegerNode(
            name=layer.name,
            modules=layer.modules,
            operator=operator,
            inputs=layer.inputs,
            minimum=low,
            maximum=high,
            dtype=dtype,
            scale=scale,
            input_shapes=layer.input_shapes,
            output_shape=layer.output_shape,
            **values,
        )
        count = len(self.made[layer.inputs[0]])
        arrays = [np.array_split(self.made[name], -(-count // TOGETHER)) for name in layer.inputs]
        return made, np.concatenate([run_layer(made, *parts) for parts in zip(*arrays, strict=True)])


def _overshoots(layer: FloatNode) -> bool:
    """Whether an interpolation may give negative numbers of positive ones."""
    operator = layer.operator
    return isinstance(operator, Resample) and any((weights < 0).any() for _, weights in operator.axes)


def _limits(layer: AnyFloatLayer, scale: float, dtype: str) -> tuple[int, int]:
    """Between which integers a layer clamps."""
    low, high = RANGES[dtype]
    if layer.limited:
        first, second = (round(max(low, min(high, limit / scale))) for limit in (layer.low, layer.high))
        low = min(first, high - 1)
        high = max(second, low + 1)
    return low, high


def _largest(dtype: np.dtype) -> int:
    return max(abs(limit) for limit in RANGES[dtype.name])


def _factors(
    ratios: list[float], largest: list[int], *, exact: bool, longest: int = MOST_SHIFT
) -> tuple[np.ndarray, int]:
    """int32 factors and a shift for Σ x·ratio, where |x| ≤ `largest`: the longest ones that keep the sums in int32.

    With `exact` the ratios are powers of two, and the shift is as short as it can be.
    """
    for shift in range(longest) if exact else range(longest, -1, -1):
        factors = [round(ratio * (1 << shift)) for ratio in ratios]
        most = sum(abs(factor) * value for factor, value in zip(factors, largest, strict=True)) + (1 << shift)
        right = not exact or all(abs(f - r * (1 << shift)) < 1e-6 for f, r in zip(factors, ratios, strict=True))
        if most < 2**31 and right:
            return np.array(factors, np.int32), shift
    if exact:
        return _factors(ratios, largest, exact=False, longest=longest)
    raise UserError(
        f"The network can't be quantised: it combines tensors whose steps differ by {max(map(abs, ratios)):.3g}."
    )


def exponentials(scale: float, count: int, share: int = 256, bits: int = 0) -> np.ndarray:
    """int32 e^(−difference), in units that keep the sum of `count` of them, by the factors of a Softmax, in int32."""
    unit = min(1 << 15, (2**31 - 1) // max(2 * share + (count << bits), 2 * count << bits))
    return np.maximum(np.rint(np.exp(-np.arange(256) * scale) * unit), 0).astype(np.int32)


def logarithms(x_scale: float, y_scale: float, count: int) -> dict[str, Any]:
    """The table, the factors and the shift of a LogSoftmax over `count` elements."""
    table = exponentials(x_scale, max(2, count))
    step = math.log(max(2, count)) / THRESHOLDS
    thresholds = table[0] * np.exp((np.arange(THRESHOLDS) + 0.5) * step)
    factors, shift = _factors([x_scale / y_scale, step / y_scale], [THRESHOLDS, THRESHOLDS], exact=False)
    return {
        "table": np.concatenate([table, np.ceil(thresholds).astype(np.int32)]),
        "factors": factors,
        "shift": shift,
    }


def normalised(operator: Normalise, x_scale: float, y_scale: float, channels: int) -> dict[str, Any]:
    """The table, the factors and the shift of a Normalise.

    The factors are the ε that is added to the variance of a box's elements, in steps and times their number's square.
    """
    gamma = np.ones(channels) if operator.gamma is None else operator.gamma
    beta = np.zeros(channels) if operator.beta is None else operator.beta
    epsilon = operator.epsilon * (operator.count / x_scale) ** 2
    shift = next((bits for bits in range(15, -1, -1) if np.abs(gamma / y_scale).max() * 2**bits <= MOST_GAMMA), None)
    if shift is None or np.abs(beta / y_scale).max() >= 2**21 or epsilon >= MOST_EPSILON:
        raise UserError(
            f"The network can't be quantised: a normalisation of steps of {x_scale:.3g} into steps of {y_scale:.3g} "
            f"multiplies by up to {np.abs(gamma).max():.3g} and adds up to {np.abs(beta).max():.3g}."
        )
    exponent = max(0, math.ceil(math.log2(max(epsilon, 1))) - 30)
    table = [np.rint(gamma / y_scale * 2**shift), np.rint(beta / y_scale * 2**8)]
    return {
        "table": np.stack(table).astype(np.int32),
        "factors": np.array([round(epsilon / 2**exponent), exponent], np.int32),
        "shift": shift,
    }


def _tabulated(layer: FloatNode, numbers: np.ndarray) -> np.ndarray:
    """A function's values, float64: of each number, or channels × numbers where channels differ."""
    operator, (_, channels, height, width) = layer.operator, layer.input_shapes[0]
    assert isinstance(operator, Function)
    assert operator.real is not None
    pixels = height * width
    images = -(-len(numbers) // pixels)
    laid = np.resize(numbers, images * pixels).reshape(images, 1, height, width)
    found = operator.real(np.broadcast_to(laid, (images, channels, height, width)))
    rows = found.transpose(1, 0, 2, 3).reshape(channels, -1)[:, : len(numbers)].astype(np.float64)
    largest = float(np.finfo(np.float32).max)
    rows = np.nan_to_num(rows, posinf=largest, neginf=-largest).clip(layer.low, layer.high)
    return rows[0] if (rows == rows[:1]).all() else rows


def _weight_scales(
    layer: FloatLayer, power: np.ndarray, scheme: Scheme, x_scale: float, y_scale: float, block: int
) -> np.ndarray:
    """Per output channel, float64; `power` is the mean square of each input channel, by which its errors count."""
    outputs = len(layer.weight)
    if layer.kind == "pool":
        return np.full(outputs, 1 / layer.weight[0].size)
    weighed = _by_input(layer, power)
    unit = y_scale / x_scale  # of a weight that passes the input's steps on as the output's

    def errors(scales: np.ndarray) -> np.ndarray:
        step = scales[:, None, None, None]
        return (np.square(np.rint(layer.weight / step).clip(-127, 127) * step - layer.weight) * weighed).sum((1, 2, 3))

    largest = np.abs(layer.weight).max((1, 2, 3))
    # A channel of hardly any weight must have neither a bias beyond int32 nor a multiplier of a few bits.
    largest = np.maximum(largest, 127 * np.maximum(np.abs(layer.bias) / x_scale * 2.0**-28, unit * 2.0**-20))
    if scheme == "per-channel":
        candidates = [largest / 127 * (1 - step / 40) for step in range(21)]
        return np.choose(np.argmin([errors(scales) for scales in candidates], 0), candidates)
    scales = np.empty(outputs)
    for first in range(0, outputs, block):
        part = slice(first, first + block)
        highest = np.floor(np.log2(127 * unit / largest[part].max()))
        shifts = [max(0, highest + more) for more in (0, 1, 2)]
        totals = [errors(np.full(outputs, unit * 2.0**-shift))[part].sum() for shift in shifts]
        scales[part] = unit * 2.0 ** -shifts[int(np.argmin(totals))]
    return scales


def _int32(sums: np.ndarray) -> np.ndarray:
    """Rounded; what is too large becomes so large that the network will be refused."""
    return np.rint(sums).clip(-(2**31), 2**31 - 1).astype(np.int32)


def _layer(
    layer: FloatLayer, scales: np.ndarray, scheme: Scheme, x_scale: float, y_scale: float, dtype: str
) -> tuple[IntegerLayer, np.ndarray]:
    """The integer layer with these scales of its weights, and its weights before they were rounded."""
    weight = layer.weight / scales[:, None, None, None]
    ratio = x_scale * scales / y_scale
    low, high = _limits(layer, y_scale, dtype)
    made = IntegerLayer(
        name=layer.name,
        modules=layer.modules,
        kind=layer.kind,
        inputs=layer.inputs,
        weight=np.rint(weight).clip(-127, 127).astype(np.int8),
        bias=_int32(layer.bias / (x_scale * scales)),
        stride=layer.stride,
        padding=layer.padding,
        dilation=layer.dilation,
        groups=layer.groups,
        multiplier=(2 * np.rint(ratio * 2**31)).astype(np.int32) if scheme == "per-channel" else None,
        shift=np.rint(-np.log2(ratio)).astype(np.int32) if scheme == "power-of-two" else None,
        minimum=low,
        maximum=high,
        dtype=dtype,
        scale=y_scale,
        input_shape=layer.input_shape,
        output_shape=layer.output_shape,
    )
    return made, weight
