"""A trained PyTorch network as a chain of convolutions, pools and dense layers: what can be quantised.

Batch normalisation is folded into the weights before it, in float64; a linear layer that reads flattened maps becomes
the convolution over the whole map that it is. Networks with branches or other operators are refused.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import fx, nn
from torch.nn import functional

from tvmflow.integer import live_macs
from tvmflow.models.depthwise import depthwise
from tvmflow.spec import UnsupportedOperatorError, UserError

Pair = tuple[int, int]


@dataclass(frozen=True, kw_only=True, eq=False)
class FloatLayer:
    """As an IntegerLayer, before it is quantised: `weight` is float64 O×(I/groups)×KH×KW, 1/(H·W) for a pool."""

    name: str
    modules: tuple[str, ...]
    kind: Literal["conv2d", "pool", "dense"]
    weight: np.ndarray
    bias: np.ndarray
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1
    relu: bool = False
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    dtype: ClassVar[str] = "float32"  # of what it passes on

    @property
    def macs(self) -> int:
        """Multiply-adds for one image; a pool's are additions."""
        return int(np.prod(self.output_shape)) * self.weight[0].size

    @property
    def live_macs(self) -> int:
        """Those of them that read the input and not its border."""
        return live_macs(self)

    @property
    def alone(self) -> bool:
        """Whether each output channel reads the one input channel of its number."""
        return self.groups == self.input_shape[1] == self.output_shape[1]

    def sums(self, x: torch.Tensor) -> torch.Tensor:
        """float32 N×C×H×W → N×O×OH×OW, before the ReLU."""
        weight, bias = torch.from_numpy(self.weight).float(), torch.from_numpy(self.bias).float()
        return convolve(self, x, weight, bias)


