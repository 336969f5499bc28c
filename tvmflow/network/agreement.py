"""What a network answers against its golden vectors: the outputs (logits) that the original network gave."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from tvmflow.network.rounding import MOVED_BY
from tvmflow.network.vectors import NOT_FINITE
from tvmflow.spec import MissingDependencyError, Vector

TOLERANCE: dict[str, float] = {"float64": 1e-6, "float32": 3e-5, "float16": 2e-2, "bfloat16": 5e-2}
"""Largest difference that is allowed, relative to the largest magnitude of the reference's output in that vector.

float32 leaves room for another order of summation (some 1e-6 for networks of ten million multiply-adds an output)
and none for a wrong weight. float16 has eleven bits, and a sum of a thousand terms is rounded a thousand times;
bfloat16 has eight, and its sums are kept in float32. All other dtypes, integers and bool, have to match exactly.
"""
SMALLEST: dict[str, float] = {"float64": 2.0**-1022, "float32": 2.0**-126, "float16": 2.0**-24, "bfloat16": 2.0**-126}
"""What may become zero: magnitudes that are denormal, which some processors flush."""
LARGEST_FLOOR = TOLERANCE["float16"]
"""No vector is allowed more for its rounding than this share of the output's largest magnitude in any vector."""


def tolerance(dtype: str, arithmetic: str = "float32") -> float:
    """What is allowed of an output of that dtype if float32 networks are computed in `arithmetic`, relatively."""
    return TOLERANCE.get(_computed_in(dtype, arithmetic), 0.0)


def _computed_in(dtype: str, arithmetic: str) -> str:
    """What an output is computed in; what a quantised network keeps in float32, in that."""
    return arithmetic if dtype == "float32" and arithmetic in TOLERANCE else dtype


def tolerances(vectors: Sequence[Vector], arithmetic: str = "float32") -> list[tuple[float, ...]]:
    """The largest absolute error of each output in each vector: the one rule that all runners compare by.

    It is the relative tolerance times the output's largest finite magnitude in that vector. An output that is nothing
    but what rounding has left, such as a constant less its own mean, may be off by more: by as much as the reference
    itself moves if its values are rounded otherwise (`Vector.rounding`), as far as that is no more than LARGEST_FLOOR
    of the largest output of any vector, and by the rounding of a value as large as the output is in the median vector.
    """
    columns = []
    for place, outputs in enumerate(zip(*(vector.outputs for vector in vectors), strict=True)):
        moved = [vector.rounding[place] if vector.rounding else 0.0 for vector in vectors]
        columns.append(_allowed(outputs, moved, arithmetic))
    return list(zip(*columns, strict=True))


def _allowed(outputs: Sequence[np.ndarray], moved: Sequence[float], arithmetic: str) -> list[float]:
    """`tolerances` of one output, over the vectors."""
    dtype = str(outputs[0].dtype)
    if dtype not in TOLERANCE:
        return [0.0] * len(outputs)
    computed_in = _computed_in(dtype, arithmetic)
    relative, step = TOLERANCE[computed_in], MOVED_BY[computed_in]
    magnitudes = [_magnitude(output) for output in outputs]
    highest = max(relative, LARGEST_FLOOR) * max(magnitudes)
    least = max(SMALLEST[computed_in], step * _usual(outputs))
    return [
        max(relative * magnitude, min(distance * step / MOVED_BY[dtype], highest), least)
        for magnitude, distance in zip(magnitudes, moved, strict=True)
    ]


def _magnitude(output: np.ndarray) -> float:
    """The largest of what is finite."""
    values = np.abs(output.astype(np.float64))
    return float(values[np.isfinite(values)].max(initial=0.0))


def _usual(outputs: Sequence[np.ndarray]) -> float:
    """The median of an output's magnitudes over the vectors, of those that are numbers throughout if there are any."""
    numbers = [output for output in outputs if np.isfinite(output.astype(np.float64)).all()]
    return float(np.median([*map(_magnitude, numbers or outputs)]))


Arrays = tuple[np.ndarray, ...]
"""One of each input, or of each output."""


