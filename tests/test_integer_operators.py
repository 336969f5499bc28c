"""Which operators each kind of target computes in int8: what the documentation says is what builds do."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from conftest import ROOT
from integer_graphs import Drawn
from test_docs import generate

from tvmflow.integer.frontend import integer_program
from tvmflow.integer.network import IntegerNetwork, Port
from tvmflow.integer.operators import (
    OPERATORS,
    ArgMax,
    AveragePool,
    Concat,
    Function,
    Gather,
    LogSoftmax,
    MatMul,
    MaxPool,
    Normalise,
    Probabilities,
    Product,
    Resample,
    Softmax,
    Sum,
)
from tvmflow.integer.tflite.fixed_point import exponentials
from tvmflow.integer.window import Window
from tvmflow.pipeline import run_stages
from tvmflow.schedules.nodes import VALUES
from tvmflow.spec import Program
from tvmflow.system import toolchain
from tvmflow.targets import DEFAULT_BOARD, TARGETS, compute_in
from tvmflow.targets.about import KINDS
from tvmflow.targets.kind import of

SIZE = (4, 4)
WHOLE = np.arange(16 * 16, dtype=np.int32).reshape(1, 16, *SIZE)
ROWS = (np.arange(4, dtype=np.int32)[:, None], np.ones((4, 1)))
NODES = {
    "add": (Sum(signs=(1, 1)), 2, {"factors": np.array([1, 1], np.int32), "shift": 1}),
    "multiply": (Product(), 2, {"factors": np.array([1], np.int32), "shift": 7}),
    "max_pool": (
        MaxPool(window=Window(kernel=(2, 2), stride=(2, 2), padding=(0,) * 4, dilation=(1, 1), size=SIZE)),
        1,
        {},
    ),
    "average_pool": (
        AveragePool(window=Window(kernel=(3, 3), stride=(1, 1), padding=(1,) * 4, dilation=(1, 1), size=SIZE)),
        1,
        {},
    ),
    "concat": (Concat(axis=1), 2, {}),
    "gather": (Gather(places=np.ascontiguousarray(WHOLE[:, :, ::-1])), 1, {}),
    "resample": (Resample(rows=ROWS, columns=ROWS), 1, {"shift": 2 * Resample(rows=ROWS, columns=ROWS).bits}),
    "table": (Function(), 1, {"table": np.arange(256).astype(np.int8).astype(np.int32)}),
    "log_softmax": (
        LogSoftmax(axis=1),
        1,
        {
            "table": np.concatenate([(1 << 12) >> np.arange(256).clip(0, 20), 4096 + 256 * np.arange(255)]).astype(
                np.int32
            ),
            "factors": np.array([3, 1], np.int32),
            "shift": 2,
        },
    ),
    "normalise": (
        Normalise(lengths=(16, 1, 1)),
        1,
        {"table": np.full((2, 16), 4096, np.int32), "factors": np.array([1, 0], np.int32), "shift": 7},
    ),
    "matmul": (MatMul(), 2, {"factors": np.array([3], np.int32), "shift": 9}),
    "softmax": (
        Softmax(axis=1),
        1,
        {"dtype": "uint8", "table": (1 << 12) >> np.arange(256, dtype=np.int32).clip(0, 20)},
    ),
    "probabilities": (Probabilities(axis=1), 1, {"table": exponentials(0.1)}),
    "argmax": (ArgMax(axis=1), 1, {"dtype": "uint8"}),
}


def program_of(name: str) -> Program:
    """A network of nothing but the operator."""
    operator, count, fields = NODES[name]
    rng = np.random.default_rng(4)
    ports = [Port(name=f"in{number}", shape=(1, 16, *SIZE), scale=1.0) for number in range(count)]
    values = {port.name: rng.integers(-128, 128, port.shape).astype(np.int8) for port in ports}
    drawn = Drawn(rng=rng, scheme="power-of-two", prefix="n", inputs=ports, layers=[], values=values)
    drawn.node(operator, tuple(values), **fields)
    (layer,) = drawn.layers
    out = Port(name="out", shape=layer.output_shape, scale=layer.scale, source=layer.name)
    network = IntegerNetwork(
        name=name, scheme="power-of-two", inputs=tuple(ports), outputs=(out,), layers=tuple(drawn.layers)
    )
    return integer_program(network)


def test_the_documentation_has_the_table_of_the_code():
    page = (ROOT / "docs" / "int8.md").read_text(encoding="utf-8")
    assert generate.integer_operators() in page, "docs/generate.py: integer_operators() makes the table of docs/int8.md"
    assert "docs/int8.md#operators" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_operator_has_loops():
    assert set(VALUES) == set(OPERATORS.values())
    assert set(NODES) == set(OPERATORS)


@pytest.mark.parametrize("name", NODES)
def test_no_kind_refuses_an_operator(name):
    program = program_of(name)
    for board in DEFAULT_BOARD.values():
        target = compute_in(TARGETS[board], "int8")
        of(target).check_network(program, target)


@pytest.mark.parametrize("kind", ["llvm", "vta", "cortex_m"])
def test_what_is_compiled_is_what_the_table_says(kind):
    """By the stages of the kind; those of GPUs have the loops of CPUs' operators."""
    target = compute_in(TARGETS[DEFAULT_BOARD[kind]], "int8")
    on_the_processor = set()
    for name in NODES:
        with tvm.target.Target(toolchain.tvm_target_dict(target) if kind != "vta" else "llvm"):
            (layer,) = run_stages(program_of(name), target).layers
        if layer.schedule == "processor":
            on_the_processor.add(name)
    assert on_the_processor == set(KINDS[kind].on_the_processor)
