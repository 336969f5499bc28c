"""Golden vectors: inputs on which a compiled network is held against the original, and what that answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tvmflow.spec import Preprocessing, TensorSpec, Vector


def make_vectors(
    inputs: Sequence[TensorSpec],
    reference: Callable[..., tuple[np.ndarray, ...]],
    preprocessing: Preprocessing | None,
) -> tuple[Vector, ...]:
    """Golden vectors: noise, and the edges where compiled code goes wrong (all zero, one value, the extremes).

    With `preprocessing`, the extremes are those of real pixels, 0 and 255; otherwise ±4. Integer inputs get 0 and 1.
    """
    rng = np.random.default_rng(20200401)

    def low_high(spec: TensorSpec) -> tuple[np.ndarray, np.ndarray]:
        if not np.issubdtype(np.dtype(spec.dtype), np.floating):
            return np.zeros((), spec.dtype), np.ones((), spec.dtype)
        if preprocessing is None:
            return np.array(-4.0), np.array(4.0)
        mean, std = (np.array(values).reshape(-1, 1, 1) for values in (preprocessing.mean, preprocessing.std))
        return (0 - mean) / std, (1 - mean) / std

    def noise(spec: TensorSpec) -> np.ndarray:
        floating = np.issubdtype(np.dtype(spec.dtype), np.floating)
        return rng.standard_normal(spec.shape) if floating else rng.integers(0, 2, spec.shape)

    def checkerboard(spec: TensorSpec) -> np.ndarray:
        low, high = low_high(spec)
        return np.where(np.indices(spec.shape).sum(0) % 2 == 0, low, high)

    kinds: dict[str, Callable[[TensorSpec], np.ndarray]] = {
        "noise-0": noise,
        "noise-1": noise,
        "noise-2": noise,
        "zeros": lambda spec: np.zeros(spec.shape),
        "constant": lambda spec: np.full(spec.shape, 0.5 if "float" in spec.dtype else 1),
        "lowest": lambda spec: np.broadcast_to(low_high(spec)[0], spec.shape),
        "highest": lambda spec: np.broadcast_to(low_high(spec)[1], spec.shape),
        "checkerboard": checkerboard,
    }
    vectors = []
    for name, make in kinds.items():
        arrays = tuple(np.array(make(spec), dtype=spec.dtype, order="C") for spec in inputs)
        vectors.append(Vector(name=name, inputs=arrays, outputs=reference(*arrays)))
    return tuple(vectors)


def output_specs(vectors: Sequence[Vector]) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(name=f"output{index}" if index else "output", shape=array.shape, dtype=str(array.dtype))
        for index, array in enumerate(vectors[0].outputs)
    )
