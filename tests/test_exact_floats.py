"""What TVM's simplifier would take for exact is computed as PyTorch computes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import needs_emulator
from torch import nn

from tvmflow.bundles.build import build
from tvmflow.bundles.bundle import open_bundle
from tvmflow.network.frontend import from_module
from tvmflow.targets import TARGETS
from tvmflow.targets.kind import of

VALUES = [[1, -1, 0, -0.0, np.nan, np.inf, -np.inf, 2.4, -7.6, 1e30, 3, 4]]
ROUNDING = 12582912.0  # 1.5 · 2²³: adding it leaves no bits for what is behind the point

FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "divided by nothing": lambda x: x / (x - x),
    "rounded": lambda x: (x * 3 + ROUNDING) - ROUNDING,
    "of itself": lambda x: torch.exp(x) - torch.exp(x),
    "equal": lambda x: torch.where(x.tanh() == x.tanh(), x, 7.0),
    "unequal": lambda x: (x.tanh() != x.tanh()).float(),
    "not at least": lambda x: torch.logical_not(x >= 1).float(),
    "not less": lambda x: torch.where(~(x < x * 2), x, 7.0),
}


class Function(nn.Module):
    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("board", ["host", pytest.param("raspberry-pi-4b", marks=pytest.mark.emulated)])
def test_as_in_pytorch(tmp_path, name, board):
    target = replace(TARGETS[board], arithmetic="float32")
    if board != "host":
        needs_emulator(target)
    network = Function(FUNCTIONS[name])
    build(from_module(network, "function", "function", [(1, 12)]), target, tmp_path / "out")
    values = np.array(VALUES, np.float32)
    with open_bundle(tmp_path / "out") as bundle:
        _, run = of(target).find_runner(bundle.library, target, bundle.outputs)
        ((given,),) = run([(values,)])
    np.testing.assert_array_equal(given, network(torch.from_numpy(values)).numpy())
