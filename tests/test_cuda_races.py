"""No schedule for CUDA has a data race or reaches outside its tensors: Oclgrind runs the OpenCL form of each."""

from __future__ import annotations

import re
from importlib import import_module

import pytest
from conftest import needs_commands
from oclgrind import complaints
from test_cuda_schedules import BOARD, CASES

from tvmflow.schedules.cuda import RULES

pytestmark = pytest.mark.packages

EXAMPLES = {case.rule: case for case in CASES}
"""One of each rule, the last of its cases."""


@pytest.fixture(autouse=True)
def _installed():
    needs_commands("oclgrind-kernel")


def scheduled(rule: str, tile=None):
    return RULES[rule](EXAMPLES[rule].prim_func(), BOARD, tile).mod["main"]


@pytest.mark.parametrize("rule", EXAMPLES)
def test_no_races(rule, tmp_path):
    assert complaints(scheduled(rule), BOARD.tvm, tmp_path) == []


def staged():
    """A schedule that has barriers."""
    func = EXAMPLES["pointwise"].prim_func()
    for tile in import_module("tvmflow.schedules.cuda.pointwise").tiles(func, BOARD):
        made = scheduled("pointwise", tile)
        if "shared" in made.script():
            return made
    raise AssertionError("no tile of the rule stages anything in shared memory")


def test_missing_barriers_are_seen(tmp_path):
    func = staged()
    assert complaints(func, BOARD.tvm, tmp_path) == []

    def without(source: str) -> str:
        assert "barrier(CLK_LOCAL_MEM_FENCE);" in source
        return source.replace("barrier(CLK_LOCAL_MEM_FENCE);", ";")

    assert "Read-write data race" in complaints(func, BOARD.tvm, tmp_path, without)


def test_stray_accesses_are_seen(tmp_path):
    func = scheduled("pointwise")
    name = f"{func.params[1].name}_ptr"

    def beyond(source: str) -> str:
        """The weights are read one element further on."""
        changed = re.sub(rf"\b{name}(?=\[| \+)", f"({name} + 1)", source)
        assert changed != source
        return changed

    assert complaints(func, BOARD.tvm, tmp_path, beyond) == ["Invalid read"]
