"""ONNX files: small models of each operator, imported, compiled for this computer and held against ONNX Runtime.

Models of a group are compiled as one graph, and run on noise, on a large mean and far out. A result may be as far from
ONNX Runtime's as rounding explains.
"""

from __future__ import annotations

import itertools
import re
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import tvm
from onnx import TensorProto, helper, numpy_helper
from test_operators import HOST, KINDS, Input, Integers, fault
from torch import nn
from tvm import relax

from tvmflow.bundles.build import build
from tvmflow.network import onnx_graph
from tvmflow.network.frontend import import_model, parse_input_shape
from tvmflow.network.names import name_outputs
from tvmflow.network.onnx_operators import OPERATORS, import_graph
from tvmflow.pipeline import run_stages
from tvmflow.spec import Program, TensorSpec, UnsupportedOperatorError, UserError
from tvmflow.system.toolchain import tvm_target_dict

ort = pytest.importorskip("onnxruntime")

ROOT = Path(__file__).resolve().parent.parent
KIND_NAMES = ("noise", "large mean", "far out")
MAP, ROW, WHOLE = (2, 4, 6, 7), (2, 3, 9), np.array([-128, -7, -5, -3, -1, 0, 1, 3, 5, 7, 100, 127])
Exact = Callable[..., np.ndarray]
rng = np.random.default_rng(7)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model, what it gets (shapes to fill, whole numbers, or the values themselves), and the kinds that are left out.

    `exact` computes the first output in float64 where float32 has few digits left.
    """

    model: onnx.ModelProto
    inputs: tuple[Input | np.ndarray, ...]
    without: frozenset[str] = field(default_factory=frozenset)
    exact: Exact | None = None

    def arrays(self, kind: str) -> list[np.ndarray]:
        random = np.random.default_rng(len(kind))
        return [_array(given, kind, random) for given in self.inputs]


def _array(given: Input | np.ndarray, kind: str, random: np.random.Generator) -> np.ndarray:
    if isinstance(given, np.ndarray):
        return given
    if isinstance(given, Integers):
        return random.integers(given.low, given.high, given.shape).astype(given.dtype)
    return np.asarray(KINDS[kind](random, given), np.float32)


def w(*shape: int, scale: float = 1.0) -> np.ndarray:
    return (rng.standard_normal(shape) * scale).astype("float32")


def i64(*values: Any) -> np.ndarray:
    return np.array(values, "int64")


def f32(*values: Any) -> np.ndarray:
    return np.array(values, "float32")


def node(operator: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    """A node; names are split at blanks, and `_` is an input that is left out."""
    named = ["" if name == "_" else name for name in inputs.split()]
    return helper.make_node(operator, named, outputs.split(), **attributes)


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[tuple[str, np.ndarray]],
    outputs: Sequence[str] = ("y",),
    constants: Mapping[str, np.ndarray] | None = None,
    opset: int = 17,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in inputs
        ],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=3 if opset < 9 else 8 if opset < 20 else 10)


def graph(
    *nodes: onnx.NodeProto,
    x: Any = MAP,
    outputs: str = "y",
    opset: int = 17,
    without: str = "",
    exact: Exact | None = None,
    **constants: np.ndarray,
) -> Case:
    """A model of several nodes whose inputs are x, or x0, x1 … where there are several."""
    given = tuple(x) if isinstance(x, list) else (x,)
    names = ["x"] if len(given) == 1 else [f"x{number}" for number in range(len(given))]
    shaped = [(name, _array(value, "noise", rng)) for name, value in zip(names, given, strict=True)]
    return Case(
        model=model(nodes, shaped, outputs.split(), constants, opset),
        inputs=given,
        without=frozenset(part.strip() for part in without.split(",") if part.strip()),
        exact=exact,
    )


def one(
    operator: str,
    *constants: np.ndarray | None,
    x: Any = MAP,
    opset: int = 17,
    results: int = 1,
    without: str = "",
    exact: Exact | None = None,
    **attributes: Any,
) -> Case:
    """A model of one node: its inputs, then constants (None is left out)."""
    named = {f"c{number}": array for number, array in enumerate(constants) if array is not None}
    count = len(x) if isinstance(x, list) else 1
    read = ["x"] if count == 1 else [f"x{number}" for number in range(count)]
    read += [f"c{number}" if array is not None else "_" for number, array in enumerate(constants)]
    made = ["y", *(f"y{number}" for number in range(1, results))]
    outputs = " ".join(made)
    return graph(
        node(operator, " ".join(read), outputs, **attributes),
        x=x,
        outputs=outputs,
        opset=opset,
        without=without,
        exact=exact,
        **named,
    )


def quantized_weights(*shape: int) -> np.ndarray:
    return rng.integers(-127, 128, shape).astype("int8")


def resized(shape: tuple[int, ...] = (1, 2, 5, 7), opset: int = 18, **options: Any) -> Case:
    """Resize of height and width by `scales`, or to `sizes`."""
    scales, sizes, region = (options.pop(name, None) for name in ("scales", "sizes", "region"))
    return one(
        "Resize",
        None if region is None else f32(*region),
        None if scales is None else f32(*[1] * (len(shape) - len(scales)), *scales),
        *([] if sizes is None else [i64(*shape[: len(shape) - len(sizes)], *sizes)]),
        x=shape,
        opset=opset,
        **options,
    )


def standard(x: np.ndarray, axes: tuple[int, ...], scale: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Normalised over axes in float64."""
    x = x.astype("float64")
    centred = x - x.mean(axes, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axes, keepdims=True) + 1e-5) * scale + shift


def branches(taken: bool) -> Case:
    def branch(operator: str, name: str) -> onnx.GraphProto:
        out = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        return helper.make_graph([helper.make_node(operator, ["x"], [name])], name, [], [out])

    return graph(
        node("If", "c", "y", then_branch=branch("Relu", "t"), else_branch=branch("Neg", "e")), c=np.array(taken)
    )


S4, B4, M4, V4 = w(4), w(4), w(4), np.abs(w(4)) + f32(0.1)
S6 = w(6, 7)
LSTM = (w(2, 20, 4, scale=0.5), w(2, 20, 5, scale=0.5), w(2, 40, scale=0.5))
GRU = (w(1, 15, 4, scale=0.5), w(1, 15, 5, scale=0.5), w(1, 30, scale=0.5))
STEPS = (7, 2, 4)
"""More than are left unrolled."""
QUANTISED = (f32(0.05)[0], np.uint8(128))
ZERO4, SCALE4 = np.array([0, 3, -4, 9], "int8"), f32(0.5, 0.25, 0.1, 0.05)

