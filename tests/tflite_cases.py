"""One small `.tflite` file for each operator and each way to use it, and what TensorFlow Lite Micro makes of it.

`python tests/tflite_cases.py` writes `goldens/tflite.npz` anew with the interpreter of the package `tflite-micro`,
which the tests need not have: they hold the reader to those bits.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tflite_files import Graph, file_of

GOLDENS = Path(__file__).parent / "goldens" / "tflite.npz"
INPUTS = 8
"""Inputs of a case: the extremes, and noise over the whole range."""


class Draw:
    """Random scales, zero points and weights; those of a case are always the same."""

    def __init__(self, name: str) -> None:
        self.rng = np.random.default_rng(zlib.crc32(name.encode()))

    def scale(self, low: float = -6, high: float = -2) -> float:
        return float(np.float32(2.0 ** self.rng.uniform(low, high)))

    def zero(self) -> int:
        return int(self.rng.integers(-128, 128))

    def weights(self, *shape: int) -> np.ndarray:
        return self.rng.integers(-127, 128, shape).astype(np.int8)

    def least(self, *shape: int) -> np.ndarray:
        """Weights with −128 among them, which int8 of ours doesn't have."""
        return self.rng.choice(np.array([-128, -127, 3, 127], np.int8), shape)

    def biases(self, count: int) -> np.ndarray:
        return self.rng.integers(-3000, 3000, count).astype(np.int32)


