"""On a computer with an NVIDIA GPU: tvmflow beside other libraries, and how far off the model of kernels is.

`python -m benchmarks.cuda --board rtx-3090` builds the network for that board's architecture, times it and the others
in turns (PyTorch eager and compiled, ONNX Runtime with CUDA and, where it has it, TensorRT, TVM untuned), then measures
some candidates of each kernel and compares the order of their times with the model's. It writes
benchmarks/results/cuda-BOARD.json, and with `--calibrate FILE` the constants that fit every second kernel best, for
`tvmflow tune --calibration FILE`; how well they do on the other kernels is in the results. A library that isn't
installed, or has no CUDA, is listed as absent.

Without a GPU of that architecture it says what is missing and ends with exit code 5. `--rehearse` has the stand-in take
the GPU's place, does everything once, and throws the figures away. Nobody has run it on a GPU yet, for want of one, and
the rehearsal, which takes many minutes of CPU, has not been run to its end.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tvmflow.schedules.gpu import Gpu
from tvmflow.spec import MissingDependencyError, Program, Target
from tvmflow.targets.cuda import nvrtc
from tvmflow.targets.cuda.counts import Counts
from tvmflow.targets.cuda.model import Constants, modelled_us, save_constants
from tvmflow.targets.cuda.nvrtc import Resources

RESULTS = Path(__file__).parent / "results"
REHEARSAL = "TVMFLOW_STANDIN_ARCH" in os.environ
"""The stand-in is in the GPU's place (`--rehearse`), and what is timed says nothing."""
ROUNDS, SECONDS = 5, 1.0
CANDIDATES = 12
"""Of each kernel, for the model's error."""
REHEARSED = 2
"""Kernels, and candidates of each, in a rehearsal."""
FITTED = ("launch_us", "global_cycles", "barrier_cycles", "dependent_cycles", "l2_bytes_per_clock")
"""Of the model's constants, those that a calibration chooses."""

Run = Callable[[], Any]
"""One inference whose input is on the GPU and whose end is waited for."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--board", required=True)
    parser.add_argument("--model", default="dilated-net")
    parser.add_argument("--calibrate", type=Path, help="where the model's calibration goes")
    parser.add_argument("--rehearse", action="store_true", help="do it on the stand-in, and keep no figure")
    options = parser.parse_args()

    from tvmflow.network.frontend import import_model
    from tvmflow.report import environment, write_json
    from tvmflow.targets import find
    from tvmflow.targets.cuda.backend import missing_device

    target = find("cuda", options.board)
    if options.rehearse:
        raise SystemExit(rehearse(target, options.model))
    if (missing := missing_device(target)) and not REHEARSAL:
        print(f"benchmarks.cuda measures on a GPU in this computer, and {missing}.", file=sys.stderr)
        raise SystemExit(MissingDependencyError.exit_code)
    program = import_model(options.model, [])
    times, absent = race(program, target, options.model)
    samples = sample(program, target)
    kernels = list(dict.fromkeys(row.kernel for row in samples))
    held_out = [row for row in samples if row.kernel in kernels[1::2]]
    fitted = [row for row in samples if row.kernel in kernels[::2]]
    constants = fit(Gpu.of(target), fitted, f"{options.model} on {target.name}")
    document = {
        "environment": environment({}),
        "board": target.name,
        "model": options.model,
        "ms": times,
        "absent": absent,
        "candidates": [
            {"kernel": row.kernel, "candidate": row.candidate, "measured_us": row.measured_us} for row in samples
        ],
        "model_error": error(Gpu.of(target), held_out, Constants()),
        "calibrated_model_error": error(Gpu.of(target), held_out, constants),
        "calibration": asdict(constants),
    }
    if REHEARSAL:
        save_constants(constants, Path(os.devnull))
        print(
            f"Rehearsed: {', '.join(times)}; {len(samples)} candidates. Absent: {json.dumps(absent)}. Nothing is kept."
        )
        return
    write_json(document, RESULTS / f"cuda-{target.name}.json")
    print(json.dumps({name: statistics.median(values) for name, values in times.items()}, indent=1))
    print(json.dumps({key: document[key] for key in ("model_error", "calibrated_model_error")}, indent=1))
    if options.calibrate:
        save_constants(constants, options.calibrate)


def rehearse(board: Target, model: str) -> int:
    """This script again where the stand-in takes the GPU's place; its exit code."""
    from tvmflow.targets.cuda import standin

    with tempfile.TemporaryDirectory(prefix="tvmflow-rehearsal-") as folder:
        variables = standin.environment(Gpu.of(board).architecture) | {"TVMFLOW_STANDIN_IMAGES": folder}
        command = [sys.executable, "-m", "benchmarks.cuda", "--board", board.name, "--model", model]
        return subprocess.run(command, env=variables, check=False).returncode


