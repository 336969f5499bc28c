"""What an ONNX file computes: ONNX Runtime says so where it is installed, else ONNX's own reference evaluator."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tvmflow.network.foreign import first_line
from tvmflow.network.rounding import MOVED_BY, MOVING
from tvmflow.spec import MissingDependencyError, UserError
from tvmflow.system import limits

if TYPE_CHECKING:
    import onnx

ABSENT = "it is not installed"
INSTALL = "pip install onnxruntime, which tvmflow then takes as the reference"

WRONG_IN_EVALUATOR: dict[str, Callable[[onnx.NodeProto, int], bool]] = {
    "ConvTranspose": lambda node, opset: True,
    "AveragePool": lambda node, opset: any(attribute.name == "ceil_mode" for attribute in node.attribute),
    "LRN": lambda node, opset: True,
    "Resize": lambda node, opset: opset < 11 or any(attribute.s == b"align_corners" for attribute in node.attribute),
    "Upsample": lambda node, opset: True,
    "OneHot": lambda node, opset: True,
}
"""Operators, and of which nodes and opsets, whose values ONNX's evaluator has wrong or can't compute."""


FLOATS = {1: "float32", 10: "float16", 11: "float64"}
"""ONNX's numbers of the dtypes that are rounded, and that its random numbers come in."""

EXACT = frozenset(
    {
        *("Abs", "ArgMax", "ArgMin", "Cast", "CastLike", "Ceil", "Clip", "Compress", "Concat", "Constant"),
        *("ConstantOfShape", "DepthToSpace", "DequantizeLinear", "Dropout", "Expand", "Flatten", "Floor", "Gather"),
        *("GatherElements", "GatherND", "GlobalMaxPool", "Hardmax", "Identity", "If", "Loop", "Max", "MaxPool", "Min"),
        *("Neg", "OneHot", "Pad", "QuantizeLinear", "Range", "ReduceMax", "ReduceMin", "Relu", "Reshape", "Round"),
        *("Scan", "Scatter", "ScatterElements", "ScatterND", "Shape", "Sign", "Size", "Slice", "SpaceToDepth", "Split"),
        *("Squeeze", "Tile", "TopK", "Transpose", "Trilu", "Unsqueeze", "Upsample", "Where"),
    }
)
"""Operators that select, copy or make values: nothing in their results is rounded."""

MOST_NUMBERS_OF_A_SHAPE = 1024

Run = Callable[[Mapping[str, np.ndarray]], tuple[np.ndarray, ...]]


@dataclass(frozen=True, kw_only=True)
class Reference:
    """`run` takes arrays by input name and gives those of all outputs; `name` says whose arithmetic it is."""

    name: str
    run: Run


def open_reference(model: onnx.ModelProto, source: str, probe: Mapping[str, np.ndarray]) -> Reference:
    """ONNX Runtime on `model`, without optimisation, or the evaluator where that isn't installed or can't run `probe`.

    Raises UserError if neither can, MissingDependencyError if the evaluator would be wrong.
    """
    import onnx

    refused = ABSENT
    if importlib.util.find_spec("onnxruntime") is not None:
        import onnxruntime

        try:
            run = _runtime(model)
            run(probe)
            return Reference(name=f"ONNX Runtime {onnxruntime.__version__}", run=_moving(model, run))
        except Exception as error:  # onnxruntime has a class for each of its states
            refused = first_line(error)
    _check_evaluator(model, source, refused)
    try:
        run = _evaluator(model)
        run(probe)
    except Exception as error:
        if refused == ABSENT:
            raise MissingDependencyError(
                f"ONNX's reference evaluator can't run {source} ({first_line(error)}): {INSTALL}."
            ) from error
        raise UserError(
            f"{source} can't be run, so nothing could be verified: ONNX Runtime says {refused!r}, "
            f"ONNX's reference evaluator {first_line(error)!r}."
        ) from error
    return Reference(name=f"ONNX {onnx.__version__}'s reference evaluator", run=run)


