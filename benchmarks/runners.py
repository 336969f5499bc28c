"""Ways of running a network, all by the same protocol: `python -m benchmarks.runners NAME FOLDER THREADS`.

A runner takes the network from FOLDER, where `benchmarks.convert` has put it, and makes a function of no arguments that
returns the outputs. The process says in one line of JSON which version it is and how far its answer is off, or that it
is `absent` and why. Then each line of its input is a number of seconds, and it answers with the median time of an
inference; or, with `--inferences N`, it runs the network that often and ends. Only NumPy and the library are imported.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np

WARMUP_SECONDS = 0.3
TOLERANCE = 1e-4
"""Of the largest output or of 1, whichever is more: some libraries compute 3×3 convolutions by Winograd's algorithm."""
INT8_TOLERANCE = 0.05
"""Of int8 logits, by the same rule: other libraries scale sums in floating point and round halves to even."""
INT8 = "-int8"
"""How the names of runners end that take the quantised network, from the folder's own folder "int8"."""

LIBRARY = "tvmflow-library"
"""The same kernels, called by C instead of TVM's runtime; compared where it is asked for."""

Run = Callable[[], Sequence[np.ndarray]]


def run_tvmflow(folder: Path, threads: int) -> tuple[Run, str]:
    from tvmflow import __version__

    return _run_tvm(folder / "bundle"), __version__


def run_tvmflow_library(folder: Path, threads: int) -> tuple[Run, str]:
    """The shared library of C, called by ctypes; its bundle is in the folder "library"."""
    import ctypes

    manifest = json.loads((folder / "library" / "manifest.json").read_text())
    name = manifest["c_library"]["name"]
    library = ctypes.CDLL(str(folder / "library" / f"lib{name}.so"))
    options, context = (ctypes.c_int32 * 64)(threads), ctypes.c_void_p()  # zeros behind the first are the defaults
    if getattr(library, f"{name}_init")(ctypes.byref(context), options):
        raise RuntimeError("its context can't be made")
    array = np.ascontiguousarray(_input(folder))
    outputs = [np.empty(spec["shape"], spec["dtype"]) for spec in manifest["outputs"]]
    pointers = [ctypes.c_void_p(tensor.ctypes.data) for tensor in (array, *outputs)]
    function = getattr(library, f"{name}_run")

    def run(given: np.ndarray = array) -> list[np.ndarray]:  # whose memory has to stay
        if function(context, *pointers):
            raise RuntimeError("it refused its arguments")
        return outputs

    return run, manifest["versions"]["tvmflow"]


def run_tvm_untuned(folder: Path, threads: int) -> tuple[Run, str]:
    return _run_tvm(folder / "untuned"), version("apache-tvm")


def _run_tvm(bundle: Path) -> Run:
    sys.modules["torch"] = None  # type: ignore[assignment]  # tvm_ffi would import it, which no deployment does
    import tvm
    from tvm import relax

    machine = relax.VirtualMachine(tvm.runtime.load_module(str(bundle / "model.so")), tvm.cpu())
    tensor = tvm.runtime.tensor(_input(bundle.parent))
    main = machine["main"]

    def run() -> list[np.ndarray]:
        result = main(tensor)
        return [output.numpy() for output in ([result] if isinstance(result, tvm.runtime.Tensor) else result)]

    return run


def run_onnxruntime(folder: Path, threads: int) -> tuple[Run, str]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    array = _input(folder)
    feeds = {given.name: (array.view(np.uint8) ^ 128) if given.type == "tensor(uint8)" else array}
    return lambda: session.run(None, feeds), onnxruntime.__version__


def run_openvino(folder: Path, threads: int) -> tuple[Run, str]:
    import openvino

    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",  # it would take bfloat16 where the CPU has it
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
    }
    compiled = openvino.Core().compile_model(str(folder / "model.onnx"), "CPU", settings)
    request, tensor = compiled.create_infer_request(), openvino.Tensor(_input(folder))

    def run() -> list[np.ndarray]:
        request.infer([tensor])
        return [output.data for output in request.output_tensors]

    return run, version("openvino")


def run_litert(folder: Path, threads: int) -> tuple[Run, str]:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(folder / "model.tflite"), num_threads=threads)  # XNNPACK by default
    interpreter.allocate_tensors()
    array, (given,) = _input(folder), interpreter.get_input_details()
    # in the order in which the network gives them, which their places in the file needn't have
    results = [
        output["index"] for output in sorted(interpreter.get_output_details(), key=lambda output: output["name"])
    ]
    if array.ndim == 4:  # images; other inputs stay as they are
        array = np.ascontiguousarray(array.transpose(0, 2, 3, 1))
    interpreter.set_tensor(given["index"], array)

    def run() -> list[np.ndarray]:
        interpreter.invoke()
        return [interpreter.get_tensor(result) for result in results]

    return run, version("ai-edge-litert")