def race(program: Program, target: Target, model: str) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Median ms of each library in each round, taken in turns, and why others are absent."""
    runs: dict[str, Run] = {}
    absent: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="tvmflow-cuda-") as folder:
        contestants: dict[str, Callable[[Program, Target, str, Path], Run]] = {
            "tvmflow": tvmflow_run,
            "tvm-untuned": untuned_run,
            "pytorch": lambda program, target, model, folder: torch_run(program, model, compiled=False),
            "pytorch-compiled": lambda program, target, model, folder: torch_run(program, model, compiled=True),
            "onnxruntime": lambda program, target, model, folder: onnx_run(program, model, folder, "CUDA"),
            "tensorrt": lambda program, target, model, folder: onnx_run(program, model, folder, "Tensorrt"),
        }
        for name, make in contestants.items():
            try:
                runs[name] = make(program, target, model, Path(folder))
                runs[name]()
            except Exception as error:  # whatever a library says of why it can't
                runs.pop(name, None)
                absent[name] = str(error).strip().splitlines()[-1]
        samples: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(1 if REHEARSAL else ROUNDS):
            for name, run in runs.items():
                samples[name].append(median_ms(run))
    return samples, absent


def median_ms(run: Run) -> float:
    found: list[float] = []
    until = time.perf_counter() + SECONDS
    while time.perf_counter() < until or len(found) < 10:
        started = time.perf_counter()
        run()
        found.append(1e3 * (time.perf_counter() - started))
    return statistics.median(found[len(found) // 5 :])


def tvmflow_run(program: Program, target: Target, model: str, folder: Path) -> Run:
    from tvmflow.bundles.build import build

    bundle = build(program, target, folder / "bundle")
    return library_run(bundle.library, program)


def untuned_run(program: Program, target: Target, model: str, folder: Path) -> Run:
    """The network as TVM's own pipeline for CUDA compiles it."""
    from tvmflow.bundles.build import build

    bundle = build(program, replace(target, schedules=()), folder / "untuned")
    return library_run(bundle.library, program)


def library_run(library: Path, program: Program) -> Run:
    import tvm
    from tvm import relax

    device = tvm.cuda(0)
    machine = relax.VirtualMachine(tvm.runtime.load_module(str(library)), [device, tvm.cpu()])
    inputs = [tvm.runtime.tensor(np.ascontiguousarray(array), device) for array in program.vectors[0].inputs]

    def run() -> None:
        machine["main"](*inputs)
        device.sync()

    return run


def torch_run(program: Program, model: str, *, compiled: bool) -> Run:
    import torch

    from tvmflow.models import MODELS

    if not torch.cuda.is_available():
        raise MissingDependencyError("this PyTorch finds no GPU")
    network = MODELS[model]().eval().cuda()
    function = torch.compile(network) if compiled else network
    inputs = [torch.from_numpy(array).cuda() for array in program.vectors[0].inputs]

    def run() -> None:
        with torch.inference_mode():
            function(*inputs)
        torch.cuda.synchronize()

    return run


