"""A compiled network against its golden vectors: the outputs (logits) that the original network gave."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tvmflow import backends
from tvmflow.spec import MissingDependencyError, Target, TensorSpec, Vector

if TYPE_CHECKING:
    from tvmflow.bundle import Bundle

TOLERANCE: dict[str, float] = {"float64": 1e-6, "float32": 3e-5, "float16": 2e-2, "int8": 0, "uint8": 0, "int32": 0}
"""Largest difference that is allowed, relative to the largest magnitude in the reference output or to 1.

float32 leaves room for another order of summation (some 1e-6 for networks of ten million multiply-adds an output)
and none for a wrong weight. Integer networks have to match exactly. float16 has eleven bits, and a sum of a thousand
terms is rounded a thousand times.
"""


def tolerance(dtype: str, arithmetic: str = "float32") -> float:
    """What is allowed of an output of that dtype if float32 networks are computed in `arithmetic`."""
    return TOLERANCE[arithmetic if dtype == "float32" else dtype]


Runner = Callable[[Sequence[tuple[np.ndarray, ...]]], list[tuple[np.ndarray, ...]]]


def compare(
    vectors: Sequence[Vector], results: Sequence[tuple[np.ndarray, ...]], arithmetic: str = "float32"
) -> dict[str, Any]:
    """Errors of `results` against the outputs of `vectors`, one verdict, and the vectors that fail it."""
    rows: list[dict[str, Any]] = []
    agreeing = 0
    for vector, outputs in zip(vectors, results, strict=True):
        worst, absolute, allowed = 0.0, 0.0, 0.0
        for reference, output in zip(vector.outputs, outputs, strict=True):
            error, scale = _error(reference, output)
            absolute, worst = max(absolute, error), max(worst, error / scale)
            allowed = max(allowed, tolerance(str(reference.dtype), arithmetic))
        agreeing += bool(np.array_equal(np.argmax(vector.outputs[0], -1), np.argmax(outputs[0], -1)))
        rows.append(
            {"name": vector.name, "passed": bool(worst <= allowed), "max_abs_error": absolute, "max_rel_error": worst}
        )
    dtypes = sorted({str(output.dtype) for vector in vectors for output in vector.outputs})
    return {
        "passed": all(row["passed"] for row in rows),
        "max_abs_error": max(row["max_abs_error"] for row in rows),
        "max_rel_error": max(row["max_rel_error"] for row in rows),
        "argmax_agreement": agreeing / len(rows),
        "tolerance": {dtype: tolerance(dtype, arithmetic) for dtype in dtypes},
        "vectors": rows,
    }


def within_tolerance(reference: np.ndarray, output: np.ndarray) -> bool:
    """Whether a tensor is what it should be, by the tolerance of its dtype; dtypes without one have to be equal."""
    error, scale = _error(reference, output)
    return error / scale <= TOLERANCE.get(str(reference.dtype), 0)


def _error(reference: np.ndarray, output: np.ndarray) -> tuple[float, float]:
    """Largest absolute error, and what it is relative to. Non-finite values must stand in the same places."""
    if reference.shape != output.shape or reference.dtype != output.dtype:
        return float("inf"), 1.0
    exact, given = reference.astype(np.float64), output.astype(np.float64)
    finite = np.isfinite(exact)
    if not np.array_equal(exact[~finite], given[~finite], equal_nan=True) or not np.isfinite(given[finite]).all():
        return float("inf"), 1.0
    error = np.abs(exact[finite] - given[finite]).max(initial=0.0)
    return float(error), float(max(1.0, np.abs(exact[finite]).max(initial=0.0)))


def verify_library(
    library: Path, target: Target, vectors: Sequence[Vector], outputs: Sequence[TensorSpec]
) -> dict[str, Any]:
    """Run the vectors where `library` can run (here, or under emulation) and compare.

    `passed` is None where it can't run, `reason` says why and `packages` what to install. Raises VerificationError if
    it crashes.
    """
    try:
        method, runner = find_runner(library, target, outputs)
        results = runner([vector.inputs for vector in vectors])
    except MissingDependencyError as error:
        return unverified(error)
    return {"method": method, **compare(vectors, results, target.arithmetic)}


def unverified(error: MissingDependencyError) -> dict[str, Any]:
    """The verdict on what can't run here."""
    return {"passed": None, "method": None, "reason": str(error), "packages": list(error.packages)}


def verify_bundle(bundle: Bundle) -> dict[str, Any]:
    """`verify_library` for a bundle that has been built, on this computer."""
    return verify_library(bundle.library, bundle.target, bundle.vectors(), bundle.outputs)


def find_runner(library: Path, target: Target, outputs: Sequence[TensorSpec]) -> tuple[str, Runner]:
    """How code for `target` is run on this computer ("native", "emulated", …), and the function.

    Raises MissingDependencyError where it can't be.
    """
    return backends.of(target).find_runner(library, target, outputs)


def failure_sentence(verdict: Mapping[str, Any], what: str) -> str:
    """One sentence on a verdict that didn't pass."""
    failed = [row["name"] for row in verdict["vectors"] if not row["passed"]]
    return (
        f"{what} computes something else than the original network: {len(failed)} of {len(verdict['vectors'])} vectors "
        f"({', '.join(failed)}) are off, by up to {verdict['max_abs_error']:.3g} "
        f"({verdict['max_rel_error']:.3g} relative; allowed {max(verdict['tolerance'].values()):g})."
    )
