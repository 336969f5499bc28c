"""Nodes of an ONNX graph as they are added, and what operators of quantised networks are in real numbers there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tvmflow import __version__
from tvmflow.integer.operators import OUTSIDE, Box, Gather, Shape
from tvmflow.integer.window import Window

OPSET = 17
"""Of the default domain, the only one that is used."""
IR_VERSION = 8
"""The one that came with this opset."""


class Writer:
    """Nodes and arrays of a graph."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.arrays: list[onnx.TensorProto] = []
        self._names: dict[str, set[str]] = {"value": set(), "node": set()}

    def fresh(self, wanted: str, of: str = "value") -> str:
        """That name, or one like it if it is taken."""
        name, number = wanted, 0
        while name in self._names[of]:
            number += 1
            name = f"{wanted}.{number}"
        self._names[of].add(name)
        return name

    def free(self, name: str) -> None:
        """What was reserved can be taken."""
        self._names["value"].discard(name)

    def node(self, kind: str, inputs: Sequence[str], wanted: str, *, named: str = "", **attributes: Any) -> str:
        """A node of one result, called `named`, or else like its result."""
        output = self.fresh(wanted)
        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=self.name_of(named or output)))
        self.nodes[-1].attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
        return output

    def name_of(self, wanted: str) -> str:
        """What a node is called."""
        return self.fresh(wanted, "node")

    def array(self, value: Any, dtype: str, wanted: str) -> str:
        name = self.fresh(wanted)
        self.arrays.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def reshaped(self, real: str, shape: Shape, wanted: str) -> str:
        return self.node("Reshape", [real, self.array(shape, "int64", f"{wanted}.shape")], wanted)

    def times(self, real: str, factor: Any, wanted: str) -> str:
        return self.node("Mul", [real, self.array(factor, "float32", f"{wanted}.factor")], wanted)

    def model(
        self, name: str, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto], note: str
    ) -> onnx.ModelProto:
        """A model of all nodes so far."""
        return helper.make_model(
            helper.make_graph(self.nodes, name, inputs, outputs, self.arrays),
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="tvmflow",
            producer_version=__version__,
            doc_string=note,
        )


def convolved(made: Writer, layer: Any, inputs: Sequence[str]) -> str:
    """The convolution of a layer with weights; `inputs` are its map, weights and biases."""
    return made.node(
        *("Conv", inputs, f"{layer.name}.sums"),
        named=layer.name,
        kernel_shape=layer.weight.shape[2:],
        strides=layer.stride,
        dilations=layer.dilation,
        pads=layer.padding,
        group=layer.groups,
    )


def pooled(made: Writer, name: str, window: Window, real: str, least: float) -> str:
    """The largest of windows; `least` is no larger than any number of the map."""
    pads = window.padding
    if any(border >= window.kernel[place % 2] for place, border in enumerate(pads)):  # which runtimes refuse
        real, pads = bordered(made, real, pads, least, f"{name}.bordered"), (0, 0, 0, 0)
    return made.node(
        *("MaxPool", [real], f"{name}.largest"),
        named=name,
        kernel_shape=window.kernel,
        strides=window.stride,
        dilations=window.dilation,
        pads=pads,
    )


def bordered(made: Writer, real: str, padding: Sequence[int], value: float, wanted: str) -> str:
    top, left, bottom, right = padding
    pads = made.array([0, 0, top, left, 0, 0, bottom, right], "int64", f"{wanted}.pads")
    return made.node("Pad", [real, pads, made.array(value, "float32", f"{wanted}.value")], wanted)


def gathered(made: Writer, name: str, operator: Gather, shape: Shape, real: str, outside: float) -> str:
    """Elements by their places: along one axis after the other where that is possible, else one by one."""
    tables = operator.axes(shape)
    if tables is None:
        count = math.prod(shape)
        real = made.reshaped(real, (count,), f"{name}.flat")
        if (operator.places == OUTSIDE).any():
            real = made.node(
                "Concat", [real, made.array([outside], "float32", f"{name}.outside")], f"{name}.all", axis=0
            )
        places = np.where(operator.places == OUTSIDE, count, operator.places)
        return made.node("Gather", [real, made.array(places, "int64", f"{name}.places")], f"{name}.moved", named=name)
    if operator.places.shape == shape and np.array_equal(operator.places.reshape(-1), np.arange(math.prod(shape))):
        return made.node("Identity", [real], f"{name}.same", named=name)
    for axis, table in enumerate(tables, 1):
        length = shape[axis]
        if np.array_equal(table, np.arange(length)):
            continue
        if (table == OUTSIDE).any():
            pads = made.array([*[0] * (4 + axis), 1, *[0] * (3 - axis)], "int64", f"{name}.pads{axis}")
            value = made.array(outside, "float32", f"{name}.value{axis}")
            real = made.node("Pad", [real, pads, value], f"{name}.bordered{axis}")
        along = made.array(np.where(table == OUTSIDE, length, table), "int64", f"{name}.places{axis}")
        real = made.node("Gather", [real, along], f"{name}.moved{axis}", named=name, axis=axis)
    return real


def resampled(made: Writer, name: str, rows: np.ndarray, columns: np.ndarray, real: str) -> str:
    """Products with the matrices of both axes, outputs × inputs."""
    down = made.node("MatMul", [made.array(rows, "float32", f"{name}.rows"), real], f"{name}.down")
    across = made.array(columns.T, "float32", f"{name}.columns")
    return made.node("MatMul", [down, across], f"{name}.across", named=name)


def matrix_of(places: np.ndarray, weights: np.ndarray, length: int) -> np.ndarray:
    """Weights of an axis that is resampled, outputs × taps, as a matrix of outputs × `length`."""
    matrix = np.zeros((len(places), length))
    np.add.at(matrix, (np.arange(len(places))[:, None], places), weights)
    return matrix


def normalised(
    made: Writer,
    name: str,
    lengths: Box,
    shape: Shape,
    real: str,
    epsilon: float,
    gamma: np.ndarray,
    beta: np.ndarray,
) -> str:
    """Boxes by their own mean and variance, then times `gamma` and plus `beta`, which are C×1×1."""
    pairs = [(whole // own, own) for own, whole in zip(lengths, shape[1:], strict=True)]
    boxed = made.reshaped(real, (1, *(length for pair in pairs for length in pair)), f"{name}.boxes")
    mean = made.node("ReduceMean", [boxed], f"{name}.mean", axes=[2, 4, 6])
    centred = made.node("Sub", [boxed, mean], f"{name}.centred")
    squares = made.node("Mul", [centred, centred], f"{name}.squares")
    variance = made.node("ReduceMean", [squares], f"{name}.variance", axes=[2, 4, 6])
    wide = made.node("Add", [variance, made.array(epsilon, "float32", f"{name}.epsilon")], f"{name}.wide")
    normal = made.node("Div", [centred, made.node("Sqrt", [wide], f"{name}.root")], f"{name}.normal", named=name)
    scaled = made.times(made.reshaped(normal, shape, f"{name}.shaped"), gamma, f"{name}.scaled")
    return made.node("Add", [scaled, made.array(beta, "float32", f"{name}.beta")], f"{name}.moved")