def same(size: int, stride: int) -> int:
    return -(-size // stride)


def convolution(
    draw: Draw,
    kind: str,
    *,
    kernel: tuple[int, int] = (3, 2),
    stride: tuple[int, int] = (1, 1),
    dilation: tuple[int, int] = (1, 1),
    valid: bool = False,
    fused: int = 0,
    multiplier: int = 1,
    per_tensor: bool = False,
    bias: bool = True,
    zero: int | None = None,
    least: bool = False,
) -> Graph:
    graph, size = Graph(), (7, 6)
    x = graph.input((1, *size, 3), draw.scale(), draw.zero() if zero is None else zero)
    outputs, axis = (5, 0) if kind == "CONV_2D" else (3 * multiplier, 3)
    weights = draw.least if least else draw.weights
    raw = weights(5, *kernel, 3) if kind == "CONV_2D" else weights(1, *kernel, outputs)
    scales = draw.scale(-9, -5) if per_tensor else [draw.scale(-9, -5) for _ in range(outputs)]
    given = [x, graph.constant(raw, scales, axis=axis)]
    if bias:
        given.append(graph.constant(draw.biases(outputs), 1e-4))
    reach = [(taps - 1) * step + 1 for taps, step in zip(kernel, dilation, strict=True)]
    extents = [(n - r) // s + 1 if valid else same(n, s) for n, r, s in zip(size, reach, stride, strict=True)]
    options = {"padding": int(valid), "fused": fused, "depth_multiplier": multiplier}
    options |= {"stride_h": stride[0], "stride_w": stride[1], "dilation_h": dilation[0], "dilation_w": dilation[1]}
    y = graph.result(kind, given, (1, *extents, outputs), draw.scale(-4, 0), draw.zero(), **options)
    graph.outputs = [y]
    return graph


def dense(
    draw: Draw, *, fused: int = 0, rows: int = 1, flat: bool = False, pixels: bool = False, least: bool = False
) -> Graph:
    graph = Graph()
    shape = (1, 2, 5, 2) if flat else (1, 10) if rows == 1 else (1, rows // 3, 3, 10) if pixels else (1, rows, 10)
    scale, zero = draw.scale(), draw.zero()
    x, width = graph.input(shape, scale, zero), 20 if flat else 10
    if flat:
        x = graph.result("RESHAPE", [x, graph.constant(np.array([1, 20], np.int32))], (1, 20), scale, zero)
    weights = graph.constant((draw.least if least else draw.weights)(6, width), draw.scale(-9, -5))
    shape = (*shape[:-1], 6) if rows > 1 else (1, 6)
    given = [x, weights, -1 if rows > 1 else graph.constant(draw.biases(6), 1e-4)]
    options = {"fused": fused, "keep_num_dims": int(rows > 1)}
    graph.outputs = [graph.result("FULLY_CONNECTED", given, shape, draw.scale(-4, 0), draw.zero(), **options)]
    return graph


def both(
    draw: Draw, kind: str, *, shape: tuple[int, ...] = (1, 3, 4, 5), fused: int = 0, constant: int | None = None
) -> Graph:
    """A sum or product; `constant` is the place of a constant of this shape."""
    graph = Graph()
    a = graph.input((1, 3, 4, 5), draw.scale(), draw.zero())
    if constant is None:
        given = [a, graph.input(shape, draw.scale(), draw.zero())]
    else:
        given = [a, graph.constant(draw.weights(*shape), draw.scale(), draw.zero())]
        given = given if constant else given[::-1]
    scale = draw.scale(-5, 0) if kind != "MUL" else draw.scale()
    graph.outputs = [graph.result(kind, given, (1, 3, 4, 5), scale, draw.zero(), fused=fused)]
    return graph


def pool(
    draw: Draw, kind: str, *, kernel: tuple[int, int], stride: tuple[int, int], valid: bool, fused: int = 0
) -> Graph:
    graph, scale, zero = Graph(), draw.scale(), draw.zero()
    x = graph.input((1, 7, 6, 5), scale, zero)
    pairs = zip((7, 6), kernel, stride, strict=True)
    extents = [(n - k) // s + 1 if valid else same(n, s) for n, k, s in pairs]
    options = {"padding": int(valid), "fused": fused, "filter_height": kernel[0], "filter_width": kernel[1]}
    options |= {"stride_h": stride[0], "stride_w": stride[1]}
    graph.outputs = [graph.result(kind, [x], (1, *extents, 5), scale, zero, **options)]
    return graph


def unary(
    draw: Draw,
    kind: str,
    *,
    shape: tuple[int, ...] = (1, 256),
    scale: tuple[float, float] = (-8, -2),
    result: tuple[float, int] | None = None,
    **options: float,
) -> Graph:
    """A function of each element, or along the last axis; without `result` it has a scale of its own."""
    graph = Graph()
    x = graph.input(shape, draw.scale(*scale), draw.zero())
    to = result or (draw.scale(*scale), draw.zero())
    given = [x]
    if kind == "PRELU":
        given.append(graph.constant(draw.weights(1, 1, shape[-1]), draw.scale(-8, -6), draw.zero()))
    graph.outputs = [graph.result(kind, given, shape, *to, **options)]
    return graph


def softmax(draw: Draw, shape: tuple[int, ...]) -> Graph:
    return unary(draw, "SOFTMAX", shape=shape, scale=(-6, 0), result=PROBABILITIES, beta=1.0)


def unscaled(draw: Draw, kind: str) -> Graph:
    graph, to = Graph(), (draw.scale(), draw.zero())
    graph.outputs = [graph.result(kind, [graph.input((1, 256), *to)], (1, 256), *to)]
    return graph


def mean(draw: Draw, axes: tuple[int, ...], keep: bool) -> Graph:
    graph, sizes = Graph(), (1, 7, 6, 5)
    x = graph.input(sizes, draw.scale(), draw.zero())
    shape = [1 if axis in axes else n for axis, n in enumerate(sizes) if keep or axis not in axes]
    given = [x, graph.constant(np.array(axes, np.int32))]
    graph.outputs = [graph.result("MEAN", given, shape, draw.scale(), draw.zero(), keep_dims=int(keep))]
    return graph


def resized(draw: Draw, kind: str, size: tuple[int, int], *, align: bool = False, half: bool = False) -> Graph:
    graph, to = Graph(), (draw.scale(), draw.zero())
    given = [graph.input((1, 5, 4, 2), *to), graph.constant(np.array(size, np.int32))]
    options = {"align_corners": int(align), "half_pixel_centers": int(half)}
    graph.outputs = [graph.result(kind, given, (1, *size, 2), *to, **options)]
    return graph


def transposed(draw: Draw, *, valid: bool, stride: tuple[int, int], bias: bool) -> Graph:
    graph = Graph()
    x = graph.input((1, 4, 3, 2), draw.scale(), draw.zero())
    pairs = zip((4, 3), (3, 2), stride, strict=True)
    shape = [1, *((n - 1) * s + k if valid else n * s for n, k, s in pairs), 5]
    weights = graph.constant(draw.weights(5, 3, 2, 2), [draw.scale(-9, -5) for _ in range(5)])
    given = [graph.constant(np.array(shape, np.int32)), weights, x]
    if bias:
        given.append(graph.constant(draw.biases(5), 1e-4))
    options = {"padding": int(valid), "stride_h": stride[0], "stride_w": stride[1]}
    graph.outputs = [graph.result("TRANSPOSE_CONV", given, shape, draw.scale(-5, -1), draw.zero(), **options)]
    return graph


def moved(draw: Draw, kind: str, shapes: list[tuple[int, ...]], lists: list[list[int]], **options: float) -> Graph:
    """Values at other places: `lists` are constants behind what is read, or before it for SPLIT."""
    graph, to = Graph(), (draw.scale(), draw.zero())
    given = [graph.input((1, 2, 3, 4), *to), *(graph.constant(np.array(row, np.int32)) for row in lists)]
    graph.outputs = [graph.tensor(shape, *to) for shape in shapes]
    graph.add(kind, given[::-1] if kind == "SPLIT" else given, graph.outputs, **options)
    return graph


def joined(draw: Draw, axis: int) -> Graph:
    graph, to, shapes = Graph(), (draw.scale(), draw.zero()), [[1, 2, 3, 4], [1, 2, 3, 4]]
    shapes[1][axis] = 5
    shape = list(shapes[0])
    shape[axis] += 5
    given = [graph.input(shape, *to) for shape in shapes]
    graph.outputs = [graph.result("CONCATENATION", given, shape, *to, axis=axis)]
    return graph


def bytes_in(draw: Draw) -> Graph:
    """uint8 in, a layer, uint8 out."""
    graph, scale, zero = Graph(), draw.scale(), draw.zero()
    x = graph.input((1, 4, 3, 2), scale, zero + 128, dtype="uint8")
    x = graph.result("QUANTIZE", [x], (1, 4, 3, 2), scale, zero)
    to = draw.scale(-4, 0), draw.zero()
    weights = graph.constant(draw.weights(3, 1, 1, 2), draw.scale(-9, -5))
    x = graph.result("CONV_2D", [x, weights], (1, 4, 3, 3), *to, stride_h=1, stride_w=1, dilation_h=1, dilation_w=1)
    graph.outputs = [graph.add("QUANTIZE", [x], graph.tensor((1, 4, 3, 3), to[0], to[1] + 128, dtype="uint8"))]
    return graph


def streaming(draw: Draw) -> tuple[Graph, Graph]:
    """Two frames are kept, and a convolution over three is given; the second graph says what is kept at first."""
    graph, to = Graph(), (draw.scale(), -7)
    x = graph.input((1, 1, 1, 4), *to)
    first = Graph()
    for part in (graph, first):
        part.tensor((), dtype="resource", name="frames")
        part.add("VAR_HANDLE", [], len(part.tensors) - 1, container="", shared_name="frames")
    graph.operators.insert(0, ("CALL_ONCE", [], [], {"init_subgraph_index": 1}))
    first.add("ASSIGN_VARIABLE", [0, first.constant(np.full((1, 2, 1, 4), -7, np.int8), *to)], [])
    kept = graph.result("READ_VARIABLE", [1], (1, 2, 1, 4), *to)
    whole = graph.result("CONCATENATION", [kept, x], (1, 3, 1, 4), *to, axis=1)
    lists = [graph.constant(np.array(row, np.int32)) for row in ((0, 1, 0, 0), (0, 0, 0, 0), (1, 1, 1, 1))]
    rest = graph.result("STRIDED_SLICE", [whole, *lists], (1, 2, 1, 4), *to, begin_mask=13, end_mask=15)
    graph.add("ASSIGN_VARIABLE", [1, rest], [])
    weights = graph.constant(draw.weights(5, 3, 1, 4), [draw.scale(-9, -5) for _ in range(5)])
    options = {"padding": 1, "stride_h": 1, "stride_w": 1, "dilation_h": 1, "dilation_w": 1}
    graph.outputs = [graph.result("CONV_2D", [whole, weights], (1, 1, 1, 5), draw.scale(-5, -1), 5, **options)]
    return graph, first


ROW = [[0, 1, 0, 0], [0, 2, 0, 0], [1, 1, 1, 1]]
ROW_MASKS = {"begin_mask": 13, "end_mask": 13, "shrink_axis_mask": 2}
PROBABILITIES, SIGMOIDS, TANHS = (1 / 256, -128), (1 / 256, -128), (1 / 128, 0)

CASES: dict[str, Callable[[Draw], Graph]] = {
    "conv": lambda d: convolution(d, "CONV_2D"),
    "conv-valid": lambda d: convolution(d, "CONV_2D", valid=True, fused=1, bias=False),
    "conv-strided": lambda d: convolution(d, "CONV_2D", stride=(2, 2), fused=3, per_tensor=True),
    "conv-dilated": lambda d: convolution(d, "CONV_2D", dilation=(2, 1), fused=2),
    "conv-padded-with-0": lambda d: convolution(d, "CONV_2D", zero=0),
    "depthwise": lambda d: convolution(d, "DEPTHWISE_CONV_2D", fused=1),
    "depthwise-dilated": lambda d: convolution(d, "DEPTHWISE_CONV_2D", dilation=(2, 2)),
    "depthwise-multiplied": lambda d: convolution(d, "DEPTHWISE_CONV_2D", multiplier=2, stride=(2, 1)),
    **{f"dense-{fused}": lambda d, fused=fused: dense(d, fused=fused) for fused in range(4)},
    "dense-rows": lambda d: dense(d, rows=3),
    "dense-pixels": lambda d: dense(d, rows=6, pixels=True),
    "dense-flat": lambda d: dense(d, flat=True),
    "dense-flat-least": lambda d: dense(d, flat=True, least=True),
    "conv-least": lambda d: convolution(d, "CONV_2D", least=True),
    "depthwise-least": lambda d: convolution(d, "DEPTHWISE_CONV_2D", least=True),
    **{f"{kind.lower()}": lambda d, kind=kind: both(d, kind) for kind in ("ADD", "SUB", "MUL")},
    "add-channels": lambda d: both(d, "ADD", shape=(1, 1, 1, 5), fused=1),
    "mul-rows": lambda d: both(d, "MUL", shape=(1, 3, 1, 1), fused=3),
    "add-constant": lambda d: both(d, "ADD", shape=(5,), constant=1),
    "sub-constant": lambda d: both(d, "SUB", shape=(1,), constant=0),
    "mul-constant": lambda d: both(d, "MUL", shape=(1, 1, 1, 5), constant=1),
    "max-pool": lambda d: pool(d, "MAX_POOL_2D", kernel=(3, 2), stride=(2, 2), valid=False, fused=1),
    "average-pool": lambda d: pool(d, "AVERAGE_POOL_2D", kernel=(3, 3), stride=(1, 1), valid=False),
    "average-pool-valid": lambda d: pool(d, "AVERAGE_POOL_2D", kernel=(7, 6), stride=(1, 1), valid=True),
    "mean": lambda d: mean(d, (1, 2), keep=True),
    "mean-flat": lambda d: mean(d, (1, 2), keep=False),
    "mean-rows": lambda d: mean(d, (1,), keep=True),
    "mean-channels": lambda d: mean(d, (3,), keep=True),
    **{f"logistic-{n}": lambda d: unary(d, "LOGISTIC", scale=(-8, 0), result=SIGMOIDS) for n in range(3)},
    **{f"tanh-{n}": lambda d: unary(d, "TANH", scale=(-8, 0), result=TANHS) for n in range(3)},
    **{f"hard-swish-{n}": lambda d: unary(d, "HARD_SWISH") for n in range(4)},
    **{f"leaky-relu-{n}": lambda d: unary(d, "LEAKY_RELU", alpha=0.3) for n in range(2)},
    "prelu": lambda d: unary(d, "PRELU", shape=(1, 4, 6, 3)),
    "relu": lambda d: unary(d, "RELU"),
    "relu6": lambda d: unscaled(d, "RELU6"),
    "quantize": lambda d: unary(d, "QUANTIZE"),
    **{f"softmax-{n}": lambda d, n=n: softmax(d, (1, n)) for n in (2, 10, 200)},
    "softmax-pixels": lambda d: softmax(d, (1, 3, 2, 7)),
    "bilinear": lambda d: resized(d, "RESIZE_BILINEAR", (10, 8)),
    "bilinear-aligned": lambda d: resized(d, "RESIZE_BILINEAR", (7, 9), align=True),
    "bilinear-half": lambda d: resized(d, "RESIZE_BILINEAR", (7, 9), half=True),
    "nearest": lambda d: resized(d, "RESIZE_NEAREST_NEIGHBOR", (7, 9)),
    "nearest-half": lambda d: resized(d, "RESIZE_NEAREST_NEIGHBOR", (10, 3), half=True),
    "transposed": lambda d: transposed(d, valid=False, stride=(2, 2), bias=True),
    "transposed-valid": lambda d: transposed(d, valid=True, stride=(1, 2), bias=False),
    **{f"concat-{axis}": lambda d, axis=axis: joined(d, axis) for axis in (1, 2, 3)},
    "reshape": lambda d: moved(d, "RESHAPE", [(1, 12, 2)], [[1, 12, 2]]),
    "transpose": lambda d: moved(d, "TRANSPOSE", [(1, 4, 2, 3)], [[0, 3, 1, 2]]),
    "pad": lambda d: moved(d, "PAD", [(1, 4, 8, 4)], [[0, 0, 1, 1, 2, 3, 0, 0]]),
    "slice": lambda d: moved(d, "STRIDED_SLICE", [(1, 1, 2, 3)], [[0, 1, 0, 1], [1, 2, 3, 4], [1, 1, 2, 1]]),
    "slice-shrunk": lambda d: moved(d, "STRIDED_SLICE", [(1, 3, 4)], ROW, **ROW_MASKS),
    "split": lambda d: moved(d, "SPLIT", [(1, 2, 3, 2)] * 2, [[3]], num_splits=2),
    "split-v": lambda d: moved(d, "SPLIT_V", [(1, 2, 3, 1), (1, 2, 3, 3)], [[1, 3], [3]], num_splits=2),
    "bytes": bytes_in,
    "streaming": streaming,
}  # fmt: skip


def graphs_of(name: str) -> tuple[Graph, ...]:
    made = CASES[name](Draw(name))
    return made if isinstance(made, tuple) else (made,)


def inputs_of(name: str) -> list[tuple[np.ndarray, ...]]:
    """What the file itself takes, call after call."""
    graph, rng = graphs_of(name)[0], np.random.default_rng(7)
    shapes = [(graph.tensors[number]["shape"], graph.tensors[number]["dtype"]) for number in graph.inputs]
    ends = [tuple(np.full(shape, end, np.int8).view(dtype) for shape, dtype in shapes) for end in (-128, 127)]
    noise = [
        tuple(rng.integers(-128, 128, shape).astype(np.int8).view(dtype) for shape, dtype in shapes)
        for _ in range(INPUTS - len(ends))
    ]
    return ends + noise


def main() -> None:
    from tflite_micro.python.tflite_micro import runtime

    found = {}
    for name in CASES:
        graphs = graphs_of(name)
        interpreter = runtime.Interpreter.from_bytes(file_of(*graphs), arena_size=1 << 21)
        for call, arrays in enumerate(inputs_of(name)):
            for place, array in enumerate(arrays):
                interpreter.set_input(array, place)
            interpreter.invoke()
            for place in range(len(graphs[0].outputs)):
                found.setdefault(f"{name} {place}", []).append(interpreter.get_output(place).copy())
                assert len(found[f"{name} {place}"]) == call + 1
    np.savez_compressed(GOLDENS, **{name: np.stack(arrays) for name, arrays in found.items()})


if __name__ == "__main__":
    sys.exit(main())
