"""A network as PyTorch's quantisers leave it: quantised and dequantised at every place where integers are."""

from __future__ import annotations

import io
from typing import Any

import torch
import torch.ao.quantization.fx._decomposed
from torch import nn
from torch.nn import functional

QUANTISED = torch.ops.quantized_decomposed


def between(x: Any, scale: float, zero: int, dtype: torch.dtype = torch.int8, low: int = -128, high: int = 127) -> Any:
    about = (scale, zero, low, high, dtype)
    return QUANTISED.dequantize_per_tensor(QUANTISED.quantize_per_tensor(x, *about), *about)


class Weight(nn.Module):
    """int8 weights with a scale for each output, or one for all."""

    def __init__(self, *shape: int, each: bool = True) -> None:
        super().__init__()
        self.each = each
        self.register_buffer("values", torch.randint(-127, 128, shape, dtype=torch.int8))
        self.register_buffer("scales", torch.rand(shape[0]) * 0.004 + 0.002)
        self.register_buffer("zeros", torch.zeros(shape[0], dtype=torch.int64))

    def forward(self) -> Any:
        if self.each:
            return QUANTISED.dequantize_per_channel(self.values, self.scales, self.zeros, 0, -127, 127, torch.int8)
        return QUANTISED.dequantize_per_tensor(self.values, 0.004, 0, -127, 127, torch.int8)


class Converted(nn.Module):
    """Convolutions in all ways, sums, pools, functions, moves and a dense layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.deep, self.back = Weight(8, 3, 3, 3), Weight(8, 1, 3, 3), Weight(8, 4, 2, 2, each=False)
        self.last, self.bias = Weight(5, 32, each=False), nn.Parameter(torch.randn(8))
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x: Any) -> Any:
        x = between(x, 0.03, -5)
        y = functional.relu(functional.conv2d(x, self.first(), self.bias, stride=2, padding=1))
        y = between(y, 0.05, 0, torch.uint8, 0, 255)
        z = between(self.norm(functional.conv2d(y, self.deep(), groups=8, padding="same")), 0.06, -10)
        y = between(functional.hardtanh(y + z, 0, 6), 0.03, -128)
        y = functional.max_pool2d(y, 2, ceil_mode=True)
        first, second = torch.split(y, 4, 1)
        y = between(torch.cat([between(functional.hardswish(second), 0.05, -100), first], 1), 0.05, -100)
        y = between(functional.conv_transpose2d(y, self.back(), stride=2), 0.05, 3, torch.int8, 0, 127)
        y = between(functional.interpolate(y, scale_factor=2.0, mode="nearest"), 0.05, 3)
        y = between(functional.avg_pool2d(y, 2), 0.03, 0).flatten(2)
        y = between(functional.softmax(between(y.mean(-1), 0.02, 5).repeat(1, 8), -1), 1 / 128, -128)
        return between(functional.linear(y, self.last()), 0.002, 3)


def saved(network: nn.Module, *inputs: torch.Tensor) -> bytes:
    made = io.BytesIO()
    torch.export.save(torch.export.export(network.eval(), inputs), made)
    return made.getvalue()


SHAPE = (1, 3, 15, 12)
