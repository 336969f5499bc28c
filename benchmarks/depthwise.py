"""The dilated depthwise layer alone, over a matrix of sizes: tvmflow beside ONNX Runtime and PyTorch, one thread.

`python -m benchmarks.depthwise` takes some minutes and writes benchmarks/results/depthwise.json and .md. Each figure is
of up to eight layers with weights of their own that read the same NCHW input and are called together, so that calling
costs little; the three take turns, and the median over rounds of the fastest call counts.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

CHANNELS, SIZES, STRIDES, DELTAS = (32, 128, 512, 1024), (4, 8, 16, 32, 56, 112), (1, 2), (0, 1, 2, 3)
MOST_ELEMENTS = 1 << 19
RESULT_ELEMENTS = 1 << 18  # of all layers, so that they stay in the L2 cache
MOST_LAYERS, ROUNDS, CALLS = 8, 5, 12
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--channels", type=int, nargs="*", default=CHANNELS)
    parser.add_argument("--output", type=Path, default=RESULTS / "depthwise.json")
    options = parser.parse_args()
    for name in ("TVM_NUM_THREADS", "OMP_NUM_THREADS"):
        os.environ[name] = "1"

    import onnxruntime
    import torch

    from tvmflow.models.cost import dilation_of
    from tvmflow.report import environment, write_json

    torch.set_num_threads(1)
    rows = []
    for channels, size, stride, delta in itertools.product(options.channels, SIZES, STRIDES, DELTAS):
        if channels * size * size <= MOST_ELEMENTS:
            figures = compare(channels, size, stride, dilation_of(delta))
            rows.append({"channels": channels, "size": size, "stride": stride, "delta": delta, "us": figures})
    for row in rows:
        row["ratio"] = min(us for name, us in row["us"].items() if name != "tvmflow") / row["us"]["tvmflow"]
    document = {
        "basis": "measured",
        "unit": "us per layer",
        "threads": 1,
        "environment": environment({"onnxruntime": onnxruntime.__version__, "torch": torch.__version__}),
        "load": os.getloadavg()[0],
        "geometric_mean_ratio": math.exp(statistics.fmean(math.log(row["ratio"]) for row in rows)),
        "lowest_ratio": min(row["ratio"] for row in rows),
        "rows": rows,
    }
    options.output.parent.mkdir(exist_ok=True)
    write_json(options.output, document)
    options.output.with_suffix(".md").write_text(markdown(document))
    print(markdown(document))


def compare(channels: int, size: int, stride: int, dilation: int) -> dict[str, float]:
    """µs for each layer, by library. Raises AssertionError unless all compute the same."""
    import numpy as np

    generator = np.random.default_rng(0)
    layers = max(1, min(MOST_LAYERS, RESULT_ELEMENTS // (channels * math.ceil(size / stride) ** 2)))
    data = generator.standard_normal((1, channels, size, size)).astype("float32")
    weights = [generator.standard_normal((channels, 1, 3, 3)).astype("float32") for _ in range(layers)]
    options = {"padding": dilation, "stride": stride, "dilation": dilation}
    runs = {
        "tvmflow": run_tvmflow(data, weights, options),
        "onnxruntime": run_onnxruntime(data, weights, options),
        "pytorch": run_pytorch(data, weights, options),
    }
    expected = [np.asarray(output) for output in runs["pytorch"]()]
    for name, run in runs.items():
        for output, exact in zip(run(), expected, strict=True):
            np.testing.assert_allclose(
                output.numpy() if hasattr(output, "numpy") else output, exact, rtol=0, atol=1e-4, err_msg=name
            )
    best: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            samples = []
            for _ in range(CALLS):
                started = time.perf_counter_ns()
                run()
                samples.append((time.perf_counter_ns() - started) / 1e3 / layers)
            best[name].append(min(samples))
    return {name: round(statistics.median(values), 3) for name, values in best.items()}


def run_tvmflow(data: Any, weights: list[Any], options: dict[str, int]) -> Callable[[], Any]:
    import tvm
    from tvm import relax

    from tvmflow.pipeline import run_stages
    from tvmflow.spec import Program
    from tvmflow.targets import TARGETS
    from tvmflow.toolchain import tvm_target_dict

    builder, x = relax.BlockBuilder(), relax.Var("x", relax.TensorType(data.shape, "float32"))
    attributes = {"padding": options["padding"], "strides": options["stride"], "dilation": options["dilation"]}
    with builder.function("main", [x]):
        with builder.dataflow():
            layers = [relax.op.nn.conv2d(x, relax.const(w), groups=data.shape[1], **attributes) for w in weights]
            outputs = [builder.emit(layer, f"layer{index}") for index, layer in enumerate(layers)]
            result = builder.emit_output(relax.Tuple(outputs))
        builder.emit_func_output(result)
    program = Program(name="", source="", module=builder.get(), inputs=(), outputs=(), vectors=(), parameters=0)
    compiled = run_stages(program, TARGETS["host"])
    target = tvm.target.Target(tvm_target_dict(TARGETS["host"]))
    main = relax.VirtualMachine(relax.build(compiled.module, target, relax_pipeline=None), tvm.cpu())["main"]
    tensor = tvm.runtime.tensor(data)
    return lambda: main(tensor)


def run_onnxruntime(data: Any, weights: list[Any], options: dict[str, int]) -> Callable[[], Any]:
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    attributes = {
        "group": data.shape[1],
        "kernel_shape": [3, 3],
        "pads": [options["padding"]] * 4,
        "strides": [options["stride"]] * 2,
        "dilations": [options["dilation"]] * 2,
    }
    names = [f"y{index}" for index in range(len(weights))]
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", f"w{index}"], [name], **attributes) for index, name in enumerate(names)],
        "depthwise",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, data.shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names],
        [numpy_helper.from_array(weight, f"w{index}") for index, weight in enumerate(weights)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"x": data})


def run_pytorch(data: Any, weights: list[Any], options: dict[str, int]) -> Callable[[], Any]:
    import torch

    tensor, filters = torch.from_numpy(data), [torch.from_numpy(weight) for weight in weights]

    def run() -> Any:
        with torch.inference_mode():
            return [torch.nn.functional.conv2d(tensor, w, groups=data.shape[1], **options) for w in filters]

    return run


def markdown(document: dict[str, Any]) -> str:
    lines = [
        "# Depthwise 3×3 alone, one thread",
        "",
        f"{document['environment'].get('cpu', '')} µs for each layer; the ratio is to the better of the two others. "
        f"Geometric mean {document['geometric_mean_ratio']:.2f}, lowest {document['lowest_ratio']:.2f}. "
        f"{document['environment'].get('date', '')[:10]}, load {document['load']:.1f}; of at most "
        f"{MOST_ELEMENTS} inputs.",
        "",
        "| C | H = W | stride | δ | tvmflow | ONNX Runtime | PyTorch | ratio |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in document["rows"]:
        figures = " | ".join(f"{row['us'][name]:.1f}" for name in ("tvmflow", "onnxruntime", "pytorch"))
        lines.append(
            f"| {row['channels']} | {row['size']} | {row['stride']} | {row['delta']} | {figures} | {row['ratio']:.2f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
