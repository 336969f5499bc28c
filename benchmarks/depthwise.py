"""The dilated depthwise layer alone, over a matrix of sizes: tvmflow beside other libraries, one thread.

`python -m benchmarks.depthwise` takes a quarter of an hour and writes benchmarks/results/depthwise.json and .md;
`--channels 32 --append` measures a part of the matrix and keeps the rest. Each figure is of up to eight layers with
weights of their own that read the same input and are called together, so that calling costs little; the libraries take
turns, and the median over rounds of the fastest call counts. Input and output lie as a library has them between its
layers: channels in blocks for tvmflow, NHWC for LiteRT, NCHW for the others; ncnn and OpenVINO rearrange it by
themselves. `tvmflow-nchw` is tvmflow from NCHW to NCHW, with a ratio of its own to the libraries of which that can be
said. What LiteRT and ncnn run is written as their converters write it. A library that isn't installed is listed as
absent.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tvmflow.spec import Program

CHANNELS, SIZES = (32, 64, 128, 256, 512, 1024), (4, 8, 16, 32, 56, 112)
STRIDES, DELTAS = (1, 2), (0, 1, 2, 3)
RESULT_ELEMENTS = 1 << 18  # of all layers, so that those of small ones stay in the L2 cache
MOST_LAYERS, ROUNDS = 8, 5
CALLS, FEWEST_CALLS, TURN_SECONDS = 12, 3, 0.05
"""Calls in a turn, fewer where they take so long together."""
LONG_US = 1.0
OURS, OURS_NCHW, REFERENCE = "tvmflow", "tvmflow-nchw", "pytorch"
GIVEN_NCHW = ("onnxruntime", "openvino", "ncnn", "pytorch")
RESULTS = Path(__file__).parent / "results" / "depthwise.json"

Run = Callable[[], Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--channels", type=int, nargs="*", default=CHANNELS)
    parser.add_argument("--append", action="store_true", help="keep what the results have of other channel counts")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    for name in ("TVM_NUM_THREADS", "OMP_NUM_THREADS"):
        os.environ[name] = "1"

    import torch

    from tvmflow.models.cost import dilation_of
    from tvmflow.report import environment, write_json

    torch.set_num_threads(1)
    versions, absent = find_libraries()
    around = {**environment(versions), "load": round(os.getloadavg()[0], 2)}
    kept = json.loads(options.output.read_text()) if options.append and options.output.exists() else {"rows": []}
    if kept["rows"] and (kept["environment"]["cpu"], kept["absent"]) != (around["cpu"], absent):
        raise SystemExit("What --append keeps is of another CPU or other libraries: these can't stand in one table.")
    rows = [row for row in kept["rows"] if row["channels"] not in options.channels]
    for channels, size, stride, delta in itertools.product(options.channels, SIZES, STRIDES, DELTAS):
        figures = compare(channels, size, stride, dilation_of(delta), versions)
        rows.append({"channels": channels, "size": size, "stride": stride, "delta": delta, "us": figures})
        rows[-1] |= ratios(figures)
    rows.sort(key=lambda row: (row["channels"], row["size"], row["stride"], row["delta"]))
    document = {
        "basis": "measured",
        "unit": "us per layer",
        "threads": 1,
        "environment": around,
        "absent": absent,
        "summary": summary(rows),
        "rows": rows,
    }
    options.output.parent.mkdir(exist_ok=True)
    write_json(options.output, document)
    options.output.with_suffix(".md").write_text(markdown(document))
    print("\n".join(sentences(document)))


def find_libraries() -> tuple[dict[str, str], dict[str, str]]:
    """Versions of the libraries that are here, and why the others aren't compared."""
    versions, absent = {}, {}
    for name, package in PACKAGES.items():
        try:
            versions[name] = version(package)
        except PackageNotFoundError:
            absent[name] = f"{package} is not installed"
    return versions, absent


