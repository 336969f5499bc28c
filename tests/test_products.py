"""Matrix products: any shape that falls out, for this computer and for boards, and what isn't the rule's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from test_passes import RANDOM, Graph
from test_schedules import HOST, NARROW, check, compiled, plain, product
from tvm import relax

from tvmflow.passes.narrow_floats import IN_FLOAT32, narrow
from tvmflow.passes.relayout import Panels
from tvmflow.schedules.convolutions import loads
from tvmflow.schedules.cpu import products
from tvmflow.system.toolchain import tvm_target_dict
from tvmflow.targets import TARGETS

BATCHES = (((), ()), ((3,), (3,)), ((2, 3), ()), ((2, 1), (1, 3)), ((1,), (4,)), ((), (2,)))
"""Those of data and weight."""
TAILS = ("", "bias", "bias+gelu", "residual", "bias+residual+relu")


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    rows=st.integers(2, 70),
    inputs=st.integers(1, 200),
    outputs=st.integers(4, 130),
    batch=st.sampled_from(BATCHES),
    tail=st.sampled_from(TAILS),
    turned=st.booleans(),
    target=st.sampled_from((HOST, NARROW)),
)
def test_any_shape_is_right(rows, inputs, outputs, batch, tail, turned, target):
    data, weight = (*batch[0], rows, inputs), (*batch[1], inputs, outputs)
    kernel = product(data, weight, tail=tail, turned=turned and not batch[1])
    schedule = products.products(kernel.prim_func(target), target)
    assert schedule is not None
    check(compiled({"product": schedule.mod["main"]}), kernel, "product", target)


@pytest.mark.parametrize("board", [name for name, board in TARGETS.items() if board.kind in ("llvm", "arm_cpu")])
def test_each_board_compiles(board):
    target = TARGETS[board]
    kernels = (
        product((3, 65, 64), (3, 64, 65)),
        product((17, 40), (40, 64), tail="bias+gelu", panels=32),
        product((17, 40), (40, 65), tail="residual", turned=True),
    )
    funcs = {}
    for index, kernel in enumerate(kernels):
        schedule = products.products(kernel.prim_func(target), target)
        assert schedule is not None
        funcs[f"product_{index}"] = schedule.mod["main"].with_attr("global_symbol", f"product_{index}")
    assert tvm.compile(tvm.IRModule(funcs), target=tvm.target.Target(tvm_target_dict(target)))


def test_sums_stay_float32_in_float16():
    """As wide as its registers of float32 are, and narrow only where a kernel reads and writes."""
    target = replace(TARGETS["raspberry-pi-5"], arithmetic="float16")
    schedule = products.products(product((16, 64), (64, 64)).prim_func(target), target)
    assert "products" in IN_FLOAT32
    func = narrow(schedule.mod["main"], range(3), sums=False)
    assert {str(load.source.dtype) for load in loads(func.body)} == {"float16", "float32"}
    sums = {load.source for load in loads(func.body) if load.source not in set(func.params)}
    assert {str(buffer.dtype) for buffer in sums} == {"float32"}
    assert {int(buffer.shape[-1]) for buffer in sums} == {4}


@pytest.mark.parametrize(
    "kernel",
    [
        plain("of_one_row", relax.op.matmul, torch.matmul, (1, 64), (64, 32)),
        plain("few_outputs", relax.op.matmul, torch.matmul, (16, 64), (64, 3)),
        replace(plain("double", relax.op.matmul, torch.matmul, (16, 64), (64, 32)), dtype="float64"),
        plain("rows_of_their_own", relax.op.matmul, torch.matmul, (16, 1, 64), (16, 64, 32)),
        plain("matrix_by_vector", relax.op.matmul, torch.matmul, (16, 64), (64,)),
        plain("sum", lambda x: relax.op.sum(x, [1]), lambda x: x.sum(1), (16, 64, 32)),
    ],
    ids=lambda kernel: kernel.name,
)
def test_others_are_declined(kernel):
    assert products.products(kernel.prim_func(), HOST) is None
    assert products.tiles(kernel.prim_func(), HOST) == []


def test_constants_are_packed_once():
    """Two products of one weight read one array in panels; an odd width stays as it is."""
    graph = Graph(8, 64)
    weight, odd = (relax.const(RANDOM.standard_normal(shape).astype("float32") / 8) for shape in ((64, 64), (64, 37)))
    value = graph.input
    for _ in range(2):
        exact = graph.exact[value] @ torch.from_numpy(weight.value.numpy()).double()
        value = graph.emit("product", relax.op.matmul(value, weight), exact)
    exact = graph.exact[value] @ torch.from_numpy(odd.value.numpy()).double()
    program = graph.program(graph.emit("odd", relax.op.matmul(value, odd), exact))
    result = graph.check(program)
    assert [layer.schedule for layer in result.layers] == ["products"] * 3
    assert result.memory["weights_bytes"] == 4 * (64 * 64 + 64 * 37)


def test_panels_rearrange_a_matrix():
    array = np.arange(24).reshape(3, 8)
    packed = Panels(4).array(array)
    assert packed.shape == (2, 3, 4)
    for row, column in np.ndindex(3, 8):
        assert packed[Panels(4).place(row, column)] == array[row, column]
