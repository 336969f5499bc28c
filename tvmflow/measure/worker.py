"""The process that runs a compiled library: `python -m tvmflow.measure.worker JOB.json RESULT.json`.

A library that crashes takes this process with it and nothing else; thread count, memory and warm-up start from
nothing. Jobs are {"mode": "run" | "time" | "profile" | "capture", "library": path, "inputs": [.npy files], …}; see
`local`.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

# tvm_ffi imports torch wherever it is installed, which costs 2 s and 250 MB; running a library needs none of it.
sys.modules["torch"] = None  # type: ignore[assignment]
if __name__ == "__main__":  # whoever imports this may compile, too
    import tvmflow.system.without_compiler  # noqa: F401

import numpy as np  # noqa: E402
import psutil  # noqa: E402
import tvm  # noqa: E402
from tvm.runtime.vm import VirtualMachine  # noqa: E402

from tvmflow.measure.noise import disturbances  # noqa: E402
from tvmflow.system.tensors import load  # noqa: E402

WARMUP_SECONDS = 0.5
WARMUP_RUNS = 10
ATTEMPTS = 3


class Network:
    """A loaded library: `network(inputs)` → list of output arrays."""

    def __init__(self, library: str, device: str = "cpu") -> None:
        started = time.perf_counter_ns()
        self.device = tvm.device(device)
        self.vm = VirtualMachine(tvm.runtime.load_module(library), self.device)
        self.setup_ms = _ms_since(started)
        self.main = self.vm["main"]

    def __call__(self, tensors: list[tvm.runtime.Tensor]) -> list[np.ndarray]:
        result = self.main(*tensors)
        results = [result] if isinstance(result, tvm.runtime.Tensor) else list(result)
        return [tensor.numpy() for tensor in results]


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Run every input and save the outputs, stacked: input and output files have the runs as their first axis.

    "kept" has pairs of an input and the output of the run before that it is at all runs but the first.
    """
    network = Network(job["library"], job.get("device", "cpu"))
    stacks = [load(path, mmap_mode="r") for path in job["inputs"]]
    collected: list[list[np.ndarray]] = []
    for index in range(len(stacks[0])):
        arrays = [stack[index] for stack in stacks]
        for before, after in job.get("kept", ()) if index else ():
            arrays[before] = collected[-1][after]
        collected.append(
            network([tvm.runtime.tensor(np.asarray(array, order="C"), network.device) for array in arrays])
        )
    for path, outputs in zip(job["outputs"], zip(*collected, strict=True), strict=True):
        np.save(path, np.stack(outputs))
    return {}


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Time single inferences: set-up, the first, the warm-up, then `repeats` or as many as fit into `seconds`.

    The steady runs are repeated if they were disturbed, until there are ATTEMPTS; the calmest are taken.
    """
    process = psutil.Process()
    before = process.memory_info().rss
    network = Network(job["library"], job.get("device", "cpu"))
    loaded = process.memory_info().rss
    tensors = [tvm.runtime.tensor(load(path), network.device) for path in job["inputs"]]

    def once() -> float:
        started = time.perf_counter_ns()
        network.main(*tensors)
        network.device.sync()
        return _ms_since(started)

    first = once()
    started = time.perf_counter()
    warmup = [once() for _ in range(WARMUP_RUNS)]
    warm = process.memory_info().rss  # the network has all that it allocates; the times of 100,000 runs aren't its own
    while time.perf_counter() - started < WARMUP_SECONDS:
        warmup.append(once())
    attempts: list[list[float]] = []
    while not attempts or (len(attempts) < ATTEMPTS and _is_disturbed(attempts[-1])):
        samples: list[float] = []
        started = time.perf_counter()
        while len(samples) < job["repeats"] if job["repeats"] else time.perf_counter() - started < job["seconds"]:
            samples.append(once())
        attempts.append(samples)
    return {
        "setup_ms": network.setup_ms,
        "first_ms": first,
        "warmup_ms": warmup,
        "samples_ms": min(attempts, key=lambda samples: np.percentile(samples, 90) / min(samples)),
        "attempts": len(attempts),
        "loaded_bytes": loaded - before,
        "peak_bytes": max(loaded, warm) - before,
    }


def _is_disturbed(samples: list[float]) -> bool:
    p50, p90 = np.percentile(samples, [50, 90])
    return bool(disturbances(p50, p90, min(samples), len(samples)))


def profile(job: dict[str, Any]) -> dict[str, Any]:
    """Time each kernel call inside `repeats` inferences: `calls` is [kernel, [µs of each inference]] in order."""
    network = Network(job["library"], job.get("device", "cpu"))
    tensors = [tvm.runtime.tensor(load(path), network.device) for path in job["inputs"]]
    kernels = set(job["kernels"])
    rows: list[tuple[str, float]] = []
    started = 0

    def instrument(func: Any, name: str, before_run: bool, result: Any, *args: Any) -> int:
        nonlocal started
        if name in kernels:
            network.device.sync()
            if before_run:
                started = time.perf_counter_ns()
            else:
                rows.append((name, _ms_since(started) * 1000))
        return 0

    for _ in range(WARMUP_RUNS):
        network.main(*tensors)
    network.vm.set_instrument(instrument)
    runs = []
    for _ in range(job["repeats"]):
        rows.clear()
        network.main(*tensors)
        runs.append(list(rows))
    calls = zip(*runs, strict=True)
    return {"calls": [[call[0][0], [microseconds for _, microseconds in call]] for call in calls]}


def capture_runs(
    vm: VirtualMachine, device: tvm.runtime.Device, stacks: Sequence[np.ndarray], kernels: Iterable[str]
) -> list[list[tuple[str, np.ndarray]]]:
    """Of each run the calls of `kernels`, and what each leaves in its last argument. `stacks` have runs first."""
    wanted, left = set(kernels), []

    def instrument(func: Any, name: str, before_run: bool, result: Any, *args: Any) -> int:
        if name in wanted and not before_run:
            left.append((name, args[-1].numpy().copy()))
        return 0

    vm.set_instrument(instrument)
    runs = []
    for index in range(len(stacks[0])):
        left.clear()
        vm["main"](*(tvm.runtime.tensor(np.asarray(stack[index], order="C"), device) for stack in stacks))
        runs.append(list(left))
    return runs


def capture(job: dict[str, Any]) -> dict[str, Any]:
    """Run every input and save what each kernel call leaves: `calls` are the kernels' names, in order."""
    network = Network(job["library"], job.get("device", "cpu"))
    stacks = [load(path, mmap_mode="r") for path in job["inputs"]]
    runs = capture_runs(network.vm, network.device, stacks, job["kernels"])
    for place, found in enumerate(zip(*runs, strict=True)):
        np.save(Path(job["folder"], f"call-{place}.npy"), np.stack([array for _, array in found]))
    return {"calls": [name for name, _ in runs[0]]}


def _ms_since(started_ns: int) -> float:
    return (time.perf_counter_ns() - started_ns) / 1e6


MODES = {"run": run, "time": measure, "profile": profile, "capture": capture}

if __name__ == "__main__":
    job = json.loads(Path(sys.argv[1]).read_text())
    Path(sys.argv[2]).write_text(json.dumps(MODES[job["mode"]](job)))
