"""Small quantised ONNX files: ways to use operators between a DequantizeLinear and a QuantizeLinear, or alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Steps = tuple[str, float, int]
SIGNED: Steps = ("int8", 0.05, 7)
UNSIGNED: Steps = ("uint8", 0.05, 120)
POSITIVE: Steps = ("int8", 0.03, -128)
EVEN: Steps = ("int8", 0.0625, 0)
NUMBERS = {"float32": TensorProto.FLOAT, "int8": TensorProto.INT8, "uint8": TensorProto.UINT8}
MICROSOFT = "com.microsoft"
RANGES = {"int8": (-128, 128), "uint8": (0, 256), "int32": (-3000, 3000)}


class File:
    """Nodes, arrays, inputs and outputs as they are added; names of tensors are what is passed on."""

    def __init__(self, seed: int = 0, opset: int = 17) -> None:
        self.rng, self.opset = np.random.default_rng(seed), opset
        self.nodes: list[onnx.NodeProto] = []
        self.arrays: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []

    def array(self, value: Any, dtype: str) -> str:
        name = f"array{len(self.arrays)}"
        self.arrays.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def node(self, kind: str, *inputs: str, count: int = 1, domain: str = "", **attributes: Any) -> Any:
        outputs = [f"{kind.lower()}{len(self.nodes)}.{number}" for number in range(count)]
        name = f"/{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), outputs, name=name, domain=domain, **attributes))
        return outputs[0] if count == 1 else outputs

    def parameters(self, steps: Steps) -> list[str]:
        return [self.array(steps[1], "float32"), self.array(steps[2], steps[0])]

    def quantised(self, real: str, steps: Steps = SIGNED) -> str:
        """What a node gives, quantised and dequantised."""
        parameters = self.parameters(steps)
        return self.node("DequantizeLinear", self.node("QuantizeLinear", real, *parameters), *parameters)

    def given(self, shape: Sequence[int], dtype: str = "float32") -> str:
        name = f"x{len(self.inputs)}" if self.inputs else "x"
        self.inputs.append(helper.make_tensor_value_info(name, NUMBERS[dtype], shape))
        return name

    def input(self, shape: Sequence[int], steps: Steps = SIGNED) -> str:
        return self.quantised(self.given(shape), steps)

    def integers(self, shape: Sequence[int], dtype: str) -> np.ndarray:
        return self.rng.integers(*RANGES[dtype], shape)

    def constant(
        self, shape: Sequence[int], dtype: str = "int8", scale: Any = 0.01, zero: int = 0, axis: int | None = None
    ) -> str:
        """Random integers, dequantised."""
        given = [self.array(self.integers(shape, dtype), dtype), self.array(scale, "float32")]
        given.append(self.array(np.full(np.shape(scale), zero), dtype))
        return self.node("DequantizeLinear", *given, **({} if axis is None else {"axis": axis}))

    def scales(self, count: int) -> np.ndarray:
        return self.rng.uniform(0.003, 0.02, count).astype(np.float32)

    def bias(self, scales: np.ndarray, x: Steps = SIGNED) -> str:
        """int32, in steps of sums."""
        return self.constant((len(scales),), "int32", scales * np.float32(x[1]), axis=0)

    def output(self, name: str, dtype: str = "float32") -> None:
        self.outputs.append(helper.make_tensor_value_info(name, NUMBERS[dtype], None))

    def model(self) -> onnx.ModelProto:
        domains = [helper.make_opsetid("", self.opset), helper.make_opsetid(MICROSOFT, 1)]
        graph = helper.make_graph(self.nodes, "network", self.inputs, self.outputs, self.arrays)
        return helper.make_model(graph, opset_imports=domains, ir_version=8)


Build = Callable[[File], None]


def conv(x: Steps, y: Steps, weight: str = "int8", zero: int = 0, *, each: bool = True, **options: Any) -> Build:
    """A convolution of 4 channels to 6, with a border."""

    def build(file: File) -> None:
        groups = options.pop("group", 1)
        scales = file.scales(6)
        kept = scales if each else scales[0]
        weights = file.constant((6, 4 // groups, 3, 3), weight, kept, zero, axis=0 if each else None)
        bias = file.bias(scales if each else np.full(6, scales[0]), x)
        about = {"pads": [1, 1, 1, 1], "group": groups, **options}
        made = file.node("Conv", file.input((1, 4, 7, 6), x), weights, bias, **about)
        file.output(file.quantised(made, y))

    return build


def rows(file: File) -> None:
    """A depthwise convolution along one dimension, with gaps, of few maps with a wide border."""
    weights = file.constant((5, 1, 9), scale=file.scales(5), axis=0)
    made = file.node("Conv", file.input((1, 5, 12)), weights, group=5, dilations=[2], pads=[8, 8], strides=[2])
    file.output(file.quantised(file.node("Relu", made), POSITIVE))


def quantised_weights(file: File) -> None:
    """Weights and a bias in float32, of which a QuantizeLinear makes integers."""
    weights = file.array(file.rng.standard_normal((6, 4, 1, 1)), "float32")
    q = file.node("QuantizeLinear", weights, *file.parameters(("int8", 0.02, 0)))
    weights = file.node("DequantizeLinear", q, *file.parameters(("int8", 0.02, 0)))
    bias = file.array(file.rng.standard_normal(6), "float32")
    file.output(file.quantised(file.node("Conv", file.input((1, 4, 5, 5)), weights, bias, auto_pad="SAME_UPPER")))


def normalised(file: File) -> None:
    """A batch normalisation and a clip that the convolution takes over."""
    made = file.node("Conv", file.input((1, 4, 5, 5)), file.constant((6, 4, 1, 1)))
    parameters = [file.array(file.rng.uniform(0.5, 2, 6), "float32") for _ in range(4)]
    made = file.node("Clip", file.node("BatchNormalization", made, *parameters), file.array(0, "float32"), "")
    file.output(file.quantised(file.node("Clip", made, "", file.array(6, "float32")), ("uint8", 6 / 255, 0)))


def transposed(group: int) -> Build:
    def build(file: File) -> None:
        weights = file.constant((4, 6 // group, 3, 2))
        options = {"strides": [2, 3], "pads": [1, 0, 0, 1], "output_padding": [1, 0], "group": group}
        made = file.node("ConvTranspose", file.input((1, 4, 5, 4), UNSIGNED), weights, **options)
        file.output(file.quantised(made, UNSIGNED))

    return build


def gemm(file: File) -> None:
    scales = file.scales(5)
    flat = file.node("Flatten", file.input((1, 3, 4, 2), UNSIGNED))
    made = file.node("Gemm", flat, file.constant((5, 24), scale=scales, axis=0), file.bias(scales, UNSIGNED), transB=1)
    file.output(file.quantised(made, ("int8", 0.3, -9)))


def matmul(file: File) -> None:
    """With a bias that is added, as PyTorch's exporters write a dense layer, and a transpose around it."""
    moved = file.node("Transpose", file.input((1, 6, 9)), perm=[0, 2, 1])
    made = file.node("MatMul", moved, file.constant((6, 5), "uint8", 0.01, 128))
    made = file.node("Add", file.array(file.rng.standard_normal(5), "float32"), made)
    file.output(file.node("Transpose", file.quantised(made), perm=[0, 2, 1]))


