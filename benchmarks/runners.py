"""Ways of running the network: `python -m benchmarks.runners NAME FOLDER THREADS SECONDS` prints {"p50", "version"}.

A runner makes a function of no arguments that returns the output; it is checked before it is timed.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

WARMUP_SECONDS = 0.5
Run = Callable[[], np.ndarray]


def run_tvmflow(folder: Path, threads: int) -> tuple[Run, str]:
    sys.modules["torch"] = None  # type: ignore[assignment]  # tvm_ffi would import it, which no deployment does
    import tvm
    from tvm import relax

    from tvmflow import __version__

    machine = relax.VirtualMachine(tvm.runtime.load_module(str(folder / "bundle" / "model.so")), tvm.cpu())
    tensor = tvm.runtime.tensor(np.load(folder / "input.npy"))
    main = machine["main"]
    return lambda: main(tensor).numpy(), __version__


def run_onnxruntime(folder: Path, threads: int) -> tuple[Run, str]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
    feeds = {session.get_inputs()[0].name: np.load(folder / "input.npy")}
    return lambda: session.run(None, feeds)[0], onnxruntime.__version__


def run_pytorch(folder: Path, threads: int) -> tuple[Run, str]:
    import torch

    from tvmflow.models import MODELS

    torch.set_num_threads(threads)
    network = MODELS[(folder / "model").read_text()]()
    tensor = torch.from_numpy(np.load(folder / "input.npy"))

    def run() -> np.ndarray:
        with torch.inference_mode():
            return network(tensor).numpy()

    return run, torch.__version__


RUNNERS = {"tvmflow": run_tvmflow, "onnxruntime": run_onnxruntime, "pytorch": run_pytorch}


def main(name: str, folder: str, threads: str, seconds: str) -> None:
    run, version = RUNNERS[name](Path(folder), int(threads))
    np.testing.assert_allclose(run(), np.load(Path(folder, "expected.npy")), rtol=0, atol=1e-4)
    samples: list[float] = []
    for duration in (WARMUP_SECONDS, float(seconds)):
        samples.clear()
        until = time.perf_counter() + duration
        while time.perf_counter() < until:
            started = time.perf_counter_ns()
            run()
            samples.append((time.perf_counter_ns() - started) / 1e6)
    print(json.dumps({"p50": float(np.median(samples)), "version": version}))


if __name__ == "__main__":
    main(*sys.argv[1:])
