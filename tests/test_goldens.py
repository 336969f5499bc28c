"""What each rule makes of one small kernel, as text: a change of a rule shows what it changes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_recurrent import program_of
from test_schedules import LANES, Kernel, convolution, depthwise, in_blocks, plain, product
from torch import nn
from tvm import relax, tirx

from tvmflow.schedules.cpu import RULES
from tvmflow.spec import Target
from tvmflow.targets import TARGETS
from tvmflow.targets.cpu.passes.roll_steps import roll_steps

BOARD = TARGETS["raspberry-pi-4b"]
"""One that doesn't depend on the computer that runs the tests."""
MOST_LINES = 100


@dataclass(frozen=True)
class Steps:
    """A recurrent layer: the kernel of its steps is made for a board."""

    layer: nn.Module
    shape: tuple[int, ...]

    def prim_func(self, target: Target) -> tirx.PrimFunc:
        rolled = roll_steps(program_of(self.layer, [np.zeros(self.shape, np.float32)]), target)
        return next(func for var, func in rolled.module.functions.items() if var.name_hint.endswith("_steps"))


KERNELS: Mapping[str, Kernel | Steps] = {
    "pointwise_blocked": in_blocks(convolution((1, 16, 2, 2), (8, 16, 1, 1), tail="bias+relu")),
    "depthwise_blocked": in_blocks(
        depthwise((1, 8, 1, 4), taps=(1, 3), dilation=(1, 2), padding=(0, 2, 0, 2), tail="bias+relu")
    ),
    "conv_blocked": in_blocks(convolution((1, 8, 1, 4), (8, 8, 1, 2), padding=(0, 1, 0, 0), tail="bias+relu")),
    "winograd": replace(in_blocks(convolution((1, 8, 4, 4), (8, 8, 3, 3), tail="bias+relu")), winograd=2),
    "concat_blocked": replace(
        plain("concat", lambda *x: relax.op.concat(x, 1), lambda *x: torch.cat(x, 1), (1, 8, 2, 2), (1, 16, 2, 2)),
        blocked=(0, 1, 2),
    ),
    "pointwise_nchw": convolution((1, 4, 2, 8), (8, 4, 1, 1), tail="bias+relu"),
    "depthwise_rows": depthwise((1, 4, 8, 8), taps=(1, 3), padding=(0, 1, 0, 1)),
    "depthwise_nchw": depthwise((1, 4, 8, 8), taps=(1, 3), padding=(0, 1, 0, 1)),
    "direct_nchw": convolution((1, 3, 4, 4), (4, 3, 3, 3), padding=(1, 1, 1, 1)),
    "recurrent": Steps(nn.RNN(1, 8, nonlinearity="relu"), (6, 1, 1)),
    "dense": replace(plain("dense", relax.op.matmul, torch.matmul, (1, 8), (8, 4)), turned=True),
    "products": product((3, 2), (2, 8), tail="bias+relu"),
    "segments": plain("concat", lambda *x: relax.op.concat(x, 1), lambda *x: torch.cat(x, 1), (1, 2, 3), (1, 1, 3)),
    "lanes": next(kernel for kernel in LANES if kernel.name == "add"),
}
"""A new rule needs a line here: the smallest kernel that shows its strategy."""


@pytest.mark.parametrize("rule", RULES)
def test_schedule_text(rule, golden):
    assert rule in KERNELS, f"The rule {rule} has no golden: give it a small kernel in KERNELS of {Path(__file__).name}"
    schedule = RULES[rule](KERNELS[rule].prim_func(BOARD), BOARD)
    assert schedule is not None, f"{rule} doesn't serve its kernel on {BOARD.name}"
    text = tirx.transform.StmtSimplify()(schedule.mod)["main"].script()
    text = re.sub(r"T\.int64\((\d+)\)", r"\1", text[text.index("@") :]) + "\n"
    assert text.count("\n") < MOST_LINES, "a golden that nobody can review: take a smaller kernel"
    golden(text)


def test_no_golden_is_left_over():
    texts = (Path(__file__).parent / "goldens" / "test_schedule_text").glob("*")
    assert {path.stem for path in texts} == set(RULES)
