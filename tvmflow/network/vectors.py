"""Golden vectors: inputs on which a compiled network is held against the original, and what that answers.

A vector serves only if the original's own answer can be relied on. Each is therefore computed again with its values
rounded otherwise (`tvmflow.network.rounding`): where that turns a number into infinity or one class into another, or
moves an output by much, a build that is right would fail by rounding alone, and the vector is left out or made milder.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tvmflow.network.rounding import MOVED_BY, rounding_of
from tvmflow.spec import Preprocessing, Program, TensorSpec, Vector
from tvmflow.system.tensors import is_floating

Reference = Callable[..., tuple[np.ndarray, ...]]
Make = Callable[[TensorSpec, np.random.Generator], np.ndarray]

SEED = 20200401
OTHER_SEEDS = 4
"""How many other noises are tried where a class hangs on the rounding of the first."""
OTHER_SCALES = (10.0, 100.0, 0.1, 1000.0)
"""Of noise, tried where an output is the same for all vectors: saturated, or below a threshold."""
STEADY = 1e-3
"""By how much of its largest magnitude an output moves at most for a vector to be added: it still shows an error of a
half per cent, as of a variance from the mean of squares. Narrow dtypes get eight times `MOVED_BY`."""
OFFSETS = ((3000.0, 3.0), (3000.0, 30.0), (200.0, 2.0), (30.0, 1.0))
"""Means and standard deviations of inputs whose mean is large."""
LARGEST_INTEGER, PLAIN_INTEGERS = 2**15 - 1, 100
"""How far the original is asked for the indices that it takes; and what is tried of integers that are no indices."""
BEYOND_FLOAT16 = ("offset", "small")
"""Vectors that float16 can't hold, or what becomes of them inside a network."""
NOT_FINITE: dict[str, tuple[float, ...]] = {"nan": (np.nan,), "infinite": (np.inf, -np.inf)}
"""Vectors whose inputs hold such values."""


@dataclass(frozen=True, kw_only=True)
class _Answer:
    """A vector, and whether the original's answer is steady: `kept` if no class and no infinity hangs on rounding."""

    vector: Vector
    kept: bool
    steady: bool


def make_vectors(
    inputs: Sequence[TensorSpec], reference: Reference, preprocessing: Preprocessing | None
) -> tuple[Vector, ...]:
    """Golden vectors: noise, and the edges where compiled code goes wrong (all zero, one value, the extremes).

    With `preprocessing`, the extremes are those of real pixels, 0 and 255; otherwise ±4, and there are inputs with a
    large mean, small ones and, where all outputs are floating, one with NaN and one with infinities. Integers that are
    indices go as far as the original takes them, 0 and 1 among them. Raises what `reference` raises.
    """
    limits = _integer_limits(inputs, reference)
    try:
        return _vectors(inputs, reference, preprocessing, limits)
    except Exception:
        if not limits:
            raise
    # what each input may be alone, they may not be together
    return _vectors(inputs, reference, preprocessing, dict.fromkeys(limits, (0, 1)))


def _vectors(
    inputs: Sequence[TensorSpec],
    reference: Reference,
    preprocessing: Preprocessing | None,
    limits: Mapping[str, tuple[int, int]],
) -> tuple[Vector, ...]:
    rng = np.random.default_rng(SEED)
    vectors: list[Vector] = []
    for name, make in _everyday(limits, preprocessing).items():
        answer = _answer(name, inputs, make, rng, reference)
        if name.startswith("noise"):
            others = (np.random.default_rng((SEED, len(vectors), number)) for number in range(OTHER_SEEDS))
            answer = _first_kept(answer, (_answer(name, inputs, make, other, reference) for other in others))
        if answer.kept or not vectors:
            vectors.append(answer.vector)
    if preprocessing is None and any(is_floating(spec.dtype) for spec in inputs):
        for name, makes in _extraordinary(limits).items():
            vectors += itertools.islice(_steady(name, inputs, makes, rng, reference), 1)
        vectors = _varied(vectors, inputs, limits, reference)
        return (*vectors, *_not_finite(inputs, limits, rng, reference))
    return tuple(_varied(vectors, inputs, limits, reference))


def vector_names(program: Program) -> list[str]:
    """The golden vectors' folders in order."""
    return [f"{number:03}-{vector.name}" for number, vector in enumerate(program.vectors)]


def in_arithmetic(vectors: Sequence[Vector], arithmetic: str) -> tuple[Vector, ...]:
    """Those that a network can be given that is computed in `arithmetic`."""
    return tuple(vector for vector in vectors if arithmetic != "float16" or vector.name not in BEYOND_FLOAT16)


# ------------------------------------------------------------------------------------------------------------- kinds


