"""TensorFlow Lite's arithmetic in integers: factors as multipliers and shifts, and its functions of one int8.

Each was found by comparing all that it can be asked with the interpreter of TensorFlow Lite for Microcontrollers. A
number "of k bits" is one in int32 whose fraction has 31 − k of them. Functions are tables of 256, so that however they
are rounded, a table has it exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from tvmflow.integer.reference import halves_away, reciprocal, twice, twice_reciprocal

LARGEST = (1 << 31) - 1
EXP_BITS = 5
"""Whole bits of the numbers that exponentials are taken of."""
CURVE_BITS = 4
"""Whole bits of the arguments of the logistic function and of tanh."""


def factor(real: float) -> tuple[int, int]:
    """A multiplier between 2³⁰ and 2³¹ and a shift: real ≈ multiplier · 2^(shift − 31). 0 for what is too small.

    Raises ValueError if it is negative or too large.
    """
    if not 0 <= real < 2.0**30:
        raise ValueError(f"{real}")
    fraction, shift = math.frexp(real)
    multiplier = math.floor(fraction * 2.0**31 + 0.5)
    if multiplier == 1 << 31:
        multiplier, shift = multiplier // 2, shift + 1
    return (multiplier, shift) if shift >= -31 and multiplier else (0, 0)


def table(of: Callable[[np.ndarray], np.ndarray], minimum: int, maximum: int, signed: bool = True) -> np.ndarray:
    """int32: `of` all 256 values, clipped, by their bits: 0…127, then −128…−1, or 128…255 of what isn't `signed`."""
    values = np.arange(256, dtype=np.int64)
    if signed:
        values = values.astype(np.int8).astype(np.int64)
    return of(values).clip(minimum, maximum).astype(np.int32)


def rescaled(real: float, zero: int, new_zero: int) -> Callable[[np.ndarray], np.ndarray]:
    """q of one scale → of another, `real` times as large a step."""
    multiplier, shift = factor(real)
    return lambda q: twice(q - zero, multiplier, shift) + new_zero


def in_floats(scale: float, zero: int, new_scale: float, new_zero: int) -> Callable[[np.ndarray], np.ndarray]:
    """q of one scale → of another, as concatenations of uint8 compute it: in float32, halves away from 0."""
    step = np.float32(scale) * (np.float32(1) / np.float32(new_scale))
    begin = np.float32(-zero) * step

    def of(q: np.ndarray) -> np.ndarray:
        real = q.astype(np.float32) * step + begin
        return (np.sign(real) * np.floor(np.abs(real) + np.float32(0.5))).astype(np.int64) + new_zero

    return of


def leaky(above: float, below: float, zero: int, new_zero: int, slope: int = 1) -> Callable[[np.ndarray], np.ndarray]:
    """`above` times what is 0 or more, `below` times `slope` times what is less."""
    first, second = factor(above), factor(below)
    return lambda q: np.where(q >= zero, twice(q - zero, *first), twice((q - zero) * slope, *second)) + new_zero


def exponentials(scale: float) -> np.ndarray:
    """int32 256: exp(−d · scale) of 0 bits, and 0 where it is too small to be computed."""
    multiplier, shift = factor(min(scale * 2.0 ** (31 - EXP_BITS), float(LARGEST)))
    distance = np.arange(256, dtype=np.int64)
    found = exp_of_negative(twice(-distance, multiplier, shift).clip(-(1 << 31), 0), EXP_BITS)
    return np.where(distance <= reach(EXP_BITS, shift), found, 0).astype(np.int32)


def reach(bits: int, shift: int) -> int:
    """How far from 0 numbers may lie that a factor of this shift makes numbers of so many bits of."""
    return math.floor(((1 << bits) - 1) * 2.0 ** (31 - bits) / 2.0**shift)


def exp_of_negative(a: np.ndarray, bits: int) -> np.ndarray:
    """exp(a) of 0 bits for a ≤ 0 of so many: by a polynomial below a quarter, times powers for each higher bit."""
    quarter = 1 << (31 - bits - 2)
    rest = (a & (quarter - 1)) - quarter
    result = _exp_of_quarter(rest << bits)
    left = rest - a
    for power in range(-2, bits):
        product = twice(result, round(math.exp(-(2.0**power)) * 2.0**31), 0)
        result = np.where(left & (1 << (31 - bits + power)), product, result)
    return np.where(a == 0, LARGEST, result)