CASES: dict[str, dict[str, Case]] = {
    "convolutions": {
        **{
            f"auto_pad {mode}": one("Conv", w(3, 4, 3, 2), strides=[2, 2], auto_pad=mode)
            for mode in ("SAME_UPPER", "SAME_LOWER", "VALID")
        },
        "same upper of an even window": one("Conv", w(3, 4, 2, 2), auto_pad="SAME_UPPER", strides=[3, 2]),
        "same lower of an even window": one("Conv", w(3, 4, 2, 4), auto_pad="SAME_LOWER", strides=[1, 3]),
        "asymmetric": one("Conv", w(3, 4, 3, 3), w(3), pads=[0, 1, 2, 3]),
        "depthwise dilated": one("Conv", w(8, 1, 3, 3), pads=[0, 1, 4, 3], dilations=[2, 2], group=4),
        "groups": one("Conv", w(6, 2, 3, 3), w(6), pads=[1] * 4, group=2),
        "1-d": one("Conv", w(4, 3, 3), x=ROW, auto_pad="SAME_UPPER", strides=[2]),
        "1-d depthwise": one("Conv", w(3, 1, 4), x=ROW, pads=[2, 1], group=3),
        "3-d": one("Conv", w(2, 2, 2, 3, 2), w(2), x=(1, 2, 4, 5, 6), pads=[1, 0, 1, 0, 2, 1]),
        "pad before": graph(
            node("Pad", "x p", "b"),
            node("Conv", "b w", "y", pads=[1] * 4),
            p=i64(0, 0, 1, 0, 0, 0, 2, 3),
            w=w(3, 4, 3, 3),
        ),
        "negative pad before": graph(
            node("Pad", "x p", "b"),
            node("Conv", "b w", "y", pads=[1] * 4),
            p=i64(0, 0, -1, 1, 0, 0, 2, -2),
            w=w(3, 4, 3, 3),
        ),
        "pad of ones before": graph(
            node("Pad", "x p v", "b"),
            node("Conv", "b w", "y"),
            p=i64(0, 0, 1, 0, 0, 0, 2, 3),
            v=np.float32(1),
            w=w(3, 4, 3, 3),
        ),
        "computed weights": graph(
            node("Mul", "w two", "v"), node("Conv", "x v", "y"), w=w(3, 4, 3, 3), two=np.float32(2)
        ),
        "weights that are an input": one("Conv", x=[(1, 3, 6, 6), (2, 3, 3, 3)], without="large mean"),
        "transposed": one("ConvTranspose", w(4, 3, 3, 3), w(3), strides=[2, 2], pads=[1, 0, 0, 1]),
        "transposed output_padding": one(
            "ConvTranspose", w(4, 3, 3, 3), strides=[2, 2], pads=[0, 1, 1, 0], output_padding=[1, 0]
        ),
        "transposed output_shape": one("ConvTranspose", w(4, 3, 3, 3), strides=[2, 2], output_shape=[12, 15]),
        "transposed larger output_shape": one("ConvTranspose", w(4, 3, 2, 2), strides=[3, 3], output_shape=[18, 21]),
        **{
            f"transposed {mode}": one("ConvTranspose", w(4, 3, 3, 3), strides=[2, 2], auto_pad=mode)
            for mode in ("SAME_UPPER", "SAME_LOWER", "VALID")
        },
        "transposed groups": one("ConvTranspose", w(4, 3, 3, 3), w(6), group=2, strides=[2, 1]),
        "transposed dilated": one("ConvTranspose", w(4, 3, 2, 3), dilations=[2, 3], pads=[1, 1, 0, 0]),
        "transposed 1-d": one("ConvTranspose", w(3, 4, 4), x=ROW, strides=[3], pads=[1, 1]),
    },
    "pools": {
        **{
            f"{operator} {name}": one(operator, opset=19, **options)
            for operator in ("MaxPool", "AveragePool")
            for name, options in {
                "plain": {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]},
                "ceil": {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "ceil_mode": 1},
                "ceil and a window beyond": {"kernel_shape": [2, 2], "strides": [3, 3], "ceil_mode": 1},
                "asymmetric": {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [0, 1, 1, 0]},
                "dilated": {"kernel_shape": [2, 3], "dilations": [2, 2]},
                "same upper": {"kernel_shape": [2, 2], "auto_pad": "SAME_UPPER"},
                "same lower": {"kernel_shape": [2, 2], "strides": [2, 2], "auto_pad": "SAME_LOWER"},
                "valid": {"kernel_shape": [2, 3], "strides": [2, 2], "auto_pad": "VALID"},
            }.items()
        },
        **{
            f"average with its border, {name}": one("AveragePool", opset=19, count_include_pad=1, **options)
            for name, options in {
                "plain": {"kernel_shape": [3, 3], "pads": [0, 1, 2, 0]},
                "ceil": {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "ceil_mode": 1},
                "dilated": {"kernel_shape": [2, 2], "dilations": [2, 2], "pads": [1, 1, 1, 1]},
            }.items()
        },
        "average 1-d": one("AveragePool", x=ROW, kernel_shape=[3], strides=[2], pads=[1, 1]),
        "maximum 1-d": one("MaxPool", x=ROW, kernel_shape=[3], strides=[2], pads=[1, 1]),
        "indices": one("MaxPool", results=2, kernel_shape=[2, 2], strides=[2, 2]),
        "indices with a border": one("MaxPool", results=2, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
        "indices by columns": one("MaxPool", results=2, kernel_shape=[3, 2], dilations=[1, 2], storage_order=1),
        "maximum of bytes": one(
            "MaxPool",
            x=Integers(shape=(1, 2, 5, 5), low=-128, high=128, dtype="int8"),
            kernel_shape=[3, 3],
            pads=[1] * 4,
        ),
        "pad before an average": graph(
            node("Pad", "x p", "b"), node("AveragePool", "b", "y", kernel_shape=[3, 3]), p=i64(0, 0, 1, 1, 0, 0, 1, 1)
        ),
        "lp": one("LpPool", kernel_shape=[2, 2], strides=[2, 2]),
        "lp of 3": one("LpPool", kernel_shape=[3, 2], pads=[1, 0, 1, 1], p=3, opset=18),
        "global average": one("GlobalAveragePool"),
        "global maximum": one("GlobalMaxPool"),
        "global lp": one("GlobalLpPool", p=1),
        "unpool": one(
            "MaxUnpool", i64(*[0, 3, 9, 14]).reshape(1, 1, 2, 2), x=(1, 1, 2, 2), kernel_shape=[2, 2], strides=[2, 2]
        ),
    },
    "normalisations": {
        **{
            f"batch of opset {opset}": one("BatchNormalization", S4, B4, M4, V4, opset=opset, epsilon=1e-3)
            for opset in (9, 14)
        },
        "batch after a convolution": graph(
            node("Conv", "x w", "c"),
            node("BatchNormalization", "c s b m v", "y"),
            w=w(4, 4, 3, 3),
            s=S4,
            b=B4,
            m=M4,
            v=V4,
        ),
        "instance": one(
            "InstanceNormalization",
            S4,
            B4,
            exact=lambda x: standard(x, (2, 3), S4.reshape(4, 1, 1), B4.reshape(4, 1, 1)),
        ),
        "instance 1-d": one(
            "InstanceNormalization",
            S4[:3],
            B4[:3],
            x=ROW,
            exact=lambda x: standard(x, (2,), S4[:3, None], B4[:3, None]),
        ),
        "layer": one("LayerNormalization", S6, S6, axis=2, exact=lambda x: standard(x, (2, 3), S6, S6)),
        "layer over the last": one("LayerNormalization", w(7), without="large mean"),
        "layer with its statistics": one("LayerNormalization", w(7), w(7), results=3, without="large mean"),
        "group of opset 21": one("GroupNormalization", S4, B4, num_groups=2, opset=21, without="large mean"),
        "group of opset 18": one("GroupNormalization", S4[:2], B4[:2], num_groups=2, opset=18, without="large mean"),
        "lrn": one("LRN", size=3, alpha=0.1),
        "lrn with its factors": one("LRN", size=5, alpha=0.1, beta=0.5, bias=2.0),
        "lp": one("LpNormalization", axis=1),
        "mean and variance": one("MeanVarianceNormalization", axes=[0, 2, 3], without="large mean"),
        **{
            f"{operator} of opset {opset}, axis {axis}": one(
                operator, opset=opset, x=(2, 3, 4), **({} if axis is None else {"axis": axis})
            )
            for operator in ("Softmax", "LogSoftmax", "Hardmax")
            for opset in (11, 13)
            for axis in (None, 0, 1, -1)
        },
    },
    "sizes": {
        **{
            f"nearest {nearest} {coordinates}": resized(
                scales=(1.7, 0.6), nearest_mode=nearest, coordinate_transformation_mode=coordinates
            )
            for nearest in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
            for coordinates in ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")
        },
        **{
            f"{mode} {coordinates}": resized(sizes=(9, 4), mode=mode, coordinate_transformation_mode=coordinates)
            for mode in ("linear", "cubic")
            for coordinates in ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")
        },
        "nearest twice": resized(scales=(2, 2), nearest_mode="floor", coordinate_transformation_mode="asymmetric"),
        "nearest of opset 11": resized(scales=(2, 3), region=(), opset=11),
        "linear twice": resized(scales=(2, 2), mode="linear"),
        "linear symmetric": resized(
            scales=(1.3, 0.7), mode="linear", coordinate_transformation_mode="half_pixel_symmetric", opset=19
        ),
        "cubic coefficient": resized(scales=(2, 0.5), mode="cubic", cubic_coeff_a=-0.5),
        "cubic without what is outside": resized(scales=(2, 2), mode="cubic", exclude_outside=1),
        "antialiased": resized(scales=(0.5, 0.6), mode="linear", antialias=1),
        "antialiased cubic": resized(scales=(0.5, 0.6), mode="cubic", antialias=1),
        "one region": resized(
            scales=(1.2, 1.2),
            mode="linear",
            region=(0, 0, 0.2, -0.1, 1, 1, 0.8, 1.3),
            coordinate_transformation_mode="tf_crop_and_resize",
            extrapolation_value=5.0,
        ),
        "not larger": one(
            "Resize",
            None,
            None,
            i64(8, 8),
            x=(1, 2, 5, 7),
            opset=18,
            axes=[2, 3],
            mode="linear",
            keep_aspect_ratio_policy="not_larger",
        ),
        "of opset 10": one("Resize", f32(1, 1, 2, 1.5), x=(1, 2, 5, 7), opset=10),
        "upsample of opset 9": one("Upsample", f32(1, 1, 2, 3), x=(1, 2, 5, 7), opset=9),
        "upsample linear of opset 9": one("Upsample", f32(1, 1, 2, 1.5), x=(1, 2, 5, 7), opset=9, mode="linear"),
        "1-d": resized(shape=ROW, scales=(2.5,), mode="linear"),
    },
    "element-wise": {
        "minimum": one("Clip", f32(-0.5)[0]),
        "zero as the minimum": one("Clip", f32(0)[0]),
        "maximum": one("Clip", None, f32(0.5)[0]),
        "minimum above maximum": one("Clip", f32(2)[0], f32(1)[0]),
        "no bounds": one("Clip"),
        "computed bounds": one("Clip", x=[MAP, (), ()], without="large mean, far out"),
        "attributes": one("Clip", opset=10, min=-0.5, max=1.0),
        "one attribute": one("Clip", opset=10, max=1.0),
        "bytes": one("Clip", np.uint8(10), np.uint8(200), x=np.array([1, 100, 201, 255], "uint8")),
        **{
            f"{operator} by {divisor} of {dtype}": one(operator, np.array(divisor, dtype), x=WHOLE.astype(dtype))
            for operator, divisor, dtype in itertools.product(("Div", "Mod"), (3, -2), ("int32", "int64", "int8"))
        },
        "fmod of integers": one("Mod", np.int32(3), x=WHOLE.astype("int32"), fmod=1),
        "fmod": one("Mod", f32(1.25)[0], fmod=1, without="large mean, far out"),
        **{
            f"power {exponent} of {dtype}": one(
                "Pow", np.array(exponent, dtype), x=np.array([-5, -3, -1, 1, 2, 7], dtype)
            )
            for exponent in (2, 3, 5)
            for dtype in ("int32", "int64")
        },
        "power of floats by integers": one("Pow", i64(3)),
        "root": one("Pow", f32(0.5)[0], without="noise, far out"),
        "wrapping sum": one("Add", np.uint8(100), x=np.array([1, 100, 200, 255], "uint8")),
        "wrapping product": one("Mul", np.int64(3_000_000_000), x=i64(4_000_000_000, -7, 0)),
        "absolute bytes": one("Abs", x=np.array([-128, -1, 5], "int8")),
        "shifted": one("BitShift", np.uint8(3), x=np.array([1, 100, 255], "uint8"), direction="LEFT"),
        "shifted right": one("BitShift", np.uint8(3), x=np.array([1, 100, 255], "uint8"), direction="RIGHT"),
        "rounded": one("Round", x=f32(-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 0.4999)),
        "infinite": one("IsInf", x=f32(np.inf, -np.inf, np.nan, 1), detect_negative=0),
        "not a number": one("IsNaN", x=f32(np.inf, -np.inf, np.nan, 1)),
        "cast to int32": one("Cast", x=f32(1.9, -1.9, 100.5, -100.5), to=TensorProto.INT32),
        "cast to int8": one("Cast", x=f32(1.9, -1.9, 100.5, -100.5), to=TensorProto.INT8),
        "cast to uint8": one("Cast", x=f32(1.9, 0, 200.5, 255), to=TensorProto.UINT8),
        "cast to bool": one("Cast", x=f32(0.5, -0.5, 0, np.nan), to=TensorProto.BOOL),
        "cast to half and back": graph(
            node("Cast", "x", "h", to=TensorProto.FLOAT16), node("Cast", "h", "y", to=TensorProto.FLOAT)
        ),
        "cast of bytes": one("Cast", x=np.array([1, 100, 200, 255], "uint8"), to=TensorProto.INT8),
        "cast of bools": one("Cast", x=np.array([True, False]), to=TensorProto.FLOAT),
        "cast of double": one("Cast", x=np.array([1e-3, 3.7, -1e30]), to=TensorProto.FLOAT),
        "cast like": one("CastLike", np.float64(0)),
        "slopes of the last axis": one("PRelu", w(7)),
        "slopes of channels": one("PRelu", w(4, 1, 1)),
        "several summands": one("Sum", x=[(2, 3), (3,), (2, 1)]),
        "several means": one("Mean", x=[(2, 3), (3,), (2, 1)]),
        "largest": one("Max", x=[(2, 3), (3,), (2, 1)]),
        "where": graph(node("Greater", "x k", "c"), node("Where", "c x k", "y"), k=f32(0)[0]),
        **{
            operator: one(operator, without="large mean" if operator in ("Sin", "Cos") else "")
            for operator in (
                *("Celu", "Elu", "Selu", "HardSigmoid", "LeakyRelu", "Relu", "Sigmoid", "Softplus", "Softsign"),
                *("Tanh", "ThresholdedRelu", "Shrink", "HardSwish", "Erf", "Neg", "Sign", "Ceil", "Floor"),
            )
        },
        "Mish": one("Mish", opset=18),
        **{f"Gelu {mode}": one("Gelu", opset=20, approximate=mode) for mode in ("none", "tanh")},
        "mask of dropout": one("Dropout", opset=13, results=2),
    },
    "quantised": {
        **{
            f"one scale, opset {opset}": graph(
                node("QuantizeLinear", "x s z", "q"),
                node("DequantizeLinear", "q s z", "y"),
                s=np.float32(0.02),
                z=np.uint8(10),
                opset=opset,
            )
            for opset in (13, 17)
        },
        **{
            f"a scale of each channel, opset {opset}": graph(
                node("QuantizeLinear", "x s z", "q", axis=1),
                node("DequantizeLinear", "q s z", "y", axis=1),
                s=SCALE4,
                z=ZERO4,
                outputs="q y",
                opset=opset,
            )
            for opset in (13, 17)
        },
        "ties": one("QuantizeLinear", np.float32(2), np.int8(1), x=f32(-5, -3, -1, 1, 3, 5, 1e9, -1e9)),
        "without a zero point": one("QuantizeLinear", np.float32(0.1)),
        "of accumulators": one(
            "DequantizeLinear", np.float32(0.1), x=Integers(shape=(3, 4), low=-9999, high=9999, dtype="int32")
        ),
        "of the last axis": one(
            "DequantizeLinear", f32(0.1, 0.2, 0.3), x=Integers(shape=(2, 3), low=-128, high=128, dtype="int8"), axis=-1
        ),
        "convolution between": graph(
            node("QuantizeLinear", "x sx zx", "q"),
            node("DequantizeLinear", "q sx zx", "d"),
            node("DequantizeLinear", "w sw zw", "v", axis=0),
            node("Conv", "d v", "c", pads=[1] * 4),
            node("QuantizeLinear", "c sy zy", "r"),
            node("DequantizeLinear", "r sy zy", "y"),
            sx=np.float32(0.05),
            zx=np.uint8(120),
            w=quantized_weights(4, 4, 3, 3),
            sw=SCALE4,
            zw=np.zeros(4, "int8"),
            sy=np.float32(16),
            zy=np.uint8(10),
        ),
        **{
            f"QLinearConv {name}": graph(
                node("QuantizeLinear", "x sx zx", "q"),
                node("QLinearConv", "q sx zx w sw zw sy zy b", "r", pads=[1, 0, 1, 2]),
                outputs="r",
                sx=np.float32(0.05),
                zx=np.uint8(120),
                w=quantized_weights(4, 4, 3, 3),
                sw=scale,
                zw=zero,
                sy=np.float32(0.9),
                zy=np.uint8(10),
                b=np.array([5, -500, 30, 0], "int32"),
            )
            for name, scale, zero in (
                ("of one scale", np.float32(0.01), np.int8(3)),
                ("of a scale each", f32(0.01, 0.02, 0.03, 0.04), np.zeros(4, "int8")),
            )
        },
        "ConvInteger": one(
            "ConvInteger",
            quantized_weights(3, 4, 3, 3).view("uint8"),
            np.uint8(120),
            np.uint8(7),
            x=Integers(shape=MAP, low=0, high=256, dtype="uint8"),
            pads=[1] * 4,
        ),
        "MatMulInteger": one(
            "MatMulInteger",
            quantized_weights(5, 3),
            np.uint8(120),
            np.array([1, -2, 3], "int8"),
            x=Integers(shape=(4, 5), low=0, high=256, dtype="uint8"),
        ),
        "QLinearMatMul": one(
            "QLinearMatMul",
            np.float32(0.02),
            np.uint8(120),
            quantized_weights(5, 3),
            np.float32(0.03),
            np.int8(2),
            np.float32(0.5),
            np.uint8(100),
            x=Integers(shape=(4, 5), low=0, high=256, dtype="uint8"),
        ),
        "dynamic": one("DynamicQuantizeLinear", x=(3, 5), results=3),
        "added": graph(
            node("QLinearAdd", "x s z k s z t z", "y", domain="com.microsoft"),
            x=Integers(shape=(4, 5), low=0, high=256, dtype="uint8"),
            s=np.float32(0.02),
            z=np.uint8(120),
            k=np.uint8(7),
            t=np.float32(0.05),
        ),
    },
    "indices and axes": {
        "hot": one("OneHot", np.int64(5), f32(-1, 2), x=i64(7, -9, 2, -1, 4, -5, 5)),
        "hot along the first axis": one("OneHot", i64(4), i64(0, 1), x=i64(0, -1, 9).reshape(3, 1), axis=0),
        "gathered": graph(node("Gather", "e x", "y", axis=0), x=i64(-1, 0, 9, -10, 5), e=w(10, 4)),
        "gathered at known places": one("Gather", i64(-1, 0, 2, -4), axis=1),
        "gathered at one place": one("Gather", i64(-1)[0], axis=2),
        "gathered elements": graph(
            node("GatherElements", "e x", "y", axis=0), x=i64(-1, 0, 9, -10, 1, 2, -3, 4).reshape(2, 4), e=w(10, 4)
        ),
        "gathered in several axes": graph(
            node("GatherND", "e x", "y"), x=i64(-1, 2, 0, -4, 9, 3).reshape(3, 2), e=w(10, 4)
        ),
        "scattered": one("ScatterElements", i64(0, -1).reshape(1, 2), w(1, 2), x=(3, 5), axis=1),
        "scattered sums": one(
            "ScatterElements", i64(0, 0, -1).reshape(1, 3), w(1, 3), x=(3, 5), axis=1, opset=18, reduction="add"
        ),
        "scattered rows": one("ScatterND", i64(1, -1).reshape(2, 1), w(2, 5), x=(3, 5)),
        **{
            f"running sum {exclusive} {reverse}": one("CumSum", i64(1)[0], exclusive=exclusive, reverse=reverse)
            for exclusive in (0, 1)
            for reverse in (0, 1)
        },
        "first": one("TopK", i64(3), axis=1, results=2),
        "smallest of equal ones": one("TopK", i64(4), x=f32(3, 1, 1, 2, 1, 3), results=2, largest=0),
        "first of integers": one("TopK", i64(2), x=i64(-3, 9, 9, -128, 5), results=2),
        "largest": one("ArgMax", axis=1, keepdims=0),
        "last of equal ones": one("ArgMax", x=f32(3, 1, 3, 1), select_last_index=1),
        "first of equal ones": one("ArgMin", x=f32(3, 1, 3, 1)),
        "depth, rows first": one("DepthToSpace", x=(1, 8, 3, 4), blocksize=2, mode="DCR"),
        "depth, columns first": one("DepthToSpace", x=(1, 8, 3, 4), blocksize=2, mode="CRD"),
        "space to depth": one("SpaceToDepth", x=(1, 2, 4, 6), blocksize=2),
        "einsum": one("Einsum", w(7, 5), equation="nchw,wd->nchd"),
        "einsum of dots": one("Einsum", w(7, 5), equation="...w,wd->...d"),
        "einsum without an arrow": one("Einsum", w(4, 3), x=(2, 4), equation="ij,jk"),
        "einsum of a diagonal": one("Einsum", x=(4, 4), equation="ii->i"),
        "sliced backwards": one("Slice", i64(-1), i64(-100), i64(3), i64(-2)),
        "sliced by attributes": one("Slice", opset=9, starts=[1], ends=[100], axes=[2]),
        "sliced in two axes": one("Slice", i64(1, -3), i64(3, 99), i64(1, -1)),
        "split unevenly": one("Split", opset=18, axis=3, num_outputs=3, results=3),
        "split into sizes": one("Split", i64(1, 3), axis=1, results=2),
        "split by attributes": one("Split", opset=11, axis=1, split=[3, 1], results=2),
        "reflected": one("Pad", i64(0, 0, 2, 1, 0, 0, 2, 3), mode="reflect"),
        "edges": one("Pad", i64(0, 0, 2, 1, 0, 0, 2, 3), mode="edge"),
        "cut": one("Pad", i64(0, 0, -1, 1, 0, 0, 2, -2), f32(3)[0]),
        "pad of some axes": one("Pad", i64(1, 2), None, i64(-1), opset=18),
        "pad by attributes": one("Pad", opset=9, pads=[0, 0, 2, 1, 0, 0, 2, 3], value=1.5),
        "upper triangle": one("Trilu", i64(1)[0]),
        "lower triangle": one("Trilu", upper=0),
        "repeated": one("Tile", i64(1, 2, 1, 3)),
        "expanded": one("Expand", i64(3, 1, 5), x=(2, 1, 1, 5)),
        "reversed": one("ReverseSequence", i64(1, 3), x=(4, 2, 3)),
        "compressed": one("Compress", np.array([False, True, True]), axis=1),
        **{
            f"{operator} of opset {opset}": one(
                operator,
                *([i64(1, -1)] if opset == 18 else []),
                opset=opset,
                keepdims=0,
                **({} if opset == 18 else {"axes": [1, -1]}),
            )
            for operator in ("ReduceMean", "ReduceMax", "ReduceL1", "ReduceL2", "ReduceLogSumExp", "ReduceSumSquare")
            for opset in (13, 18)
        },
        "sum of all": one("ReduceSum", keepdims=0),
        "sum of none": one("ReduceSum", noop_with_empty_axes=1),
        "mean of integers": one("ReduceMean", x=np.array([-3, 2, 0, -9], "int32"), keepdims=0),
        "product": one("ReduceProd", axes=[3], without="large mean"),
    },
    "layers": {
        "LSTM": one("LSTM", *LSTM, x=STEPS, hidden_size=5, direction="bidirectional", results=3),
        "LSTM with states": one(
            "LSTM",
            *(part[:1] for part in LSTM),
            None,
            w(1, 2, 5),
            w(1, 2, 5),
            w(1, 15),
            x=STEPS,
            hidden_size=5,
            results=3,
        ),
        "LSTM reversed": one("LSTM", *(part[:1] for part in LSTM), x=STEPS, hidden_size=5, direction="reverse"),
        **{
            f"GRU {linear}": one("GRU", *GRU, x=STEPS, hidden_size=5, linear_before_reset=linear, results=2)
            for linear in (0, 1)
        },
        "RNN": one("RNN", w(1, 5, 4), w(1, 5, 5), w(1, 10), x=STEPS, hidden_size=5, results=2, without="large mean"),
        "RNN with ReLU": one(
            "RNN", w(1, 5, 4), w(1, 5, 5, scale=0.5), None, x=STEPS, hidden_size=5, activations=["Relu"], results=2
        ),
        "LSTM with clipped gates": one("LSTM", *(part[:1] for part in LSTM), x=STEPS, hidden_size=5, clip=0.7),
        "Gemm": one("Gemm", w(3, 2), w(3), x=(2, 4), transA=1, transB=1, alpha=0.5, beta=2.0),
        "Gemm without its third": one("Gemm", w(4, 3), w(3), x=(2, 4), beta=0.0),
        "MatMul of vectors": one("MatMul", w(4), x=(4,)),
        "MatMul of stacks": one("MatMul", w(3, 4, 2), x=(2, 1, 5, 4)),
        "GridSample": one("GridSample", w(1, 3, 4, 2, scale=0.6), x=(1, 2, 5, 6)),
        "RoiAlign": one(
            "RoiAlign",
            f32(0, 0, 3, 4, 1, 1, 5, 5).reshape(2, 4),
            i64(0, 1),
            x=(2, 2, 6, 6),
            output_height=2,
            output_width=2,
            sampling_ratio=2,
        ),
    },
    "graphs": {
        "taken branch": branches(True),
        "other branch": branches(False),
        "value_float": graph(node("Constant", "", "k", value_float=2.5), node("Mul", "x k", "y")),
        "value_ints": graph(node("Constant", "", "k", value_ints=[0, -1]), node("Reshape", "x k", "y")),
        "value": graph(node("Constant", "", "k", value=numpy_helper.from_array(f32(2)[0])), node("Mul", "x k", "y")),
        "shape arithmetic": graph(
            node("Shape", "x", "s"),
            node("Gather", "s i", "b", axis=0),
            node("Unsqueeze", "b a", "u"),
            node("Concat", "u m", "t", axis=0),
            node("Reshape", "x t", "y"),
            i=i64(0)[0],
            a=i64(0),
            m=i64(-1),
        ),
        "shape from start to end": graph(
            node("Shape", "x", "s", start=1, end=-1), node("ConstantOfShape", "s", "k"), node("Shape", "k", "y")
        ),
        "constant of shape": graph(
            node("ConstantOfShape", "s", "k", value=numpy_helper.from_array(f32(2))),
            node("Mul", "x k", "y"),
            s=i64(4, 6, 7),
        ),
        "range": graph(node("Range", "a b c", "k"), node("Mul", "x k", "y"), a=f32(0)[0], b=f32(7)[0], c=f32(1)[0]),
        "scalar": one("Relu", x=()),
        "scalar and map": one("Mul", x=[MAP, ()]),
        "blanks and slashes": graph(
            node("Relu", "x", "a/b:0", name="//a//b c/Relu:0"), node("Neg", "a/b:0", "y", name="42")
        ),
        "letters": graph(node("Relu", "x", "é", name="/bloc/é conv/网"), node("Neg", "é", "y", name="a\nb")),
        "one name for all": graph(
            node("Conv", "x w", "a", name="n"),
            node("Relu", "a", "b", name="n"),
            node("Conv", "b v", "y", name="n"),
            w=w(4, 4, 3, 3),
            v=w(2, 4, 3, 3),
        ),
        "dead node": graph(node("Relu", "x", "y"), node("Neg", "x", "z")),
        "outputs out of order": graph(node("Relu", "x", "y"), node("Neg", "y", "z"), outputs="z y"),
        "constant output": graph(node("Relu", "x", "y"), outputs="y k", k=w(2, 2)),
        "part of a split": graph(node("Split", "x", "a b c d", axis=1), node("Relu", "b", "y")),
        "flattened": one("Flatten", axis=2),
        "flattened to one row": one("Flatten", axis=0),
        "flattened from the end": one("Flatten", axis=-1),
        "squeezed": one("Squeeze", x=(1, 3, 1, 2)),
        "sequence": graph(
            node("SplitToSequence", "x", "s", axis=1),
            node("SequenceAt", "s i", "a"),
            node("Neg", "a", "y"),
            i=i64(-1)[0],
        ),
        "embedding": graph(node("Gather", "e x", "y", axis=0), x=Integers(shape=(2, 3), low=0, high=10), e=w(10, 4)),
        "double": one("Add", w(7).astype("float64"), x=np.arange(7.0)),
        "half": graph(node("Cast", "x", "h", to=TensorProto.FLOAT16), node("Relu", "h", "y"), without="large mean"),
    },
}