def products(file: File) -> None:
    x, y = file.input((1, 3, 4, 5), EVEN), file.input((1, 3, 5, 2), EVEN)
    file.output(file.quantised(file.node("MatMul", x, y), ("int8", 0.2, 0)))


def of_two(kind: str, x: Steps, y: Steps, result: Steps, other: Sequence[int] = (1, 3, 4, 5)) -> Build:
    def build(file: File) -> None:
        made = file.node(kind, file.input((1, 3, 4, 5), x), file.input(other, y))
        file.output(file.quantised(made, result))

    return build


def of_constant(kind: str, shape: Sequence[int]) -> Build:
    def build(file: File) -> None:
        constant = file.array(file.rng.uniform(0.5, 2, shape), "float32")
        file.output(file.quantised(file.node(kind, file.input((1, 3, 4, 5)), constant), UNSIGNED))

    return build


def three(file: File) -> None:
    """Sums in a row, of which only the last is quantised."""
    x, y, z = (file.input((1, 3, 4, 5), steps) for steps in (SIGNED, UNSIGNED, EVEN))
    made = file.node("Sub", file.node("Add", x, y), file.node("Mul", z, file.array(0.5, "float32")))
    file.output(file.quantised(file.node("Relu", made), POSITIVE))


def function(kind: str, result: Steps = SIGNED, x: Steps = SIGNED, opset: int = 17, **options: Any) -> Build:
    def build(file: File) -> None:
        file.opset = opset
        file.output(file.quantised(file.node(kind, file.input((1, 8, 32), x), **options), result))

    return build