def _moving(model: onnx.ModelProto, run: Run) -> Run:
    """`run`, or the same with the results of operators moved, while `tvmflow.network.rounding` has values moved."""

    @functools.cache
    def moved(seed: int) -> Run:
        try:
            return _runtime(with_moved_values(model, seed))
        except Exception:  # then the inputs alone are moved
            return run

    def either(feeds: Mapping[str, np.ndarray]) -> tuple[np.ndarray, ...]:
        seed = MOVING.get()
        return (run if seed is None else moved(seed))(feeds)

    return either


def with_moved_values(model: onnx.ModelProto, seed: int) -> onnx.ModelProto:
    """A model in which each value that a node has rounded is multiplied by 1 ± `MOVED_BY`, at random by `seed`."""
    import onnx.inliner

    moved = onnx.ModelProto()
    moved.CopyFrom(onnx.inliner.inline_local_functions(model) if model.functions else model)
    known = onnx.shape_inference.infer_shapes(moved).graph
    steps = {
        entry.name: MOVED_BY[FLOATS[entry.type.tensor_type.elem_type]]
        for entry in (*known.value_info, *known.output)
        if entry.type.tensor_type.elem_type in FLOATS
    }
    nodes = []
    for number, node in enumerate(moved.graph.node):
        rounded = [name for name in node.output if name in steps and node.op_type not in EXACT]
        made = onnx.NodeProto()
        made.CopyFrom(node)
        nodes.append(made)
        for name in rounded:
            exact, factor = f"{name} before it is moved", f"{name} is moved by"
            made.output[list(made.output).index(name)] = exact
            step = steps[name]
            drawn: dict[str, Any] = {"low": 1 - step, "high": 1 + step, "seed": float(seed * 7919 + number)}
            nodes.append(onnx.helper.make_node("RandomUniformLike", [exact], [factor], **drawn))
            nodes.append(onnx.helper.make_node("Mul", [exact, factor], [name]))
    del moved.graph.node[:]
    moved.graph.node.extend(nodes)
    return moved


def _check_evaluator(model: onnx.ModelProto, source: str, refused: str) -> None:
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 1)
    for node in model.graph.node:
        wrong = WRONG_IN_EVALUATOR.get(node.op_type)
        if node.domain in ("", "ai.onnx") and wrong is not None and wrong(node, opset):
            message = f"{source} has {node.op_type} of opset {opset}, which ONNX's reference evaluator gets wrong"
            if refused == ABSENT:
                raise MissingDependencyError(f"{message}: {INSTALL}.")
            raise UserError(f"{message}, and ONNX Runtime can't run it ({refused}), so nothing could be verified.")