def merged(models: Sequence[onnx.ModelProto]) -> onnx.ModelProto:
    """Models of one opset side by side as one."""
    parts = [onnx.compose.add_prefix(model, f"{number}/") for number, model in enumerate(models)]
    graphs = [part.graph for part in parts]
    return helper.make_model(
        helper.make_graph(
            [node for graph in graphs for node in graph.node],
            "graphs",
            [entry for graph in graphs for entry in graph.input],
            [entry for graph in graphs for entry in graph.output],
            [tensor for graph in graphs for tensor in graph.initializer],
        ),
        opset_imports=parts[0].opset_import,
        ir_version=parts[0].ir_version,
    )


def compiled(model: onnx.ModelProto, inputs: Sequence[np.ndarray]) -> Callable[..., list[np.ndarray]]:
    """What the pipeline of this computer makes of a model."""
    specs = [
        TensorSpec(name=entry.name, shape=array.shape, dtype=str(array.dtype))
        for entry, array in zip(model.graph.input, inputs, strict=True)
    ]
    program = Program(
        name="model",
        source="",
        module=name_outputs(import_graph(onnx_graph.inline_functions(model, Path("model")), specs)),
        inputs=tuple(specs),
        outputs=(),
        vectors=(),
        parameters=0,
    )
    target = tvm.target.Target(tvm_target_dict(HOST))
    with target:
        executable = relax.build(run_stages(program, HOST).module, target, relax_pipeline=None)
    machine = relax.VirtualMachine(executable, tvm.cpu())

    def run(*arrays: np.ndarray) -> list[np.ndarray]:
        made = machine["main"](*map(tvm.runtime.tensor, arrays))
        return [part.numpy() for part in ([made] if isinstance(made, tvm.runtime.Tensor) else made)]

    return run


