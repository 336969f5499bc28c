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

from tvmflow.integer.network import IntegerLayer, IntegerNetwork

OPSET = 17


def export_qdq(network: IntegerNetwork, path: Path) -> None:
    """Write the network, of the scheme per channel: uint8 N×C×H×W around 128 → uint8 logits around 128."""
    made = _Graph()
    tensor, scale, zero = "input", network.input_scale, 128
    for layer in network.layers:
        real = made.dequantize(tensor, scale, zero, f"{layer.name}.in")
        assert layer.multiplier is not None
        # multiplier / 2³² = input scale · weight scale / output scale
        weight_scales = layer.multiplier / 2.0**32 * layer.scale / scale
        if layer.kind == "pool":
            result = made.node("GlobalAveragePool", [real], f"{layer.name}.real")
        elif layer.kind == "dense":
            flat = made.node("Flatten", [real], f"{layer.name}.flat")
            again = made.quantize(flat, scale, zero, f"{layer.name}.flat")
            inputs = [
                made.dequantize(again, scale, zero, f"{layer.name}.flat"),
                *made.weights(layer, weight_scales, scale),
            ]
            result = made.node("Gemm", inputs, f"{layer.name}.real", transB=1)
        else:
            result = made.node(
                "Conv",
                [real, *made.weights(layer, weight_scales, scale)],
                f"{layer.name}.real",
                strides=layer.stride,
                dilations=layer.dilation,
                pads=[*layer.padding],
                group=layer.groups,
            )
        scale, zero = layer.scale, 0 if layer.dtype == "uint8" else 128
        tensor = made.quantize(result, scale, zero, layer.name)
    graph = helper.make_graph(
        made.nodes,
        network.name,
        [helper.make_tensor_value_info("input", TensorProto.UINT8, network.input_shape)],
        [helper.make_tensor_value_info(tensor, TensorProto.UINT8, network.output_shape)],
        made.arrays,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, path)


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
