"""Maps of another size."""

from __future__ import annotations

import math

import numpy as np

from tvmflow.integer.operators import Resample
from tvmflow.integer.tflite.model import FileOperator, FileTensor
from tvmflow.integer.tflite.values import Network, Refused, Value, check_same_steps, check_type, taken
from tvmflow.system.untrusted import MalformedError

FINE = 128
"""Parts of a weight with which kernels of uint8, which compute in float32, are exact."""


def resize_bilinear(network: Network, operator: FileOperator) -> None:
    x, result, size = _resized(network, operator)
    align, half = (bool(operator.integer(name)) for name in ("align_corners", "half_pixel_centers"))
    axes = [bilinear(x.shape[1 + axis], size[axis], align=align, half=half) for axis in (0, 1)]
    less = [int(align and size[axis] > 1) for axis in (0, 1)]
    whole = all((x.shape[1 + axis] - less[axis]) * 1024 % (size[axis] - less[axis]) == 0 for axis in (0, 1))
    if x.dtype == "uint8" and (not whole or any((weights * FINE % 1).any() for _, weights in axes)):
        raise Refused(f"RESIZE_BILINEAR of uint8 with weights that aren't whole parts of {FINE}")
    kind = Resample(rows=axes[0], columns=axes[1], away=True)
    name = network.node(kind, (network.read(x),), result, result.name, shift=2 * kind.bits)
    network.result_of(operator, name, (1, *size, x.shape[3]), result)


def bilinear(length: int, wanted: int, *, align: bool, half: bool) -> tuple[np.ndarray, np.ndarray]:
    """Places and weights, wanted×2; weights are in units of 1/1024, and so is the step from place to place."""
    step = ((1 << 10) * length + wanted // 2) // wanted
    if align and wanted > 1:
        step = ((1 << 10) * (length - 1) + (wanted - 1) // 2) // (wanted - 1)
    at = step * np.arange(wanted, dtype=np.int64)
    if half:
        at = at + step // 2 - (1 << 9)
    first = np.maximum(at >> 10, 0)
    second = np.minimum((at + 1023) >> 10, length - 1)
    first = np.minimum(first, length - 1)
    part = at - (first << 10)
    weights = np.stack([1024 - part, part], 1) / 1024
    return np.stack([first, np.maximum(second, 0)], 1).astype(np.int32), weights


def resize_nearest(network: Network, operator: FileOperator) -> None:
    x, _, size = _resized(network, operator)
    places = network.places(x)
    for axis in (0, 1):
        rows = nearest(
            x.shape[1 + axis],
            size[axis],
            align=bool(operator.integer("align_corners")),
            half=bool(operator.integer("half_pixel_centers")),
        )
        places = taken(places, rows, 1 + axis)
    network.set(operator, network.moved_to(x, places))


def nearest(length: int, wanted: int, *, align: bool, half: bool) -> np.ndarray:
    """Which pixels are taken, computed in float32."""
    one = np.float32(1)
    scale = np.float32(length) / np.float32(wanted)
    if align and wanted > 1:
        scale = np.float32(length - 1) / np.float32(wanted - 1)
    at = (np.arange(wanted, dtype=np.float32) + (one / 2 if half else np.float32(0))) * scale
    found = np.floor(at + one / 2) if align else np.floor(at)
    return np.minimum(found.astype(np.int64), length - 1)


def _resized(network: Network, operator: FileOperator) -> tuple[Value, FileTensor, tuple[int, int]]:
    x, result, size = network.value(operator), network.result(operator), network.integers(operator, 1)
    check_type(result)
    check_same_steps(operator, x, result)
    if len(x.shape) != 4 or x.shape[0] != 1 or not math.prod(x.shape):
        raise Refused(f"{operator.kind} of a batch, or not of a map")
    if len(size) != 2 or min(size) < 1 or size[0] * size[1] * x.shape[3] > 1 << 24:
        raise MalformedError(f"{operator.kind} makes a map of {size}")
    return x, result, (size[0], size[1])


CONVERTERS = {
    "RESIZE_BILINEAR": resize_bilinear,
    "RESIZE_NEAREST_NEIGHBOR": resize_nearest,
}
