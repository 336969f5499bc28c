"""A quantised network as ONNX with QuantizeLinear and DequantizeLinear, as ONNX Runtime wants int8 networks.

Scales, weights and biases are those of the IntegerNetwork. Signed activations are uint8 around 128, the same numbers:
ONNX Runtime multiplies unsigned activations with signed weights faster.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tvmflow.integer.layers import RANGES, AnyIntegerLayer, IntegerLayer, IntegerNode
from tvmflow.integer.network import IntegerNetwork
from tvmflow.integer.operators import Concat, MaxPool, Product, Sum

OPSET = 17


def export_qdq(network: IntegerNetwork, path: Path) -> None:
    """Write the network, of the scheme per channel and of one input: uint8 N×C×H×W around 128 → uint8 around 128.

    Raises NotImplementedError for operators that no benchmark needs.
    """
    made = _Graph()
    tensors = {network.inputs[0].name: ("input", network.input_scale, 128)}
    for layer in network.layers:
        real = [made.dequantize(*tensors[name], f"{layer.name}.in{place}") for place, name in enumerate(layer.inputs)]
        if isinstance(layer, IntegerLayer):
            result = _weighted(made, layer, real[0], *tensors[layer.inputs[0]][1:])
        else:
            result = _node(made, layer, real)
        scale, zero = layer.scale, 0 if layer.dtype == "uint8" else 128
        tensors[layer.name] = made.quantize(made.clipped(layer, result), scale, zero, layer.name), scale, zero
    output = tensors[network.outputs[0].source][0]
    graph = helper.make_graph(
        made.nodes,
        network.name,
        [helper.make_tensor_value_info("input", TensorProto.UINT8, network.inputs[0].shape)],
        [helper.make_tensor_value_info(output, TensorProto.UINT8, network.output_shape)],
        made.arrays,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def _weighted(made: _Graph, layer: IntegerLayer, real: str, scale: float, zero: int) -> str:
    assert layer.multiplier is not None
    # multiplier / 2³² = input scale · weight scale / output scale
    weight_scales = layer.multiplier / 2.0**32 * layer.scale / scale
    if layer.kind == "pool":
        return made.node("GlobalAveragePool", [real], f"{layer.name}.real")
    if layer.kind == "dense":
        flat = made.node("Flatten", [real], f"{layer.name}.flat")
        again = made.dequantize(
            made.quantize(flat, scale, zero, f"{layer.name}.flat"), scale, zero, f"{layer.name}.flat"
        )
        return made.node("Gemm", [again, *made.weights(layer, weight_scales, scale)], f"{layer.name}.real", transB=1)
    return made.node(
        "Conv",
        [real, *made.weights(layer, weight_scales, scale)],
        f"{layer.name}.real",
        strides=layer.stride,
        dilations=layer.dilation,
        pads=[*layer.padding],
        group=layer.groups,
    )


def _node(made: _Graph, layer: IntegerNode, real: list[str]) -> str:
    operator, name = layer.operator, f"{layer.name}.real"
    if isinstance(operator, Sum) and operator.signs == (1, 1):
        return made.node("Add", real, name)
    if isinstance(operator, Product):
        return made.node("Mul", real, name)
    if isinstance(operator, Concat):
        return made.node("Concat", real, name, axis=operator.axis)
    if isinstance(operator, MaxPool):
        window = operator.window
        return made.node(
            "MaxPool", real, name, kernel_shape=window.kernel, strides=window.stride, pads=[*window.padding]
        )
    raise NotImplementedError(f"{layer.kind} ({layer.name})")


class _Graph:
    """Nodes and arrays as they are added."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.arrays: list[onnx.TensorProto] = []

    def node(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def array(self, value: Any, dtype: str, name: str) -> str:
        self.arrays.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def _parameters(self, scale: float, zero: int, name: str) -> list[str]:
        return [self.array(scale, "float32", f"{name}.scale"), self.array(zero, "uint8", f"{name}.zero")]

    def clipped(self, layer: AnyIntegerLayer, real: str) -> str:
        """Between the layer's limits, where they aren't those of its dtype."""
        low, high = RANGES[layer.dtype]
        if (layer.minimum, layer.maximum) == (low, high):
            return real
        limits = [
            self.array(limit * layer.scale, "float32", f"{layer.name}.{end}")
            for end, limit in (("low", layer.minimum), ("high", layer.maximum))
        ]
        return self.node("Clip", [real, *limits], f"{layer.name}.clipped")

    def quantize(self, tensor: str, scale: float, zero: int, name: str) -> str:
        return self.node("QuantizeLinear", [tensor, *self._parameters(scale, zero, f"{name}.q")], f"{name}.q")

    def dequantize(self, tensor: str, scale: float, zero: int, name: str) -> str:
        return self.node("DequantizeLinear", [tensor, *self._parameters(scale, zero, f"{name}.dq")], f"{name}.dq")

    def weights(self, layer: IntegerLayer, scales: np.ndarray, input_scale: float) -> list[str]:
        """Real weights and bias, from int8 and int32, one scale an output channel."""
        stored = layer.weight[:, :, 0, 0] if layer.kind == "dense" else layer.weight
        found = []
        for name, array, by in (("weight", stored, scales), ("bias", layer.bias, scales * input_scale)):
            inputs = [
                self.array(array, str(array.dtype), f"{layer.name}.{name}"),
                self.array(by, "float32", f"{layer.name}.{name}.scale"),
                self.array(np.zeros(len(by)), str(array.dtype), f"{layer.name}.{name}.zero"),
            ]
            found.append(self.node("DequantizeLinear", inputs, f"{layer.name}.{name}.real", axis=0))
        return found
