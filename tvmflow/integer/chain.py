"""An imported network as a chain of convolutions, pools and dense layers: what can be quantised, and what kernels of
microcontrollers are made of.

Batch normalisation is folded into the weights before it, in float64; where there are none, as at the beginning or
behind a ReLU, it becomes the depthwise 1×1 convolution that it is, and so does a ReLU. A linear layer that reads
flattened maps becomes the convolution over the whole map that it is, and an average over windows the depthwise
convolution that it is.
Networks with branches or other operators are refused.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from torch.nn import functional

from tvmflow.integer.network import live_macs
from tvmflow.models.depthwise import depthwise
from tvmflow.network.names import module_path
from tvmflow.spec import Program, UnsupportedOperatorError, UserError

if TYPE_CHECKING:
    from tvm import relax

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


def float_chain(program: Program, purpose: str = "quantised: int8") -> tuple[FloatLayer, ...]:
    """The layers of an imported network in execution order. Raises UnsupportedOperatorError, UserError.

    What is no chain can't be `purpose`, which also says what serves chains only.
    """
    import tvm
    from tvm import relax

    from tvmflow.passes.fuse_operators import OWN_NAMES

    inputs, outputs = program.inputs, program.outputs
    shape = inputs[0].shape
    if len(inputs) != 1 or len(outputs) != 1 or len(shape) != 4 or shape[0] != 1 or inputs[0].dtype != "float32":
        shown = ", ".join(f"{spec.dtype} {'×'.join(map(str, spec.shape))}" for spec in inputs)
        raise UserError(
            f"{program.name} can't be {purpose} serves networks of one output and one input, float32 1×C×H×W, and it "
            f"has {len(outputs)} output{'s' * (len(outputs) != 1)} and {shown}."
        )
    clean = [
        relax.transform.FoldConstant(),
        relax.transform.CanonicalizeBindings(),
        relax.transform.DeadCodeElimination(),
    ]
    main = tvm.ir.transform.Sequential(clean)(program.module)["main"]
    bindings = [binding for block in main.body.blocks for binding in block.bindings]
    uses = Counter(var for binding in bindings for var in _read(binding.value))
    made = _Chain(shape)
    missing: dict[str, list[str]] = defaultdict(list)  # an operator, with what is wrong with it → where
    before = main.params[0]
    for binding in bindings:
        value = binding.value
        if not isinstance(value, relax.Call):  # another name, or the result out of a normalisation's three
            before = binding.var
            continue
        operator = value.op.name.removeprefix("relax.")
        path = "" if OWN_NAMES.fullmatch(binding.var.name) else module_path(binding.var.name)
        follows = _read(value) == [before] and uses[before] == 1
        if not follows or not made.take(operator, path, value):
            wrong = REFUSED.get(operator, "") if follows else " of branches"
            if operator == "call_tir":  # a converter of our own, which names the kernel after the operator
                operator = value.args[0].name_hint.rstrip("0123456789")
            missing[operator + wrong].append(path or binding.var.name)
            made.skip(value)
        before = binding.var
    if missing:
        shown = ", ".join(f"{operator} ({', '.join(dict.fromkeys(paths[:3]))})" for operator, paths in missing.items())
        raise UnsupportedOperatorError(
            f"{program.name} can't be {purpose} serves chains of convolution, batch normalisation, ReLU, average "
            f"pooling and linear layers, and it has {shown}.",
            {operator: tuple(paths) for operator, paths in missing.items()},
        )
    if not made.layers:
        raise UserError(f"{program.name} can't be {purpose} serves layers with weights, and it has none.")
    return tuple(_with_own_names(made.layers))


def _with_own_names(layers: Iterable[FloatLayer]) -> Iterator[FloatLayer]:
    """A module that is used twice is two layers, of which the second gets a number."""
    used: set[str] = set()
    for layer in layers:
        plain = layer.name or layer.kind
        names = itertools.chain([plain], (f"{plain}_{number}" for number in itertools.count(2)))
        used.add(name := next(name for name in names if name not in used))
        yield replace(layer, name=name)


REFUSED = {
    "nn.conv2d": " with computed weights or unequal borders",
    "nn.batch_norm": " with computed statistics",
    "nn.avg_pool2d": " with ceil_mode or a border that doesn't count",
    "nn.adaptive_avg_pool2d": " to more than one pixel",
    "mean": " over other axes than height and width",
    "matmul": " with computed weights or pixel by pixel",
    "reshape": " that doesn't flatten",
    **dict.fromkeys(("add", "subtract", "multiply", "divide"), " with anything but a constant for each channel"),
}
"""Of the operators that a chain may have: how those are that it can't."""