def runtime(model: onnx.ModelProto) -> Callable[[Sequence[np.ndarray]], list[np.ndarray]]:
    """ONNX Runtime's own answer, unoptimised."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    nameless = onnx.ModelProto()
    nameless.CopyFrom(model)
    for part in nameless.graph.node:
        part.ClearField("name")  # it refuses names that several nodes have
    session = ort.InferenceSession(nameless.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    return lambda arrays: [np.asarray(part) for part in session.run(None, dict(zip(names, arrays, strict=True)))]


@pytest.mark.parametrize("group", CASES)
def test_operators_answer_as_onnx_runtime(group: str) -> None:
    by_opset: defaultdict[int, dict[str, Case]] = defaultdict(dict)
    for name, case in CASES[group].items():
        by_opset[case.model.opset_import[0].version][name] = case
    found = {}
    for cases in by_opset.values():
        inputs = {kind: [case.arrays(kind) for case in cases.values()] for kind in KIND_NAMES}
        run = compiled(merged([case.model for case in cases.values()]), list(itertools.chain(*inputs["noise"])))
        references = [runtime(case.model) for case in cases.values()]
        for kind, given in inputs.items():
            left = run(*itertools.chain(*given))
            for (name, case), reference, arrays in zip(cases.items(), references, given, strict=True):
                count = len(case.model.graph.output)
                ours, left = left[:count], left[count:]
                if kind in case.without:
                    continue
                theirs = reference(arrays)
                exact = [None if case.exact is None else case.exact(*arrays)] + [None] * (count - 1)
                texts = [fault(*three) for three in zip(ours, theirs, exact, strict=True)]
                if any(texts):
                    found[f"{name}, {kind}"] = texts
    assert not found


# ------------------------------------------------------------------------------------------------- files, end to end


def saved(model: onnx.ModelProto, path: Path) -> str:
    onnx.save(model, path)
    return str(path)


def verified(program: Program, folder: Path) -> None:
    """build() raises where the answers differ from the reference's."""
    bundle = build(program, HOST, folder)
    assert bundle.manifest["verify"]["passed"] is True
    assert program.reference.startswith("ONNX Runtime")


