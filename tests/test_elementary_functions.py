"""Exponentials and their kin in arithmetic: near float64 for every kind of number, at every width, in every kernel."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import tvm
from compiling import compiled
from conftest import needs_emulator
from elftools.elf.elffile import ELFFile
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from tvmflow.bundles.build import build
from tvmflow.network.frontend import import_model, parse_input_shape
from tvmflow.passes.elementary_functions import LANES, with_arithmetic
from tvmflow.system.toolchain import tvm_target_dict
from tvmflow.targets import TARGETS

COUNT = 1 << 16
STEP = 4099
"""Every so many-th of all numbers is tried."""
LIBRARY_FUNCTIONS = {"expf", "expm1f", "tanhf", "erff", "logf", "log1pf"}


@dataclass(frozen=True, kw_only=True)
class Function:
    """How kernels have it, what is right in float64, and by how many units of the last place it may differ."""

    call: Callable[[Any], Any]
    exact: Callable[[np.ndarray], np.ndarray]
    ulps: float


def extern(name: str) -> Callable[[Any], Any]:
    return lambda x: tirx.call_pure_extern(str(x.ty.dtype), name, x)


FUNCTIONS = {
    "exp": Function(call=tirx.exp, exact=np.exp, ulps=1.1),
    "sigmoid": Function(call=tirx.sigmoid, exact=lambda x: 1 / (1 + np.exp(-x)), ulps=2.5),
    "tanh": Function(call=tirx.tanh, exact=np.tanh, ulps=2.7),
    "tanhf": Function(call=extern("tanhf"), exact=np.tanh, ulps=2.7),
    "erf": Function(call=tirx.erf, exact=np.vectorize(math.erf, otypes=[float]), ulps=6.5),
    "log": Function(call=tirx.log, exact=np.log, ulps=1.0),
    "expm1f": Function(call=extern("expm1f"), exact=np.expm1, ulps=1.6),
    "log1pf": Function(call=extern("log1pf"), exact=np.log1p, ulps=1.7),
}


def library(call: Callable[[Any], Any], lanes: int, dtype: str = "float32", count: int = COUNT) -> Any:
    """A kernel of one function over so many numbers, compiled for this computer."""
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("main")
        given, result = (T.arg(name, T.buffer((count,), dtype)) for name in ("given", "result"))
        with T.serial(0, count // lanes) as group, T.vectorized(0, lanes) as lane:
            T.buffer_store(result, call(given[group * lanes + lane]), [group * lanes + lane])
    func = with_arithmetic(builder.get()).with_attr("global_symbol", "main")
    return tvm.compile(tvm.IRModule({"main": func}), tvm.target.Target(tvm_target_dict(TARGETS["host"])))


def results(made: Any, numbers: np.ndarray) -> np.ndarray:
    result = tvm.runtime.tensor(np.zeros_like(numbers))
    made["main"](tvm.runtime.tensor(numbers), result)
    return result.numpy()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_kind_of_number(name):
    function = FUNCTIONS[name]
    numbers = np.arange(0, 1 << 32, STEP, dtype=np.uint64).astype(np.uint32).view(np.float32)
    numbers = np.resize(numbers, -(-len(numbers) // COUNT) * COUNT)
    made = library(function.call, 16)
    found = np.concatenate([results(made, part) for part in numbers.reshape(-1, COUNT)])
    with np.errstate(all="ignore"):
        exact = function.exact(numbers.astype(np.float64))
        rounded = exact.astype(np.float32)
    assert np.array_equal(np.isnan(found), np.isnan(exact))
    infinite = np.isinf(rounded)
    assert np.array_equal(found[infinite], rounded[infinite])
    finite = np.isfinite(rounded)
    last_place = np.spacing(np.maximum(np.abs(rounded[finite]), np.finfo(np.float32).tiny))
    assert (np.abs(found[finite] - exact[finite]) / last_place).max() <= function.ulps


@pytest.mark.parametrize(
    ("name", "number", "exact"),
    [
        *[("erf", -np.inf, -1), ("erf", 3.99, 1), ("erf", -30, -1), ("log1pf", -1, -np.inf), ("log1pf", -0.0, 0)],
        *[("exp", -np.inf, 0), ("sigmoid", -np.inf, 0), ("tanh", np.inf, 1), ("log", 0, -np.inf), ("expm1f", 0, 0)],
    ],
)
def test_ends_are_exact(name, number, exact):
    made = library(FUNCTIONS[name].call, 16, count=16)
    assert (results(made, np.full(16, number, np.float32)) == np.float32(exact)).all()


@pytest.mark.parametrize("name", ["tanh", "erf"])
def test_signs_of_zeros_stay(name):
    zeros = np.resize(np.array([0.0, -0.0], np.float32), 16)
    assert np.array_equal(np.signbit(results(library(FUNCTIONS[name].call, 16, count=16), zeros)), np.signbit(zeros))


@pytest.mark.parametrize("lanes", LANES)
def test_every_width_gives_the_same(lanes):
    numbers = np.resize(np.linspace(-30, 30, 1009, dtype=np.float32), lanes * 64)
    by_width, one_by_one = (results(library(tirx.exp, width, count=len(numbers)), numbers) for width in (lanes, 1))
    assert np.allclose(by_width, one_by_one, rtol=2e-7, atol=0)


def test_float16_is_computed_in_float32():
    numbers = np.linspace(-8, 8, COUNT, dtype=np.float16)
    found = results(library(tirx.sigmoid, 16, "float16"), numbers)
    exact = (1 / (1 + np.exp(-numbers.astype(np.float64)))).astype(np.float16)
    assert np.allclose(found, exact, rtol=1e-3, atol=0)


@pytest.mark.parametrize("board", ["host", "raspberry-pi-4b", "raspberry-pi-3b-32bit", "android-arm64"])
def test_no_kernel_calls_the_library(board, tmp_path):
    program = import_model("networks:activations", [parse_input_shape("1x8x6x6")])
    made = compiled(program, TARGETS[board], tmp_path)
    with made.library.open("rb") as file:
        section = ELFFile(file).get_section_by_name(".dynsym")
        called = {symbol.name.partition("@")[0] for symbol in section.iter_symbols()}
    assert not called & LIBRARY_FUNCTIONS
    assert not any(name.startswith("tvmflow.") for name in called)


@pytest.mark.parametrize("board", ["host", "raspberry-pi-4b", "raspberry-pi-3b-32bit"])
def test_boards_answer_as_pytorch(board, tmp_path):
    if board != "host":
        needs_emulator(TARGETS[board])
    program = import_model("networks:activations", [parse_input_shape("1x8x6x6")])
    assert build(program, TARGETS[board], tmp_path / "built").manifest["verify"]["passed"] is True
