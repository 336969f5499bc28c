"""Small networks for the tests, as factories that `--model networks:NAME` finds."""

from __future__ import annotations

import torch
from torch import nn

from tvmflow.models.baselines import Inception, conv_bn, untrained
from tvmflow.models.dilated_net import DilatedNet, DilatedNetConfig


def tiny() -> nn.Module:
    """One joint module of five channels and a classifier, with batch normalisation that isn't the identity."""
    torch.manual_seed(1)
    network = DilatedNet(DilatedNetConfig(widths=(5,), strides=(2,), classes=4)).eval()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
            nn.init.normal_(layer.bias)
    return network


def two_pointwise() -> nn.Module:
    """Two 1×1 convolutions whose channels fill no block."""
    torch.manual_seed(4)
    return nn.Sequential(nn.Conv2d(6, 21, 1), nn.ReLU(), nn.Conv2d(21, 22, 1), nn.ReLU()).eval()


def heavy() -> nn.Module:
    """Six megabytes of weights in one layer, which is compiled in no time."""
    torch.manual_seed(6)
    return nn.Linear(1200, 1200).eval()


def rectifier() -> nn.Module:
    return nn.Sequential(nn.ReLU()).eval()


def chain() -> nn.Module:
    """Every kind of layer that a microcontroller takes in float32; channels and maps fill no tile."""
    torch.manual_seed(5)
    network = nn.Sequential(
        *(nn.Conv2d(3, 10, (3, 2), stride=(2, 1), padding=(1, 0)), nn.BatchNorm2d(10), nn.ReLU()),
        *(nn.Conv2d(10, 10, 3, padding=5, dilation=5, groups=10), nn.Conv2d(10, 10, 3, padding=1, groups=10)),
        *(nn.Conv2d(10, 14, 1), nn.ReLU(), nn.Conv2d(14, 14, 5, padding=2, groups=14), nn.Conv2d(14, 21, 1, groups=7)),
        *(nn.Conv2d(21, 2, 1), nn.Flatten(), nn.Linear(2 * 7 * 10, 11), nn.ReLU(), nn.Linear(11, 4)),
    )
    return network.eval()


def activations() -> nn.Module:
    """One convolution, and behind it every function that the C library would be asked for."""
    torch.manual_seed(7)
    layers = (
        *(nn.GELU(), nn.GELU(approximate="tanh"), nn.SiLU(), nn.Sigmoid(), nn.Tanh(), nn.ELU(), nn.SELU()),
        *(nn.Softplus(), nn.Mish(), nn.LogSigmoid(), nn.Softmax(1), nn.LogSoftmax(1)),
    )
    branches = [nn.Sequential(nn.Conv2d(8, 16, 1), layer) for layer in layers]

    class Side(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.branches = nn.ModuleList(branches)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([branch(x) for branch in self.branches], 1)

    return Side().eval()


class _Exotic(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.digamma(x) + torch.special.i0(x)


def exotic() -> nn.Module:
    """Operators that no importer knows, in two modules."""
    return nn.Sequential(nn.Linear(4, 4), nn.Sequential(_Exotic()))


def broken() -> nn.Module:
    raise RuntimeError("no weights today")


def exits() -> nn.Module:
    raise SystemExit(0)


def interrupts() -> nn.Module:
    raise KeyboardInterrupt


def recursive() -> nn.Module:
    return recursive()


class _Exits(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise SystemExit(0)


def exits_later() -> nn.Module:
    """It is a module, and ends Python when it is run."""
    return _Exits()


def half_made() -> nn.Module:
    """A module whose constructor was never called."""
    return nn.Module.__new__(nn.Linear)


def interrupted() -> nn.Module:
    """Ctrl-C comes while a string is executed."""
    exec("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nwhile True: pass")
    raise AssertionError


def number() -> int:
    return 3


class _TwoInTwoOut(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(6, 3)
        self.right = nn.Linear(5, 3)

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        left, right = self.left(a), self.right(b)
        return left + right, torch.tanh(left * right)


def two_in_two_out() -> nn.Module:
    torch.manual_seed(2)
    return _TwoInTwoOut().eval()


class _Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.second = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6))
        self.third = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x))
        x = torch.relu(self.second(x) + x)
        x = torch.relu(self.third(x) + x)
        return torch.flatten(nn.functional.max_pool2d(x, 2), 1)


def residual() -> nn.Module:
    """Two equal residual blocks: their kernels are shared, their names must not be."""
    torch.manual_seed(3)
    return _Residual().eval()


class _Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.left = nn.Conv2d(32, 16, 1)
        self.right = nn.Conv2d(32, 32, 3, padding=(2, 1), dilation=(2, 1))
        self.wide = nn.Conv2d(48, 24, 5, padding=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(nn.functional.max_pool2d(x, 2)))
        x = nn.functional.max_pool2d(torch.relu(self.depthwise(x)), 3, 1, 1)
        x = torch.cat([torch.relu(self.left(x)), torch.relu(self.right(x))], 1)
        return torch.relu(self.wide(x)).mean((2, 3))


def plain() -> nn.Module:
    """Full convolutions of several kinds, pooling and concatenation: 3×21×26 to 24."""
    torch.manual_seed(4)
    return _Plain().eval()


def inception() -> nn.Module:
    """What GoogLeNet and VGG16 have and other networks haven't: 3×10×10, a last window that isn't whole, to 10."""
    return untrained(
        lambda: nn.Sequential(
            conv_bn(3, 16, 3),
            Inception(16, 16, (24, 32), (24, 32), 16),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(96, 64),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(64, 10),
        )
    )


class _Constant(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.answer = nn.Parameter(torch.tensor([4.0, 2.0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.answer * 2


def constant() -> nn.Module:
    """A network whose answer is known at build time: no kernel is left of it."""
    return _Constant().eval()


def enormous() -> nn.Module:
    """A weight that float16 can't hold."""
    network = nn.Linear(4, 2, bias=False).eval()
    nn.init.constant_(network.weight, 1e6)
    return network


def threaded() -> nn.Module:
    """Convolutions that are worth several threads, one with memory for each of them, and a classifier that isn't."""
    torch.manual_seed(9)
    convolutions = (nn.Conv2d(8, 16, 3, padding=1), nn.GELU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU())
    return nn.Sequential(*convolutions, nn.MaxPool2d(4), nn.Flatten(), nn.Linear(16 * 8 * 8, 10)).eval()