class Small(nn.Module):
    """What mobile networks are made of: a convolution, an inverted residual with ReLU6, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = self.layer(3, 8, 3, stride=2)
        self.expand = self.layer(8, 16, 1)
        self.depthwise = self.layer(16, 16, 3, groups=16)
        self.project = nn.Sequential(nn.Conv2d(16, 8, 1, bias=False), nn.BatchNorm2d(8))
        self.head = nn.Linear(8, 5)

    @staticmethod
    def layer(inputs: int, outputs: int, kernel: int, **options: int) -> nn.Sequential:
        convolution = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False, **options)
        return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU6())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x + self.project(self.depthwise(self.expand(x)))
        return self.head(x.mean((2, 3)))


def small() -> nn.Module:
    torch.manual_seed(0)
    return Small().eval()


def exported(network: nn.Module, path: Path, **options: Any) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(network, (torch.randn(1, 3, 12, 12),), path, verbose=False, **options)
    return str(path)


def schedules(program: Program) -> list[str]:
    return [layer.schedule for layer in run_stages(program, HOST).layers]


def test_exported_networks_get_the_schedules_of_the_pytorch_network(tmp_path: Path) -> None:
    torch.export.save(torch.export.export(small(), (torch.randn(1, 3, 12, 12),)), tmp_path / "small.pt2")
    wanted = schedules(import_model(str(tmp_path / "small.pt2")))
    old = import_model(exported(small(), tmp_path / "old.onnx", dynamo=False, opset_version=13))
    new = import_model(exported(small(), tmp_path / "new.onnx", dynamo=True))
    assert schedules(old) == wanted
    assert schedules(new) == wanted
    verified(old, tmp_path / "old")
    verified(new, tmp_path / "new")


def test_bounds_are_a_clip_however_files_have_them() -> None:
    """As Clip, as Max and Min, and cast to the dtype of what is clipped."""
    bound = [f32(0)[0], f32(6)[0]]
    forms = [
        one("Clip", *bound),
        graph(node("Max", "x zero", "a"), node("Min", "six a", "y"), zero=bound[0], six=bound[1].reshape(1)),
        graph(
            node("CastLike", "zero x", "a"),
            node("CastLike", "six x", "b"),
            node("Clip", "x a b", "y"),
            zero=np.array(0),
            six=np.array(6),
            opset=20,
        ),
    ]
    for form in forms:
        made = import_graph(form.model, [TensorSpec(name="x", shape=MAP, dtype="float32")]).script()
        assert "clip" in made
        assert "maximum" not in made
        assert "minimum" not in made
        assert "astype" not in made


@pytest.mark.parametrize("dynamo", [False, True])
def test_layers_have_the_paths_of_modules(dynamo: bool, tmp_path: Path) -> None:
    """Both exporters of PyTorch note them; the newer one's optimiser gives a convolution its BatchNorm's."""
    program = import_model(exported(small(), tmp_path / "small.onnx", dynamo=dynamo, opset_version=18))
    named = {name for layer in run_stages(program, HOST).layers for name in layer.modules}
    folded = {"stem.1", "expand.1", "depthwise.1", "project.1"} if dynamo else {"stem.0", "expand.0", "project.0"}
    assert named >= {*folded, "stem.2", "expand.2", "depthwise.2", "head"}
    assert all("Conv" not in name for name in named)


OPSETS = range(9, 23)


def of_opset(opset: int) -> onnx.ModelProto:
    """The same small network, with what changed from opset to opset as that one writes it."""
    constants: dict[str, np.ndarray] = {}

    def written(operator: str, inputs: str, outputs: str, since: int, name: str, value: Any, **more: Any) -> Any:
        """A node with what is an attribute before opset `since`, and an input then."""
        if opset < since:
            return node(operator, inputs, outputs, **{name: np.asarray(value).tolist()}, **more)
        constants[f"{outputs.split()[0]}_{name}"] = np.asarray(value)
        return node(operator, f"{inputs} {outputs.split()[0]}_{name}", outputs, **more)

    random = np.random.default_rng(3)
    weights = {"w": (4, 3, 3, 3), "scale": (4,), "shift": (4,), "mean": (4,), "dense": (5, 2), "bias": (5,)}
    constants |= {name: random.standard_normal(shape).astype("float32") for name, shape in weights.items()}
    constants["variance"] = np.abs(random.standard_normal(4)).astype("float32")
    bounds = {"min": 0.0, "max": 6.0}
    if opset >= 11:
        constants |= {name: f32(value)[0] for name, value in bounds.items()}
    if opset >= 13:
        constants["ratio"] = f32(0.5)[0]
    scales = f32(1, 1, 2, 2)
    constants |= {"scales": scales, "roi": f32()}
    larger = {
        9: node("Upsample", "p scales", "r"),
        10: node("Resize", "p scales", "r"),
    }.get(opset, node("Resize", "p roi scales", "r", coordinate_transformation_mode="asymmetric", nearest_mode="floor"))
    cut = node("Slice", "s", "c", starts=[1, 0], ends=[-1, 7], axes=[2, 3])
    if opset >= 10:
        constants |= {"starts": i64(1, 0), "ends": i64(-1, 7), "axes": i64(2, 3)}
        cut = node("Slice", "s starts ends axes", "c")
    nodes = [
        node("Conv", "x w", "a", pads=[1, 1, 1, 1]),
        node("BatchNormalization", "a scale shift mean variance", "b"),
        node("Clip", "b", "k", **bounds) if opset < 11 else node("Clip", "b min max", "k"),
        written("Pad", "k", "d", 11, "pads", i64(0, 0, 1, 0, 0, 0, 0, 2)),
        node("MaxPool", "d", "p", kernel_shape=[2, 2], strides=[2, 2]),
        larger,
        written("Split", "r", "s t", 13, "split", i64(2, 2), axis=1),
        cut,
        written("ReduceMean", "c", "m", 18, "axes", i64(-1), keepdims=0),
        written("ReduceMax", "m", "n", 18, "axes", i64(2), keepdims=1),
        written("Squeeze", "n", "q", 13, "axes", i64(2)),
        node("Dropout", "q", "o") if opset < 13 else node("Dropout", "q ratio", "o"),
        node("Gemm", "o dense bias", "g", transB=1),
        node("Softmax", "g", "y", axis=1),
        written("ReduceSum", "t", "u", 13, "axes", i64(1, 2), keepdims=0),
        written("Unsqueeze", "u", "z", 13, "axes", i64(0, 3)),
    ]
    return model(nodes, [("x", np.zeros((1, 3, 6, 8), "float32"))], ("y", "z"), constants, opset)


def test_a_network_of_any_opset_is_the_same_network() -> None:
    """One is compiled; the others are equal to it, and so are ONNX Runtime's answers to it."""
    spec, x = TensorSpec(name="x", shape=(1, 3, 6, 8), dtype="float32"), w(1, 3, 6, 8)
    first = import_graph(of_opset(OPSETS[0]), [spec])
    ours = compiled(of_opset(OPSETS[0]), [x])(x)
    for opset in OPSETS:
        tvm.ir.assert_structural_equal(import_graph(of_opset(opset), [spec]), first)
        for left, right in zip(ours, runtime(of_opset(opset))([x]), strict=True):
            assert np.abs(left - right).max() < 1e-5, opset