def silu(file: File) -> None:
    """A function of what two nodes make of the same integers."""
    x = file.input((1, 8, 32), UNSIGNED)
    file.output(file.quantised(file.node("Mul", x, file.node("Sigmoid", x)), UNSIGNED))


def prelu(file: File) -> None:
    slopes = file.array(file.rng.uniform(0, 0.5, (8, 1)), "float32")
    file.output(file.quantised(file.node("PRelu", file.input((1, 8, 32)), slopes)))


def pool(kind: str, **options: Any) -> Build:
    def build(file: File) -> None:
        file.output(file.quantised(file.node(kind, file.input((1, 3, 9, 8), UNSIGNED), **options), UNSIGNED))

    return build


def concat(axis: int) -> Build:
    def build(file: File) -> None:
        parts = [file.input((1, 3, 4, 5), steps) for steps in (SIGNED, UNSIGNED, POSITIVE)]
        file.output(file.quantised(file.node("Concat", *parts, axis=axis), UNSIGNED))

    return build


def resize(mode: str, coordinates: str, steps: Steps = EVEN, **options: Any) -> Build:
    def build(file: File) -> None:
        scales = file.array([1, 1, 2, 1.5], "float32")
        about = {"mode": mode, "coordinate_transformation_mode": coordinates, **options}
        made = file.node("Resize", file.input((1, 3, 4, 6), steps), "", scales, **about)
        file.output(file.quantised(made, steps))

    return build


def moves(file: File) -> None:
    """A border, slices, splits, depth to space, gathers and transposes: all are places of elements at last."""
    x = file.input((1, 8, 4, 6), UNSIGNED)
    x = file.node("Pad", x, file.array([0, 0, 1, 0, 0, 0, 0, 2], "int64"))
    first, second = file.node("Split", x, file.array([4, 4], "int64"), count=2, axis=1)
    first = file.node("DepthToSpace", first, blocksize=2)
    first = file.node("Slice", first, *(file.array([n], "int64") for n in (9, -100, 2, -2)))
    shape = file.node("Shape", second)
    length = file.node("Gather", shape, file.array([3], "int64"))
    second = file.node("Reshape", second, file.node("Concat", file.array([1, -1], "int64"), length, axis=0))
    second = file.node("Gather", second, file.array([2, 0, 5], "int64"), axis=1)
    file.output(file.quantised(first, UNSIGNED))
    file.output(
        file.node("Squeeze", file.node("Unsqueeze", second, file.array([1], "int64")), file.array([1], "int64"))
    )


def layer_normalisation(file: File) -> None:
    parameters = [file.array(file.rng.uniform(0.5, 2, 16), "float32") for _ in range(2)]
    made = file.node("LayerNormalization", file.input((1, 9, 16)), *parameters)
    file.output(file.quantised(made, ("int8", 0.05, 3)))


