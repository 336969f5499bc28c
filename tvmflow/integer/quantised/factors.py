"""Factors of layers as integers: multipliers and shifts by which results are rounded once where that is possible.

`twice` of the scheme "tflite" rounds a product with its multiplier, and once more what it shifts to the right. Here the
multiplier is as small as the factor, so that nothing is left to shift: one rounding, halves upwards, as near to real
numbers as integers come. Files have scales in float32: a factor that is a power of two but for their roundings is that
power, by which halves are rounded as those meant it who chose such scales.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tvmflow.integer.layers import MAX_SHIFT
from tvmflow.integer.tflite.fixed_point import factor
from tvmflow.system.untrusted import MalformedError

NEARLY = 2.0**-21
"""How far a power of two may be off, by its own size: products and quotients of a few numbers of float32 are."""
MOST_WHOLE = 13
"""Shifts of which one makes whole numbers of factors that are meant as such."""
COARSEST = -15
"""The least exponent of a factor that is rounded once; its multiplier has 15 bits, and below they would be too few."""


def snapped(real: float) -> float:
    """A factor, or the power of two that it nearly is."""
    if not 0 < real < math.inf:
        return real
    power = 2.0 ** round(math.log2(real)) if 2.0**-126 < real < 2.0**126 else real
    return power if abs(real / power - 1) <= NEARLY else real


def single(real: float) -> tuple[int, int]:
    """A multiplier and a shift for `twice`. Raises MalformedError."""
    real = snapped(real)
    try:
        if 2.0**COARSEST <= real < 1 and (multiplier := math.floor(real * 2.0**31 + 0.5)) < 1 << 31:
            return multiplier, 0
        return factor(real)
    except ValueError as error:
        raise MalformedError(f"a result is scaled by {error}") from error


def together(reals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Multipliers and shifts, int32, of factors in float64."""
    multipliers, shifts = np.array([single(float(real)) for real in reals], np.int64).T
    return multipliers.astype(np.int32), shifts.astype(np.int32)


def _is_whole(number: float) -> bool:
    return bool(round(number)) and abs(number - round(number)) <= NEARLY * abs(number)


def of_sum(ratios: Sequence[float], largest: Sequence[int]) -> tuple[np.ndarray, int]:
    """Integers and a shift, so that (Σ x·factor + half) >> shift is Σ x·ratio for terms of up to `largest`.

    As fine as int32 allows; whole numbers of a power of two as coarse as they are exact, so that halves are halves.
    """
    ratios = [math.copysign(snapped(abs(ratio)), ratio) for ratio in ratios]
    finest = next(
        (shift for shift in range(MOST_WHOLE) if all(_is_whole(ratio * 2.0**shift) for ratio in ratios)), None
    )
    for shift in range(MAX_SHIFT - 1 if finest is None else finest, -1, -1):
        factors = [round(ratio * 2.0**shift) for ratio in ratios]
        most = sum(abs(factor) * value for factor, value in zip(factors, largest, strict=True))
        if most + (1 << shift >> 1) < 2**31:
            return np.array(factors, np.int32), shift
    raise MalformedError(f"a sum is scaled by {max(map(abs, ratios)):.3g}")
