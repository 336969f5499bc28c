"""Running, timing and profiling a library on this computer."""

from __future__ import annotations

import json
import os
import signal
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tvmflow.measure.noise import disturbances
from tvmflow.spec import Layer, Measurement, TensorSpec, UserError, VerificationError
from tvmflow.system import children, limits
from tvmflow.system.tensors import load


def run_vectors(
    library: Path,
    inputs: Sequence[tuple[np.ndarray, ...]],
    outputs: Sequence[TensorSpec],
    *,
    device: str = "cpu",
    kept: Sequence[tuple[int, int]] = (),
) -> list[tuple[np.ndarray, ...]]:
    """The outputs of `library` for each tuple of inputs, on the "cpu" or on the first GPU ("cuda").

    `kept` are the inputs that are outputs of the run before. Raises VerificationError if it crashes.
    """
    with tempfile.TemporaryDirectory(prefix="tvmflow-") as folder:
        job: dict[str, Any] = {"mode": "run", "device": device, "inputs": [], "outputs": [], "kept": list(kept)}
        for index, arrays in enumerate(zip(*inputs, strict=True)):
            path = Path(folder, f"input-{index}.npy")
            np.save(path, np.stack(arrays))
            job["inputs"].append(str(path))
        job["outputs"] = [str(Path(folder, f"output-{index}.npy")) for index in range(len(outputs))]
        _run_worker(library, job, Path(folder))
        stacks = [load(path) for path in job["outputs"]]
    return [tuple(stack[index] for stack in stacks) for index in range(len(inputs))]


def time_library(
    library: Path,
    inputs: Sequence[np.ndarray],
    *,
    threads: int | None = None,
    repeats: int | None = None,
    seconds: float = 3.0,
    device: str = "cpu",
) -> Measurement:
    """Time single inferences on this computer, in a fresh process. `threads` defaults to all cores.

    A run that was disturbed is repeated, twice at most, and the calmest of all is taken; `warnings` says so. `device`
    is "cpu", or "cuda" for the first GPU: inputs are there already, and an inference ends when the GPU has done all of
    it.
    """
    threads = _check_threads(threads)
    if repeats is not None and repeats < 1:
        raise UserError(f"--repeats is the number of timed inferences, 1 or more, not {repeats}.")
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="tvmflow-") as folder:
        job = {
            "mode": "time",
            "inputs": _save(inputs, folder),
            "repeats": repeats,
            "seconds": seconds,
            "device": device,
        }
        result = _run_worker(library, job, Path(folder), threads)
    samples, attempts = result["samples_ms"], result["attempts"]
    warnings = []
    cores = os.cpu_count() or 1
    if load_before > 0.5 * cores:
        warnings.append(f"The machine was busy: load {load_before:.1f} on {cores} cores before the run.")
    if attempts > 1:
        warnings.append(f"The run was disturbed and repeated: this is the calmest of {attempts}.")
    p50, p90 = np.percentile(samples, [50, 90])
    warnings += disturbances(p50, p90, min(samples), len(samples))
    return Measurement(
        basis="measured",
        samples_ms=tuple(samples),
        threads=threads,
        setup_ms=result["setup_ms"],
        first_ms=result["first_ms"],
        warmup_ms=tuple(result["warmup_ms"]),
        warnings=tuple(warnings),
        facts={
            "load_before": round(load_before, 2),
            "attempts": attempts,
            "loaded_bytes": result["loaded_bytes"],
            "peak_bytes": result["peak_bytes"],
        },
    )


def profile_library(
    library: Path,
    inputs: Sequence[np.ndarray],
    layers: Sequence[Layer],
    *,
    threads: int | None = None,
    repeats: int = 50,
    device: str = "cpu",
) -> tuple[tuple[float, ...], ...]:
    """Times of each layer in µs, in the order of `layers`; instrumented, so never the run that is reported."""
    threads = _check_threads(threads)
    with tempfile.TemporaryDirectory(prefix="tvmflow-") as folder:
        job = {
            "mode": "profile",
            "device": device,
            "inputs": _save(inputs, folder),
            "repeats": repeats,
            "kernels": sorted({layer.kernel for layer in layers}),
        }
        calls = _run_worker(library, job, Path(folder), threads)["calls"]
    return layer_times(calls, layers)


def layer_times(calls: Sequence[tuple[str, Sequence[float]]], layers: Sequence[Layer]) -> tuple[tuple[float, ...], ...]:
    """Times of each layer in µs, from the calls of `worker.profile`. Raises VerificationError if they differ."""
    if [kernel for kernel, _ in calls] != [layer.kernel for layer in layers]:
        raise VerificationError(
            f"The library ran {len(calls)} kernels where its manifest names {len(layers)}; build the bundle again."
        )
    return tuple(tuple(times) for _, times in calls)


def capture_library(
    library: Path, inputs: Sequence[tuple[np.ndarray, ...]], kernels: Sequence[str], *, device: str = "cpu"
) -> list[np.ndarray]:
    """What each kernel call of a library leaves in its last argument, for all inputs, in the order of the calls.

    `kernels` are the calls that there should be, `device` is as for `run_vectors`. Raises VerificationError, also for a
    library that makes other calls.
    """
    with tempfile.TemporaryDirectory(prefix="tvmflow-") as folder:
        stacks = [np.stack(arrays) for arrays in zip(*inputs, strict=True)]
        job = {"mode": "capture", "device": device, "inputs": _save(stacks, folder), "folder": folder}
        job["kernels"] = sorted(set(kernels))
        calls = _run_worker(library, job, Path(folder))["calls"]
        check_calls(calls, kernels)
        return [load(Path(folder, f"call-{place}.npy")) for place in range(len(calls))]


def check_calls(found: Sequence[str], kernels: Sequence[str]) -> None:
    """Raises VerificationError unless a library called the kernels that its manifest names."""
    if list(found) != list(kernels):
        raise VerificationError(
            f"The library ran {len(found)} kernels where its manifest names {len(kernels)}; build the bundle again."
        )


def _check_threads(threads: int | None) -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if threads is not None and not 1 <= threads <= cores:
        raise UserError(f"--threads {threads} isn't possible here: this computer lends 1 to {cores} cores.")
    return threads or cores


def _save(arrays: Sequence[np.ndarray], folder: str) -> list[str]:
    paths = [str(Path(folder, f"input-{index}.npy")) for index in range(len(arrays))]
    for path, array in zip(paths, arrays, strict=True):
        np.save(path, array)
    return paths


def _run_worker(library: Path, job: Mapping[str, Any], folder: Path, threads: int | None = None) -> dict[str, Any]:
    job_file, result_file = folder / "job.json", folder / "result.json"
    job_file.write_text(json.dumps({**job, "library": str(Path(library).resolve())}))
    environment = children.environment()
    if threads is not None:
        environment["TVM_NUM_THREADS"] = str(threads)
    command = children.python("tvmflow.measure.worker", job_file, result_file)
    finished = children.finished(command, limits.WORKER, f"The process that ran {library}", env=environment)
    if finished.returncode == -signal.SIGINT:
        raise KeyboardInterrupt
    if finished.returncode < 0:
        raise VerificationError(
            f"{library} crashed with {signal.Signals(-finished.returncode).name} when it was run on this computer."
        )
    if finished.returncode != 0:
        lines = finished.stderr.strip().splitlines() or ["no message"]
        raise VerificationError(f"{library} can't be run on this computer: {lines[-1]}")
    return json.loads(result_file.read_text())
