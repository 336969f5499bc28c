"""The network of Sun, Zhou, Zhang, He (2020): dilated depthwise filters inside depthwise separable convolutions.

A joint module is a dilated depthwise 3×3, a depthwise separable convolution (depthwise 3×3, which carries the stride,
and pointwise 1×1), batch normalisation and ReLU. The paper counts 30 layers: nine dilated, nine depthwise separable
and nine batch normalisation layers, the average pooling, the fully connected layer and the softmax. It gives neither
the widths nor the strides; those of `DilatedNetConfig` come to its 3.1 M parameters. The softmax is left to the
caller: the network returns logits.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from tvmflow.models.baselines import untrained
from tvmflow.models.cost import dilation_of
from tvmflow.spec import UserError
from tvmflow.system import untrusted
from tvmflow.system.untrusted import shortened

WEIGHTS = Path(__file__).parent / "weights"


MAX_CHANNELS = 1 << 16
MAX_PARAMETERS = 1 << 28
"""Of a network whose shape a file tells: well above any that this architecture was trained as."""


@dataclass(frozen=True, kw_only=True)
class DilatedNetConfig:
    """Shape of the network. The defaults have 3,141,152 parameters and 84.1 M multiply-adds at 3×32×32.

    `joint="merged"` is the other reading of the paper, in which the dilated filter *is* the depthwise filter of the
    separable convolution (3,109,157 parameters, 81.4 M multiply-adds). All its filters then stay on one grid of every
    (2δ+1)-th pixel, so no output ever sees two neighbouring pixels, and it learns poorly.
    """

    widths: tuple[int, ...] = (32, 64, 128, 256, 512, 512, 1024, 1024, 1024)
    strides: tuple[int, ...] = (1, 1, 2, 1, 2, 1, 2, 1, 1)
    delta: int = 2  # the paper's dilated rate δ, its best; PyTorch's dilation is 2δ + 1
    classes: int = 10
    in_channels: int = 3
    joint: Literal["separate", "merged"] = "separate"
    clipped_for: int | None = None  # side of the images in pixels: no dilation is more than half of its map's side

    def __post_init__(self) -> None:
        """Raises UserError for what is no network, or one that no file of weights is of."""
        sizes = (*self.widths, *self.strides, self.classes, self.in_channels, 1 if self.delta == 0 else self.delta)
        if not all(type(size) is int and 0 < size <= MAX_CHANNELS for size in sizes):
            raise UserError(f"Widths, strides, classes and δ of a network are whole numbers up to {MAX_CHANNELS:,}.")
        if len(self.widths) != len(self.strides):
            raise UserError(f"{len(self.widths)} widths and {len(self.strides)} strides don't make joint modules.")
        channels = (self.in_channels, *self.widths, self.classes)
        if sum(before * after for before, after in itertools.pairwise(channels)) > MAX_PARAMETERS:
            raise UserError(f"A network of these widths has over {MAX_PARAMETERS:,} parameters, which none here has.")
        if self.joint not in ("separate", "merged") or not (self.clipped_for is None or type(self.clipped_for) is int):
            raise UserError("A network's joint modules are separate or merged, and clipped for a side in pixels.")

    def map_sides(self, image_side: int) -> tuple[int, ...]:
        """Side in pixels of each joint module's input."""
        sides = [image_side]
        for stride in self.strides[:-1]:
            sides.append(-(-sides[-1] // stride))
        return tuple(sides)

    def dilations(self) -> tuple[int, ...]:
        """PyTorch's dilation of each joint module."""
        dilation = dilation_of(self.delta)
        if self.clipped_for is None:
            return (dilation,) * len(self.strides)
        return tuple(min(dilation, max(1, side // 2)) for side in self.map_sides(self.clipped_for))


class JointModule(nn.Module):
    """One joint module: N×C×H×W → N×width×⌈H/stride⌉×⌈W/stride⌉."""

    def __init__(self, in_channels: int, width: int, stride: int, dilation: int, *, merged: bool) -> None:
        super().__init__()
        self.dilated = _depthwise(in_channels, stride if merged else 1, dilation)
        self.depthwise = nn.Identity() if merged else _depthwise(in_channels, stride, 1)
        self.pointwise = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(self.bn(self.pointwise(self.depthwise(self.dilated(x)))))


class DilatedNet(nn.Module):
    """N×in_channels×H×W images, normalised, → N×classes logits."""

    def __init__(self, config: DilatedNetConfig = DilatedNetConfig()) -> None:
        super().__init__()
        self.config = config
        channels = (config.in_channels, *config.widths)
        self.joint = nn.Sequential(
            *(
                JointModule(before, width, stride, dilation, merged=config.joint == "merged")
                for before, width, stride, dilation in zip(
                    channels, config.widths, config.strides, config.dilations(), strict=False
                )
            )
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(channels[-1], config.classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.flatten(self.pool(self.joint(x))))


def _depthwise(channels: int, stride: int, dilation: int) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, 3, stride, padding=dilation, dilation=dilation, groups=channels, bias=False)


def dilated_net() -> DilatedNet:
    """The default network with its trained weights, in eval mode. Raises UserError if the weights don't fit."""
    return load_weights(DilatedNet(), WEIGHTS / "dilated-net.safetensors")


def dilated_net_merged() -> nn.Module:
    """The merged reading, untrained: a fixed random initialisation, in eval mode."""
    return untrained(lambda: DilatedNet(DilatedNetConfig(joint="merged")))


def load_weights(network: nn.Module, path: Path) -> Any:
    """Load a safetensors file into `network` and put it into eval mode. Raises UserError."""
    _, arrays = untrusted.read_tensors(path)
    try:
        network.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
    except (RuntimeError, TypeError) as error:  # TypeError: PyTorch has no such type of numbers
        raise UserError(f"{path} holds weights of another network: {shortened(str(error).splitlines()[-1])}") from error
    return network.eval()