def residual(file: File) -> None:
    """A small network: what is read twice, is quantised in several ways, and comes out as integers."""
    x = file.input((1, 4, 8, 8), UNSIGNED)
    made = file.node("Conv", x, file.constant((4, 4, 3, 3)), pads=[1, 1, 1, 1])
    y = file.quantised(file.node("Relu", file.quantised(made)), POSITIVE)
    total = file.quantised(file.node("Relu", file.quantised(file.node("Add", x, y))), ("uint8", 0.06, 0))
    mean = file.quantised(file.node("ReduceMean", total, axes=[2, 3], keepdims=0), ("uint8", 0.02, 0))
    made = file.node("Gemm", mean, file.constant((10, 4)), transB=1)
    file.output(file.node("QuantizeLinear", made, *file.parameters(("int8", 0.03, -3))), "int8")


# ----------------------------------------------------------------------------------------- operators that are quantised


def qlinear(kind: str, *, domain: str = MICROSOFT, shape: Sequence[int] = (1, 4, 6, 5), **options: Any) -> Build:
    """Of one tensor: its scale and zero point, and those of the result."""

    def build(file: File) -> None:
        x, y = file.parameters(UNSIGNED), file.parameters(("uint8", options.pop("scale", 0.04), 90))
        given = [file.given(shape, "uint8"), *x, *y]
        file.output(file.node(kind, *given, domain=domain, **options), "uint8")

    return build


def qlinear_of_two(kind: str, other: Sequence[int] | None) -> Build:
    """Of two tensors; the other may be a constant."""

    def build(file: File) -> None:
        given = [file.given((1, 4, 6, 5), "int8"), *file.parameters(SIGNED)]
        second = file.given((1, 4, 6, 5), "int8") if other is None else file.array(file.integers(other, "int8"), "int8")
        given += [second, *file.parameters(EVEN), *file.parameters(("int8", 0.1, 4))]
        file.output(file.node(kind, *given, domain=MICROSOFT), "int8")

    return build


def qlinear_conv(file: File) -> None:
    scales = file.scales(6)
    weights = [file.array(file.integers((6, 4, 3, 3), "int8"), "int8"), file.array(scales, "float32")]
    weights.append(file.array(np.zeros(6), "int8"))
    given = [file.given((1, 4, 6, 5), "uint8"), *file.parameters(UNSIGNED), *weights]
    given += [*file.parameters(("uint8", 0.2, 100)), file.array(file.integers((6,), "int32"), "int32")]
    made = file.node("QLinearConv", *given, pads=[1, 1, 1, 1], strides=[2, 1])
    made = file.node("MaxPool", made, kernel_shape=[2, 2])
    file.output(file.node("Reshape", made, file.array([1, -1], "int64")), "uint8")


def qlinear_matmul(file: File) -> None:
    weights = [file.array(file.integers((5, 7), "uint8"), "uint8"), *file.parameters(("uint8", 0.01, 128))]
    given = [file.given((1, 6, 5), "uint8"), *file.parameters(UNSIGNED), *weights]
    file.output(file.node("QLinearMatMul", *given, *file.parameters(("uint8", 0.2, 100))), "uint8")


def qgemm(file: File) -> None:
    weights = [file.array(file.integers((7, 5), "int8"), "int8"), *file.parameters(("int8", 0.01, 0))]
    given = [file.given((1, 5), "uint8"), *file.parameters(UNSIGNED), *weights]
    given += [file.array(file.integers((7,), "int32"), "int32"), *file.parameters(("uint8", 0.2, 100))]
    file.output(file.node("QGemm", *given, transB=1, domain=MICROSOFT), "uint8")


def qlinear_concat(file: File) -> None:
    given = file.parameters(("uint8", 0.06, 100))
    for steps in (UNSIGNED, ("uint8", 0.02, 30)):
        given += [file.given((1, 4, 6, 5), "uint8"), *file.parameters(steps)]
    file.output(file.node("QLinearConcat", *given, axis=1, domain=MICROSOFT), "uint8")


