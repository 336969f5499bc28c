"""Random quantised graphs: what backends of int8 are compared on, besides the chains of integer_networks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from tvmflow.integer.layers import RANGES, SOFTMAX_SCALE, AnyIntegerLayer, IntegerLayer, IntegerNode, Scheme
from tvmflow.integer.network import IntegerNetwork, Port, canonical
from tvmflow.integer.operators import (
    OUTSIDE,
    Concat,
    Function,
    Gather,
    LogSoftmax,
    MatMul,
    MaxPool,
    Normalise,
    Operator,
    Product,
    Resample,
    Softmax,
    Sum,
)
from tvmflow.integer.reference import accumulate, run_layer
from tvmflow.integer.window import Window

RESIDUAL = "residual"
"""A kind that is drawn where it is asked for alone: a layer that a sum follows."""
COUNT = 2
"""Random inputs by which a layer's multipliers are chosen, so that its results use their range."""


@dataclass
class Drawn:
    """A graph while it is drawn: its layers, and of each tensor what it is on random inputs."""

    rng: np.random.Generator
    scheme: Scheme
    prefix: str
    inputs: list[Port]
    layers: list[AnyIntegerLayer]
    values: dict[str, np.ndarray]

    def pick(self) -> str:
        """A tensor, the last ones rather than the first."""
        names = list(self.values)
        return names[-1 - min(int(self.rng.exponential(0.8)), len(names) - 1)]

    def name(self) -> str:
        return f"{self.prefix}{len(self.layers)}"

    def add(self, layer: AnyIntegerLayer) -> None:
        self.layers.append(layer)
        self.values[layer.name] = run_layer(layer, *(self.values[name] for name in layer.inputs))

    def dtype(self) -> str:
        return "int8" if self.scheme == "power-of-two" or self.rng.random() < 0.5 else "uint8"

    def node(self, operator: Operator, inputs: tuple[str, ...], dtype: str = "", **more) -> None:
        shapes = tuple((1, *self.values[name].shape[1:]) for name in inputs)
        dtype = dtype or self.values[inputs[0]].dtype.name
        low, high = RANGES[dtype]
        if self.rng.random() < 0.2 and not isinstance(operator, Softmax):
            low, high = sorted(int(number) for number in self.rng.choice(np.arange(low, high + 1), 2, replace=False))
        if isinstance(operator, Function):
            more["table"] = more["table"].clip(low, high)
        node = IntegerNode(
            name=self.name(),
            modules=(self.name(),),
            operator=operator,
            inputs=inputs,
            minimum=low,
            maximum=high,
            dtype=dtype,
            scale=SOFTMAX_SCALE if isinstance(operator, Softmax) else 1.0,
            input_shapes=shapes,
            output_shape=operator.out_shape(*shapes),
            **more,
        )
        self.add(node)


def random_graph(
    rng: np.random.Generator, scheme: Scheme, *, prefix: str = "", layers: int = 4, kinds: tuple[str, ...] = ()
) -> IntegerNetwork:
    """A few layers of any kind, or of `kinds`, on one input or two, with odd and even sizes; one output or two."""
    drawn = Drawn(rng=rng, scheme=scheme, prefix=prefix, inputs=[], layers=[], values={})
    for number in range(1 + (rng.random() < 0.3)):
        shape = _input_shape(rng)
        name = f"{prefix}in{number}"
        drawn.inputs.append(Port(name=name, shape=shape, scale=2**-6))
        drawn.values[name] = rng.integers(-128, 128, (COUNT, *canonical(shape)[1:]), np.int8)
    wanted = list(kinds or KINDS)
    while len(drawn.layers) < layers:
        draw = wanted[rng.integers(len(wanted))]
        (residual if draw == RESIDUAL else KINDS[draw])(drawn)
    last = [layer for layer in drawn.layers if not isinstance(layer, IntegerLayer) or layer.dtype == "int8"]
    if not last:
        _function(drawn)
        last = drawn.layers[-1:]
    sources = list(dict.fromkeys([last[-1].name] + ([last[0].name] if rng.random() < 0.3 else [])))
    by_name = {layer.name: layer for layer in drawn.layers}
    outputs = tuple(
        Port(name=f"{prefix}out{number}", shape=by_name[name].output_shape, scale=by_name[name].scale, source=name)
        for number, name in enumerate(sources)
    )
    network = IntegerNetwork(
        name="graph", scheme=scheme, inputs=tuple(drawn.inputs), outputs=outputs, layers=tuple(drawn.layers)
    )
    return _without_unread(network)


