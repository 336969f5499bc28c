"""On a computer with an NVIDIA GPU: tvmflow beside other libraries, and how far off the model of kernels is.

`python -m benchmarks.cuda --board rtx-3090` builds the network for that board's architecture, times it and the others
in turns (PyTorch eager and compiled, ONNX Runtime with CUDA and, where it has it, TensorRT, TVM untuned), then measures
some candidates of each kernel and compares the order of their times with the model's. It writes
benchmarks/results/cuda-BOARD.json, and with `--calibrate FILE` what the model should use there: the scale that makes
the median candidate right, which changes no order. A library that isn't installed, or has no CUDA, is listed as absent.

Without a GPU of that architecture it says what is missing and ends with exit code 5. Nobody has run the measuring part
yet, for want of a GPU.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tvmflow.spec import MissingDependencyError, Program, Target

RESULTS = Path(__file__).parent / "results"
ROUNDS, SECONDS = 5, 1.0
CANDIDATES = 12
"""Of each kernel, for the model's error."""

Run = Callable[[], Any]
"""One inference whose input is on the GPU and whose end is waited for."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--board", required=True)
    parser.add_argument("--model", default="dilated-net")
    parser.add_argument("--calibrate", type=Path, help="where the model's calibration goes")
    options = parser.parse_args()

    from tvmflow.cuda.backend import missing_device
    from tvmflow.frontend import import_model
    from tvmflow.report import environment, write_json
    from tvmflow.targets import find

    target = find("cuda", options.board)
    if missing := missing_device(target):
        print(f"benchmarks.cuda measures on a GPU in this computer, and {missing}.", file=sys.stderr)
        raise SystemExit(MissingDependencyError.exit_code)
    program = import_model(options.model, [])
    samples, absent = race(program, target, options.model)
    kernels = model_error(program, target)
    document = {
        "environment": environment({}),
        "board": target.name,
        "model": options.model,
        "ms": samples,
        "absent": absent,
        "model_error": kernels,
    }
    write_json(document, RESULTS / f"cuda-{target.name}.json")
    print(json.dumps({name: statistics.median(values) for name, values in samples.items()}, indent=1))
    print(json.dumps(summary(kernels), indent=1))
    if options.calibrate:
        from tvmflow.cuda.model import Constants, save_constants

        ratios = [row["measured_us"] / row["modelled_us"] for kernel in kernels for row in kernel["candidates"]]
        source = f"{len(ratios)} candidates of {options.model} on {target.name}"
        save_constants(replace(Constants(), scale=statistics.median(ratios), source=source), options.calibrate)


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
        for _ in range(ROUNDS):
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
    from tvmflow.cuda.backend import build

    bundle = build(program, target, folder / "bundle")
    return library_run(bundle.library, program)


def untuned_run(program: Program, target: Target, model: str, folder: Path) -> Run:
    """The network as TVM's own pipeline for CUDA compiles it."""
    from tvmflow.cuda.backend import build

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


def model_error(program: Program, target: Target) -> list[dict[str, Any]]:
    """For each kernel, measured and modelled µs of some of its candidates, and how alike their orders are."""
    from tvmflow.tune.builders import Builders, LocalPool
    from tvmflow.tune.measure import LocalMeasurer
    from tvmflow.tune.modelled import ModelledMeasurer
    from tvmflow.tune.space import CostModel, Space
    from tvmflow.tune.store import typical
    from tvmflow.tune.tasks import as_plain, extract, tvm_target

    described = as_plain(tvm_target(target).export())
    found = []
    with (
        closing(Builders(LocalPool(target, described))) as builders,
        closing(LocalMeasurer(target, builders)) as local,
        closing(ModelledMeasurer(target, described)) as modelled,
    ):
        for task in extract(program, target):
            space = Space(task, target, CostModel(), seed=0, batch=CANDIDATES, population=16)
            candidates = [space.default, *space.choices[:: max(1, len(space.choices) // CANDIDATES)]]
            measured = list(local.measure(task, candidates, None))
            rows = [
                {"candidate": row.text, "measured_us": 1e3 * typical(real.ms), "modelled_us": 1e3 * guess.ms[0]}
                for row, real, guess in zip(candidates, measured, modelled.measure(task, candidates, None), strict=True)
                if real.outcome == guess.outcome == "ok"
            ]
            pairs = [(row["measured_us"], row["modelled_us"]) for row in rows]
            found.append({"kernel": task.name, "candidates": rows, "rank_correlation": rank_correlation(pairs)})
    return found


def rank_correlation(pairs: Sequence[tuple[Any, Any]]) -> float | None:
    """Spearman's, of places among equals counted as they come; None of fewer than three pairs."""
    if len(pairs) < 3:
        return None
    places = [np.argsort(np.argsort(column)).astype(float) for column in zip(*pairs, strict=True)]
    return float(np.corrcoef(places[0], places[1])[0, 1])


def summary(kernels: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of all kernels: the median rank correlation, and the spread of measured over modelled (p90 over p10)."""
    known = [kernel["rank_correlation"] for kernel in kernels if kernel["rank_correlation"] is not None]
    ratios = [row["measured_us"] / row["modelled_us"] for kernel in kernels for row in kernel["candidates"]]
    low, high = np.percentile(ratios, [10, 90]) if ratios else (math.nan, math.nan)
    return {
        "kernels": len(kernels),
        "median_rank_correlation": statistics.median(known) if known else None,
        "spread": float(high / low),
    }


if __name__ == "__main__":
    main()
