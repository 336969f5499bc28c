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

TENSORS = 1
"""The first tile of the activations; tile 0 is that of ones."""

ONES = 127
"""The value of the lanes of the tile that biases are multiplied with, but for lane 0, which has 1."""


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """An activation in memory: its first tile, and its shape C×H×W."""

    name: str
    tile: int
    shape: tuple[int, int, int]
    block: int

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


def place(shapes: Mapping[str, tuple[int, int, int]], block: int) -> tuple[dict[str, Tensor], int]:
    """A place for each tensor, behind the tile of ones, and how many tiles that takes."""
    tensors, tile = {}, TENSORS
    for name, shape in shapes.items():
        tensors[name] = Tensor(name=name, tile=tile, shape=shape, block=block)
        tile += tensors[name].tiles
    return tensors, tile


def ones_tile(config: Config) -> np.ndarray:
    """What `bias_tiles` are multiplied with."""
    tile = np.full((config.batch, config.block), ONES, np.int8)
    tile[:, 0] = 1
    return tile


def bias_tiles(bias: np.ndarray, block: int) -> np.ndarray:
    """int64 O → int8 blocks×count×block×block: weights whose products with `ones_tile` add up to the biases."""
    blocks = -(-len(bias) // block)
    left = np.zeros(blocks * block, np.int64)
    left[: len(bias)] = bias
    most = ONES * ONES * (block - 1)
    count = max(1, int(-(-abs(left).max() // most)))
    tiles = np.zeros((count, blocks * block, block), np.int8)
    for tile in tiles:
        part = left.clip(-most, most)
        left = left - part
        whole = (part + ONES // 2) // ONES
        tile[:, 0] = part - whole * ONES
        for lane in range(1, block):
            tile[:, lane] = whole.clip(-ONES, ONES)
            whole = whole - tile[:, lane]
    return np.ascontiguousarray(tiles.reshape(count, blocks, block, block).transpose(1, 0, 2, 3))


WIDE = 15
"""Bits by which ALU shifts what is left of a bias that would take more than `FEW` products."""
FEW = 3


def wide_bias_tiles(bias: np.ndarray, block: int) -> np.ndarray:
    """int32 O → int8 blocks×2×block×block: weights whose products with `ones_tile` are a bias's high bits, which are to
    be shifted left by `WIDE`, and its low ones."""
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
