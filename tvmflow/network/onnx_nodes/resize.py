"""Resize and Upsample: along each axis a few taps with fixed places and weights, in ONNX Runtime's float32."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from tvm import relax
from tvm.relax import op

from tvmflow.network.onnx_nodes.node import Node, constant, piece, shape_of
from tvmflow.network.resampling import Taps, resample


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One resized axis: its extents, the scale, and the region of interest of `tf_crop_and_resize`."""

    extent: int
    output: int
    scale: float
    region: tuple[float, float]


class Attributes(Protocol):
    """A node, of which the attributes are asked for alone."""

    def get(self, attribute: str, default: Any = None) -> Any: ...


Coordinates = Callable[[np.ndarray, Axis], np.ndarray]

f = np.float32


def _half_pixel(x: np.ndarray, axis: Axis) -> np.ndarray:
    return (x + f(0.5)) / f(axis.scale) - f(0.5)


def _pytorch_half_pixel(x: np.ndarray, axis: Axis) -> np.ndarray:
    return _half_pixel(x, axis) if axis.output > 1 else np.zeros_like(x)


def _align_corners(x: np.ndarray, axis: Axis) -> np.ndarray:
    return x * f(axis.extent - 1) / f(axis.output - 1) if axis.output > 1 else np.zeros_like(x)


def _asymmetric(x: np.ndarray, axis: Axis) -> np.ndarray:
    return x / f(axis.scale)


def _tf_half_pixel_for_nn(x: np.ndarray, axis: Axis) -> np.ndarray:
    return (x + f(0.5)) / f(axis.scale)


def _half_pixel_symmetric(x: np.ndarray, axis: Axis) -> np.ndarray:
    adjustment = f(axis.output) / (f(axis.scale) * f(axis.extent))
    offset = f(axis.extent) / f(2) * (f(1) - adjustment)
    return offset + _half_pixel(x, axis)


def _tf_crop_and_resize(x: np.ndarray, axis: Axis) -> np.ndarray:
    start, end = map(f, axis.region)
    if axis.output > 1:
        return start * f(axis.extent - 1) + x * (end - start) * f(axis.extent - 1) / f(axis.output - 1)
    return np.full_like(x, f(0.5) * (start + end) * f(axis.extent - 1))


COORDINATES: dict[str, Coordinates] = {
    "half_pixel": _half_pixel,
    "pytorch_half_pixel": _pytorch_half_pixel,
    "align_corners": _align_corners,
    "asymmetric": _asymmetric,
    "tf_half_pixel_for_nn": _tf_half_pixel_for_nn,
    "half_pixel_symmetric": _half_pixel_symmetric,
    "tf_crop_and_resize": _tf_crop_and_resize,
}

NEAREST: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "round_prefer_floor": lambda x: np.ceil(x - f(0.5)),
    "round_prefer_ceil": lambda x: np.floor(x + f(0.5)),
    "floor": np.floor,
    "ceil": np.ceil,
}


def resize(node: Node) -> relax.Expr:
    inputs = (1, 2, 3) if node.opset >= 11 else (9, 1, 9)
    region, scales, sizes = (
        node.constant(index, what) for index, what in zip(inputs, ("roi", "scales", "sizes"), strict=True)
    )
    scales = None if scales is None or not scales.size else scales
    sizes = None if scales is not None or sizes is None or not sizes.size else sizes
    if scales is None and sizes is None:
        raise node.refusal("it has neither scales nor sizes")
    default = "half_pixel" if node.opset >= 11 else "asymmetric"
    nearest = "round_prefer_floor" if node.opset >= 11 else "floor"
    return _resized(
        node,
        node.get("coordinate_transformation_mode", default),
        node.get("nearest_mode", nearest),
        scales,
        sizes,
        region,
    )


def upsample(node: Node) -> relax.Expr:
    scales = node.constant(1, "scales") if node.opset >= 9 else np.array(node.get("scales"), "float32")
    return _resized(node, "asymmetric", "floor", scales, None, None)


