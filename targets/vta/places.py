"""Where activations lie in memory: each in a place of its own, but for what is a part of another as it is.

A concatenation of whole blocks of channels has its inputs in its own place, where their layers have stored them, and a
slice of whole blocks is a part of what it is cut from. Nothing is moved then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tvmflow.integer.layers import AnyIntegerLayer, IntegerNode
from tvmflow.integer.network import IntegerNetwork
from tvmflow.integer.operators import Concat, Gather, Shape
from tvmflow.targets.vta.layout import Tensor, place
from tvmflow.targets.vta.packed import packs_of


@dataclass(frozen=True, kw_only=True)
class _Home:
    """The tensor that another is a part of, and the first of its blocks."""

    name: str
    block: int


def place_tensors(network: IntegerNetwork, block: int) -> dict[str, Tensor]:
    """A place for every input and every layer's output."""
    shapes = {name: (channels, height, width) for name, (_, channels, height, width) in network.shapes.items()}
    homes = _homes(network, block)
    own = {name: shape for name, shape in shapes.items() if name not in homes}
    tensors, _ = place(own, block, packs_of(network, block))

    def find(name: str) -> Tensor:
        if name not in tensors:
            home, shape = homes[name], shapes[name]
            first = find(home.name).tile + home.block * shape[1] * shape[2]
            tensors[name] = Tensor(name=name, tile=first, shape=shape, block=block)
        return tensors[name]

    return {name: find(name) for name in shapes}


def placed_inputs(node: IntegerNode, sources: Sequence[Tensor], target: Tensor) -> frozenset[int]:
    """Which inputs of a node lie where its output has them."""
    if isinstance(node.operator, Gather):
        (source,) = sources
        return frozenset([0] if source.tile <= target.tile < source.tile + source.tiles else [])
    if not isinstance(node.operator, Concat):
        return frozenset()
    return frozenset(
        number
        for number, source in enumerate(sources)
        if target.tile <= source.tile < target.tile + target.tiles
        and (source.tile - target.tile) * target.block == _offset(sources, number) * source.pixels
    )


def _offset(sources: Sequence[Tensor], number: int) -> int:
    return sum(source.shape[0] for source in sources[:number])


def _homes(network: IntegerNetwork, block: int) -> dict[str, _Home]:
    """What is a part of something else. Parts of parts end at one that is none: a concatenation comes after what it is
    made of, a slice after what it is cut from, and no tensor is a part of two."""
    homes: dict[str, _Home] = {}
    ranges = {port.name: (-128, 127) for port in network.inputs}
    ranges |= {layer.name: (layer.minimum, layer.maximum) for layer in network.layers}
    for layer in network.layers:
        if not isinstance(layer, IntegerNode) or _clips(layer, ranges):
            continue
        if isinstance(layer.operator, Gather):
            first = _cut_from(layer.operator, layer.input_shape, block)
            if first is not None:
                homes[layer.name] = _Home(name=layer.inputs[0], block=first)
        elif isinstance(layer.operator, Concat) and layer.operator.axis == 1:
            offset = 0
            for number, (name, shape) in enumerate(zip(layer.inputs, layer.input_shapes, strict=True)):
                whole = shape[1] % block == 0 or number == len(layer.inputs) - 1
                if offset % block == 0 and whole and name not in homes:
                    homes[name] = _Home(name=layer.name, block=offset // block)
                offset += shape[1]
    return homes


def _clips(layer: AnyIntegerLayer, ranges: dict[str, tuple[int, int]]) -> bool:
    return any(ranges[name][0] < layer.minimum or layer.maximum < ranges[name][1] for name in layer.inputs)


def _cut_from(operator: Gather, shape: Shape, block: int) -> int | None:
    """The first block of a slice of whole blocks, None if it is no such slice."""
    places = operator.places
    first, pixels = int(places.flat[0]), shape[2] * shape[3]
    if places.shape[2:] != tuple(shape[2:]) or first % (block * pixels) != 0:
        return None
    return first // (block * pixels) if np.array_equal(places.ravel(), np.arange(first, first + places.size)) else None