class Runner(Protocol):
    """Runs a library: a tuple of outputs for each tuple of inputs.

    `kept` are pairs of an input and an output: at all calls but the first, that input is what that output was at the
    call before, and what is given for it isn't looked at.
    """

    def __call__(self, inputs: Sequence[Arrays], kept: Sequence[tuple[int, int]] = ()) -> list[Arrays]: ...


def in_turn(run: Callable[[Sequence[Arrays]], list[Arrays]]) -> Runner:
    """A runner made of what only knows calls that have nothing to do with each other."""

    def runner(inputs: Sequence[Arrays], kept: Sequence[tuple[int, int]] = ()) -> list[Arrays]:
        if not kept:
            return run(inputs)
        results: list[Arrays] = []
        for arrays in inputs:
            given = list(arrays)
            for before, after in kept if results else ():
                given[before] = results[-1][after]
            results += run([tuple(given)])
        return results

    return runner


def compare(
    vectors: Sequence[Vector],
    results: Sequence[tuple[np.ndarray, ...]],
    arithmetic: str = "float32",
    allowed: Sequence[Sequence[float]] | None = None,
) -> dict[str, Any]:
    """Errors of `results` against the outputs of `vectors`, one verdict, and the vectors that fail it.

    `allowed` are the absolute tolerances that a build wrote down, by default `tolerances`. Relative errors are to the
    output's largest magnitude in that vector or, if that is more, in the median vector. `same_class` is there where the
    only output is a class vector, and None where the reference's best is ahead by no more than the tolerance explains;
    `argmax_agreement` is the share of those that agree, None without any. `constant_outputs` are the places of the
    outputs that are the same in all vectors, of which passing says little.
    """
    limits = allowed or tolerances(vectors, arithmetic)
    found = []
    for vector, outputs, (first, *_) in zip(vectors, results, limits, strict=True):
        errors = [_error(reference, output) for reference, output in zip(vector.outputs, outputs, strict=True)]
        same = {"same_class": _same_class(vector, outputs[0], first)} if _is_class_vector(vector) else {}
        found.append({"abs_errors": errors, **same})
    return judge(vectors, found, arithmetic, limits)


def judge(
    vectors: Sequence[Vector],
    found: Sequence[Mapping[str, Any]],
    arithmetic: str,
    allowed: Sequence[Sequence[float]],
) -> dict[str, Any]:
    """The verdict of `compare` from what was found of each vector, here or on a board.

    That is `abs_errors`, the largest of each output, None where it is infinite, and, of class vectors, `same_class`.
    """
    usual = [_usual(outputs) for outputs in _outputs(vectors)]
    rows: list[dict[str, Any]] = []
    for vector, known, limits in zip(vectors, found, allowed, strict=True):
        errors = [float("inf") if error is None else error for error in known["abs_errors"]]
        scales = [max(_magnitude(output), median) for output, median in zip(vector.outputs, usual, strict=True)]
        rows.append(
            {
                "name": vector.name,
                "passed": all(error <= limit for error, limit in zip(errors, limits, strict=True)),
                "max_abs_error": max(errors),
                "max_rel_error": max(_ratio(error, scale) for error, scale in zip(errors, scales, strict=True)),
                "abs_errors": errors,
                "allowed": list(limits),
                **({"same_class": known["same_class"]} if "same_class" in known else {}),
            }
        )
    classes = [row["same_class"] for row in rows if row.get("same_class") is not None]
    dtypes = sorted({str(output.dtype) for vector in vectors for output in vector.outputs})
    return {
        "passed": all(row["passed"] for row in rows),
        "max_abs_error": max(row["max_abs_error"] for row in rows),
        "max_rel_error": max(row["max_rel_error"] for row in rows),
        "argmax_agreement": sum(classes) / len(classes) if classes else None,
        "tolerance": {dtype: tolerance(dtype, arithmetic) for dtype in dtypes},
        "constant_outputs": _constant_outputs(vectors, allowed),
        "vectors": rows,
    }