def test_open_batch(tmp_path: Path) -> None:
    """It is named in the input, in what was inferred and in the output, and 1 if nobody says; Reshape asks Shape."""
    made = CASES["graphs"]["shape arithmetic"].model
    for entry in (made.graph.input[0], made.graph.output[0]):
        entry.type.CopyFrom(helper.make_tensor_type_proto(TensorProto.FLOAT, ["N", 4, 6, 7]))
    made.graph.output[0].type.CopyFrom(helper.make_tensor_type_proto(TensorProto.FLOAT, ["N", 168]))
    path = saved(onnx.shape_inference.infer_shapes(made), tmp_path / "größe 1.onnx")
    assert import_model(path).outputs[0].shape == (1, 168)
    program = import_model(path, [parse_input_shape("x=3x4x6x7")])
    assert program.outputs[0].shape == (3, 168)
    verified(program, tmp_path / "open")


def test_quantised_file(tmp_path: Path) -> None:
    program = import_model(saved(CASES["quantised"]["convolution between"].model, tmp_path / "qdq.onnx"))
    verified(program, tmp_path / "qdq")


def test_interfaces(tmp_path: Path) -> None:
    """Weights that are listed as inputs, an output that is the input, one that is listed twice, and no input at all."""
    weight = w(4, 4, 3, 3)
    nodes = [node("Conv", "x w", "a"), node("Relu", "a", "y")]
    given = [("x", np.zeros(MAP, "float32")), ("w", weight)]
    program = import_model(
        saved(model(nodes, given, ["y", "x", "y", "w"], {"w": weight}, opset=8), tmp_path / "a.onnx")
    )
    assert [spec.name for spec in program.inputs] == ["x"]
    assert [spec.shape for spec in program.outputs] == [(2, 4, 4, 5), MAP, (2, 4, 4, 5), weight.shape]
    verified(program, tmp_path / "a")
    program = import_model(saved(CASES["graphs"]["one name for all"].model, tmp_path / "b.onnx"))
    assert program.reference.startswith("ONNX Runtime")