def _exp_of_quarter(a: np.ndarray) -> np.ndarray:
    """exp(a) for −¼ ≤ a < 0: the series round −⅛ to the fourth power."""
    middle = round(math.exp(-1 / 8) * 2**31)
    x = a + (1 << 28)
    square = twice(x, x, 0)
    cube, fourth = twice(square, x, 0), twice(square, square, 0)
    rest = twice(halves_away(fourth, 2) + cube, round(2**31 / 3), 0) + square
    return np.minimum(middle + twice(x + halves_away(rest, 1), middle, 0), LARGEST)


def logistic(scale: float, zero: int) -> Callable[[np.ndarray], np.ndarray]:
    """1 ÷ (1 + exp(−x)), in steps of 1/256 from −128 on."""

    def of(q4: np.ndarray) -> np.ndarray:
        positive = reciprocal(exp_of_negative(-np.abs(q4), CURVE_BITS))
        found = np.where(q4 > 0, positive, LARGEST - positive)
        return halves_away(np.where(q4 == 0, 1 << 30, found), 23)

    return _curve(of, scale, zero, low=0, high=256, offset=-128)


def tanh(scale: float, zero: int) -> Callable[[np.ndarray], np.ndarray]:
    """In steps of 1/128."""

    def of(q4: np.ndarray) -> np.ndarray:
        # twice the argument is the same number with one whole bit more
        x = exp_of_negative(-np.abs(q4), CURVE_BITS + 1)
        found = np.minimum((twice_reciprocal(x) - (1 << 29)) << 2, LARGEST)
        return halves_away(np.where(q4 == 0, 0, np.sign(q4) * found), 24)

    return _curve(of, scale, zero, low=-128, high=128, offset=0)


def _curve(
    of: Callable[[np.ndarray], np.ndarray], scale: float, zero: int, *, low: int, high: int, offset: int
) -> Callable[[np.ndarray], np.ndarray]:
    multiplier, shift = factor(scale * 2.0 ** (31 - CURVE_BITS))
    radius = reach(CURVE_BITS, shift)

    def found(q: np.ndarray) -> np.ndarray:
        x = q - zero
        inside = of(twice(x.clip(-radius, radius), multiplier, shift).clip(-(1 << 31), LARGEST))
        return np.where(x <= -radius, low, np.where(x >= radius, high, inside)) + offset

    return found


def hard_swish(scale: float, zero: int, new_scale: float, new_zero: int) -> Callable[[np.ndarray], np.ndarray]:
    """x · min(max(x + 3, 0), 6) ÷ 6 in int16: the second factor lies between 0 and 2¹⁵, x has seven bits more."""
    step = np.float32(scale) / np.float32(128)
    output, output_shift = _short(float(step) / float(np.float32(new_scale)))
    gate, gate_shift = _short(float(step) / (3 / 32768))

    def of(q: np.ndarray) -> np.ndarray:
        x = (q - zero) << 7
        value = _short_product(x, output)
        opened = x
        if gate_shift > 0:
            opened = _saturated(opened << (gate_shift - 1))
        opened = _short_product(opened, gate)
        if gate_shift > 0:
            opened = _saturated(opened << 1)
        elif gate_shift < 0:
            opened = halves_away(opened, -gate_shift)
        opened = (opened + (1 << 15)) >> 1
        product = opened * value
        cut = np.sign(product) * (np.abs(product) >> 15)
        return halves_away(_saturated(cut), -output_shift) + new_zero

    return of


def _short(real: float) -> tuple[int, int]:
    """`factor` with a multiplier of 15 bits."""
    multiplier, shift = factor(real)
    return min((multiplier + (1 << 15)) >> 16, (1 << 15) - 1), shift


def _short_product(a: np.ndarray, b: int) -> np.ndarray:
    return _saturated((a * b + (1 << 14)) >> 15)


def _saturated(x: np.ndarray) -> np.ndarray:
    return x.clip(-(1 << 15), (1 << 15) - 1)
