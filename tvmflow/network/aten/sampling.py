"""Sampling at computed places: grid_sample in two and three dimensions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

from tvmflow.network.aten.arithmetic import fmod_of
from tvmflow.network.aten.call import Call, Converter, shape_of

BILINEAR, NEAREST, BICUBIC = range(3)
ZEROS, BORDER, REFLECTION = range(3)
CUBIC = -0.75
"""The coefficient a of PyTorch's cubic convolution."""


def grid_sample(call: Call) -> Any:
    """Coordinates of −1 to 1 span the map; what lies outside is 0, the border, or a reflection.

    As in PyTorch's GridSampler, corner by corner; NaN among the coordinates is taken for −1.
    """
    from tvm import relax, te, tirx

    x, grid, interpolation, padding, aligned = call.arguments
    sizes = shape_of(x)[2:]
    spatial = len(sizes)

    def number(value: float) -> Any:
        return tirx.const(value, "float32")

    def unnormalised(coordinate: Any, size: int) -> Any:
        if aligned:
            return (coordinate + number(1)) / number(2) * number(size - 1)
        return ((coordinate + number(1)) * number(size) - number(1)) / number(2)

    def bounded(coordinate: Any, size: int) -> Any:
        """Within the map; the first place that isn't NaN."""
        clipped = tirx.Select(coordinate > number(0), coordinate, number(0))
        return tirx.Select(clipped < number(size - 1), clipped, number(size - 1))

    def reflected(coordinate: Any, size: int) -> Any:
        low, high = (0, 2 * (size - 1)) if aligned else (-1, 2 * size - 1)
        if low == high:
            return number(0) * coordinate
        minimum, span = number(low / 2), number((high - low) / 2)
        distance = tirx.abs(coordinate - minimum)
        rest = fmod_of(distance, span)
        flips = tirx.floor(distance / span)
        odd = fmod_of(flips, number(2)) != number(0)
        return tirx.Select(odd, span - rest + minimum, rest + minimum)

    def placed(coordinate: Any, size: int) -> Any:
        if padding == REFLECTION:
            coordinate = reflected(coordinate, size)
        return coordinate if padding == ZEROS else bounded(coordinate, size)

    def read(x: Any, n: Any, channel: Any, places: Sequence[Any]) -> Any:
        """The element at whole coordinates, 0 off the map; compared as floats, which may be huge or NaN."""
        inside = tirx.all(
            *(
                tirx.all(place >= number(0), place <= number(size - 1))
                for place, size in zip(places, sizes, strict=True)
            )
        )
        at = [
            tirx.Select(tirx.all(place >= number(0), place <= number(size - 1)), place, number(0)).astype("int32")
            for place, size in zip(places, sizes, strict=True)
        ]
        return tirx.if_then_else(inside, x[(n, channel, *at)], tirx.const(0, x.dtype))

    def cubic(distance: Any) -> list[Any]:
        """Weights of the four neighbours at 1 + d, d, 1 − d, 2 − d."""
        a = CUBIC

        def near(d: Any) -> Any:
            return (number(a + 2) * d - number(a + 3)) * d * d + number(1)

        def far(d: Any) -> Any:
            return ((number(a) * d - number(5 * a)) * d + number(8 * a)) * d - number(4 * a)

        one = number(1)
        return [far(distance + one), near(distance), near(one - distance), far(number(2) - distance)]

    def along(grid: Any, axis: int) -> list[Any]:
        size, points = sizes[axis], grid.shape[:-1]

        def raw(*point: Any) -> Any:
            return unnormalised(grid(*point, spatial - 1 - axis).astype("float32"), size)

        if interpolation != BICUBIC:
            return [te.compute(points, lambda *point: placed(raw(*point), size), name="places")]
        whole = te.compute(points, raw, name="coordinates")

        def neighbour(step: int) -> list[Any]:
            def place(*point: Any) -> Any:
                return placed(tirx.floor(whole(*point)) + number(step - 1), size)

            def weight(*point: Any) -> Any:
                return cubic(whole(*point) - tirx.floor(whole(*point)))[step]

            return [te.compute(points, place, name="places"), te.compute(points, weight, name="weights")]

        return [tensor for step in range(4) for tensor in neighbour(step)]

    def locate(grid: Any) -> list[Any]:
        """Coordinates along each axis; if cubic, the places of four neighbours, each with its weight."""
        return [tensor for axis in range(spatial) for tensor in along(grid, axis)]

    def choices(located: Sequence[Any], point: Sequence[Any]) -> list[list[tuple[Any, Any]]]:
        """Along each axis: whole places to read at, each with its weight."""
        values = [tensor(*point) for tensor in located]
        if interpolation == BICUBIC:
            pairs = list(zip(values[::2], values[1::2], strict=True))
            return [pairs[4 * axis : 4 * axis + 4] for axis in range(spatial)]
        if interpolation == NEAREST:
            return [[(tirx.nearbyint(value), number(1))] for value in values]
        lower = [tirx.floor(value) for value in values]
        return [
            [(floor, floor + number(1) - value), (floor + number(1), value - floor)]
            for floor, value in zip(lower, values, strict=True)
        ]

    def sample(x: Any, *located: Any) -> Any:
        def value(n: Any, channel: Any, *at: Any) -> Any:
            total: Any = number(0)
            for corner in itertools.product(*choices(located, (n, *at))):
                element = read(x, n, channel, [place for place, _ in corner])
                if interpolation == NEAREST:
                    return element
                weights = [weight for _, weight in corner]
                total = total + element.astype("float32") * math.prod(weights[1:], start=weights[0])
            return total.astype(x.dtype)

        return te.compute(call.shape, value, name="grid_sample")

    located = call.compute("locate", locate, grid, apart=True)
    count = spatial * (8 if interpolation == BICUBIC else 1)
    parts = [call.emit(relax.TupleGetItem(located, index)) for index in range(count)]
    return call.compute("grid_sample", sample, x, *parts)


OPERATORS: dict[str, Converter] = {
    "grid_sampler_2d.default": grid_sample,
    "grid_sampler_3d.default": grid_sample,
}