# ----------------------------------------------------------------------------------------------------------- refusals


def loop() -> Case:
    state = helper.make_tensor_value_info("state", TensorProto.FLOAT, None)
    number = helper.make_tensor_value_info("number", TensorProto.INT64, [])
    going = helper.make_tensor_value_info("going", TensorProto.BOOL, [])
    on = helper.make_tensor_value_info("on", TensorProto.BOOL, [])
    after = helper.make_tensor_value_info("after", TensorProto.FLOAT, None)
    body = helper.make_graph(
        [node("Identity", "going", "on"), node("Relu", "state", "after")], "body", [number, going, state], [on, after]
    )
    return graph(node("Loop", "n c x", "y", body=body, name="around"), n=i64(3)[0], c=np.array(True))


REFUSED: dict[str, tuple[Case, str, str]] = {
    "NonMaxSuppression": (
        graph(
            node("NonMaxSuppression", "x0 x1", "i", name="boxes"),
            node("Cast", "i", "y", to=TensorProto.FLOAT),
            x=[(1, 6, 4), (1, 1, 6)],
        ),
        "NonMaxSuppression",
        "boxes",
    ),
    "NonZero": (graph(node("NonZero", "x", "y", name="where")), "NonZero", "where"),
    "Loop": (loop(), "Loop", "around"),
    "a random number": (graph(node("RandomNormalLike", "x", "y", name="dice")), "RandomNormalLike", "dice"),
    "a domain of its own": (
        graph(node("Thing", "x", "y", name="odd", domain="my.domain")),
        "my.domain.Thing",
        "odd",
    ),
    "a computed shape": (
        graph(node("Reshape", "x0 x1", "y", name="form"), x=[(6,), i64(2, 3)]),
        "Reshape",
        "form",
    ),
    "a computed condition": (
        graph(
            node("ReduceMax", "x", "m", keepdims=0),
            node("Cast", "m", "c", to=TensorProto.BOOL),
            *branches(True).model.graph.node,
        ),
        "If",
        "y",
    ),
    "training": (
        graph(node("Dropout", "x r t", "y", name="drop"), r=f32(0.5)[0], t=np.array(True)),
        "Dropout",
        "drop",
    ),
    "a list": (graph(node("SplitToSequence", "x", "y", axis=1)), "sequence", "y"),
    "a step too many": (
        graph(node("Relu", "x", "a"), node("NonZero", "a", "b", name="where"), node("Cast", "b", "y", to=1)),
        "NonZero",
        "where",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_become_kernels_is_refused(name: str, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    case, operator, where = REFUSED[name]
    if operator.startswith("my.domain"):
        case.model.opset_import.append(helper.make_opsetid("my.domain", 1))
    with pytest.raises(UnsupportedOperatorError) as caught:
        import_model(saved(case.model, tmp_path / "refused.onnx"))
    assert caught.value.exit_code == 8
    assert operator in str(caught.value)
    assert where in str(caught.value)
    assert list(caught.value.operators) == [operator]
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("damage", ["cut", "empty", "no nodes", "unknown input", "wrong weight", "text"])
def test_damaged_files_are_refused(damage: str, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    made = onnx.ModelProto()
    made.CopyFrom(CASES["convolutions"]["groups"].model)
    if damage == "no nodes":
        made.ClearField("graph")
    if damage == "unknown input":
        made.graph.node[0].input[0] = "nothing"
    if damage == "wrong weight":
        made.graph.initializer[0].raw_data = b"abcd"
    data = {"cut": made.SerializeToString()[:-40], "empty": b"", "text": b"ONNX files are no text\n"}
    path = tmp_path / "damaged.onnx"
    path.write_bytes(data.get(damage, made.SerializeToString()))
    with pytest.raises(UserError, match=r"damaged\.onnx") as caught:
        import_model(str(path))
    assert caught.value.exit_code == 4
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


# -------------------------------------------------------------------------------------------------------------- docs


def test_docs_name_every_operator() -> None:
    page = (ROOT / "docs" / "networks-onnx.md").read_text()
    section = page.split("## Operators", 1)[1].split("\n## ", 1)[0]
    named = set(re.findall(r"`([\w.]+)`", section))
    assert named == set(OPERATORS) | {"Constant", "If", "Shape", "Size"}