def _resized(
    node: Node,
    coordinates: str,
    nearest: str,
    scales: np.ndarray | None,
    sizes: np.ndarray | None,
    region: np.ndarray | None,
) -> relax.Expr:
    shape = node.shape()
    axes = [axis % len(shape) for axis in node.get("axes") or range(len(shape))]
    wanted = axes_of(node, [shape[axis] for axis in axes], scales, sizes, region)
    mode = node.get("mode", "nearest")
    data, outside, tables = node.inputs[0], [], []
    for number, axis in zip(axes, wanted, strict=True):
        crop = coordinates == "tf_crop_and_resize"
        if axis.output == axis.extent and axis.scale == 1 and (not crop or axis.region == (0, 1)):
            continue
        x = COORDINATES[coordinates](np.arange(axis.output, dtype="float32"), axis).astype("float32")
        if crop:
            out = (x < 0) | (x > axis.extent - 1)
            outside.append(out.reshape([-1 if other == number else 1 for other in range(len(shape))]))
        if mode == "nearest":
            places = np.clip(NEAREST[nearest](x), 0, axis.extent - 1).astype("int64")
            data = _taken(node, data, number, places)
        else:
            inputs, weights = taps_of(node, mode, x, axis)
            dtype = "float64" if node.dtype() == "float64" else "float32"
            tables.append(Taps(axis=number, inputs=inputs.astype("int32"), weights=weights.astype(dtype)))
    if tables:
        data = resample(node.kernel, data, tables)
    if any(out.any() for out in outside):
        beyond = np.zeros([1] * len(shape), bool)
        for out in outside:
            beyond = beyond | out
        data = op.where(constant(beyond), node.like(node.get("extrapolation_value", 0.0)), data)
    return data


def axes_of(
    node: Attributes, extents: list[int], scales: np.ndarray | None, sizes: np.ndarray | None, region: np.ndarray | None
) -> list[Axis]:
    count = len(extents)
    if scales is not None or sizes is None:
        factors = [float(value) for value in np.reshape([] if scales is None else scales, -1)]
        outputs = [math.floor(f(extent) * f(factor)) for extent, factor in zip(extents, factors, strict=True)]
    else:
        outputs = [int(value) for value in np.reshape(sizes, -1)]
        factors = [float(f(output) / f(extent)) for output, extent in zip(outputs, extents, strict=True)]
        policy = node.get("keep_aspect_ratio_policy", "stretch")
        if policy != "stretch":
            factor = (min if policy == "not_larger" else max)(factors)
            factors = [factor] * count
            outputs = [math.floor(f(factor) * f(extent) + f(0.5)) for extent in extents]
    regions = [(0.0, 1.0)] * count
    if region is not None and region.size == 2 * count:
        regions = [(float(region[axis]), float(region[axis + count])) for axis in range(count)]
    return [
        Axis(extent=extent, output=output, scale=factor, region=part)
        for extent, output, factor, part in zip(extents, outputs, factors, regions, strict=True)
    ]


def _taken(node: Node, data: relax.Expr, axis: int, places: np.ndarray) -> relax.Expr:
    """Elements at fixed places: by arithmetic where each is repeated, or every so many taken; else by a table."""
    shape = shape_of(data)
    factor = len(places) // shape[axis]
    if len(places) % shape[axis] == 0 and np.array_equal(places, np.repeat(np.arange(shape[axis]), factor)):
        return node.bind(op.repeat(data, factor, axis))
    steps = set(np.diff(places).tolist())
    if len(steps) == 1 and min(steps) > 0:
        return node.bind(piece(data, axis, int(places[0]), int(places[-1]) + 1, int(min(steps))))
    return node.bind(op.take(data, constant(places), axis, mode="clip"))


def taps_of(node: Attributes, mode: str, x: np.ndarray, axis: Axis) -> tuple[np.ndarray, np.ndarray]:
    """Places and weights of what each output is made of, both outputs×taps."""
    coefficient = node.get("cubic_coeff_a", -0.75)
    shrinks = bool(node.get("antialias", 0)) and axis.scale < 1
    stretch = axis.scale if shrinks else 1.0
    reach = (1 if mode == "linear" else 2) / stretch
    if mode == "linear" and not shrinks:
        x = np.clip(x, 0, axis.extent - 1)
    first = np.floor(x.astype("float64") - reach).astype("int64") + 1
    places = first[:, None] + np.arange(math.ceil(2 * reach) + shrinks)
    distance = np.abs((places - x[:, None].astype("float64")) * stretch)
    weights = _triangle(distance) if mode == "linear" else _cubic(distance, coefficient)
    if node.get("exclude_outside", 0):
        weights = np.where((places >= 0) & (places < axis.extent), weights, 0)
    if shrinks or node.get("exclude_outside", 0):
        weights = weights / weights.sum(1, keepdims=True)
    used = weights.any(0)
    return np.clip(places, 0, axis.extent - 1)[:, used], weights[:, used]


def _triangle(distance: np.ndarray) -> np.ndarray:
    return np.maximum(0, 1 - distance)


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0))
