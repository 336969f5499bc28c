"""Post-training quantisation: a chain of float layers and images for calibration → an IntegerNetwork.

1. Observe every layer's outputs on the calibration images.
2. Equalise: factors per channel, which ReLU lets through, move range from one layer to the next, so that the channels
   of a tensor, which share a scale, have similar ranges.
3. Layer by layer, with the integer layers before it already fixed: choose the output's scale and the weights' scales
   by least mean square error, round, and correct the bias by what rounding and saturation did to the mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from tvmflow.integer.chain import FloatLayer, run_float
from tvmflow.integer.network import RANGES, IntegerLayer, Scheme, accumulate, requantize
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
    """Integer layers; for each the weights before rounding, and what a channel's real values were divided by."""

    input_scale: float
    layers: tuple[IntegerLayer, ...]
    weights: tuple[np.ndarray, ...]
    factors: tuple[np.ndarray, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Observed:
    """Of a layer on the calibration images: values C×samples after its ReLU, means C of the sums before it."""

    values: np.ndarray
    means: np.ndarray


TOGETHER = 64
"""Images that a layer's sums are computed of at once."""

SAMPLES = 4096
"""Values of a channel that are looked at."""


def quantize(chain: Sequence[FloatLayer], images: np.ndarray, scheme: Scheme, method: Method) -> Quantised:
    """`images` are float32 N×C×H×W, preprocessed. Raises UserError for those that nothing can be learnt from."""
    if not np.isfinite(images).all():
        raise UserError("The network can't be quantised: among the calibration inputs are NaN or infinity.")
    if not images.any():
        raise UserError(
            "The network can't be quantised: all calibration inputs are 0, which doesn't show how large inputs become."
        )
    observed = observe(chain, images, method.seed)
    for layer, seen in zip(chain, observed, strict=True):
        if not np.isfinite(seen.values).all() or not np.isfinite(seen.means).all():
            raise UserError(
                f"The network can't be quantised: on the calibration inputs the output of {layer.name} isn't finite."
            )
    last = _first_of_the_end(chain)
    factors = [np.ones(layer.output_shape[1]) for layer in chain]
    if method.equalise:
        chain, observed, factors = equalise(chain, observed, method)
    input_scale = float(np.abs(images).max()) / 127
    x, x_scale = np.rint(images / input_scale).clip(-128, 127).astype(np.int8), input_scale
    power = np.square(images, dtype=np.float64).mean((0, 2, 3))
    layers: list[IntegerLayer] = []
    weights: list[np.ndarray] = []
    for index, layer in enumerate(chain):
        after = chain[index + 1] if index + 1 < len(chain) else None
        dtype = "int8" if index >= last else _dtype(layer, scheme, x.dtype.name)
        y_scale = _output_scale(layer, observed[index], after, scheme, x_scale, RANGES[dtype])
        scales = _weight_scales(layer, power, scheme, x_scale, y_scale, method.block)
        made, unrounded = _layer(layer, scales, scheme, x_scale, y_scale, dtype, layers[-1].name if layers else "input")
        # in parts, as what the reference works with is far larger than what comes out
        sums = [accumulate(made, part) for part in np.array_split(x, -(-len(x) // TOGETHER))]
        if method.correct_bias and layer.kind != "pool":
            totals = sum(part.sum((0, 2, 3), dtype=np.float64) for part in sums)
            means = totals / (len(x) * np.prod(layer.output_shape[2:]))
            missing = observed[index].means / (x_scale * scales) - means
            bias = _int32(made.bias + missing)
            for part in sums:
                part += (bias - made.bias)[:, None, None]
            made = replace(made, bias=bias)
        x, x_scale = np.concatenate([requantize(made, part) for part in sums]), y_scale
        power = np.square(observed[index].values, dtype=np.float64).mean(1)
        layers.append(made)
        weights.append(unrounded)
    return Quantised(input_scale=input_scale, layers=tuple(layers), weights=tuple(weights), factors=tuple(factors))


def observe(chain: Sequence[FloatLayer], images: np.ndarray, seed: int) -> list[Observed]:
    """What the layers' outputs are on `images`."""
    rng = np.random.default_rng(seed)
    batches = np.array_split(images, max(1, len(images) // 64))
    values: list[list[np.ndarray]] = [[] for _ in chain]
    sums: list[list[np.ndarray]] = [[] for _ in chain]
    for batch in batches:
        for index, (before, after) in enumerate(run_float(tuple(chain), torch.from_numpy(batch))):
            flat = after.transpose(0, 1).flatten(1)
            wanted = min(flat.shape[1], -(-SAMPLES // len(batches)))
            values[index].append(flat[:, rng.choice(flat.shape[1], wanted, replace=False)].numpy())
            sums[index].append(before.mean((0, 2, 3), dtype=torch.float64).numpy() * len(batch))
    return [
        Observed(values=np.concatenate(parts, 1), means=np.sum(totals, 0) / len(images))
        for parts, totals in zip(values, sums, strict=True)
    ]


def equalise(
    chain: Sequence[FloatLayer], observed: Sequence[Observed], method: Method
) -> tuple[list[FloatLayer], list[Observed], list[np.ndarray]]:
    """Divide each channel by a factor and multiply the weights that read it by the same.

    Where the next layer is depthwise its weights have a range per channel anyway, or as good as: there a factor is the
    channel's whole range. Where it sums over channels the factor is range^balance ÷ weights^(1 − balance), the balance
    between the rounding of activations and of weights. Inputs and logits stay as they are.
    """
    layers, seen = list(chain), list(observed)
    factors = [np.ones(layer.output_shape[1]) for layer in chain]
    for index in range(len(layers) - 1):
        after = layers[index + 1]
        if layers[index].kind == "pool":
            factor = factors[index - 1] if index else factors[index]
        else:
            reads = index + 1 + (after.kind == "pool")  # a pool passes the factor on
            if reads == len(layers):
                break
            factor = _factor(seen[index], layers[reads], method)
            layers[index] = replace(
                layers[index],
                weight=layers[index].weight / factor[:, None, None, None],
                bias=layers[index].bias / factor,
            )
        if after.kind != "pool":
            layers[index + 1] = replace(after, weight=after.weight * _by_input(after, factor))
        seen[index] = Observed(
            values=(seen[index].values / factor[:, None]).astype(np.float32), means=seen[index].means / factor
        )
        factors[index] = factor
    return layers, seen, factors


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


def _dtype(layer: FloatLayer, scheme: Scheme, read: str) -> str:
    if scheme == "power-of-two":
        return "int8"
    if layer.kind == "pool":
        return read
    return "uint8" if layer.relu else "int8"


def _first_of_the_end(chain: Sequence[FloatLayer]) -> int:
    """The number of the layer from which on all is int8, as the network's output is: pools pass a dtype on."""
    last = len(chain) - 1
    while last > 0 and chain[last].kind == "pool":
        last -= 1
    return last


def _output_scale(
    layer: FloatLayer,
    seen: Observed,
    after: FloatLayer | None,
    scheme: Scheme,
    x_scale: float,
    limits: tuple[int, int],
) -> float:
    """The scale of least mean square error, a channel's errors weighed by the weights that read it."""
    largest = float(np.abs(seen.values).max()) / limits[1] + TINY
    # The largest weight must be no more than 127 steps, of which each is less than half a step of the output.
    least = 2.001 * x_scale * float(np.abs(layer.weight).max()) / (1 if layer.kind == "pool" else 127)
    if after is None:
        return max(least, largest * 1.05)  # logits that saturate would be ties
    importance = np.ones(len(seen.values))
    if after.kind != "pool":
        outputs, inputs = after.weight.shape[:2]
        energy = np.square(after.weight).reshape(after.groups, outputs // after.groups, inputs, -1)
        importance = energy.sum((1, 3)).ravel()
    candidates = np.maximum(least, largest * 2.0 ** (-np.arange(33) / 8))
    if layer.kind == "pool" and scheme == "power-of-two":
        candidates = x_scale / layer.weight[0].size * 2.0 ** np.arange(12)
    errors = [
        np.square(np.rint(seen.values / scale).clip(*limits) * scale - seen.values).mean(1) @ importance
        for scale in candidates
    ]
    return float(candidates[int(np.argmin(errors))])


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
    layer: FloatLayer, scales: np.ndarray, scheme: Scheme, x_scale: float, y_scale: float, dtype: str, read: str
) -> tuple[IntegerLayer, np.ndarray]:
    """The integer layer with these scales of its weights, and its weights before they were rounded."""
    weight = layer.weight / scales[:, None, None, None]
    ratio = x_scale * scales / y_scale
    made = IntegerLayer(
        name=layer.name,
        modules=layer.modules,
        kind=layer.kind,
        inputs=(read,),
        weight=np.rint(weight).clip(-127, 127).astype(np.int8),
        bias=_int32(layer.bias / (x_scale * scales)),
        stride=layer.stride,
        padding=layer.padding,
        dilation=layer.dilation,
        groups=layer.groups,
        multiplier=(2 * np.rint(ratio * 2**31)).astype(np.int32) if scheme == "per-channel" else None,
        shift=np.rint(-np.log2(ratio)).astype(np.int32) if scheme == "power-of-two" else None,
        minimum=0 if layer.relu else RANGES[dtype][0],
        maximum=RANGES[dtype][1],
        dtype=dtype,
        scale=y_scale,
        input_shape=layer.input_shape,
        output_shape=layer.output_shape,
    )
    return made, weight