def run_ncnn(folder: Path, threads: int) -> tuple[Run, str]:
    import ncnn

    network = ncnn.Net()
    network.opt.num_threads = threads
    for name in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage"):
        setattr(network.opt, name, False)  # float32, as all the others
    network.load_param(str(folder / "model.ncnn.param"))
    network.load_model(str(folder / "model.ncnn.bin"))
    outputs = [f"out{place}" for place in range(len(expected_of(folder)))]
    batch = _input(folder)
    if len(batch) > 1:
        raise ValueError("ncnn takes one input at a time")
    array = batch[0]  # ncnn.Mat looks at it and doesn't keep it
    image = ncnn.Mat(array).clone()

    def run() -> list[np.ndarray]:
        with network.create_extractor() as extractor:
            extractor.input("in0", image)
            return [np.array(extractor.extract(output)[1])[None] for output in outputs]

    return run, version("ncnn")


def run_pytorch(folder: Path, threads: int) -> tuple[Run, str]:
    import torch

    from benchmarks.networks import NETWORKS

    torch.set_num_threads(threads)
    return _run_torch(NETWORKS[(folder / "model").read_text()](), folder)


def run_pytorch_compiled(folder: Path, threads: int) -> tuple[Run, str]:
    os.environ |= {"TORCHINDUCTOR_FREEZING": "1", "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor")}
    import torch

    from benchmarks.networks import NETWORKS

    torch.set_num_threads(threads)
    return _run_torch(torch.compile(NETWORKS[(folder / "model").read_text()]()), folder)


def _run_torch(network: Callable, folder: Path) -> tuple[Run, str]:
    import torch

    tensor = torch.from_numpy(_input(folder))

    def run() -> list[np.ndarray]:
        with torch.inference_mode():
            result = network(tensor)
            return [output.numpy() for output in ([result] if isinstance(result, torch.Tensor) else result)]

    return run, torch.__version__


def _input(folder: Path) -> np.ndarray:
    return np.load(folder / "input.npy")


def save_expected(folder: Path, outputs: Sequence[np.ndarray]) -> None:
    """Put what the network answers into `folder`: expected.npy, and expected-1.npy and so on if there is more."""
    for place, output in enumerate(outputs):
        np.save(folder / (f"expected-{place}.npy" if place else "expected.npy"), output)


def expected_of(folder: Path) -> list[np.ndarray]:
    """What `save_expected` has put there."""
    count = 1 + len(list(folder.glob("expected-*.npy")))
    return [np.load(folder / (f"expected-{place}.npy" if place else "expected.npy")) for place in range(count)]


RUNNERS = {
    "tvmflow": run_tvmflow,
    "onnxruntime": run_onnxruntime,
    "openvino": run_openvino,
    "litert": run_litert,
    "ncnn": run_ncnn,
    "pytorch": run_pytorch,
    "pytorch-compiled": run_pytorch_compiled,
    "tvm-untuned": run_tvm_untuned,
    LIBRARY: run_tvmflow_library,
    f"tvmflow{INT8}": run_tvmflow,
    f"onnxruntime{INT8}": run_onnxruntime,
}


def tolerance(name: str) -> float:
    """What its answer may be off: ours has to be exact in int8."""
    return (0.0 if name.startswith("tvmflow") else INT8_TOLERANCE) if name.endswith(INT8) else TOLERANCE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=RUNNERS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("threads", type=int)
    parser.add_argument("--inferences", type=int, help="run that often, then end")
    options = parser.parse_args()

    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints is no answer
    folder = options.folder / "int8" if options.name.endswith(INT8) else options.folder
    try:
        run, library_version = RUNNERS[options.name](folder, options.threads)
        error = largest_error(run(), expected_of(folder))
    except Exception as reason:
        print(json.dumps({"absent": f"{type(reason).__name__}: {reason}".splitlines()[0]}), file=answers)
        return
    print(json.dumps({"version": library_version, "error": error}), file=answers)
    if options.inferences is not None:
        for _ in range(options.inferences):
            run()
        return
    for line in sys.stdin:
        _samples(run, WARMUP_SECONDS)
        print(json.dumps({"p50": statistics.median(_samples(run, float(line)))}), file=answers)


def largest_error(outputs: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float:
    """That of the output that is furthest off by `error_of`; infinite if there are more or fewer of them."""
    if len(outputs) != len(expected):
        return float("inf")
    return max(error_of(output, other) for output, other in zip(outputs, expected, strict=True))


def error_of(output: np.ndarray, expected: np.ndarray) -> float:
    """Largest error, relative to the largest expected value or to 1; infinite if it is no tensor of numbers like it."""
    if output.shape != expected.shape or not np.isfinite(output).all():
        return float("inf")
    if output.dtype == np.uint8:  # int8 around 128
        output = output.astype(np.int32) - 128
    if output.dtype.kind == "i":
        output, expected = output.astype(np.int32), expected.astype(np.int32)
    return float(np.abs(output - expected).max() / max(1.0, np.abs(expected).max()))


def _samples(run: Run, seconds: float) -> list[float]:
    """Times of single inferences in ms, three at least."""
    samples: list[float] = []
    until = time.perf_counter() + seconds
    while len(samples) < 3 or time.perf_counter() < until:
        started = time.perf_counter_ns()
        run()
        samples.append((time.perf_counter_ns() - started) / 1e6)
    return samples


if __name__ == "__main__":
    main()
