"""Tensors and weights as tiles of VTA.

An activation of C×H×W is ⌈C/16⌉×H×W tiles of 16 channels, a weight tile 16 outputs × 16 inputs; channels that are no
multiple of 16 are filled up with zeros, whose weights are 0. (16 stands for the configuration's block.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tvmflow.integer.layers import IntegerLayer
from tvmflow.targets.vta.config import Config

ONES = 127
"""The value of the lanes of the tiles that biases are multiplied with, but for the first of each, which has 1."""


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """An activation in memory: its first tile, and its shape C×H×W.

    Of a packed one, `pack` pixels of a row share a tile, and the shape is that of the tiles: C·pack×H×W÷pack.
    """

    name: str
    tile: int
    shape: tuple[int, int, int]
    block: int
    pack: int = 1

    @property
    def unpacked_shape(self) -> tuple[int, int, int]:
        """C×H×W as the network has it."""
        channels, height, width = self.shape
        return channels // self.pack, height, width * self.pack

    @property
    def blocks(self) -> int:
        """How many tiles its channels take."""
        return -(-self.shape[0] // self.block)

    @property
    def pixels(self) -> int:
        return self.shape[1] * self.shape[2]

    @property
    def tiles(self) -> int:
        return self.blocks * self.pixels


def place(
    shapes: Mapping[str, tuple[int, int, int]], block: int, packs: Mapping[str, int]
) -> tuple[dict[str, Tensor], int]:
    """A place for each tensor, behind the tiles of ones, and how many tiles that takes."""
    tensors, tile = {}, ones_count(block)
    for name, shape in shapes.items():
        pack = packs.get(name, 1)
        packed = (shape[0] * pack, shape[1], shape[2] // pack)
        tensors[name] = Tensor(name=name, tile=tile, shape=packed, block=block, pack=pack)
        tile += tensors[name].tiles
    return tensors, tile


def ones_count(block: int) -> int:
    """How many tiles `ones_tiles` are: the activations begin behind them."""
    return 2 * block - 1


def ones_at(lanes: int, block: int) -> int:
    """The first of the tiles of ones with so many lanes, a power of two; there are block ÷ lanes of them."""
    return 2 * block - 2 * block // lanes


def ones_tiles(config: Config) -> np.ndarray:
    """int8 count×batch×block: what biases are multiplied with.

    A tile has some lanes (1, 127, 127, …), and zeros, so that a tile of weights can have the biases of several blocks.
    """
    block, tiles = config.block, []
    for lanes in (1 << log for log in range(config.log_block + 1)):
        for first in range(0, block, lanes):
            tile = np.zeros((config.batch, block), np.int8)
            tile[:, first : first + lanes] = ONES
            tile[:, first] = 1
            tiles.append(tile)
    return np.stack(tiles)


def bias_lanes(bias: np.ndarray, block: int) -> int | None:
    """How many lanes a bias takes, the same for all, None if a tile's don't suffice."""
    most = int(abs(bias.astype(np.int64)).max())
    lanes = (1 << log for log in range(block.bit_length()))
    return next((count for count in lanes if most <= ONES * max(1, ONES * (count - 1))), None)


def shared_bias_tiles(bias: np.ndarray, lanes: int, block: int) -> np.ndarray:
    """int64 O → int8 count×block×block: weights of `block` ÷ `lanes` blocks each, a tile of ones for each of them."""
    each = block // lanes
    digits = bias_tiles(bias, block, lanes)[:, 0]
    tiles = np.zeros((-(-len(digits) // each), block, block), np.int8)
    for number, tile in enumerate(digits):
        first = number % each * lanes
        tiles[number // each, :, first : first + lanes] = tile[:, :lanes]
    return tiles


def bias_tiles(bias: np.ndarray, block: int, lanes: int = 0) -> np.ndarray:
    """int64 O → int8 blocks×count×block×block: weights whose products with a tile of ones add up to the biases.

    That is the tile of `lanes` lanes, by default all.
    """
    lanes = lanes or block
    blocks = -(-len(bias) // block)
    left = np.zeros(blocks * block, np.int64)
    left[: len(bias)] = bias
    most = ONES * max(1, ONES * (lanes - 1))
    count = max(1, int(-(-abs(left).max() // most)))
    tiles = np.zeros((count, blocks * block, block), np.int8)
    for tile in tiles:
        part = left.clip(-most, most)
        left = left - part
        whole = (part + ONES // 2) // ONES if lanes > 1 else np.zeros_like(part)
        tile[:, 0] = part - whole * ONES
        for lane in range(1, lanes):
            tile[:, lane] = whole.clip(-ONES, ONES)
            whole = whole - tile[:, lane]
    return np.ascontiguousarray(tiles.reshape(count, blocks, block, block).transpose(1, 0, 2, 3))


WIDE = 15
"""Bits by which ALU shifts what is left of a bias that would take more than `FEW` products."""
FEW = 3


def wide_bias_tiles(bias: np.ndarray, block: int) -> np.ndarray:
    """int32 O → int8 blocks×2×block×block: weights whose products with a tile of ones are a bias's high bits, which are
    to be shifted left by `WIDE`, and its low ones."""
    whole = bias.astype(np.int64)
    return np.concatenate([bias_tiles(whole >> WIDE, block), bias_tiles(whole & (1 << WIDE) - 1, block)], axis=1)


def is_diagonal(layer: IntegerLayer) -> bool:
    """Whether each output channel reads the input channel of its own number alone."""
    return layer.groups == len(layer.weight) == layer.input_shape[1]


def weight_tiles(layer: IntegerLayer, block: int) -> np.ndarray:
    """int8 outputs' blocks×inputs' blocks×taps×block×block; one inputs' block, on the diagonal, if `is_diagonal`."""
    outputs, per_group, height, width = layer.weight.shape
    taps = layer.weight.reshape(outputs, per_group, height * width)
    blocks = -(-outputs // block)
    if is_diagonal(layer):
        tiles = np.zeros((blocks * block, height * width, block), np.int8)
        channels = np.arange(outputs)
        tiles[channels, :, channels % block] = taps[:, 0]
        return np.ascontiguousarray(tiles.reshape(blocks, 1, block, height * width, block).transpose(0, 1, 3, 2, 4))
    inputs = per_group * layer.groups
    dense = np.zeros((blocks * block, -(-inputs // block) * block, height * width), np.int8)
    for output in range(outputs):
        first = output // (outputs // layer.groups) * per_group
        dense[output, first : first + per_group] = taps[output]
    shaped = dense.reshape(blocks, block, -1, block, height * width)
    return np.ascontiguousarray(shaped.transpose(0, 2, 4, 1, 3))