def together(graphs: list[IntegerNetwork]) -> IntegerNetwork:
    """Graphs whose names differ as one, which is compiled once."""
    first = graphs[0]
    return replace(
        first,
        inputs=tuple(port for graph in graphs for port in graph.inputs),
        outputs=tuple(port for graph in graphs for port in graph.outputs),
        layers=tuple(layer for graph in graphs for layer in graph.layers),
    )


def random_inputs(rng: np.random.Generator, network: IntegerNetwork) -> tuple[np.ndarray, ...]:
    """int8 over the whole range, one of each input."""
    return tuple(rng.integers(-128, 128, port.shape, np.int8) for port in network.inputs)


def _without_unread(network: IntegerNetwork) -> IntegerNetwork:
    wanted, layers = {port.source for port in network.outputs}, network.by_name
    stack = list(wanted)
    while stack:
        layer = layers.get(stack.pop())
        for name in layer.inputs if layer else ():
            if name not in wanted:
                wanted.add(name)
                stack.append(name)
    return replace(
        network,
        inputs=tuple(port for port in network.inputs if port.name in wanted),
        layers=tuple(layer for layer in network.layers if layer.name in wanted),
    )


def _input_shape(rng: np.random.Generator) -> tuple[int, ...]:
    channels, height, width = (int(number) for number in rng.integers(1, (20, 8, 8)))
    return ((1, channels, height, width), (1, channels, width), (1, channels * 3))[rng.choice(3, p=(0.8, 0.1, 0.1))]