def _noise(limits: Mapping[str, tuple[int, int]], mean: float = 0.0, scale: float = 1.0) -> Make:
    def make(spec: TensorSpec, rng: np.random.Generator) -> np.ndarray:
        if is_floating(spec.dtype):
            return mean + scale * rng.standard_normal(spec.shape)
        lowest, highest = limits[spec.name]
        return rng.integers(lowest, highest + 1, spec.shape)

    return make


def _everyday(limits: Mapping[str, tuple[int, int]], preprocessing: Preprocessing | None) -> dict[str, Make]:
    def low_high(spec: TensorSpec) -> tuple[np.ndarray, np.ndarray]:
        if not is_floating(spec.dtype):
            return np.array(limits[spec.name][0]), np.array(limits[spec.name][1])
        if preprocessing is None:
            return np.array(-4.0), np.array(4.0)
        mean, std = (np.array(values).reshape(-1, 1, 1) for values in (preprocessing.mean, preprocessing.std))
        return (0 - mean) / std, (1 - mean) / std

    def checkerboard(spec: TensorSpec, rng: np.random.Generator) -> np.ndarray:
        low, high = low_high(spec)
        return np.where(np.indices(spec.shape).sum(0) % 2 == 0, low, high)

    def constant(spec: TensorSpec, rng: np.random.Generator) -> np.ndarray:
        low, high = low_high(spec)
        return np.full(spec.shape, 0.5 if is_floating(spec.dtype) else min(max(1, int(low)), int(high)))

    def zeros(spec: TensorSpec, rng: np.random.Generator) -> np.ndarray:
        return np.full(spec.shape, 0 if is_floating(spec.dtype) else max(0, limits[spec.name][0]))

    noise = _noise(limits)
    small = _noise(
        {name: (max(0, lowest), min(max(0, lowest) + 1, highest)) for name, (lowest, highest) in limits.items()}
    )
    return {
        "noise-0": noise,
        "noise-1": small,
        "noise-2": noise,
        "zeros": zeros,
        "constant": constant,
        "lowest": lambda spec, rng: np.broadcast_to(low_high(spec)[0], spec.shape),
        "highest": lambda spec, rng: np.broadcast_to(low_high(spec)[1], spec.shape),
        "checkerboard": checkerboard,
    }


def _extraordinary(limits: Mapping[str, tuple[int, int]]) -> dict[str, list[Make]]:
    """Of each kind, the hardest first."""
    noise = _noise(limits)

    def small(spec: TensorSpec, rng: np.random.Generator) -> np.ndarray:
        """Magnitudes from 1e-6 to 1e-3."""
        drawn = noise(spec, rng)
        return drawn * 10 ** rng.uniform(-6, -3, spec.shape) if is_floating(spec.dtype) else drawn

    return {"offset": [_noise(limits, mean, scale) for mean, scale in OFFSETS], "small": [small]}


def _with(limits: Mapping[str, tuple[int, int]], *values: float) -> Make:
    """Noise with these values in the middle of each floating input that has so many elements."""
    noise = _noise(limits)

    def make(spec: TensorSpec, rng: np.random.Generator) -> np.ndarray:
        drawn = np.array(noise(spec, rng))
        if is_floating(spec.dtype) and drawn.size >= len(values):
            middle = (drawn.size - len(values)) // 2
            drawn.reshape(-1)[middle : middle + len(values)] = values
        return drawn

    return make


def _integer_limits(inputs: Sequence[TensorSpec], reference: Reference) -> dict[str, tuple[int, int]]:
    """The lowest and the highest value of each integer input, found by asking the original what it takes.

    One that refuses large values takes indices: from 0 to the last that it doesn't refuse, which bisection finds.
    """
    limits = {spec.name: (0, 1) for spec in inputs if not is_floating(spec.dtype)}

    def takes(name: str, value: int) -> bool:
        values = {other: value if other == name else limits[other][0] for other in limits}
        try:
            reference(*(np.full(spec.shape, values.get(spec.name, 0), spec.dtype) for spec in inputs))
        except Exception:  # PyTorch and ONNX's evaluators have an error of their own for each operator
            return False
        return True

    for spec in inputs:
        if spec.name not in limits or spec.dtype == "bool":
            continue
        info = np.iinfo(spec.dtype)
        smallest, largest = max(int(info.min), -LARGEST_INTEGER), min(int(info.max), LARGEST_INTEGER)
        if takes(spec.name, largest) and takes(spec.name, smallest):
            wide = info.bits > 8
            limits[spec.name] = (-PLAIN_INTEGERS, PLAIN_INTEGERS) if wide else (smallest, largest)
        elif takes(spec.name, largest):
            limits[spec.name] = (0, largest)
        elif takes(spec.name, 0):
            good, bad = 0, largest
            while bad - good > 1:
                middle = (good + bad) // 2
                good, bad = (middle, bad) if takes(spec.name, middle) else (good, middle)
            limits[spec.name] = (0, good)
    return limits


