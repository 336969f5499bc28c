"""CUDA's rules against PyTorch, on the stand-in: odd sizes, dilations, strides, channels that fill no tile."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import tvm
from cuda_kernels import Case, joined, run
from torch.nn import functional
from tvm import relax

import tvmflow.schedules.cuda
from tvmflow.schedules.cuda import RULES
from tvmflow.schedules.cuda._grid import tvm_target_of
from tvmflow.schedules.cuda._owners import owned
from tvmflow.schedules.cuda.dlight import one_thread
from tvmflow.spec import MissingDependencyError
from tvmflow.targets import TARGETS
from tvmflow.targets.cuda import standin
from tvmflow.targets.cuda.passes.bind_threads import launches

BOARD = TARGETS["jetson-orin-nano"]
TILES = 1
"""Of each kernel, beside the rule's own choice."""


def convolution(rule, name, n, c, f, size, kernel=(3, 3), stride=(1, 1), dilation=(1, 1), pad=(0, 0), groups=1) -> Case:
    """ReLU of a convolution with bias; depthwise if `f` is None."""
    groups = c if f is None else groups
    f = f or c

    def emit(builder, data, weight, bias):
        options = {"strides": stride, "padding": (*pad, *pad), "dilation": dilation, "groups": groups}
        total = builder.emit(relax.op.nn.conv2d(data, weight, **options))
        return relax.op.nn.relu(builder.emit(relax.op.add(total, bias)))

    def oracle(data, weight, bias):
        return functional.conv2d(data, weight, None, stride, pad, dilation, groups).add(bias).relu()

    shapes = ((n, c, *size), (f, c // groups, *kernel), (1, f, 1, 1))
    return Case(rule=rule, name=name, shapes=shapes, emit=emit, oracle=oracle)


def along(name, n, c, f, length, kernel, groups) -> Case:
    """A convolution of one dimension in groups, with bias."""

    def emit(builder, data, weight, bias):
        total = builder.emit(relax.op.nn.conv1d(data, weight, padding=(1, 1), groups=groups))
        return relax.op.add(total, bias)

    return Case(
        rule="direct",
        name=name,
        shapes=((n, c, length), (f, c // groups, kernel), (1, f, 1)),
        emit=emit,
        oracle=lambda data, weight, bias: functional.conv1d(data, weight, None, 1, 1, 1, groups) + bias,
    )


def pair(rule, name, n, c, f, size, first, second) -> Case:
    """A depthwise convolution, ReLU, and a second convolution with bias; each of (kernel, stride, dilation, pad)."""
    groups = c if f is None else 1
    f = f or c

    def emit(builder, data, before, after, bias):
        for weight, (_, stride, dilation, pad), group in ((before, first, c), (after, second, groups)):
            options = {"strides": stride, "padding": (*pad, *pad), "dilation": dilation, "groups": group}
            data = builder.emit(relax.op.nn.conv2d(data, weight, **options))
            if weight is before:
                data = builder.emit(relax.op.nn.relu(data))
        return relax.op.add(data, bias)

    def oracle(data, before, after, bias):
        between = functional.conv2d(data, before, None, first[1], first[3], first[2], c).relu()
        return functional.conv2d(between, after, None, second[1], second[3], second[2], groups) + bias

    shapes = ((n, c, *size), (c, 1, *first[0]), (f, c // groups, *second[0]), (1, f, 1, 1))
    return Case(rule=rule, name=name, shapes=shapes, emit=emit, oracle=oracle)


def product(rule, name, rows, inputs, outputs) -> Case:
    """ReLU of a fully connected layer, weights by inputs."""

    def emit(builder, data, weight, bias):
        total = builder.emit(relax.op.matmul(data, weight))
        return relax.op.nn.relu(builder.emit(relax.op.add(total, bias)))

    return Case(
        rule=rule,
        name=name,
        shapes=((rows, inputs), (inputs, outputs), (outputs,)),
        emit=emit,
        oracle=lambda data, weight, bias: (data @ weight + bias).relu(),
    )


def pooled(name, rows, inputs, size, outputs) -> Case:
    """A fully connected layer with bias of the averages of maps."""

    def emit(builder, data, weight, bias):
        average = builder.emit(relax.op.mean(data, axis=[2, 3]))
        return relax.op.add(builder.emit(relax.op.matmul(average, weight)), bias)

    return Case(
        rule="pool_dense",
        name=name,
        shapes=((rows, inputs, *size), (inputs, outputs), (outputs,)),
        emit=emit,
        oracle=lambda data, weight, bias: data.mean((2, 3)) @ weight + bias,
    )


DEPTHWISE = {
    "plain": {"n": 1, "c": 3, "size": (8, 8), "pad": (1, 1)},
    "dilation 5, odd": {"n": 1, "c": 5, "size": (9, 7), "dilation": (5, 5), "pad": (5, 5)},
    "dilation 5, two images": {"n": 2, "c": 3, "size": (16, 16), "dilation": (5, 5), "pad": (5, 5)},
    "stride 2": {"n": 1, "c": 6, "size": (12, 16), "stride": (2, 2), "pad": (1, 1)},
    "dilation 5, stride 2": {"n": 1, "c": 4, "size": (13, 16), "stride": (2, 2), "dilation": (5, 5), "pad": (5, 5)},
    "dead taps": {"n": 1, "c": 7, "size": (4, 4), "dilation": (5, 5), "pad": (5, 5)},
    "unequal": {"n": 1, "c": 2, "size": (17, 12), "stride": (1, 2), "dilation": (2, 3), "pad": (2, 3)},
    "5×3 without border": {"n": 1, "c": 3, "size": (10, 11), "kernel": (5, 3), "stride": (2, 1), "dilation": (2, 2)},
    "dilation 4, stride 2": {"n": 1, "c": 2, "size": (20, 20), "stride": (2, 2), "dilation": (4, 4), "pad": (4, 4)},
}
GROUPED = {
    "groups of 1×1": {"n": 1, "c": 8, "f": 8, "size": (9, 9), "kernel": (1, 1), "groups": 2},
    "groups without border": {"n": 1, "c": 8, "f": 8, "size": (9, 9), "groups": 4},
    "more out than in": {"n": 2, "c": 6, "f": 9, "size": (7, 5), "pad": (1, 1), "groups": 3},
    "several filters each": {"n": 1, "c": 5, "f": 15, "size": (9, 8), "stride": (2, 1), "pad": (1, 1), "groups": 5},
    "unequal in groups": {"n": 1, "c": 4, "f": 6, "size": (11, 13), "kernel": (5, 3), "stride": (3, 2),
                          "dilation": (1, 2), "pad": (4, 1), "groups": 2},
    "groups of one pixel": {"n": 1, "c": 8, "f": 4, "size": (1, 1), "pad": (1, 1), "groups": 4},
}  # fmt: skip
DILATED, NEXT, ONE = (
    ((3, 3), (1, 1), (5, 5), (5, 5)),
    ((3, 3), (2, 2), (1, 1), (1, 1)),
    ((1, 1), (1, 1), (1, 1), (0, 0)),
)

CASES = [
    *(convolution(rule, name, f=None, **options)
      for rule in ("depthwise_direct", "depthwise_staged") for name, options in DEPTHWISE.items()),
    pair("depthwise_pair", "dilated, then stride 2", 1, 5, None, (9, 8), DILATED, NEXT),
    pair("depthwise_pair", "two images", 2, 3, None, (16, 12), DILATED, ((3, 3), (1, 1), (1, 1), (1, 1))),
    pair("depthwise_pair", "unequal", 1, 2, None, (11, 13),
         ((3, 3), (2, 1), (2, 3), (2, 3)), ((5, 3), (1, 2), (1, 1), (2, 1))),
    pair("depthwise_pointwise", "dilated", 1, 16, 24, (8, 8), DILATED, ONE),
    pair("depthwise_pointwise", "odd", 1, 7, 33, (9, 5), NEXT, ONE),
    convolution("pointwise", "whole tiles", 1, 64, 32, (4, 4), (1, 1)),
    convolution("pointwise", "odd", 2, 33, 40, (7, 7), (1, 1)),
    convolution("pointwise", "little", 1, 5, 7, (3, 5), (1, 1)),
    convolution("pointwise", "stride 2", 1, 36, 70, (9, 6), (1, 1), (2, 2)),
    convolution("convolution", "stem", 1, 3, 8, (9, 10), stride=(2, 2), pad=(1, 1)),
    convolution("convolution", "dead taps", 2, 5, 6, (4, 6), dilation=(5, 5), pad=(5, 5)),
    convolution("convolution", "unequal", 1, 4, 5, (11, 6), (5, 3), (1, 2), (1, 2), (2, 2)),
    product("dense", "classifier", 1, 100, 10),
    product("dense", "two rows", 2, 64, 33),
    pooled("classifier", 1, 100, (4, 4), 10),
    pooled("odd, two images", 2, 33, (3, 5), 17),
    product("matmul", "many rows", 17, 36, 30),
    *(convolution("direct", name, **options) for name, options in GROUPED.items()),
    convolution("direct", "7×7", 1, 24, None, (9, 10), (7, 7), pad=(3, 3)),
    along("in groups", 2, 6, 9, 17, 3, 3),
    along("one to a group", 1, 8, 8, 31, 4, 8),
    convolution("dlight", "groups of 1×1", 1, 8, 8, (9, 9), (1, 1), groups=2),
    convolution("dlight", "groups without border", 1, 8, 8, (9, 9), groups=2),
    product("dlight", "many rows", 3, 12, 10),
]  # fmt: skip


@pytest.fixture(scope="module")
def kernels():
    """(case, tile, scheduled kernel) for each case, a few tiles of each."""
    found = []
    for place, case in enumerate(CASES):
        func = case.prim_func()
        tiles = import_module(f"tvmflow.schedules.cuda.{case.rule}").tiles(func, BOARD)
        assert tiles or case.rule == "dlight", case
        step = max(1, len(tiles) // TILES)
        for tile in (None, *tiles[place % step :: step][:TILES]):
            schedule = RULES[case.rule](func, BOARD, tile)
            assert schedule is not None, (case.rule, case.name, tile)
            found.append((case, tile, schedule.mod["main"]))
    return found


def test_they_compute_what_torch_does(kernels):
    """In two orders of the threads, since a race shows in some orders only."""
    module = {f"k{place}": func.with_attr("global_symbol", f"k{place}") for place, (_, _, func) in enumerate(kernels)}
    jobs, wanted = [], []
    for place, (case, _, _) in enumerate(kernels):
        arrays = case.arrays()
        wanted.append(case.wanted(arrays))
        jobs.append((f"k{place}", arrays, wanted[-1].shape))
    target = {**BOARD.tvm, "host": {"kind": "llvm"}}
    orders = ("forward", "shuffled")
    results = standin.call(run, tvm.ir.save_json(tvm.IRModule(module)), target, jobs, orders)
    for order, found in zip(orders, results, strict=True):
        for (case, tile, _), got, expected in zip(kernels, found, wanted, strict=True):
            error = np.abs(got - expected).max() / np.abs(expected).max()
            assert error < 2e-6, (order, case.rule, case.name, tile, error)


def test_none_reaches_outside_its_tensors(kernels):
    """AddressSanitizer watches one of each rule."""
    try:
        standin.sanitizer_libraries()
    except MissingDependencyError as error:
        pytest.skip(str(error))
    chosen = {case.rule: (case, func) for case, tile, func in kernels if tile is None}
    module = tvm.IRModule({rule: func.with_attr("global_symbol", rule) for rule, (_, func) in chosen.items()})
    jobs = [(rule, arrays := case.arrays(), case.wanted(arrays).shape) for rule, (case, _) in chosen.items()]
    target = {**BOARD.tvm, "host": {"kind": "llvm"}}
    (results,) = standin.call(run, tvm.ir.save_json(module), target, jobs, sanitized=True)
    assert all(np.isfinite(found).all() for found in results)


def test_each_is_one_launch_within_the_gpus_limits(kernels):
    for case, tile, func in kernels:
        if case.rule != "dlight":
            (axes,) = launches(func)
            assert set(axes) == {"blockIdx.x", "threadIdx.x"}
            assert 1 <= axes["threadIdx.x"] <= BOARD.facts.threads_per_block, (case.name, tile)


def test_every_kernel_gets_threads():
    """Whatever a rule declines, and whatever TVM's own rules do."""
    reshaped = joined([(2, 3, 4)], lambda builder, data: relax.op.permute_dims(data, [2, 0, 1]))
    summed = joined([(5, 7)], lambda builder, data: relax.op.sum(data, axis=[1]))
    sliced = joined([(6, 5)], lambda builder, data: relax.op.strided_slice(data, [0], [1], [6], [2]))
    pooled_ = joined([(1, 3, 7, 11)], lambda builder, data: relax.op.nn.adaptive_avg_pool2d(data, (3, 5)))
    for func in (reshaped, summed, sliced, pooled_):
        scheduled = next(filter(None, (RULES[name](func, BOARD) for name in BOARD.schedules)))
        assert all(launches(scheduled.mod["main"]))
        assert all(launches(one_thread(func).mod["main"]))


def test_what_is_declined():
    """Other dtypes, and convolutions in groups by the rules of whole ones."""
    half = joined(
        [(1, 4, 8, 8), (4, 4, 1, 1)], lambda builder, data, weight: relax.op.nn.conv2d(data, weight), "float16"
    )
    grouped = joined(
        [(1, 4, 8, 8), (4, 2, 3, 3)], lambda builder, data, weight: relax.op.nn.conv2d(data, weight, groups=2)
    )
    for func in (half, grouped):
        assert all(RULES[rule](func, BOARD) is None for rule in RULES.keys() - {"direct", "dlight"})


def test_a_normalisation_is_no_pooling():
    """It begins with the averages of rows, and then reads the rows again."""
    normalised = joined(
        [(1, 5, 8), (8,), (8,)],
        lambda builder, data, scale, shift: relax.op.nn.layer_norm(data, scale, shift, axes=[-1]),
    )
    assert RULES["pool_dense"](normalised, BOARD) is None


def test_a_thread_reads_only_what_is_its_own():
    """TVM's own rule gives a thread of a convolution in groups the sums of another."""
    func = next(case for case in CASES if case.rule == "dlight" and case.name == "groups of 1×1").prim_func()
    described = tvm_target_of(BOARD)
    with described:
        found = tvm.s_tir.dlight.gpu.Reduction().apply(func, described, False)
    assert found is not None
    assert not owned(found.mod["main"])
    assert owned(RULES["dlight"](func, BOARD).mod["main"])


def test_registry_knows_every_file():
    files = {path.stem for path in Path(tvmflow.schedules.cuda.__file__).parent.glob("[!_]*.py")}
    assert files == set(RULES)
