"""Random quantised graphs of power-of-two scheme: layers with and without weights, several readers, inputs, outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tvmflow.integer.layers import AnyIntegerLayer, IntegerLayer, IntegerNode
from tvmflow.integer.network import IntegerNetwork, Port, accumulate, run_layer
from tvmflow.integer.operators import (
    OUTSIDE,
    Concat,
    Function,
    Gather,
    MaxPool,
    Operator,
    Product,
    Resample,
    Softmax,
    Sum,
)
from tvmflow.integer.window import Window

SAMPLES = 3
"""Inputs that shifts are chosen on."""


@dataclass(kw_only=True)
class Drawing:
    """A graph while it is drawn: `values` are samples of each tensor, N×C×H×W. Each method gives a tensor's name."""

    rng: np.random.Generator
    block: int = 16
    inputs: list[Port] = field(default_factory=list)
    layers: list[AnyIntegerLayer] = field(default_factory=list)
    values: dict[str, np.ndarray] = field(default_factory=dict)

    def input(self, *shape: int) -> str:
        name = f"input-{len(self.inputs)}"
        self.inputs.append(Port(name=name, shape=(1, *shape), scale=1.0))
        self.values[name] = self.rng.integers(-128, 128, (SAMPLES, *shape)).astype(np.int8)
        return name

    def shape(self, name: str) -> tuple[int, ...]:
        return (1, *self.values[name].shape[1:])

    def conv(
        self,
        source: str,
        channels: int = 0,
        kernel: tuple[int, int] = (1, 1),
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int, int, int] = (0, 0, 0, 0),
        relu: bool = False,
    ) -> str:
        """A convolution, depthwise without `channels`, whose outputs use int8 well."""
        rng, shape = self.rng, self.shape(source)
        groups = 1 if channels else shape[1]
        channels = channels or shape[1]
        extents = Window(kernel=kernel, stride=stride, padding=padding, size=(shape[2], shape[3])).out_size()
        values = {
            "weight": rng.integers(-127, 128, (channels, shape[1] // groups, *kernel)).astype(np.int8),
            "bias": rng.integers(-2000, 2000, channels).astype(np.int32),
        }
        layer = IntegerLayer(
            name=self._name("conv"),
            modules=(self._name("conv"),),
            kind="conv2d",
            inputs=(source,),
            stride=stride,
            padding=padding,
            groups=groups,
            shift=np.zeros(channels, np.int32),
            minimum=0 if relu else -128,
            maximum=int(rng.integers(20, 128)),
            dtype="int8",
            scale=1.0,
            input_shape=shape,
            output_shape=(1, channels, *extents),
            **values,
        )
        spread = accumulate(layer, self.values[source]).std((0, 2, 3))
        for start in range(0, channels, self.block):
            part = slice(start, start + self.block)
            layer.shift[part] = np.rint(np.log2(max(1.0, np.median(spread[part]) / 50)))
        return self._append(layer)

    def add(self, *sources: str, factors: Sequence[int], shift: int = 0, limits: tuple[int, int] = (-128, 127)) -> str:
        signs = tuple(1 if factor > 0 else -1 for factor in factors)
        return self._node(Sum(signs=signs), sources, limits, factors=np.array(factors, np.int32), shift=shift)

    def max_pool(
        self,
        source: str,
        kernel: tuple[int, int],
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int, int, int] = (0, 0, 0, 0),
        dilation: tuple[int, int] = (1, 1),
        limits: tuple[int, int] = (-128, 127),
    ) -> str:
        _, _, height, width = self.shape(source)
        window = Window(kernel=kernel, stride=stride, padding=padding, dilation=dilation, size=(height, width))
        return self._node(MaxPool(window=window), (source,), limits)

    def concat(self, *sources: str, axis: int = 1, limits: tuple[int, int] = (-128, 127)) -> str:
        return self._node(Concat(axis=axis), sources, limits)

    def gather(self, source: str, choose: Callable[[np.ndarray], np.ndarray]) -> str:
        """What `choose` makes of the numbers of the elements, 1×C×H×W."""
        shape = self.shape(source)
        places = np.ascontiguousarray(choose(np.arange(np.prod(shape)).reshape(shape)), np.int32)
        return self._node(Gather(places=places), (source,), (-128, 127))

    def table(self, source: str, by_channel: bool = False) -> str:
        """A function, of random values."""
        shape = (self.shape(source)[1], 256) if by_channel else (256,)
        return self._node(Function(), (source,), (-128, 127), table=self._numbers(shape))

    def product(self, *sources: str, shift: int = 7) -> str:
        return self._node(Product(), sources, (-128, 127), factors=np.array([1], np.int32), shift=shift)

    def softmax(self, source: str, axis: int = 1) -> str:
        """From 0 to 255."""
        table = np.rint(np.exp(-np.arange(256) / 9) * (1 << 15)).astype(np.int32)
        return self._node(Softmax(axis=axis), (source,), (0, 255), table=table, dtype="uint8")

    def resample(self, source: str) -> str:
        """Rows and columns as sums of two random ones each."""
        axes = []
        for length in self.shape(source)[2:]:
            weights = self.rng.random((int(self.rng.integers(1, 8)), 2))
            places = self.rng.integers(0, length, weights.shape).astype(np.int32)
            axes.append((places, weights / weights.sum(1, keepdims=True)))
        operator = Resample(rows=axes[0], columns=axes[1])
        return self._node(operator, (source,), (-128, 127), shift=2 * operator.bits)

    def network(self, *outputs: str) -> IntegerNetwork:
        """Of these outputs, or of all that nothing reads."""
        read = {name for layer in self.layers for name in layer.inputs}
        names = outputs or [layer.name for layer in self.layers if layer.name not in read]
        return IntegerNetwork(
            name="drawn",
            scheme="power-of-two",
            inputs=tuple(self.inputs),
            outputs=tuple(
                Port(name=f"output-{number}", shape=self.shape(name), scale=1.0, source=name)
                for number, name in enumerate(names)
            ),
            layers=tuple(self.layers),
        )

    def _name(self, kind: str) -> str:
        return f"{kind}-{len(self.layers)}"

    def _numbers(self, shape: tuple[int, ...]) -> np.ndarray:
        return self.rng.integers(-128, 128, shape).astype(np.int32)

    def _node(
        self, operator: Operator, sources: Sequence[str], limits: tuple[int, int], dtype: str = "int8", **fields: Any
    ) -> str:
        shapes = tuple(self.shape(source) for source in sources)
        node = IntegerNode(
            name=self._name(operator.kind),
            modules=(self._name(operator.kind),),
            operator=operator,
            inputs=tuple(sources),
            **fields,
            minimum=limits[0],
            maximum=limits[1],
            dtype=dtype,
            scale=1.0,
            input_shapes=shapes,
            output_shape=operator.out_shape(*shapes),
        )
        return self._append(node)

    def _append(self, layer: AnyIntegerLayer) -> str:
        self.layers.append(layer)
        self.values[layer.name] = run_layer(layer, *(self.values[name] for name in layer.inputs))
        return layer.name


def bordered(numbers: np.ndarray, *pads: tuple[int, int]) -> np.ndarray:
    """With zeros around channels, rows and columns."""
    return np.pad(numbers, ((0, 0), *pads), constant_values=OUTSIDE)


def shuffled(numbers: np.ndarray, groups: int) -> np.ndarray:
    """The channels of all groups in turn."""
    _, channels, height, width = numbers.shape
    grouped = numbers.reshape(1, groups, channels // groups, height, width)
    return grouped.swapaxes(1, 2).reshape(numbers.shape)


def depth_to_space(numbers: np.ndarray, size: int = 2) -> np.ndarray:
    """PixelShuffle."""
    _, channels, height, width = numbers.shape
    parts = numbers.reshape(channels // size**2, size, size, height, width).transpose(0, 3, 1, 4, 2)
    return parts.reshape(1, channels // size**2, height * size, width * size)


def space_to_depth(numbers: np.ndarray, size: int = 2) -> np.ndarray:
    """PixelUnshuffle."""
    _, channels, height, width = numbers.shape
    parts = numbers.reshape(channels, height // size, size, width // size, size).transpose(0, 2, 4, 1, 3)
    return parts.reshape(1, channels * size**2, height // size, width // size)


def nearest(numbers: np.ndarray, size: int = 2) -> np.ndarray:
    return numbers.repeat(size, 2).repeat(size, 3)


MOVES: dict[str, Callable[[np.random.Generator, np.ndarray], np.ndarray]] = {
    "permutation": lambda rng, x: x[:, rng.permutation(x.shape[1])],
    "channels": lambda rng, x: x[:, rng.integers(0, x.shape[1] // 2 + 1) :],
    "crop": lambda rng, x: x[:, :, x.shape[2] // 3 :, : x.shape[3] - x.shape[3] // 3],
    "stride": lambda rng, x: x[:, :, ::2, ::3],
    "border": lambda rng, x: bordered(x, (rng.integers(0, 3), 0), (1, rng.integers(0, 3)), (0, 2)),
    "nearest": lambda rng, x: nearest(x),
    "flip": lambda rng, x: x[:, :, ::-1, ::-1],
    "shuffle": lambda rng, x: shuffled(x, 2 if x.shape[1] % 2 == 0 else 1),
    "depth to space": lambda rng, x: depth_to_space(x) if x.shape[1] % 4 == 0 else x,
    "space to depth": lambda rng, x: space_to_depth(x) if x.shape[2] % 2 == x.shape[3] % 2 == 0 else x,
}
"""Ways in which elements move."""


def random_graph(seed: int, block: int = 16) -> IntegerNetwork:
    """Three to seven layers over tiny maps, of channels that fill blocks and that don't."""
    rng = np.random.default_rng(seed)
    drawing = Drawing(rng=rng, block=block)
    height, width = rng.integers(1, 8, 2)
    channels = [1, 3, block, block + 3, 2 * block, 2 * block + 5]
    tensors = [drawing.input(int(rng.choice(channels)), int(height), int(width)) for _ in range(rng.integers(1, 3))]
    for _ in range(rng.integers(3, 8)):
        tensors.append(_layer(drawing, rng, tensors, channels))
    outputs = {tensors[-1], *(name for name in tensors if name not in drawing.values or _unread(drawing, name))}
    return drawing.network(*sorted(outputs - {port.name for port in drawing.inputs}))


def split_graph(seed: int, block: int = 16) -> IntegerNetwork:
    """The same with layers between that VTA has no instructions for; at the end one whose numbers have no sign."""
    rng = np.random.default_rng(seed)
    drawing = Drawing(rng=rng, block=block)
    height, width = rng.integers(1, 7, 2)
    channels = [1, 3, block, block + 3, 2 * block]
    tensors = [drawing.input(int(rng.choice(channels)), int(height), int(width))]
    for _ in range(rng.integers(3, 7)):
        source = str(rng.choice(tensors[-3:]))
        kind = rng.choice(["table", "product", "resample", "scattered", "accelerator", "accelerator", "accelerator"])
        if kind == "table":
            tensors.append(drawing.table(source, by_channel=bool(rng.integers(2))))
        elif kind == "product":
            gates = [name for name in tensors if drawing.shape(name) == drawing.shape(source)]
            gates += [drawing.gather(source, lambda numbers: numbers[:, :, :1, :1])]
            tensors.append(drawing.product(source, str(rng.choice(gates))))
        elif kind == "resample":
            tensors.append(drawing.resample(source))
        elif kind == "scattered":
            tensors.append(drawing.gather(source, lambda x: rng.permutation(x.ravel())[None, :, None, None]))
        else:
            tensors.append(_layer(drawing, rng, tensors, channels))
    last = drawing.softmax(tensors[-1], axis=int(rng.integers(1, 4)))
    positive = drawing.table(last)
    outputs = {last, drawing.concat(last, last), positive, drawing.conv(positive, 5)}
    outputs |= {name for name in tensors if _unread(drawing, name)}
    return drawing.network(*sorted(outputs - {port.name for port in drawing.inputs}))


def _unread(drawing: Drawing, name: str) -> bool:
    return not any(name in layer.inputs for layer in drawing.layers)


def _layer(drawing: Drawing, rng: np.random.Generator, tensors: Sequence[str], channels: Sequence[int]) -> str:
    source = str(rng.choice(tensors))
    _, count, height, width = drawing.shape(source)
    kind = rng.choice(["conv", "depthwise", "add", "broadcast", "max_pool", "concat", "rows", "gather", "gather"])
    if kind in ("conv", "depthwise"):
        padding = tuple(int(pad) for pad in rng.integers(0, 3, 4))
        kernel = (min(height, int(rng.integers(1, 4))), min(width, int(rng.integers(1, 4))))
        stride = tuple(int(step) for step in rng.integers(1, 3, 2))
        outputs = int(rng.choice(channels)) if kind == "conv" else 0
        return drawing.conv(source, outputs, kernel, stride, padding, relu=bool(rng.integers(2)))  # type: ignore[arg-type]
    if kind in ("add", "broadcast"):
        others = [name for name in tensors if drawing.shape(name) == drawing.shape(source)]
        if kind == "broadcast" and 1 < height * width <= 64:
            others = [drawing.conv(source, int(rng.choice([1, count])), (height, width))]
        chosen = [source, *(str(rng.choice(others)) for _ in range(rng.integers(1, 3)))]
        factors = [int(rng.choice([1, -1]) * 2 ** rng.integers(0, rng.choice([3, 7, 16]))) for _ in chosen]
        largest = max(map(abs, factors))
        shift = int(rng.integers(0, max(1, largest.bit_length() + 2)))
        limits = (int(rng.choice([-128, 0, 5])), int(rng.choice([127, 60])))
        return drawing.add(*chosen, factors=factors, shift=shift, limits=limits)
    if kind == "max_pool":
        kernel = (min(height, int(rng.integers(1, 4))), min(width, int(rng.integers(1, 4))))
        padding = tuple(int(rng.integers(0, kernel[axis])) for axis in (0, 1, 0, 1))
        stride = tuple(int(step) for step in rng.integers(1, 3, 2))
        return drawing.max_pool(source, kernel, stride, padding, limits=(int(rng.choice([-128, 0])), 127))  # type: ignore[arg-type]
    if kind in ("concat", "rows"):
        axis = 1 if kind == "concat" else int(rng.integers(2, 4))
        rest = [length for place, length in enumerate(drawing.shape(source)) if place != axis]
        fitting = [
            name
            for name in tensors
            if [length for place, length in enumerate(drawing.shape(name)) if place != axis] == rest
        ]
        chosen = [str(rng.choice(fitting)) for _ in range(rng.integers(2, 4))]
        return drawing.concat(*chosen, axis=axis, limits=(-128, int(rng.choice([127, 127, 50]))))
    move = MOVES[str(rng.choice(list(MOVES)))]
    if height * width * count > 4000:
        move = MOVES["crop"]
    return drawing.gather(source, lambda numbers: move(rng, numbers))