def onnx_run(program: Program, model: str, folder: Path, provider: str) -> Run:
    import onnxruntime
    import torch

    from tvmflow.models import MODELS

    name = f"{provider}ExecutionProvider"
    if name not in onnxruntime.get_available_providers():
        raise MissingDependencyError(f"this ONNX Runtime has no {name}")
    path = folder / "model.onnx"
    inputs = program.vectors[0].inputs
    torch.onnx.export(MODELS[model]().eval(), tuple(map(torch.from_numpy, inputs)), str(path), dynamo=True)
    session = onnxruntime.InferenceSession(path, providers=[name])
    binding = session.io_binding()
    for given, array in zip(session.get_inputs(), inputs, strict=True):
        binding.bind_ortvalue_input(given.name, onnxruntime.OrtValue.ortvalue_from_numpy(array, "cuda", 0))
    for output in session.get_outputs():
        binding.bind_output(output.name, "cuda")
    return lambda: session.run_with_iobinding(binding)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A candidate of a kernel: its time, and what the model knows of it."""

    kernel: str
    candidate: str
    measured_us: float
    launches: Sequence[Counts]
    resources: Mapping[str, Resources]

    def modelled_us(self, gpu: Gpu, constants: Constants) -> float:
        return modelled_us(gpu, self.launches, self.resources, constants)


def sample(program: Program, target: Target) -> list[Sample]:
    """Some candidates of each kernel, timed; those of one kernel follow each other."""
    from tvmflow.targets.cuda import counts
    from tvmflow.targets.cuda.passes.plain_names import with_plain_names
    from tvmflow.targets.search import typical
    from tvmflow.tune.builders import Builders, LocalPool
    from tvmflow.tune.measure import LocalMeasurer
    from tvmflow.tune.space import CostModel, Space
    from tvmflow.tune.tasks import as_plain, extract, tvm_target

    described, architecture = as_plain(tvm_target(target).export()), Gpu.of(target).architecture
    most = REHEARSED if REHEARSAL else CANDIDATES
    found = []
    with (
        closing(Builders(LocalPool(target, described))) as builders,
        closing(LocalMeasurer(target, builders)) as local,
    ):
        for task in extract(program, target)[: REHEARSED if REHEARSAL else None]:
            space = Space(task, target, CostModel(), seed=0, batch=CANDIDATES, population=16)
            candidates = [space.default, *space.choices[:: max(1, len(space.choices) // most)]][: most + 1]
            for row, result in zip(candidates, local.measure(task, candidates, None), strict=True):
                if result.outcome != "ok":
                    continue
                source, launches = counts.lower(with_plain_names(row.module), described)
                resources = nvrtc.compile_cuda(source, (architecture,)).resources[architecture]
                measured = 1e3 * typical(result.ms)
                found.append(
                    Sample(
                        kernel=task.name,
                        candidate=row.text,
                        measured_us=measured,
                        launches=launches,
                        resources=resources,
                    )
                )
    return found


def fit(gpu: Gpu, samples: Sequence[Sample], source: str) -> Constants:
    """The constants with which the model is off by the smallest factor, in the mean of logarithms."""
    from scipy.optimize import minimize

    assumed = Constants()

    def constants(factors: np.ndarray) -> Constants:
        chosen = {name: getattr(assumed, name) * math.exp(factor) for name, factor in zip(FITTED, factors, strict=True)}
        return replace(assumed, **chosen, source=f"{len(samples)} candidates of {source}")

    def off(factors: np.ndarray) -> float:
        tried = constants(factors)
        return statistics.fmean(
            abs(math.log(row.measured_us / row.modelled_us(gpu, tried))) for row in samples
        ) + 0.01 * float(np.abs(factors).mean())  # a constant that nothing depends on stays as it was

    found = minimize(off, np.zeros(len(FITTED)), method="Powell")
    return constants(found.x)


def error(gpu: Gpu, samples: Sequence[Sample], constants: Constants) -> dict[str, Any]:
    """Of kernels: the median rank correlation, and the spread of measured over modelled times (p90 over p10)."""
    pairs: dict[str, list[tuple[float, float]]] = {}
    for row in samples:
        pairs.setdefault(row.kernel, []).append((row.measured_us, row.modelled_us(gpu, constants)))
    known = [found for rows in pairs.values() if (found := rank_correlation(rows)) is not None]
    ratios = [real / guess for rows in pairs.values() for real, guess in rows]
    low, high = np.percentile(ratios, [10, 90]) if ratios else (math.nan, math.nan)
    return {
        "kernels": len(pairs),
        "median_rank_correlation": statistics.median(known) if known else None,
        "median_ratio": statistics.median(ratios) if ratios else None,
        "spread": float(high / low),
    }


def rank_correlation(pairs: Sequence[tuple[Any, Any]]) -> float | None:
    """Spearman's, of places among equals counted as they come; None of fewer than three pairs."""
    if len(pairs) < 3:
        return None
    places = [np.argsort(np.argsort(column)).astype(float) for column in zip(*pairs, strict=True)]
    return float(np.corrcoef(places[0], places[1])[0, 1])


if __name__ == "__main__":
    main()