def _linear(drawn: Drawn) -> None:
    rng, read = drawn.rng, drawn.pick()
    x = drawn.values[read]
    _, channels, height, width = x.shape
    depthwise = rng.random() < 0.3
    groups = channels if depthwise else int(rng.choice([n for n in range(1, channels + 1) if channels % n == 0][:2]))
    outputs = channels * (1 + (depthwise and rng.random() < 0.2)) if depthwise else groups * int(rng.integers(1, 9))
    kernel = tuple(int(number) for number in rng.integers(1, 4, 2))
    dilation = tuple(int(number) for number in rng.integers(1, 3, 2))
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    padding = [int(rng.integers(0, length)) for length in (*reach, *reach)]
    for axis, size in enumerate((height, width)):
        padding[axis] += max(0, reach[axis] - size - padding[axis] - padding[axis + 2])
    weight = rng.integers(-127, 128, (outputs, channels // groups, *kernel)).astype(np.int8)
    dtype = drawn.dtype()
    low, high = RANGES[dtype]
    layer = IntegerLayer(
        name=drawn.name(),
        modules=(drawn.name(),),
        kind="conv2d",
        inputs=(read,),
        weight=weight,
        bias=rng.integers(-3000, 3000, outputs).astype(np.int32),
        stride=tuple(int(number) for number in rng.integers(1, 3, 2)),
        padding=tuple(padding),
        dilation=dilation,
        groups=groups,
        minimum=max(low, 0) if rng.random() < 0.5 else low,
        maximum=high if rng.random() < 0.7 else high // 2,
        dtype=dtype,
        scale=1.0,
        input_shape=(1, channels, height, width),
        output_shape=(),
    )
    _scaled(drawn, replace(layer, output_shape=(1, outputs, *layer.window.out_size())), x)


def _scaled(drawn: Drawn, layer: IntegerLayer, x: np.ndarray) -> None:
    """Add a layer, with factors by which its results use their range."""
    largest = np.maximum(np.abs(accumulate(layer, x)).max((0, 2, 3)), 200)
    if drawn.scheme == "per-channel":
        multiplier = np.maximum(1, np.rint(100 / largest * 2**31)).astype(np.int64).clip(1, 2**30 - 1)
        drawn.add(replace(layer, multiplier=(2 * multiplier).astype(np.int32)))
    else:
        drawn.add(replace(layer, shift=np.maximum(0, np.rint(np.log2(largest / 100))).astype(np.int32)))


def residual(drawn: Drawn) -> None:
    """A convolution and a sum of what it gives with what it reads, or with another tensor of the same shape."""
    rng, read = drawn.rng, drawn.pick()
    x, size = drawn.values[read], int(rng.choice([1, 3]))
    channels, height, width = x.shape[1:]
    dtype = drawn.dtype()
    layer = IntegerLayer(
        name=drawn.name(),
        modules=(drawn.name(),),
        kind="conv2d",
        inputs=(read,),
        weight=rng.integers(-127, 128, (channels, channels, size, size)).astype(np.int8),
        bias=rng.integers(-3000, 3000, channels).astype(np.int32),
        padding=(size // 2, size // 2),
        minimum=max(RANGES[dtype][0], 0) if rng.random() < 0.5 else RANGES[dtype][0],
        maximum=RANGES[dtype][1],
        dtype=dtype,
        scale=1.0,
        input_shape=(1, channels, height, width),
        output_shape=(1, channels, height, width),
    )
    others = [name for name, other in drawn.values.items() if other.shape == x.shape]
    _scaled(drawn, layer, x)
    _add(drawn, layer.name, str(rng.choice(others)))


def _pool(drawn: Drawn) -> None:
    """The average of whole maps."""
    read = drawn.pick()
    _, channels, height, width = drawn.values[read].shape
    area = height * width
    dtype = drawn.values[read].dtype.name if drawn.scheme == "per-channel" else "int8"
    low, high = RANGES[dtype]
    scaled = {
        "per-channel": {"multiplier": np.full(channels, 2 * round(2**31 / max(area, 3)), np.int32)},
        "power-of-two": {"shift": np.full(channels, max(0, round(math.log2(area))), np.int32)},
    }[drawn.scheme]
    layer = IntegerLayer(
        name=drawn.name(),
        modules=(drawn.name(),),
        kind="pool",
        inputs=(read,),
        weight=np.ones((channels, 1, height, width), np.int8),
        bias=np.zeros(channels, np.int32),
        groups=channels,
        minimum=low,
        maximum=high,
        dtype=dtype,
        scale=1.0,
        input_shape=(1, channels, height, width),
        output_shape=(1, channels, 1, 1),
        **scaled,
    )
    drawn.add(layer)


def _partner(drawn: Drawn, read: str) -> str | None:
    """Another tensor that can be broadcast to that one's shape."""
    shape = drawn.values[read].shape
    fitting = [
        name
        for name, x in drawn.values.items()
        if all(own in (1, length) for own, length in zip(x.shape[1:], shape[1:], strict=True))
    ]
    return fitting[drawn.rng.integers(len(fitting))] if fitting else None


def _sum(drawn: Drawn) -> None:
    read = drawn.pick()
    other = _partner(drawn, read)
    assert other is not None
    _add(drawn, read, other)


def _add(drawn: Drawn, read: str, other: str) -> None:
    signs = tuple(int(sign) for sign in drawn.rng.choice([1, -1], 2, p=(0.8, 0.2)))
    if drawn.scheme == "power-of-two":
        shift = int(drawn.rng.integers(0, 4))
        factors = [sign << int(drawn.rng.integers(0, shift + 1)) for sign in signs]
    else:
        shift = 20
        factors = [sign * int(drawn.rng.integers(1 << 18, 1 << 20)) for sign in signs]
    order = (read, other) if drawn.rng.random() < 0.5 else (other, read)
    more = {"factors": np.array(factors, np.int32), "shift": shift}
    drawn.node(Sum(signs=signs), order, drawn.dtype(), **more)


def _product(drawn: Drawn) -> None:
    read = drawn.pick()
    other = _partner(drawn, read)
    factor, shift = (1, int(drawn.rng.integers(5, 9)))
    if drawn.scheme == "per-channel":
        factor, shift = int(drawn.rng.integers(1 << 12, 1 << 14)), 20
    order = (read, other) if drawn.rng.random() < 0.5 else (other, read)
    drawn.node(Product(), order, drawn.dtype(), factors=np.array([factor], np.int32), shift=shift)


def _max_pool(drawn: Drawn) -> None:
    rng, read = drawn.rng, drawn.pick()
    size = drawn.values[read].shape[2:]
    kernel = [int(rng.integers(1, min(4, length) + 1)) for length in size]
    padding = [int(rng.integers(0, length)) for length in (*kernel, *kernel)]
    window = Window(
        kernel=(kernel[0], kernel[1]),
        stride=tuple(int(number) for number in rng.integers(1, 4, 2)),
        padding=tuple(padding),
        size=size,
    )
    drawn.node(MaxPool(window=window), (read,))


def _concat(drawn: Drawn) -> None:
    rng, read = drawn.rng, drawn.pick()
    axis = int(rng.choice([1, 1, 1, 2, 3]))
    x = drawn.values[read]

    def rest(shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape[:axis] + shape[axis + 1 :]

    fitting = [
        name for name, other in drawn.values.items() if rest(other.shape) == rest(x.shape) and other.dtype == x.dtype
    ]
    chosen = tuple(fitting[number] for number in rng.integers(0, len(fitting), int(rng.integers(2, 4))))
    drawn.node(Concat(axis=axis), chosen)


def _gather(drawn: Drawn) -> None:
    """Slices, borders, orders of channels, pixels side by side, transposes, or anything."""
    rng, read = drawn.rng, drawn.pick()
    shape = drawn.values[read].shape
    order = np.arange(math.prod(shape[1:])).reshape(1, *shape[1:])
    _, channels, height, width = order.shape
    choice = rng.integers(7)
    if choice == 0:
        order = order[:, int(rng.integers(channels)) :, :: int(rng.integers(1, 3))]
    elif choice == 1:
        border = [(0, 0), *(tuple(int(n) for n in rng.integers(0, 3, 2)) for _ in range(3))]
        order = np.pad(order, border, constant_values=OUTSIDE)
    elif choice == 2:
        order = order[:, rng.permutation(channels)]
    elif choice == 3:
        order = order.repeat(2, 2).repeat(3, 3)
    elif choice == 4:
        order = order.transpose(0, 3, 1, 2)
    elif choice == 5 and channels % 4 == 0:
        blocks = order.reshape(channels // 4, 2, 2, height, width).transpose(0, 3, 1, 4, 2)
        order = blocks.reshape(1, channels // 4, 2 * height, 2 * width)
    else:
        order = rng.integers(OUTSIDE, order.size, (1, int(rng.integers(1, 9)), int(rng.integers(1, 5)), 3))
    drawn.node(Gather(places=np.ascontiguousarray(order, np.int32)), (read,))


def _resample(drawn: Drawn) -> None:
    rng, read = drawn.rng, drawn.pick()

    def axis(length: int) -> tuple[np.ndarray, np.ndarray]:
        outputs, taps = int(rng.integers(1, 9)), int(rng.integers(1, 4))
        weights = rng.random((outputs, taps)) - (0.1 if drawn.scheme == "per-channel" else 0)
        weights /= weights.sum(1, keepdims=True) + 0.5
        return rng.integers(0, length, (outputs, taps)).astype(np.int32), weights

    height, width = drawn.values[read].shape[2:]
    operator = Resample(rows=axis(height), columns=axis(width))
    drawn.node(operator, (read,), shift=2 * operator.bits)


def _function(drawn: Drawn) -> None:
    rng, read = drawn.rng, drawn.pick()
    dtype = drawn.dtype()
    channels = drawn.values[read].shape[1]
    shape = (channels, 256) if rng.random() < 0.3 else (256,)
    table = rng.integers(RANGES[dtype][0], RANGES[dtype][1] + 1, shape).astype(np.int32)
    drawn.node(Function(), (read,), dtype, table=table)


def _softmax(drawn: Drawn) -> None:
    read = drawn.pick()
    step = float(drawn.rng.uniform(0.01, 0.5))
    table = np.rint(np.exp(-np.arange(256) * step) * (1 << 15)).astype(np.int32)
    drawn.node(Softmax(axis=int(drawn.rng.integers(1, 4))), (read,), "uint8", table=table)


def _log_softmax(drawn: Drawn) -> None:
    rng, read = drawn.rng, drawn.pick()
    axis, step = int(rng.integers(1, 4)), float(rng.uniform(0.01, 0.5))
    unit, count = 1 << 15, max(2, drawn.values[read].shape[axis])
    thresholds = np.rint(unit * count ** ((np.arange(255) + 0.5) / 255)).astype(np.int32)
    table = np.concatenate([np.rint(np.exp(-np.arange(256) * step) * unit).astype(np.int32), thresholds])
    factors = rng.integers(1 << 10, 1 << 14, 2).astype(np.int32)
    drawn.node(LogSoftmax(axis=axis), (read,), drawn.dtype(), table=table, factors=factors, shift=12)


def _normalise(drawn: Drawn) -> None:
    rng, read = drawn.rng, drawn.pick()
    lengths = tuple(
        int(rng.choice([n for n in range(1, length + 1) if length % n == 0])) for length in drawn.values[read].shape[1:]
    )
    channels = drawn.values[read].shape[1]
    table = np.stack([rng.integers(-(1 << 14), 1 << 14, channels), rng.integers(-(1 << 14), 1 << 14, channels)])
    factors = np.array([rng.integers(0, 1 << int(rng.integers(1, 30))), rng.integers(0, 8)], np.int32)
    shift = int(rng.integers(5, 12))
    operator = Normalise(lengths=lengths)
    drawn.node(operator, (read,), drawn.dtype(), table=table.astype(np.int32), factors=factors, shift=shift)


def _matmul(drawn: Drawn) -> None:
    """Of a tensor with its own transpose, or with another that fits, which a concatenation or a pool may have left."""
    rng, read = drawn.rng, drawn.pick()
    _, channels, rows, columns = drawn.values[read].shape
    turned = np.arange(channels * rows * columns, dtype=np.int32).reshape(1, channels, rows, columns).swapaxes(2, 3)
    drawn.node(Gather(places=np.ascontiguousarray(turned)), (read,))
    order = (read, drawn.layers[-1].name) if rng.random() < 0.5 else (drawn.layers[-1].name, read)
    factor = int(rng.integers(1 << 12, 1 << 16)) if drawn.scheme == "per-channel" else 1
    shift = 20 if drawn.scheme == "per-channel" else int(rng.integers(4, 10))
    drawn.node(MatMul(), order, drawn.dtype(), factors=np.array([factor], np.int32), shift=shift)


KINDS: dict[str, Callable[[Drawn], None]] = {
    "linear": _linear,
    "pool": _pool,
    "add": _sum,
    "multiply": _product,
    "max_pool": _max_pool,
    "concat": _concat,
    "gather": _gather,
    "resample": _resample,
    "table": _function,
    "softmax": _softmax,
    "log_softmax": _log_softmax,
    "normalise": _normalise,
    "matmul": _matmul,
}