def _outputs(vectors: Sequence[Vector]) -> list[tuple[np.ndarray, ...]]:
    """Each output in all vectors."""
    return list(zip(*(vector.outputs for vector in vectors), strict=True))


def _ratio(error: float, scale: float) -> float:
    return error / scale if scale else 0.0 if not error else float("inf")


def _is_class_vector(vector: Vector) -> bool:
    """Whether a network's only output has a row of two or more numbers for each of a batch, unlike its input."""
    shape, dtype = vector.outputs[0].shape, vector.outputs[0].dtype
    same = bool(vector.inputs) and vector.inputs[0].shape == shape
    return len(vector.outputs) == 1 and len(shape) == 2 and shape[1] > 1 and dtype.kind != "b" and not same


def _same_class(vector: Vector, output: np.ndarray, allowed: float) -> bool | None:
    """Whether each row is largest where it should be; None if a tolerance each way could change that of any row."""
    reference = vector.outputs[0].astype(np.float64)
    if output.shape != reference.shape:
        return False
    second, best = np.sort(reference, -1)[:, -2:].T
    with np.errstate(invalid="ignore"):  # an infinity is no further ahead of another
        if not (best - second > 2 * allowed).all():
            return None
    return bool(np.array_equal(np.argmax(reference, -1), np.argmax(output, -1)))


def _constant_outputs(vectors: Sequence[Vector], allowed: Sequence[Sequence[float]]) -> list[int]:
    """Places of the outputs that are the same in all of several vectors, up to their tolerance."""
    return [
        place
        for place, (first, *others) in enumerate(_outputs(vectors))
        if others and all(_error(first, other) <= allowed[0][place] for other in others)
    ]


def within_tolerance(reference: np.ndarray, output: np.ndarray) -> bool:
    """Whether a kernel's tensor is what it should be; dtypes without a tolerance have to be equal."""
    ((allowed,),) = tolerances([Vector(name="", inputs=(), outputs=(reference,))])
    return _error(reference, output) <= allowed


def _error(reference: np.ndarray, output: np.ndarray) -> float:
    """Largest absolute error. Values that aren't finite must stand in the same places, infinities with their sign."""
    if reference.shape != output.shape or reference.dtype != output.dtype:
        return float("inf")
    if str(reference.dtype) not in TOLERANCE and np.array_equal(reference, output):
        return 0.0
    exact, given = reference.astype(np.float64), output.astype(np.float64)
    finite = np.isfinite(exact)
    if not np.array_equal(exact[~finite], given[~finite], equal_nan=True) or not np.isfinite(given[finite]).all():
        return float("inf")
    error = float(np.abs(exact[finite] - given[finite]).max(initial=0.0))
    return error if str(reference.dtype) in TOLERANCE else max(1.0, error)


def off_beyond_numbers(verdict: Mapping[str, Any]) -> tuple[str, ...]:
    """The vectors that failed, if all of them have NaN or infinities in their inputs; otherwise none."""
    failed = tuple(row["name"] for row in verdict.get("vectors", ()) if not row["passed"])
    return failed if all(name in NOT_FINITE for name in failed) else ()


def unverified(error: MissingDependencyError) -> dict[str, Any]:
    """The verdict on what can't run here."""
    return {"passed": None, "method": None, "reason": str(error), "packages": list(error.packages)}


def failure_sentence(verdict: Mapping[str, Any], what: str) -> str:
    """One sentence on a verdict that didn't pass: which vectors, and the error furthest from what is allowed."""
    failed = [row for row in verdict["vectors"] if not row["passed"]]
    pairs = [pair for row in failed for pair in zip(row["abs_errors"], row["allowed"], strict=True)]
    error, allowed = max(pairs, key=lambda pair: _ratio(pair[0], pair[1]) if pair[0] else -1.0)
    return (
        f"{what} computes something else than the original network: {len(failed)} of {len(verdict['vectors'])} vectors "
        f"({', '.join(row['name'] for row in failed)}) are off, by up to {error:.3g} where {allowed:.3g} is allowed."
    )