def _read(value: Any) -> list[Any]:
    """The variables that an expression reads, each as often as it does."""
    from tvm import relax

    if isinstance(value, relax.Var):
        return [value]
    if isinstance(value, relax.TupleGetItem):
        return _read(value.tuple_value)
    fields = value.args if isinstance(value, relax.Call) else getattr(value, "fields", ())
    return [var for field in fields for var in _read(field)]


class _Chain:
    """Layers as they come; what follows a layer without weights of its own is added to it."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.layers: list[FloatLayer] = []
        self.shape = shape

    def take(self, operator: str, path: str, call: relax.Call) -> bool:
        """Whether the operator could be appended. Its `path` is empty if it is part of what follows."""
        method = getattr(self, f"_{operator.replace('.', '_')}", None)
        return method is not None and method(path, call)

    def skip(self, call: relax.Call) -> None:
        """Go on behind an operator that can't be taken, to find others; there will be no chain."""
        if getattr(call.ty, "ndim", 0) == 4:
            self.shape = _shape(call)
            self.layers.append(
                FloatLayer(
                    name="",
                    modules=(),
                    kind="conv2d",
                    weight=np.zeros((self.shape[1], 1, 1, 1)),
                    bias=np.zeros(self.shape[1]),
                    input_shape=self.shape,
                    output_shape=self.shape,
                )
            )

    def _append(self, path: str, **fields: Any) -> bool:
        modules = (path,) if path else ()
        layer = FloatLayer(name=path, modules=modules, input_shape=self.shape, **fields)
        self.layers.append(layer)
        self.shape = layer.output_shape
        return True

    def _extend(self, path: str, **changes: Any) -> bool:
        """Change the last layer; it does this module's work as well."""
        if self.layers:
            last = self.layers[-1]
            modules = dict.fromkeys((*last.modules, path) if path else last.modules)
            self.layers[-1] = replace(last, name=last.name or path, modules=tuple(modules), **changes)
        return bool(self.layers)

    @property
    def _has_sums(self) -> bool:
        """Whether the last layer's sums are still what comes out of it, and may be scaled or moved."""
        return bool(self.layers) and not self.layers[-1].relu and self.layers[-1].kind != "pool"

    def _nn_conv2d(self, path: str, call: relax.Call) -> bool:
        options, weight = call.attrs, _constant(call.args[1])
        top, left, bottom, right = (int(size) for size in options.padding)
        plain = (options.data_layout, options.kernel_layout, options.out_layout) == ("NCHW", "OIHW", "NCHW")
        if not plain or weight is None or (top, left) != (bottom, right):
            return False
        return self._append(
            path,
            kind="conv2d",
            weight=weight,
            bias=np.zeros(len(weight)),
            stride=_pair(options.strides),
            padding=(top, left),
            dilation=_pair(options.dilation),
            groups=int(options.groups),
            output_shape=_shape(call),
        )

    def _nn_batch_norm(self, path: str, call: relax.Call) -> bool:
        gamma, beta, mean, variance = (_constant(value) for value in call.args[1:5])
        if gamma is None or beta is None or mean is None or variance is None:
            return False
        if int(call.attrs.axis) != 1:
            return False
        factor = 1 / np.sqrt(variance + float(call.attrs.epsilon)) * gamma
        return self._scale(path, factor, beta - mean * factor)

    def _add(self, path: str, call: relax.Call) -> bool:
        moved = self._by_channel(call)
        return moved is not None and self._scale(path, np.ones(len(moved)), moved)

    def _subtract(self, path: str, call: relax.Call) -> bool:
        moved = self._by_channel(call) if _constant(call.args[1]) is not None else None
        return moved is not None and self._scale(path, np.ones(len(moved)), -moved)

    def _multiply(self, path: str, call: relax.Call) -> bool:
        factor = self._by_channel(call)
        return factor is not None and self._scale(path, factor, np.zeros(len(factor)))

    def _divide(self, path: str, call: relax.Call) -> bool:
        divisor = self._by_channel(call) if _constant(call.args[1]) is not None else None
        return divisor is not None and self._scale(path, 1 / divisor, np.zeros(len(divisor)))

    def _scale(self, path: str, factor: np.ndarray, moved: np.ndarray) -> bool:
        if not self._has_sums:
            return self._by_itself(path, factor, moved)
        last = self.layers[-1]
        return self._extend(path, weight=last.weight * factor[:, None, None, None], bias=last.bias * factor + moved)

    def _by_itself(self, path: str, factor: np.ndarray, moved: np.ndarray, *, relu: bool = False) -> bool:
        """A layer that does this alone."""
        channels = self.shape[1]
        return self._append(
            path,
            kind="conv2d",
            weight=factor.reshape(-1, 1, 1, 1),
            bias=moved,
            groups=channels,
            relu=relu,
            output_shape=self.shape,
        )

    def _by_channel(self, call: relax.Call) -> np.ndarray | None:
        """The constant operand, a number for each channel of what comes before."""
        found = [value for value in map(_constant, call.args) if value is not None]
        if not found or _elements(call) != np.prod(self.shape):
            return None
        rows = np.broadcast_to(found[0], _shape(call)).reshape(self.shape[1], -1)
        return rows[:, 0] if (rows == rows[:, :1]).all() else None

    def _nn_relu(self, path: str, call: relax.Call) -> bool:
        if self.layers and self.layers[-1].kind != "pool":
            return self._extend(path, relu=True)
        return self._by_itself(path, np.ones(self.shape[1]), np.zeros(self.shape[1]), relu=True)

    def _reshape(self, path: str, call: relax.Call) -> bool:
        """Flattening, or giving single pixels back their height and width."""
        _, channels, height, width = self.shape
        return _shape(call) in ((1, channels * height * width), (1, channels, height, width)) and self._same(path)

    _nn_batch_flatten = _flatten = _squeeze = _reshape

    def _same(self, path: str) -> bool:
        return not self.layers or self._extend(path)

    def _mean(self, path: str, call: relax.Call) -> bool:
        axes = {int(axis) % 4 for axis in call.attrs.axis or ()}
        return axes == {2, 3} and len(_shape(call.args[0])) == 4 and self._pool(path)

    def _nn_adaptive_avg_pool2d(self, path: str, call: relax.Call) -> bool:
        return _shape(call)[2:] == (1, 1) and call.attrs.layout == "NCHW" and self._pool(path)

    def _nn_avg_pool2d(self, path: str, call: relax.Call) -> bool:
        options, channels = call.attrs, self.shape[1]
        window, padding = _pair(options.pool_size), tuple(int(size) for size in options.padding)
        if options.layout != "NCHW" or options.ceil_mode or _pair(options.dilation) != (1, 1):
            return False
        if not any(padding) and window == self.shape[2:]:
            return self._pool(path)
        if padding[:2] != padding[2:] or (any(padding) and not options.count_include_pad):
            return False
        return self._append(
            path,
            kind="conv2d",
            weight=np.full((channels, 1, *window), 1 / (window[0] * window[1])),
            bias=np.zeros(channels),
            stride=_pair(options.strides),
            padding=_pair(padding[:2]),
            groups=channels,
            output_shape=_shape(call),
        )

    def _pool(self, path: str) -> bool:
        _, channels, height, width = self.shape
        if height * width == 1:
            return self._same(path)
        return self._append(
            path,
            kind="pool",
            weight=np.full((channels, 1, height, width), 1 / (height * width)),
            bias=np.zeros(channels),
            groups=channels,
            output_shape=(1, channels, 1, 1),
        )

    def _matmul(self, path: str, call: relax.Call) -> bool:
        weight = _constant(call.args[1])
        if weight is None or weight.ndim != 2 or _shape(call.args[0]) != (1, int(np.prod(self.shape))):
            return False
        channels, *window = self.shape[1:]
        return self._append(
            path,
            kind="dense" if window == [1, 1] else "conv2d",
            weight=weight.T.reshape(-1, channels, *window),
            bias=np.zeros(weight.shape[1]),
            output_shape=(1, weight.shape[1], 1, 1),
        )


def _constant(value: Any) -> np.ndarray | None:
    """The array of a constant, float64; None if it is computed from the input."""
    held: Any = getattr(value, "value", None)
    return np.asarray(held.numpy(), np.float64) if hasattr(held, "numpy") else None


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(int(dim) for dim in value.ty.shape.values)


def _elements(value: Any) -> int:
    return int(np.prod(_shape(value)))


def run_float(layers: tuple[FloatLayer, ...], x: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Each layer's sums and what it passes on, float32 N×C×H×W."""
    with torch.no_grad():
        for layer in layers:
            sums = layer.sums(x)
            x = torch.relu(sums) if layer.relu else sums
            yield sums, x


def _pair(values: Any) -> Pair:
    first, second = values
    return int(first), int(second)