def _runtime(model: onnx.ModelProto) -> Run:
    import onnxruntime

    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4  # only what is fatal
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        _nameless(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    wanted = {entry.name for entry in session.get_inputs()}

    def run(feeds: Mapping[str, np.ndarray]) -> tuple[np.ndarray, ...]:
        results = session.run(None, {name: array for name, array in feeds.items() if name in wanted})
        return tuple(np.asarray(result) for result in results)

    return run


def _nameless(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same without the names of nodes where several have one, which ONNX Runtime refuses."""
    import onnx

    names = [node.name for node in model.graph.node if node.name]
    if len(set(names)) == len(names):
        return model
    nameless = onnx.ModelProto()
    nameless.CopyFrom(model)
    for node in nameless.graph.node:
        node.ClearField("name")
    return nameless


def _evaluator(model: onnx.ModelProto) -> Run:
    from onnx.reference import ReferenceEvaluator

    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 1)
    evaluator = ReferenceEvaluator(model, new_ops=_corrected_operators(opset))

    def run(feeds: Mapping[str, np.ndarray]) -> tuple[np.ndarray, ...]:
        return tuple(np.asarray(result) for result in evaluator.run(None, dict(feeds)))

    return run


def _corrected_operators(opset: int) -> list[type]:
    """Operators of older opsets that the evaluator takes for the newest: these flattened, and never trained."""
    from onnx.reference.op_run import OpRun

    def flat(data: np.ndarray, axis: int) -> np.ndarray:
        axis += data.ndim if axis < 0 else 0
        return data.reshape(int(np.prod(data.shape[:axis], dtype="int64")), -1)

    class Softmax(OpRun):
        def _run(self, data: np.ndarray, axis: int | None = None) -> tuple[np.ndarray]:
            rows = flat(data, 1 if axis is None else axis)
            powers = np.exp(rows - rows.max(1, keepdims=True))
            return ((powers / powers.sum(1, keepdims=True)).reshape(data.shape),)

    class LogSoftmax(OpRun):
        def _run(self, data: np.ndarray, axis: int | None = None) -> tuple[np.ndarray]:
            rows = flat(data, 1 if axis is None else axis)
            rows = rows - rows.max(1, keepdims=True)
            return ((rows - np.log(np.exp(rows).sum(1, keepdims=True))).reshape(data.shape),)

    class Hardmax(OpRun):
        def _run(self, data: np.ndarray, axis: int | None = None) -> tuple[np.ndarray]:
            rows = flat(data, 1 if axis is None else axis)
            hot = np.arange(rows.shape[1]) == rows.argmax(1)[:, None]
            return (hot.astype(data.dtype).reshape(data.shape),)

    class BatchNormalization(OpRun):
        def _run(self, data: np.ndarray, *statistics: np.ndarray, epsilon: float = 1e-5, **_: Any) -> tuple[np.ndarray]:
            shape = (1, -1, *[1] * (data.ndim - 2))
            scale, shift, mean, variance = (value.reshape(shape) for value in statistics)
            return (((data - mean) / np.sqrt(variance + data.dtype.type(epsilon)) * scale + shift).astype(data.dtype),)

    flattened: list[type] = [Softmax, LogSoftmax, Hardmax] if opset < 13 else []
    return [*flattened, BatchNormalization] if opset < 14 else flattened


def evaluate(
    node: onnx.NodeProto, opsets: Sequence[onnx.OperatorSetIdProto], inputs: Mapping[str, np.ndarray]
) -> list[np.ndarray] | None:
    """The results of one node on known inputs, None if neither reference can run it. Raises UserError if too large."""
    model = _single(node, opsets, inputs)
    _check_results(model, inputs)
    for make in ([_runtime] if importlib.util.find_spec("onnxruntime") is not None else []) + [_evaluator]:
        with contextlib.suppress(Exception):
            if make is _evaluator:
                _check_evaluator(model, node.name, "")
            return [np.asarray(result) for result in make(model)(inputs)]
    return None


def _check_results(model: onnx.ModelProto, inputs: Mapping[str, np.ndarray]) -> None:
    """Raises UserError if a node's results are larger than tensors are taken, before they are made."""
    import onnx

    known = onnx.ModelProto()
    known.CopyFrom(model)
    try:
        for name, array in inputs.items():
            if array.size <= MOST_NUMBERS_OF_A_SHAPE:
                known.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        outputs = onnx.shape_inference.infer_shapes(known, data_prop=True).graph.output
    except Exception:  # an operator that ONNX doesn't know, or that its shape inference is wrong about
        return
    for entry in outputs:
        shape = [dim.dim_value for dim in entry.type.tensor_type.shape.dim]
        limits.check_tensor(shape, f"The result {entry.name!r} of {model.graph.node[0].op_type}")


def _single(
    node: onnx.NodeProto, opsets: Sequence[onnx.OperatorSetIdProto], inputs: Mapping[str, np.ndarray]
) -> onnx.ModelProto:
    from onnx import helper

    given = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in inputs.items()
    ]
    made = [helper.make_empty_tensor_value_info(name) for name in node.output if name]
    graph = helper.make_graph([node], "one", given, made)
    return helper.make_model(graph, opset_imports=list(opsets), ir_version=_ir_version())


@functools.cache
def _ir_version() -> int:
    """What the installed ONNX Runtime surely reads."""
    import onnx

    return min(10, onnx.IR_VERSION)
