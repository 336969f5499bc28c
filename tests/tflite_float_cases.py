"""A small float `.tflite` file for each operator and each way to use it, and what LiteRT's interpreter makes of it.

`python tests/tflite_float_cases.py` writes `goldens/tflite-float.npz` anew with the interpreter of the package
`ai-edge-litert`, which the tests need not have. It runs LiteRT's own kernels, without its delegates.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tflite_files import Graph, file_of

GOLDENS = Path(__file__).parent / "goldens" / "tflite-float.npz"
MAP = (1, 7, 6, 4)
POSITIVE = ("LOG", "SQRT", "RSQRT", "POW")
"""Operators that are given positive numbers."""

Make = Callable[[], Graph]


def draw(*shape: int, name: str = "weights") -> np.ndarray:
    return np.random.default_rng(zlib.crc32(repr((name, shape)).encode())).standard_normal(shape).astype(np.float32)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def add(
    graph: Graph, kind: str, given: Sequence[Any], shape: Sequence[int], dtype: str = "float32", **options: Any
) -> int:
    """An operator of a graph: shapes among `given` become inputs, arrays constants; numbers are tensors."""
    read = []
    for value in given:
        if isinstance(value, tuple):
            graph.inputs.append(graph.tensor(value, dtype="float32", name=f"input_{len(graph.inputs)}"))
            read.append(graph.inputs[-1])
        elif isinstance(value, np.ndarray):
            read.append(graph.constant(value))
        else:
            read.append(value)
    return graph.add(kind, read, graph.tensor(shape, dtype=dtype), **options)


def one(kind: str, *given: Any, shape: Sequence[int] = MAP, dtype: str = "float32", **options: Any) -> Make:
    def make() -> Graph:
        graph = Graph()
        graph.outputs = [add(graph, kind, given, shape, dtype, **options)]
        return graph

    return make


def several(kind: str, *given: Any, shapes: Sequence[Sequence[int]], **options: Any) -> Make:
    """An operator with several results."""

    def make() -> Graph:
        graph = Graph()
        first = add(graph, kind, given, shapes[0], **options)
        graph.outputs = [first, *(graph.tensor(shape, dtype="float32") for shape in shapes[1:])]
        graph.operators[-1] = (kind, graph.operators[-1][1], list(graph.outputs), options)
        return graph

    return make


def convolution(
    *,
    outputs: int = 5,
    kernel: tuple[int, int] = (3, 2),
    stride: tuple[int, int] = (1, 1),
    dilation: tuple[int, int] = (1, 1),
    valid: bool = False,
    groups: int = 1,
    multiplier: int = 0,
    fused: int = 0,
) -> Make:
    """CONV_2D, or DEPTHWISE_CONV_2D where there is a multiplier."""
    if multiplier:
        outputs = 4 * multiplier
    weights = draw(1, *kernel, outputs) if multiplier else draw(outputs, *kernel, 4 // groups)
    reach = [(taps - 1) * step + 1 for taps, step in zip(kernel, dilation, strict=True)]
    size = [(n - r) // s + 1 if valid else -(-n // s) for n, r, s in zip(MAP[1:3], reach, stride, strict=True)]
    options = {"padding": int(valid), "stride_h": stride[0], "stride_w": stride[1], "fused": fused}
    options |= {"dilation_h": dilation[0], "dilation_w": dilation[1]}
    if multiplier:
        options["depth_multiplier"] = multiplier
    kind = "DEPTHWISE_CONV_2D" if multiplier else "CONV_2D"
    return one(kind, MAP, weights, draw(outputs, name="bias"), shape=(1, *size, outputs), **options)


def transposed(
    wanted: tuple[int, int],
    *,
    kernel: tuple[int, int] = (3, 3),
    valid: bool = False,
    stride: int = 2,
    bias: bool = False,
) -> Make:
    given = [ints(1, *wanted, 3), draw(3, *kernel, 4), MAP, *([draw(3)] if bias else [])]
    options = {"padding": int(valid), "stride_h": stride, "stride_w": stride}
    return one("TRANSPOSE_CONV", *given, shape=(1, *wanted, 3), **options)


def pooled(kind: str, kernel: tuple[int, int], stride: tuple[int, int], *, valid: bool, fused: int = 0) -> Make:
    pairs = zip(MAP[1:3], kernel, stride, strict=True)
    size = [(n - k) // s + 1 if valid else -(-n // s) for n, k, s in pairs]
    options = {"filter_height": kernel[0], "filter_width": kernel[1], "stride_h": stride[0], "stride_w": stride[1]}
    return one(kind, MAP, shape=(1, *size, 4), padding=int(valid), fused=fused, **options)


def resized(kind: str, size: tuple[int, int], *, align: bool = False, half: bool = False) -> Make:
    options = {"align_corners": int(align), "half_pixel_centers": int(half)}
    return one(kind, MAP, ints(*size), shape=(1, *size, 4), **options)


def strided(begin: Sequence[int], end: Sequence[int], step: Sequence[int], shape: Sequence[int], **masks: int) -> Make:
    return one("STRIDED_SLICE", MAP, ints(*begin), ints(*end), ints(*step), shape=shape, **masks)


def half_weights() -> Graph:
    """float16 weights, which DEQUANTIZE widens."""
    graph = Graph()
    weights = add(graph, "DEQUANTIZE", [draw(5, 3, 3, 4).astype(np.float16)], (5, 3, 3, 4))
    bias = add(graph, "DEQUANTIZE", [draw(5, name="bias").astype(np.float16)], (5,))
    options = {"stride_h": 1, "stride_w": 1, "dilation_h": 1, "dilation_w": 1}
    graph.outputs = [add(graph, "CONV_2D", [MAP, weights, bias], (1, 7, 6, 5), **options)]
    return graph


def dequantised() -> Graph:
    """int8 weights with a scale for each output, which DEQUANTIZE makes real numbers of."""
    graph = Graph()
    raw = (draw(5, 24) * 40).clip(-127, 127).astype(np.int8)
    weights = graph.add("DEQUANTIZE", [graph.constant(raw, 0.02, 3)], graph.tensor((5, 24), dtype="float32"))
    graph.outputs = [add(graph, "FULLY_CONNECTED", [(3, 24), weights, draw(5)], (3, 5))]
    return graph


def bottleneck() -> Graph:
    """A residual sum whose other branch gets more channels, pools, a head of two outputs: what face detectors have."""
    graph = Graph()
    options = {"stride_h": 2, "stride_w": 2, "dilation_h": 1, "dilation_w": 1}
    plain = {"stride_h": 1, "stride_w": 1, "dilation_h": 1, "dilation_w": 1}
    x = add(graph, "CONV_2D", [(1, 8, 8, 3), draw(8, 3, 3, 3), draw(8)], (1, 4, 4, 8), **options)
    x = add(graph, "RELU", [x], (1, 4, 4, 8))
    y = add(graph, "DEPTHWISE_CONV_2D", [x, draw(1, 3, 3, 8), draw(8)], (1, 2, 2, 8), **options)
    y = add(graph, "CONV_2D", [y, draw(12, 1, 1, 8), draw(12)], (1, 2, 2, 12), **plain)
    pool = {"filter_height": 2, "filter_width": 2, "stride_h": 2, "stride_w": 2}
    z = add(graph, "MAX_POOL_2D", [x], (1, 2, 2, 8), **pool)
    z = add(graph, "PAD", [z, ints(0, 0, 0, 0, 0, 0, 0, 4).reshape(4, 2)], (1, 2, 2, 12))
    x = add(graph, "ADD", [z, y], (1, 2, 2, 12))
    x = add(graph, "PRELU", [x, draw(1, 1, 12)], (1, 2, 2, 12))
    heads = []
    for count in (4, 6):
        head = add(graph, "CONV_2D", [x, draw(count, 1, 1, 12), draw(count)], (1, 2, 2, count), **plain)
        heads.append(add(graph, "RESHAPE", [head, ints(1, 2 * count, 2)], (1, 2 * count, 2)))
    graph.outputs = [heads[1], heads[0], add(graph, "CONCATENATION", heads, (1, 20, 2), axis=1)]
    return graph


def bordered() -> Graph:
    """A border that a convolution takes over, and that somebody else reads."""
    graph = Graph()
    x = add(graph, "PAD", [MAP, ints(0, 0, 1, 2, 0, 1, 0, 0).reshape(4, 2)], (1, 10, 7, 4))
    options = {"stride_h": 2, "stride_w": 2, "dilation_h": 1, "dilation_w": 1, "padding": 1}
    y = add(graph, "CONV_2D", [x, draw(5, 3, 3, 4), draw(5)], (1, 4, 3, 5), **options)
    graph.outputs = [y, add(graph, "NEG", [x], (1, 10, 7, 4))]
    return graph


def attention() -> Graph:
    """Products of matrices, which are turned, a softmax between them, and sums along the last axis."""
    graph = Graph()
    x = add(graph, "BATCH_MATMUL", [(1, 2, 5, 4), (1, 2, 5, 4)], (1, 2, 5, 5), adj_y=1)
    x = add(graph, "SOFTMAX", [x], (1, 2, 5, 5), beta=0.5)
    x = add(graph, "BATCH_MATMUL", [x, graph.inputs[1]], (1, 2, 5, 4))
    x = add(graph, "TRANSPOSE", [x, ints(0, 2, 1, 3)], (1, 5, 2, 4))
    x = add(graph, "RESHAPE", [x, ints(1, 5, 8)], (1, 5, 8))
    mean = add(graph, "MEAN", [x, ints(2)], (1, 5, 1), keep_dims=1)
    apart = add(graph, "SQUARED_DIFFERENCE", [x, mean], (1, 5, 8))
    graph.outputs = [add(graph, "MEAN", [apart, ints(-1)], (1, 5))]
    return graph


def channels_first() -> Graph:
    """A network that came from PyTorch: it takes its channels first, and gives them so."""
    graph = Graph()
    x = add(graph, "TRANSPOSE", [(1, 4, 7, 6), ints(0, 2, 3, 1)], MAP)
    options = {"stride_h": 1, "stride_w": 1, "dilation_h": 1, "dilation_w": 1}
    x = add(graph, "CONV_2D", [x, draw(5, 3, 3, 4), draw(5)], (1, 7, 6, 5), fused=3, **options)
    x = add(graph, "TRANSPOSE", [x, ints(0, 3, 1, 2)], (1, 5, 7, 6))
    graph.outputs = [add(graph, "MUL", [x, draw(5, 1, 1)], (1, 5, 7, 6))]
    return graph


def chosen() -> Graph:
    """Comparisons and what is selected by them."""
    graph = Graph()
    larger = add(graph, "GREATER", [MAP, MAP], MAP, "bool")
    near = add(graph, "LESS_EQUAL", [graph.inputs[0], draw(4)], MAP, "bool")
    both = add(graph, "LOGICAL_AND", [larger, near], MAP, "bool")
    either = add(graph, "LOGICAL_OR", [larger, near], MAP, "bool")
    neither = add(graph, "LOGICAL_NOT", [either], MAP, "bool")
    x = add(graph, "SELECT_V2", [both, graph.inputs[0], np.float32([7])], MAP)
    y = add(graph, "SELECT", [neither, graph.inputs[0], graph.inputs[1]], MAP)
    z = add(graph, "CAST", [neither], MAP)
    graph.outputs = [x, y, z]
    return graph


def compared(kind: str) -> Make:
    def make() -> Graph:
        graph = Graph()
        rounded = add(graph, "ROUND", [MAP], MAP)
        found = add(graph, kind, [rounded, np.float32([1])], MAP, "bool")
        graph.outputs = [add(graph, "CAST", [found], MAP)]
        return graph

    return make


def counted() -> Graph:
    """Integers: what is cast, where extremes are, and a shape that is known."""
    graph = Graph()
    x = add(graph, "CAST", [MAP], MAP, "int32")
    most = add(graph, "ARG_MAX", [graph.inputs[0], ints(-1)], (1, 7, 6), "int32", output_type=2)
    least = add(graph, "ARG_MIN", [graph.inputs[0], ints(1)], (1, 6, 4), "int64", output_type=4)
    shape = add(graph, "SHAPE", [graph.constant(draw(2, 42, 2))], (3,), "int32", out_type=2)
    y = add(graph, "RESHAPE", [graph.inputs[0], shape], (2, 42, 2))
    graph.outputs = [x, most, least, y]
    return graph


ROWS, REST = (2, 3, 8), {"shape": (2, 3, 8)}
CASES: dict[str, Make] = {
    "conv": convolution(),
    "conv-valid": convolution(valid=True, fused=1),
    "conv-stride": convolution(stride=(2, 2), fused=3),
    "conv-dilated": convolution(kernel=(2, 3), dilation=(3, 2), fused=2),
    "conv-groups": convolution(outputs=6, groups=2),
    "conv-pointwise": convolution(kernel=(1, 1), fused=2),
    "depthwise": convolution(multiplier=1, stride=(2, 1)),
    "depthwise-2": convolution(multiplier=2, kernel=(3, 3), fused=1),
    "depthwise-dilated": convolution(multiplier=1, dilation=(2, 2), valid=True),
    "transposed": transposed((14, 12)),
    "transposed-odd": transposed((13, 11), bias=True),
    "transposed-valid": transposed((15, 13), valid=True),
    "transposed-wide": transposed((14, 12), kernel=(2, 4)),
    "transposed-longer": transposed((16, 14), valid=True),
    "dense": one("FULLY_CONNECTED", (3, 24), draw(5, 24), draw(5), shape=(3, 5), fused=1),
    "dense-flat": one("FULLY_CONNECTED", (1, 2, 3, 4), draw(5, 24), shape=(1, 5)),
    "dense-rows": one("FULLY_CONNECTED", (1, 2, 3, 4), draw(5, 4), draw(5), shape=(1, 2, 3, 5), keep_num_dims=1),
    "half": half_weights,
    "dequantised": dequantised,
    "bottleneck": bottleneck,
    "bordered": bordered,
    "attention": attention,
    "channels-first": channels_first,
    "chosen": chosen,
    "counted": counted,
    "add": one("ADD", MAP, MAP, fused=1),
    "add-spread": one("ADD", MAP, (1, 1, 1, 4), fused=3),
    "add-lower": one("ADD", (6, 1), MAP),
    "sub": one("SUB", draw(4), MAP, fused=2),
    "mul": one("MUL", MAP, draw(1, 7, 1, 1)),
    "div": one("DIV", MAP, draw(1, 1, 6, 1), fused=1),
    "pow": one("POW", MAP, np.float32([1.5])),
    "maximum": one("MAXIMUM", MAP, draw(4)),
    "minimum": one("MINIMUM", MAP, MAP),
    "difference": one("SQUARED_DIFFERENCE", ROWS, draw(8), **REST),
    "add-n": one("ADD_N", MAP, MAP, MAP),
    **{kind.lower(): compared(kind) for kind in ("EQUAL", "NOT_EQUAL", "LESS", "GREATER_EQUAL")},
    **{
        kind.lower(): one(kind, MAP)
        for kind in (
            *("RELU", "RELU6", "RELU_N1_TO_1", "RELU_0_TO_1", "TANH", "LOGISTIC", "HARD_SWISH", "ELU", "ABS", "NEG"),
            *("EXP", "LOG", "SQRT", "RSQRT", "SQUARE", "SIN", "COS", "FLOOR", "CEIL", "LOG_SOFTMAX"),
        )
    },
    "gelu": one("GELU", MAP, approximate=0),
    "gelu-tanh": one("GELU", MAP, approximate=1),
    "leaky": one("LEAKY_RELU", MAP, alpha=0.3),
    "prelu": one("PRELU", MAP, draw(1, 1, 4)),
    "prelu-everywhere": one("PRELU", MAP, draw(7, 6, 4)),
    "average": pooled("AVERAGE_POOL_2D", (3, 2), (2, 2), valid=False, fused=1),
    "average-valid": pooled("AVERAGE_POOL_2D", (7, 6), (1, 1), valid=True),
    "max-pool": pooled("MAX_POOL_2D", (3, 2), (2, 1), valid=False),
    "max-pool-valid": pooled("MAX_POOL_2D", (2, 3), (2, 2), valid=True, fused=3),
    "mean": one("MEAN", MAP, ints(1, 2), shape=(1, 4), keep_dims=0),
    "mean-kept": one("MEAN", MAP, ints(2, 1), shape=(1, 1, 1, 4), keep_dims=1),
    "sum": one("SUM", MAP, ints(-1), shape=(1, 7, 6), keep_dims=0),
    "reduce-max": one("REDUCE_MAX", MAP, ints(1), shape=(1, 6, 4), keep_dims=0),
    "reduce-min": one("REDUCE_MIN", ROWS, ints(0, 2), shape=(1, 3, 1), keep_dims=1),
    "reduce-prod": one("REDUCE_PROD", ROWS, ints(1), shape=(2, 8), keep_dims=0),
    "softmax": one("SOFTMAX", MAP, beta=1.0),
    "softmax-rows": one("SOFTMAX", ROWS, beta=2.0, **REST),
    "l2": one("L2_NORMALIZATION", MAP),
    "cumsum": one("CUMSUM", ROWS, ints(1), exclusive=0, reverse=0, **REST),
    "cumsum-back": one("CUMSUM", ROWS, ints(-1), exclusive=1, reverse=1, **REST),
    "reshape": one("RESHAPE", MAP, ints(2, -1), shape=(2, 84)),
    "squeeze": one("SQUEEZE", (1, 3, 1, 8), shape=(3, 8)),
    "expand": one("EXPAND_DIMS", ROWS, ints(1), shape=(2, 1, 3, 8)),
    "transpose": one("TRANSPOSE", ROWS, ints(2, 0, 1), shape=(8, 2, 3)),
    "pad-channels": one("PAD", MAP, ints(0, 0, 0, 0, 0, 0, 1, 2).reshape(4, 2), shape=(1, 7, 6, 7)),
    "pad-rows": one("PAD", ROWS, ints(0, 1, 2, 0, 0, 3).reshape(3, 2), shape=(3, 5, 11)),
    "pad-value": one("PADV2", MAP, ints(0, 0, 1, 1, 2, 0, 0, 0).reshape(4, 2), np.float32([1.5]), shape=(1, 9, 8, 4)),
    "mirror": one("MIRROR_PAD", MAP, ints(0, 0, 2, 1, 1, 3, 0, 0).reshape(4, 2), shape=(1, 10, 10, 4), mode=0),
    "mirror-symmetric": one("MIRROR_PAD", ROWS, ints(1, 0, 3, 2, 0, 0).reshape(3, 2), shape=(3, 8, 8), mode=1),
    "slice": one("SLICE", MAP, ints(0, 2, 1, 1), ints(1, 4, -1, 2), shape=(1, 4, 5, 2)),
    "strided": strided((0, 1, 5, 0), (1, 7, 0, 4), (1, 2, -2, 1), (1, 3, 3, 4), begin_mask=8, end_mask=1),
    "strided-shrunk": strided((0, -1, 0, 2), (1, 0, 6, 3), (1, 1, 1, 1), (1, 6), shrink_axis_mask=10),
    "strided-ellipsis": strided((0, 0, 1), (0, 0, 3), (1, 1, 1), (1, 7, 6, 1, 2), ellipsis_mask=1, new_axis_mask=2),
    "split": several("SPLIT", ints(3), MAP, shapes=[(1, 7, 6, 2)] * 2, num_splits=2),
    "split-v": several("SPLIT_V", MAP, ints(1, -1, 2), ints(1), shapes=[(1, n, 6, 4) for n in (1, 4, 2)], num_splits=3),
    "concat": one("CONCATENATION", MAP, (1, 7, 6, 3), shape=(1, 7, 6, 7), axis=3),
    "concat-rows": one("CONCATENATION", MAP, draw(1, 2, 6, 4), shape=(1, 9, 6, 4), axis=-3),
    "pack": one("PACK", ROWS, ROWS, shape=(2, 2, 3, 8), axis=1, count=2),
    "pack-last": one("PACK", (2, 3), (2, 3), shape=(2, 3, 2), axis=-1, count=2),
    "unpack": several("UNPACK", ROWS, shapes=[(2, 8)] * 3, count=3, axis=1),
    "depth-to-space": one("DEPTH_TO_SPACE", (1, 3, 2, 12), shape=(1, 6, 4, 3), block_size=2),
    "space-to-depth": one("SPACE_TO_DEPTH", (1, 4, 6, 3), shape=(1, 2, 3, 12), block_size=2),
    "space-to-batch": one(
        "SPACE_TO_BATCH_ND", (1, 7, 6, 3), ints(2, 3), ints(0, 1, 2, 1).reshape(2, 2), shape=(6, 4, 3, 3)
    ),
    "batch-to-space": one(
        "BATCH_TO_SPACE_ND", (6, 4, 3, 3), ints(2, 3), ints(0, 1, 2, 1).reshape(2, 2), shape=(1, 7, 6, 3)
    ),
    "tile": one("TILE", ROWS, ints(1, 2, 3), shape=(2, 6, 24)),
    "broadcast": one("BROADCAST_TO", (3, 1), ints(2, 3, 8), shape=(2, 3, 8)),
    "bilinear": resized("RESIZE_BILINEAR", (14, 12)),
    "bilinear-half": resized("RESIZE_BILINEAR", (10, 9), half=True),
    "bilinear-aligned": resized("RESIZE_BILINEAR", (13, 4), align=True),
    "bilinear-smaller": resized("RESIZE_BILINEAR", (3, 4), half=True),
    "nearest": resized("RESIZE_NEAREST_NEIGHBOR", (14, 18)),
    "nearest-half": resized("RESIZE_NEAREST_NEIGHBOR", (10, 4), half=True),
    "nearest-aligned": resized("RESIZE_NEAREST_NEIGHBOR", (13, 9), align=True),
}


def inputs_of(name: str, graph: Graph) -> list[np.ndarray]:
    """What a case is run on."""
    positive = any(kind in POSITIVE for kind, *_ in graph.operators)
    arrays = [2 * draw(*graph.tensors[number]["shape"], name=f"{name} {number}") for number in graph.inputs]
    return [np.abs(array) + np.float32(0.1) if positive else array for array in arrays]


def answers_of_litert(content: bytes, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    interpreter = Interpreter(
        model_content=content, experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    )
    interpreter.allocate_tensors()
    for described, array in zip(interpreter.get_input_details(), arrays, strict=True):
        interpreter.set_tensor(described["index"], array)
    interpreter.invoke()
    return [interpreter.get_tensor(described["index"]) for described in interpreter.get_output_details()]


def main() -> None:
    answers = {}
    for name, make in CASES.items():
        graph = make()
        found = answers_of_litert(file_of(graph), inputs_of(name, graph))
        answers |= {f"{name}/{number}": answer for number, answer in enumerate(found)}
    np.savez_compressed(GOLDENS, **answers)


if __name__ == "__main__":
    main()
