"""Convolutions with groups, and with borders of their own operator, are right and have rules made for them."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tvmflow.bundles.build import build
from tvmflow.network.frontend import import_model, parse_input_shape
from tvmflow.targets import TARGETS

CATCH_ALLS = {"lanes", "default"}


class Grouped(nn.Module):
    """Groups that fill blocks of channels, parts of one, and none; before and behind plain convolutions."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(
            [
                *(nn.Conv2d(3, 64, 3, padding=1), nn.Conv2d(64, 64, 3, padding=1, groups=4)),
                *(nn.Conv2d(64, 120, 1, groups=2), nn.Conv2d(120, 120, 1, groups=3)),
                *(nn.Conv2d(120, 64, 3, groups=2, stride=2), nn.Conv2d(64, 64, 3, groups=16, padding=1)),
                *(nn.Conv2d(64, 48, 3, padding=1), nn.Conv2d(48, 96, (3, 2), padding=1, dilation=2, groups=2)),
                nn.Conv2d(96, 42, 1, groups=6),
            ]
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = F.relu(layer(x))
        return x


class Bordered(nn.Module):
    """Borders that are unlike on both sides, before all kinds of convolutions, and one before a pool."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.depthwise = nn.Conv2d(3, 16, 3, 2), nn.Conv2d(16, 16, 3, 2, padding=1, groups=16)
        self.pointwise, self.border, self.row = nn.Conv2d(16, 32, 1), nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv1d(32, 8, 3)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        bordered = F.pad(x, (0, 1, 0, 1))
        x = F.relu(self.depthwise(F.pad(F.relu(self.stem(bordered)), (0, 1, 1, 2))))
        x = F.max_pool2d(self.border(F.relu(self.pointwise(x))), 2, 1)
        return self.row(F.pad(x.flatten(2), (2, 0))), bordered


def grouped() -> nn.Module:
    return Grouped().eval()


def bordered() -> nn.Module:
    return Bordered().eval()


@pytest.mark.parametrize("name", ["grouped", "bordered"])
@pytest.mark.parametrize("board", ["host", "raspberry-pi-4b", "jetson-orin-nano"])
def test_right_and_served(name, board, tmp_path):
    program = import_model(f"test_groups_and_borders:{name}", [parse_input_shape("1x3x23x24")])
    manifest = build(program, TARGETS[board], tmp_path / name, verify=board == "host").manifest
    assert manifest["verify"]["passed"] is not False
    if TARGETS[board].kind != "cuda":
        slow = [layer for layer in manifest["layers"] if layer["macs"] and layer["schedule"] in CATCH_ALLS]
        assert not [layer["modules"] for layer in slow]


def test_a_border_that_others_read_stays(tmp_path):
    program = import_model("test_groups_and_borders:bordered", [parse_input_shape("1x3x23x24")])
    manifest = build(program, TARGETS["host"], tmp_path / "bordered").manifest
    borders = [layer["modules"] for layer in manifest["layers"] if "pad" in layer["kernel"] and not layer["macs"]]
    assert len(borders) == 2, "of the image, which is an output, and of the pool"