CASES: dict[str, Build] = {
    "conv": conv(SIGNED, SIGNED, strides=[2, 1], dilations=[1, 2]),
    "conv-unsigned": conv(UNSIGNED, UNSIGNED, "uint8", 128, each=False),
    "conv-of-wide-weights": conv(POSITIVE, UNSIGNED, "uint8", 60, each=False),
    "conv-depthwise": conv(("uint8", 0.05, 0), SIGNED, group=2),
    "conv-rows": rows,
    "conv-of-float-weights": quantised_weights,
    "conv-normalised": normalised,
    "conv-transposed": transposed(1),
    "conv-transposed-groups": transposed(2),
    "gemm": gemm,
    "matmul": matmul,
    "matmul-of-two": products,
    "add": of_two("Add", SIGNED, UNSIGNED, ("int8", 0.09, -4)),
    "add-even": of_two("Add", EVEN, ("int8", 0.05, 0), ("int8", 0.09, 0)),
    "add-spread": of_two("Add", SIGNED, POSITIVE, UNSIGNED, (1, 5)),
    "subtract": of_two("Sub", UNSIGNED, SIGNED, UNSIGNED, (1, 3, 1, 1)),
    "multiply": of_two("Mul", SIGNED, UNSIGNED, ("uint8", 0.2, 110)),
    "sum-of-three": three,
    "add-number": of_constant("Add", ()),
    "divide-channels": of_constant("Div", (3, 1, 1)),
    "subtract-columns": of_constant("Sub", (5,)),
    "relu": function("Relu", POSITIVE),
    "clip": function("Clip", POSITIVE, opset=10, min=-1.0, max=2.5),
    "sigmoid": function("Sigmoid", ("uint8", 1 / 256, 0)),
    "tanh": function("Tanh", ("int8", 1 / 128, 0)),
    "hard-swish": function("HardSwish"),
    "leaky-relu": function("LeakyRelu", UNSIGNED, alpha=0.2),
    "elu": function("Elu"),
    "silu": silu,
    "prelu": prelu,
    "softmax": function("Softmax", ("int8", 0.002, -128), axis=1),
    "softmax-of-rows": function("Softmax", ("uint8", 1 / 255, 3), opset=11, axis=1),
    "log-softmax": function("LogSoftmax", ("int8", 0.06, 127), EVEN, axis=-1),
    "max-pool": pool("MaxPool", kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 1, 1], ceil_mode=1),
    "average-pool": pool("AveragePool", kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 1, 1]),
    "average-pool-border": pool("AveragePool", kernel_shape=[3, 2], pads=[1, 0, 1, 1], count_include_pad=1),
    "global-average": pool("GlobalAveragePool"),
    "global-largest": pool("GlobalMaxPool"),
    "mean-of-channels": pool("ReduceMean", axes=[1]),
    "concat-channels": concat(1),
    "concat-columns": concat(3),
    "nearest": resize("nearest", "asymmetric", UNSIGNED, nearest_mode="floor"),
    "bilinear": resize("linear", "half_pixel"),
    "bilinear-corners": resize("linear", "align_corners", UNSIGNED),
    "moves": moves,
    "layer-normalisation": layer_normalisation,
    "residual": residual,
    "qlinear-conv": qlinear_conv,
    "qlinear-matmul": qlinear_matmul,
    "qgemm": qgemm,
    "qlinear-add": qlinear_of_two("QLinearAdd", None),
    "qlinear-add-constant": qlinear_of_two("QLinearAdd", (4, 1, 1)),
    "qlinear-multiply": qlinear_of_two("QLinearMul", None),
    "qlinear-concat": qlinear_concat,
    "qlinear-sigmoid": qlinear("QLinearSigmoid", scale=1 / 200),
    "qlinear-leaky-relu": qlinear("QLinearLeakyRelu", alpha=0.1),
    "qlinear-average-pool": qlinear("QLinearAveragePool", kernel_shape=[2, 2]),
    "qlinear-global-average": qlinear("QLinearGlobalAveragePool"),
    "qlinear-softmax": qlinear("QLinearSoftmax", shape=(1, 12), axis=1, opset=13, scale=1 / 200),
}
"""Each is the whole file: its inputs, what is computed of them, and its outputs."""


def model_of(name: str) -> onnx.ModelProto:
    file = File(seed=len(name))
    CASES[name](file)
    return file.model()