# ----------------------------------------------------------------------------------------------------------- answers


def _answer(
    name: str,
    inputs: Sequence[TensorSpec],
    make: Make,
    rng: np.random.Generator,
    reference: Reference,
) -> _Answer:
    arrays = tuple(np.array(make(spec, rng), dtype=spec.dtype, order="C") for spec in inputs)

    def answered(*arrays: np.ndarray) -> tuple[np.ndarray, ...]:
        """Copies: an original may write into what it is given."""
        results = reference(*(array.copy() for array in arrays))
        seen.append(results)
        return results

    seen: list[tuple[np.ndarray, ...]] = []
    outputs = answered(*arrays)
    rounding = rounding_of(answered, arrays, outputs)
    if not all(is_floating(str(output.dtype)) for output in outputs):
        answered(*(_without_zeros(array) for array in arrays))
    kept = all(_same_kind(output, other) for others in seen for output, other in zip(outputs, others, strict=True))
    steady = kept and all(
        distance <= max(STEADY, 8 * MOVED_BY[str(output.dtype)]) * _magnitude(output)
        for output, distance in zip(outputs, rounding, strict=True)
        if str(output.dtype) in MOVED_BY
    )
    vector = Vector(name=name, inputs=arrays, outputs=outputs, rounding=rounding)
    return _Answer(vector=vector, kept=kept, steady=steady)


def _without_zeros(array: np.ndarray) -> np.ndarray:
    """With next to nothing for each zero: of equal values, no order is right, and rounding leaves zeros equal."""
    if not is_floating(str(array.dtype)):
        return array
    nearly = np.random.default_rng(SEED).uniform(0.5, 1, array.shape) * (1e-6 if array.dtype == np.float16 else 1e-30)
    return np.where(array == 0, nearly, array).astype(array.dtype)


def _steady(
    name: str, inputs: Sequence[TensorSpec], makes: Sequence[Make], rng: np.random.Generator, reference: Reference
) -> Iterator[Vector]:
    """The vectors that can be relied on, of those that the original has an answer for at all."""
    for make in makes:
        with contextlib.suppress(Exception):
            answer = _answer(name, inputs, make, rng, reference)
            if answer.steady:
                yield answer.vector


def _not_finite(
    inputs: Sequence[TensorSpec],
    limits: Mapping[str, tuple[int, int]],
    rng: np.random.Generator,
    reference: Reference,
) -> Iterator[Vector]:
    """Inputs with NaN and infinities; none for integer outputs, for which neither has a value."""
    for name, values in NOT_FINITE.items():
        with contextlib.suppress(Exception):
            answer = _answer(name, inputs, _with(limits, *values), rng, reference)
            if answer.kept and all(is_floating(str(output.dtype)) for output in answer.vector.outputs):
                yield answer.vector


def _first_kept(first: _Answer, others: Iterator[_Answer]) -> _Answer:
    """The first that doesn't hang on rounding; if all do, the first of all."""
    return first if first.kept else next((answer for answer in others if answer.kept), first)


def _same_kind(output: np.ndarray, other: np.ndarray) -> bool:
    """Whether what is no float is equal, and infinities and what is no number stand in the same places."""
    if output.shape != other.shape:
        return False
    if not is_floating(str(output.dtype)):
        return np.array_equal(output, other)
    wide, moved = output.astype(np.float64), other.astype(np.float64)
    odd = ~np.isfinite(wide)
    return np.array_equal(odd, ~np.isfinite(moved)) and np.array_equal(wide[odd], moved[odd], equal_nan=True)


def _magnitude(output: np.ndarray) -> float:
    values = np.abs(output.astype(np.float64))
    return float(values[np.isfinite(values)].max(initial=0.0))


def _varied(
    vectors: list[Vector], inputs: Sequence[TensorSpec], limits: Mapping[str, tuple[int, int]], reference: Reference
) -> list[Vector]:
    """With other noise in the last one's place if an output is the same for all vectors and needn't be."""
    for scale in OTHER_SCALES:
        same = _constant_outputs(vectors)
        if not same:
            break
        answer = _answer("noise-2", inputs, _noise(limits, scale=scale), np.random.default_rng(SEED), reference)
        fewer = [answer.vector if vector.name == "noise-2" else vector for vector in vectors]
        if answer.kept and len(_constant_outputs(fewer)) < len(same):
            vectors = fewer
    return vectors


def _constant_outputs(vectors: Sequence[Vector]) -> list[int]:
    first = vectors[0].outputs
    return [
        place
        for place in range(len(first))
        if all(np.array_equal(first[place], vector.outputs[place]) for vector in vectors[1:])
    ]


def output_specs(vectors: Sequence[Vector]) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(name=f"output{index}" if index else "output", shape=array.shape, dtype=str(array.dtype))
        for index, array in enumerate(vectors[0].outputs)
    )