def convolve(layer: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """The convolution of a FloatLayer or IntegerLayer with other weights; all float32."""
    stride, padding, dilation = layer.stride, layer.padding, layer.dilation
    alone = layer.groups == len(weight) == x.shape[1]
    square = stride[0] == stride[1] and padding == dilation == (dilation[0],) * 2 and weight.shape[2:] == (3, 3)
    if alone and square:
        sums = depthwise(x, weight, stride[0], dilation[0])
        return sums if bias is None else sums + bias[:, None, None]
    return functional.conv2d(x, weight, bias, stride, padding, dilation, layer.groups)


def float_chain(network: nn.Module, name: str, input_shape: tuple[int, ...]) -> tuple[FloatLayer, ...]:
    """The layers of `network`, in eval mode, in execution order. Raises UnsupportedOperatorError, UserError."""
    if len(input_shape) != 4:
        raise UserError(f"{name} has an input of {len(input_shape)} dimensions; only 1×C×H×W can be quantised.")
    try:
        graph = fx.symbolic_trace(network.eval()).graph
    except Exception as error:  # control flow and whatever else the network's code does while it is traced
        raise UserError(f"{name} can't be quantised, for it can't be traced: {str(error).splitlines()[0]}.") from error
    made = _Chain((1, *input_shape[1:]))
    missing: dict[str, list[str]] = defaultdict(list)
    before: fx.Node | None = None
    for node in graph.nodes:
        if node.op == "output":
            continue
        if node.op == "placeholder" and before is None:
            before = node
            continue
        operator, path, options = _operator(node, network)
        is_next = before is not None and node.all_input_nodes == [before] and len(before.users) == 1
        if not is_next or not made.take(operator, path, options):
            missing[operator if is_next else f"{operator} of branches"].append(path)
        before = node
    if missing:
        shown = ", ".join(f"{operator} ({', '.join(paths[:3])})" for operator, paths in missing.items())
        raise UnsupportedOperatorError(
            f"{name} can't be quantised: int8 serves chains of convolution, batch normalisation, ReLU, global average "
            f"pooling and linear layers, and it has {shown}.",
            {operator: tuple(paths) for operator, paths in missing.items()},
        )
    if not made.layers:
        raise UserError(f"{name} has no layers to quantise.")
    return tuple(made.layers)


FUNCTIONS = {torch.relu: "ReLU", functional.relu: "ReLU", torch.flatten: "Flatten"}
METHODS = {"relu": "ReLU", "flatten": "Flatten"}


def _operator(node: fx.Node, network: nn.Module) -> tuple[str, str, Any]:
    """Its name as the class of the module that does the same, the module's path, and the module if there is one."""
    if node.op == "call_module":
        module = network.get_submodule(str(node.target))
        return type(module).__name__, str(node.target), module
    if node.op == "call_method":
        method = str(node.target)
        return METHODS.get(method, method), node.name, None
    target: Any = node.target
    return FUNCTIONS.get(target, getattr(target, "__name__", str(target))), node.name, None


class _Chain:
    """Layers as they come; what follows a layer without weights of its own is added to it."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.layers: list[FloatLayer] = []
        self.shape = shape

    def take(self, operator: str, path: str, module: Any) -> bool:
        """Whether the operator could be appended."""
        method = getattr(self, f"_{operator.lower()}", None)
        return method is not None and method(path, module)

    def _append(self, layer: FloatLayer) -> bool:
        self.layers.append(layer)
        self.shape = layer.output_shape
        return True

    def _extend(self, path: str, **changes: Any) -> bool:
        """Change the last layer; it does this module's work as well."""
        if self.layers:
            last = self.layers[-1]
            self.layers[-1] = replace(last, modules=(*last.modules, path), **changes)
        return bool(self.layers)

    def _conv2d(self, path: str, conv: nn.Conv2d) -> bool:
        if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            return False
        weight = _array(conv.weight)
        extents = [
            (size + 2 * padding - dilation * (taps - 1) - 1) // stride + 1
            for size, padding, dilation, taps, stride in zip(
                self.shape[2:], conv.padding, conv.dilation, conv.kernel_size, conv.stride, strict=True
            )
        ]
        return self._append(
            FloatLayer(
                name=path,
                modules=(path,),
                kind="conv2d",
                weight=weight,
                bias=np.zeros(len(weight)) if conv.bias is None else _array(conv.bias),
                stride=_pair(conv.stride),
                padding=_pair(conv.padding),
                dilation=_pair(conv.dilation),
                groups=conv.groups,
                input_shape=self.shape,
                output_shape=(1, len(weight), *extents),
            )
        )

    def _batchnorm2d(self, path: str, norm: nn.BatchNorm2d) -> bool:
        if not self.layers or self.layers[-1].relu or self.layers[-1].kind != "conv2d" or norm.running_mean is None:
            return False
        last = self.layers[-1]
        assert norm.running_var is not None
        factor = 1 / np.sqrt(_array(norm.running_var) + norm.eps)
        shift: Any = 0.0
        if norm.affine:
            factor, shift = factor * _array(norm.weight), _array(norm.bias)
        bias = (last.bias - _array(norm.running_mean)) * factor + shift
        return self._extend(path, weight=last.weight * factor[:, None, None, None], bias=bias)

    def _relu(self, path: str, _: object) -> bool:
        return bool(self.layers) and self.layers[-1].kind != "pool" and self._extend(path, relu=True)

    def _identity(self, path: str, _: object) -> bool:
        return True

    _dropout = _dropout2d = _identity

    def _flatten(self, path: str, module: nn.Flatten | None) -> bool:
        return module is None or (module.start_dim, module.end_dim) == (1, -1)

    def _adaptiveavgpool2d(self, path: str, pool: nn.AdaptiveAvgPool2d) -> bool:
        if pool.output_size not in (1, (1, 1)):
            return False
        _, channels, height, width = self.shape
        if height * width == 1:
            return self._extend(path)
        return self._append(
            FloatLayer(
                name=path,
                modules=(path,),
                kind="pool",
                weight=np.full((channels, 1, height, width), 1 / (height * width)),
                bias=np.zeros(channels),
                groups=channels,
                input_shape=self.shape,
                output_shape=(1, channels, 1, 1),
            )
        )

    def _linear(self, path: str, linear: nn.Linear) -> bool:
        channels, *window = self.shape[1:]
        if linear.in_features != channels * window[0] * window[1]:
            return False
        return self._append(
            FloatLayer(
                name=path,
                modules=(path,),
                kind="dense" if window == [1, 1] else "conv2d",
                weight=_array(linear.weight).reshape(-1, channels, *window),
                bias=np.zeros(linear.out_features) if linear.bias is None else _array(linear.bias),
                input_shape=self.shape,
                output_shape=(1, linear.out_features, 1, 1),
            )
        )


def run_float(layers: tuple[FloatLayer, ...], x: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Each layer's sums and what it passes on, float32 N×C×H×W."""
    with torch.no_grad():
        for layer in layers:
            sums = layer.sums(x)
            x = torch.relu(sums) if layer.relu else sums
            yield sums, x


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def _pair(values: Any) -> Pair:
    first, second = values
    return int(first), int(second)