def ratios(us: Mapping[str, float]) -> dict[str, float]:
    """How many times tvmflow's time the best of the others takes, in each one's layout and of those that take NCHW."""
    return {
        "ratio": min(us[name] for name in us if not name.startswith(OURS)) / us[OURS],
        "nchw_ratio": min(us[name] for name in GIVEN_NCHW if name in us) / us[OURS_NCHW],
    }


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How the ratios are over the matrix, and over what of it takes tvmflow longer than calls do."""
    longer = [row for row in rows if row["us"][OURS] >= LONG_US]
    return {
        name: {
            "sizes": len(chosen),
            "geometric_mean": math.exp(statistics.fmean(math.log(row[key]) for row in chosen)),
            "lowest": min(row[key] for row in chosen),
            "below_one": sum(row[key] < 1 for row in chosen),
        }
        for name, key, chosen in (("ratio", "ratio", rows), ("longer", "ratio", longer), ("nchw", "nchw_ratio", rows))
        if chosen
    }


def compare(channels: int, size: int, stride: int, dilation: int, libraries: Collection[str]) -> dict[str, float]:
    """µs for each layer, by library. Raises AssertionError unless all compute the same."""
    import numpy as np

    generator = np.random.default_rng(0)
    layers = max(1, min(MOST_LAYERS, RESULT_ELEMENTS // (channels * math.ceil(size / stride) ** 2)))
    data = generator.standard_normal((1, channels, size, size)).astype("float32")
    weights = [generator.standard_normal((channels, 1, 3, 3)).astype("float32") for _ in range(layers)]
    options = {"padding": dilation, "stride": stride, "dilation": dilation}
    prepared = {name: RUNNERS[name](data, weights, options) for name in libraries}
    expected = prepared[REFERENCE][1]()
    for name, (_, outputs) in prepared.items():
        for output, exact in zip(outputs(), expected, strict=True):
            np.testing.assert_allclose(output, exact, rtol=0, atol=1e-4, err_msg=name)
    best: dict[str, list[float]] = {name: [] for name in prepared}
    for _ in range(ROUNDS):
        for name, (run, _) in prepared.items():
            best[name].append(min(turn(run)) / layers)
    return {name: round(statistics.median(values), 3) for name, values in best.items()}


def turn(run: Run) -> list[float]:
    """Times of calls in µs."""
    samples: list[float] = []
    while len(samples) < FEWEST_CALLS or (len(samples) < CALLS and sum(samples) < 1e6 * TURN_SECONDS):
        started = time.perf_counter_ns()
        run()
        samples.append((time.perf_counter_ns() - started) / 1e3)
    return samples


def run_tvmflow(data: Any, weights: list[Any], options: Mapping[str, int]) -> tuple[Run, Run]:
    """What is timed, and what runs it and gives its outputs as NCHW arrays; so are the others.

    Channels are in blocks, as between the kernels of a network.
    """
    import numpy as np
    from tvm import relax

    from tvmflow.passes.fuse_operators import fuse_operators, kernel_calls
    from tvmflow.passes.relayout import Blocked, relayout
    from tvmflow.passes.schedule_kernels import schedule_kernels
    from tvmflow.pipeline import CPU
    from tvmflow.targets import TARGETS
    from tvmflow.targets.cpu.passes.block_channels import block_length

    host = TARGETS["host"]
    channels, packed = Blocked(1, block_length(host)), Blocked(0, block_length(host))
    program = _program(data, weights, options)
    for stage in CPU[: CPU.index(fuse_operators) + 1]:
        program = stage(program, host)
    given = channels.array(data)
    builder, x = relax.BlockBuilder(), relax.Var("x", relax.TensorType(given.shape, "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            outputs = []
            for call, weight in zip(kernel_calls(program.module), weights, strict=True):
                func = relayout(program.module[call.value.args[0]], {0: channels, 1: packed, 2: channels})
                shape = [int(dim) for dim in func.params[-1].shape]
                arguments = relax.Tuple([x, relax.const(packed.array(weight))])
                kernel = builder.add_func(func, "depthwise")
                outputs.append(builder.emit(relax.call_tir(kernel, arguments, relax.TensorType(shape, "float32"))))
            everything = builder.emit_output(relax.Tuple(outputs))
        builder.emit_func_output(everything)
    run = _compiled(replace(program, module=builder.get()), CPU.index(schedule_kernels), given)

    def outputs_of() -> list[Any]:
        blocks = (np.moveaxis(output.numpy(), -1, 2) for output in run())
        return [array.reshape(1, data.shape[1], *array.shape[-2:]) for array in blocks]

    return run, outputs_of


def run_tvmflow_nchw(data: Any, weights: list[Any], options: Mapping[str, int]) -> tuple[Run, Run]:
    """As the first or last layer of a network, or one that is the whole of it."""
    run = _compiled(_program(data, weights, options), 0, data)
    return run, lambda: [output.numpy() for output in run()]


def _program(data: Any, weights: list[Any], options: Mapping[str, int]) -> Program:
    from tvm import relax

    from tvmflow.spec import Program

    builder, x = relax.BlockBuilder(), relax.Var("x", relax.TensorType(data.shape, "float32"))
    attributes = {"padding": options["padding"], "strides": options["stride"], "dilation": options["dilation"]}
    with builder.function("main", [x]):
        with builder.dataflow():
            layers = [relax.op.nn.conv2d(x, relax.const(w), groups=data.shape[1], **attributes) for w in weights]
            outputs = [builder.emit(layer, f"layer{index}") for index, layer in enumerate(layers)]
            result = builder.emit_output(relax.Tuple(outputs))
        builder.emit_func_output(result)
    return Program(name="", source="", module=builder.get(), inputs=(), outputs=(), vectors=(), parameters=0)


def _compiled(program: Program, first_stage: int, data: Any) -> Run:
    """The stages from there on, and what runs the result."""
    import tvm
    from tvm import relax

    from tvmflow.pipeline import CPU
    from tvmflow.system.toolchain import tvm_target_dict
    from tvmflow.targets import TARGETS

    for stage in CPU[first_stage:]:
        program = stage(program, TARGETS["host"])
    target = tvm.target.Target(tvm_target_dict(TARGETS["host"]))
    main = relax.VirtualMachine(relax.build(program.module, target, relax_pipeline=None), tvm.cpu())["main"]
    tensor = tvm.runtime.tensor(data)
    return lambda: main(tensor)


def run_onnxruntime(data: Any, weights: list[Any], options: Mapping[str, int]) -> tuple[Run, Run]:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    model = onnx_model(data, weights, options)
    session = onnxruntime.InferenceSession(model, settings, providers=["CPUExecutionProvider"])

    def run() -> Any:
        return session.run(None, {"x": data})

    return run, run


def onnx_model(data: Any, weights: list[Any], options: Mapping[str, int]) -> bytes:
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
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


def run_openvino(data: Any, weights: list[Any], options: Mapping[str, int]) -> tuple[Run, Run]:
    import numpy as np
    import openvino

    settings = {
        "INFERENCE_NUM_THREADS": 1,
        "INFERENCE_PRECISION_HINT": "f32",  # it would take bfloat16 where the CPU has it
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
    }
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(onnx_model(data, weights, options)), "CPU", settings)
    request, tensor = compiled.create_infer_request(), openvino.Tensor(data)

    def run() -> None:
        request.infer([tensor], share_inputs=True, share_outputs=True)

    def outputs() -> list[Any]:
        run()
        return [np.array(request.get_output_tensor(index).data) for index in range(len(weights))]

    return run, outputs


def run_litert(data: Any, weights: list[Any], options: Mapping[str, int]) -> tuple[Run, Run]:
    import numpy as np
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=litert_model(data, weights, options), num_threads=1)  # XNNPACK by default
    interpreter.allocate_tensors()
    interpreter.set_tensor(
        interpreter.get_input_details()[0]["index"], np.ascontiguousarray(data.transpose(0, 2, 3, 1))
    )
    places = [detail["index"] for detail in interpreter.get_output_details()]

    def outputs() -> list[Any]:
        interpreter.invoke()
        return [interpreter.get_tensor(place).transpose(0, 3, 1, 2) for place in places]

    return interpreter.invoke, outputs


def litert_model(data: Any, weights: list[Any], options: Mapping[str, int]) -> bytes:
    """A .tflite file. LiteRT pads by a constant or so that the size stays; a stride of two needs the former."""
    import flatbuffers
    import numpy as np
    from ai_edge_litert import schema_py_generated as schema

    stride, dilation, (_, channels, size, _) = options["stride"], options["dilation"], data.shape
    graph, model = schema.SubGraphT(), schema.ModelT()
    graph.tensors, graph.operators, model.buffers = [], [], [schema.BufferT()]

    def tensor(name: str, shape: list[int], content: Any = None, kind: Any = schema.TensorType.FLOAT32) -> int:
        made = schema.TensorT()
        made.name, made.shape, made.type, made.buffer = name, shape, kind, 0
        if content is not None:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(content.tobytes(), np.uint8)
            model.buffers.append(buffer)
            made.buffer = len(model.buffers) - 1
        graph.tensors.append(made)
        return len(graph.tensors) - 1

    def operator(code: int, inputs: list[int], output: int, options_type: int, described: Any) -> None:
        made = schema.OperatorT()
        made.opcodeIndex, made.inputs, made.outputs = code, inputs, [output]
        made.builtinOptionsType, made.builtinOptions = options_type, described
        graph.operators.append(made)

    def code(builtin: int, revision: int) -> Any:
        made = schema.OperatorCodeT()
        made.builtinCode = made.deprecatedBuiltinCode = builtin
        made.version = revision
        return made

    before = tensor("x", [1, size, size, channels])
    graph.inputs, graph.outputs = [before], []
    pads = tensor(
        "pads", [4, 2], np.array([[0, 0], [dilation] * 2, [dilation] * 2, [0, 0]], "int32"), schema.TensorType.INT32
    )
    bias = tensor("bias", [channels], np.zeros(channels, "float32"))
    for index, weight in enumerate(weights):
        given = before
        if stride > 1:
            given = tensor(f"padded{index}", [1, size + 2 * dilation, size + 2 * dilation, channels])
            operator(1, [before, pads], given, schema.BuiltinOptions.PadOptions, schema.PadOptionsT())
        described = schema.DepthwiseConv2DOptionsT()
        described.padding = schema.Padding.VALID if stride > 1 else schema.Padding.SAME
        described.strideW = described.strideH = stride
        described.dilationWFactor = described.dilationHFactor = dilation
        described.depthMultiplier = 1
        filters = tensor(f"w{index}", [1, 3, 3, channels], weight[:, 0].transpose(1, 2, 0))
        result = tensor(f"y{index}", [1, *[math.ceil(size / stride)] * 2, channels])
        operator(0, [given, filters, bias], result, schema.BuiltinOptions.DepthwiseConv2DOptions, described)
        graph.outputs.append(result)
    model.version, model.subgraphs = 3, [graph]
    model.operatorCodes = [code(schema.BuiltinOperator.DEPTHWISE_CONV_2D, 2), code(schema.BuiltinOperator.PAD, 1)]
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def run_ncnn(data: Any, weights: list[Any], options: Mapping[str, int]) -> tuple[Run, Run]:
    import ncnn
    import numpy as np

    network = ncnn.Net()
    network.opt.num_threads = 1
    for name in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage"):
        setattr(network.opt, name, False)  # float32, as all the others
    channels, count, (pad, stride, dilation) = data.shape[1], len(weights), options.values()
    sides = " ".join(f"{key}={pad}" for key in (4, 14, 15, 16))
    both = f"1=3 11=3 2={dilation} 12={dilation} 3={stride} 13={stride} {sides} 5=0 6={9 * channels} 7={channels}"
    layers = [f"ConvolutionDepthWise l{index} 1 1 x{index} y{index} 0={channels} {both}" for index in range(count)]
    split = f"Split split 1 {count} x " + " ".join(f"x{index}" for index in range(count))
    lines = ["7767517", f"{count + 2} {2 * count + 1}", "Input x 0 1 x", split, *layers]
    with tempfile.TemporaryDirectory(prefix="tvmflow-") as folder:
        Path(folder, "net.param").write_text("\n".join(lines) + "\n")
        Path(folder, "net.bin").write_bytes(b"".join(bytes(4) + weight.tobytes() for weight in weights))  # 4: float32
        network.load_param(str(Path(folder, "net.param")))
        network.load_model(str(Path(folder, "net.bin")))
    array = data[0]  # ncnn.Mat looks at it and doesn't keep it
    image = ncnn.Mat(array).clone()

    def run(unpacked: bool = False) -> list[Any]:
        with network.create_extractor() as extractor:
            extractor.input("x", image)
            return [extractor.extract(f"y{index}", 0 if unpacked else 1)[1] for index in range(count)]

    return run, lambda: [np.array(mat)[None] for mat in run(unpacked=True)]


def run_pytorch(data: Any, weights: list[Any], options: Mapping[str, int]) -> tuple[Run, Run]:
    import torch

    tensor, filters = torch.from_numpy(data), [torch.from_numpy(weight) for weight in weights]

    def run() -> list[Any]:
        with torch.inference_mode():
            return [torch.nn.functional.conv2d(tensor, w, groups=data.shape[1], **options) for w in filters]

    return run, lambda: [output.numpy() for output in run()]


RUNNERS = {
    "tvmflow": run_tvmflow,
    "tvmflow-nchw": run_tvmflow_nchw,
    "onnxruntime": run_onnxruntime,
    "openvino": run_openvino,
    "litert": run_litert,
    "ncnn": run_ncnn,
    "pytorch": run_pytorch,
}
PACKAGES = {
    "tvmflow": "tvmflow",
    "tvmflow-nchw": "tvmflow",
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "litert": "ai-edge-litert",
    "ncnn": "ncnn",
    "pytorch": "torch",
}


def sentences(document: Mapping[str, Any]) -> list[str]:
    """What the matrix comes to."""
    words = {
        "ratio": "In each one's layout",
        "longer": f"Where a layer takes tvmflow {LONG_US:g} µs or more, since a call alone takes it 0.4",
        "nchw": "From NCHW to NCHW",
    }
    return [
        f"{words[key]}: the best of the others takes {found['geometric_mean']:.2f} times tvmflow's time as geometric "
        f"mean over {found['sizes']} sizes, {found['lowest']:.2f} at worst, less than once at {found['below_one']}."
        for key, found in document["summary"].items()
    ]


def markdown(document: Mapping[str, Any]) -> str:
    around, names = document["environment"], list(document["environment"]["versions"])
    lines = [
        "# Depthwise 3×3 alone, one thread",
        "",
        f"µs for each layer on {around['cpu']}, *measured* on {around['date'][:10]}, load {around['load']:.1f} before. "
        + ", ".join(f"{name} {number}" for name, number in around["versions"].items())
        + ". The ratios are of the best of the others to `tvmflow` (channels in blocks) and, of those that are given "
        "NCHW, to `tvmflow-nchw`; a call of up to eight layers costs each library something, which is in its times.",
        "",
        "\n".join(f"- {sentence}" for sentence in sentences(document)),
        "",
        *(f"Not measured: {name} ({reason})." for name, reason in document["absent"].items()),
        *([""] if document["absent"] else []),
        f"| C | H = W | stride | δ | {' | '.join(names)} | ratio | NCHW |",
        "|---" * (6 + len(names)) + "|",
    ]
    for row in document["rows"]:
        cells = [row[key] for key in ("channels", "size", "stride", "delta")]
        cells += [f"{row['us'][name]:.1f}" for name in names]
        lines.append(f"| {' | '.join(map(str, cells))} | {row['ratio']:.2f} | {row['nchw_ratio']:.2f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
