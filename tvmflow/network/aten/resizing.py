"""Resizing: each output is a weighted sum of few inputs along each axis, with the weights that PyTorch itself uses.

All of PyTorch's interpolations are linear and separable, so along one axis an interpolation is a matrix. It is read
off PyTorch by interpolating the identity matrix with the very arguments of the network: sizes, factors that aren't the
ratio of sizes, half pixels, aligned corners and antialiasing come out as PyTorch has them, rounding included. Rows of
the matrix have few entries, which become tables of a kernel: which inputs, and their weights.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tvmflow.network import resampling
from tvmflow.network.aten.call import Call, Converter, shape_of
from tvmflow.network.resampling import Taps

BESIDE = 4
"""How long the other axes are while one is read off; at length 1, PyTorch's antialiasing reads the wrong elements."""
INSIDE = 2
"""The place on them that has the numbers: no neighbour of it is that place again, as it would be at a border."""


def upsample(call: Call) -> Any:
    """Any of aten's upsample_*: nearest, nearest-exact, linear, cubic and antialiased, in one to three dimensions."""
    import torch

    x, arguments = call.arguments[0], call.named
    spatial = len(shape_of(x)) - 2
    names = [argument.name for argument in call.overload._schema.arguments][1:]
    operator = call.overload._schema.name
    linear = "linear" in operator and not operator.endswith("_aa")

    def along(axis: int) -> Callable[[Any], Any]:
        """The operator as it is along one axis, of rows that lie in a tensor whose other axes aren't resized."""

        def across(place: Any) -> tuple[Any, ...]:
            return (0, slice(None), *(slice(None) if d == axis else place for d in range(spatial)))

        def interpolate(columns: Any) -> Any:
            # Left as it is, a linear axis is read twice at one place, which makes NaN of infinity: it is doubled then.
            doubled = linear and not columns.isfinite().all()
            factor = 2 if doubled else 1
            given = dict(arguments)
            for name in names:
                value = given[name]
                if name in ("output_size", "size") and value is not None:
                    given[name] = [value[d] if d == axis else factor * BESIDE for d in range(spatial)]
                elif name == "scale_factors" and value is not None:
                    given[name] = [value[d] if d == axis else float(factor) for d in range(spatial)]
                elif name.startswith("scales") and value is not None and name != _scale_name(names, axis, spatial):
                    given[name] = float(factor)
            length = columns.shape[2]
            beside = torch.zeros(1, length, *(length if d == axis else BESIDE for d in range(spatial)))
            filled = slice(None) if doubled else slice(INSIDE, INSIDE + 1)
            beside[across(filled)] = columns[0].reshape(length, *(length if d == axis else 1 for d in range(spatial)))
            return call.overload(beside, *(given[name] for name in names))[across(INSIDE)][None]

        return interpolate

    return resample(call, x, [taps(along(axis), shape_of(x), axis + 2) for axis in range(spatial)])


def _scale_name(names: Sequence[str], axis: int, spatial: int) -> str:
    """Which of `scales_d`, `scales_h`, `scales_w` (one dimension: `scales`) is of that axis."""
    return [name for name in names if name.startswith("scales")][-spatial:][axis]


def taps(interpolate: Callable[[Any], Any], shape: Sequence[int], axis: int) -> Taps:
    """Read an axis's matrix off PyTorch.

    Infinity tells which inputs an output reads, for one of weight 0 gives NaN: an input that is infinite in the network
    then does so here as well. An input that is read several times, as at borders, may give NaN though its weights add
    up to something; it gets one more weight, of 0. Shorter rows are filled up by halving their largest weight, which is
    exact.
    """
    import torch

    count = shape[axis]

    def columns(diagonal: float) -> np.ndarray:
        """Outputs × inputs: a channel for each input that isn't 0."""
        eye = torch.zeros(count, count).fill_diagonal_(diagonal)
        return interpolate(eye[None]).reshape(count, -1).T.numpy()

    matrix, infinite = columns(1.0), columns(np.inf)
    rows = []
    for weights_of, reads in zip(matrix, infinite, strict=True):
        row = [(int(at), np.float32(weights_of[at])) for at in np.flatnonzero(~(reads == 0))]
        rows.append(row + [(at, np.float32(0)) for at, weight in row if weight and np.isnan(reads[at])])
    most = max(len(row) for row in rows)
    inputs = np.zeros((len(matrix), most), np.int32)
    weights = np.zeros((len(matrix), most), np.float32)
    for output, row in enumerate(rows):
        while len(row) < most:
            place = max(range(len(row)), key=lambda tap: abs(row[tap][1]))
            at, weight = row[place]
            row[place] = (at, weight / 2)
            row.append((at, weight / 2))
        inputs[output], weights[output] = zip(*row, strict=True)
    return Taps(axis=axis, inputs=inputs, weights=weights)


def resample(call: Call, x: Any, tables: Sequence[Taps]) -> Any:
    """Apply `tables` along their axes."""
    return resampling.resample(functools.partial(call.compute, call.operator), x, tables)


OPERATORS: dict[str, Converter] = {
    **dict.fromkeys(
        (
            "upsample_nearest1d.vec",
            "upsample_nearest2d.vec",
            "upsample_nearest3d.vec",
            "_upsample_nearest_exact1d.vec",
            "_upsample_nearest_exact2d.vec",
            "_upsample_nearest_exact3d.vec",
            "upsample_linear1d.vec",
            "upsample_bilinear2d.vec",
            "upsample_trilinear3d.vec",
            "upsample_bicubic2d.vec",
            "_upsample_bilinear2d_aa.vec",
            "_upsample_bicubic2d_aa.vec",
            "upsample_nearest1d.default",
            "upsample_nearest2d.default",
            "upsample_nearest3d.default",
            "_upsample_nearest_exact1d.default",
            "_upsample_nearest_exact2d.default",
            "_upsample_nearest_exact3d.default",
            "upsample_linear1d.default",
            "upsample_bilinear2d.default",
            "upsample_trilinear3d.default",
            "upsample_bicubic2d.default",
            "_upsample_bilinear2d_aa.default",
            "_upsample_bicubic2d_aa.default",
        ),
        upsample,
    ),
}
