"""Graph passes: small networks against float64 PyTorch, what each pass may touch, and whose work a kernel does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
import tvm
from imported import registered
from torch import nn
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R

from tvmflow.models import MODELS
from tvmflow.network.frontend import import_model, parse_input_shape
from tvmflow.passes.constants import fold_views
from tvmflow.passes.fold_batchnorm import fold_batchnorm
from tvmflow.passes.fold_scales import fold_scales
from tvmflow.passes.fuse_operators import fuse_operators, kernel_calls
from tvmflow.passes.schedule_kernels import schedule_kernels
from tvmflow.pipeline import run_stages
from tvmflow.spec import Program
from tvmflow.system.toolchain import tvm_target_dict
from tvmflow.targets import TARGETS
from tvmflow.targets.cpu.passes.block_channels import block_channels
from tvmflow.targets.cpu.passes.fuse_depthwise import fuse_depthwise

HOST = replace(TARGETS["host"], cpu=replace(TARGETS["host"].cpu, cores=4))
NARROW = replace(HOST, tvm={**HOST.tvm, "mcpu": "x86-64"})
RANDOM = np.random.default_rng(0)


class Graph:
    """A network under construction, in Relax and in PyTorch at once: `graph.conv(x, …)` gives the next value."""

    def __init__(self, *shape: int) -> None:
        self.builder = relax.BlockBuilder()
        self.input = relax.Var("x", relax.TensorType(shape, "float32"))
        self.array = RANDOM.standard_normal(shape).astype("float32")
        self.exact = {self.input: torch.from_numpy(self.array).double()}
        self.scopes = [self.builder.function("main", [self.input]), self.builder.dataflow()]
        for scope in self.scopes:
            scope.__enter__()

    def emit(self, name: str, value: relax.Expr, exact: torch.Tensor) -> relax.Var:
        if name in {var.name for var in self.exact}:
            name = f"{name}{len(self.exact)}"  # as the importer, which names nothing twice
        var = self.builder.emit(value, name)
        self.exact[var] = exact
        return var

    def conv(self, x: relax.Var, name: str, channels: int, taps: Sequence[int] = (1, 1), **options) -> relax.Var:
        groups = options.get("groups", 1)
        shape = (channels, self.exact[x].shape[1] // groups, *taps)
        weight = options.pop("weight", RANDOM.standard_normal(shape)).astype("float32")
        exact = nn.functional.conv2d(self.exact[x], torch.from_numpy(weight).double(), **options)
        arguments = {key: list(value) if isinstance(value, tuple) else value for key, value in options.items()}
        if "stride" in arguments:
            arguments["strides"] = arguments.pop("stride")
        return self.emit(name, relax.op.nn.conv2d(x, relax.const(weight), **arguments), exact)

    def depthwise(self, x: relax.Var, name: str, taps: Sequence[int] = (3, 3), **options) -> relax.Var:
        channels = self.exact[x].shape[1]
        return self.conv(x, name, channels, taps, groups=channels, **options)

    def relu(self, x: relax.Var) -> relax.Var:
        bias = RANDOM.standard_normal((1, self.exact[x].shape[1], 1, 1)).astype("float32")
        shifted = self.exact[x] + torch.from_numpy(bias)
        x = self.emit("shifted", relax.op.add(x, relax.const(bias)), shifted)
        return self.emit("relu", relax.op.nn.relu(x), shifted.relu())

    def add(self, x: relax.Var, y: relax.Var) -> relax.Var:
        return self.emit("sum", relax.op.add(x, y), self.exact[x] + self.exact[y])

    def max_pool(self, x: relax.Var, size: int, **options) -> relax.Var:
        exact = nn.functional.max_pool2d(self.exact[x], size, **options)
        steps = {"strides": options.get("stride", size), "padding": options.get("padding", 0)}
        return self.emit("max_pool", relax.op.nn.max_pool2d(x, size, **steps), exact)

    def concat(self, *parts: relax.Var) -> relax.Var:
        return self.emit("concat", relax.op.concat(parts, 1), torch.cat([self.exact[part] for part in parts], 1))

    def pool(self, x: relax.Var) -> relax.Var:
        return self.emit("pool", relax.op.mean(x, [2, 3], keepdims=True), self.exact[x].mean((2, 3), keepdim=True))

    def program(self, *results: relax.Var) -> Program:
        value = results[0] if len(results) == 1 else relax.Tuple(results)
        output = self.builder.emit_output(value)
        self.scopes[1].__exit__(None, None, None)
        self.builder.emit_func_output(output)
        self.scopes[0].__exit__(None, None, None)
        self.results = results
        return Program(
            name="graph", source="", module=self.builder.get(), inputs=(), outputs=(), vectors=(), parameters=0
        )

    def check(self, program: Program, target=HOST, tolerance: float = 3e-5) -> Program:
        """Compile and compare. Returns the program as it was before memory was planned."""
        compiled = run_stages(program, target)
        library = tvm.relax.build(compiled.module, tvm.target.Target(tvm_target_dict(target)), relax_pipeline=None)
        given = relax.VirtualMachine(library, tvm.cpu())["main"](tvm.runtime.tensor(self.array))
        outputs = [given] if isinstance(given, tvm.runtime.Tensor) else list(given)
        for var, output in zip(self.results, outputs, strict=True):
            exact = self.exact[var].numpy()
            assert np.abs(output.numpy() - exact).max() <= tolerance * max(1, np.abs(exact).max())
        return compiled


def scheduled(program: Program, target=HOST) -> Program:
    for stage in (fold_batchnorm, fold_scales, fuse_operators, block_channels, fuse_depthwise, schedule_kernels):
        program = stage(program, target)
    return program


def rules(program: Program) -> list[str]:
    return [layer.schedule for layer in scheduled(program).layers]


def joint(graph: Graph, x: relax.Var, number: int, width: int, stride: int, dilation: tuple[int, int]) -> relax.Var:
    x = graph.depthwise(x, f"dilated{number}", padding=dilation, dilation=dilation)
    x = graph.depthwise(x, f"plain{number}", padding=(1, 1), stride=(stride, stride))
    return graph.relu(graph.conv(x, f"pointwise{number}", width))


@pytest.mark.parametrize("target", [HOST, NARROW], ids=["host", "narrow"])
@pytest.mark.parametrize(
    ("shape", "dilation", "stride"),
    [
        ((1, 3, 16, 16), (5, 5), 2),
        ((2, 3, 9, 7), (3, 2), 1),
        ((1, 16, 8, 8), (5, 3), 2),
        ((3, 32, 5, 11), (1, 7), 1),
        ((1, 5, 4, 4), (5, 5), 1),
    ],
)
def test_joint_modules(shape, dilation, stride, target):
    graph = Graph(*shape)
    x = joint(graph, graph.input, 0, 32, 1, dilation)
    x = joint(graph, x, 1, 64, stride, dilation)
    x = joint(graph, x, 2, 48, 1, dilation)
    program = graph.program(graph.pool(x))
    compiled = graph.check(program, target)
    plain = fuse_operators(fold_batchnorm(program, target), target)
    assert sum(layer.macs for layer in compiled.layers) == sum(layer.macs for layer in plain.layers)
    named = sorted(name for layer in compiled.layers for name in layer.modules)
    assert named == sorted(name for layer in plain.layers for name in layer.modules)


@pytest.mark.parametrize("target", [HOST, NARROW], ids=["host", "narrow"])
def test_residual_blocks_stay_in_blocks(target):
    graph = Graph(1, 3, 14, 14)
    x = graph.relu(graph.conv(graph.input, "stem", 16, (3, 3), stride=(2, 2), padding=(1, 1)))
    for number in range(2):
        y = graph.relu(graph.conv(x, f"expand{number}", 96))
        y = graph.relu(graph.depthwise(y, f"depthwise{number}", padding=(1, 1)))
        x = graph.add(graph.conv(y, f"project{number}", 16), x)
    program = graph.program(x, graph.pool(graph.relu(graph.conv(x, "head", 64))))
    graph.check(program, target)


def test_outputs_and_other_readers_stay_plain():
    graph = Graph(1, 16, 8, 8)
    x = graph.relu(graph.conv(graph.input, "first", 32))
    y = graph.relu(graph.conv(x, "second", 32))
    z = graph.relu(graph.conv(y, "third", 32, (3, 3), padding=(1, 1)))
    program = graph.program(x, z)
    graph.check(program)
    assert layouts(program) == [4, 5, 4]


def layouts(program: Program, target=HOST) -> list[int]:
    """The rank of each kernel's result, which is 5 if its channels are in blocks."""
    return [binding.var.ty.ndim for binding in kernel_calls(scheduled(program, target).module)]


def plain_convolutions(graph: Graph, x: relax.Var) -> relax.Var:
    """Full convolutions with all that may stand between them."""
    x = graph.relu(graph.conv(x, "stem", 16, (3, 3), padding=(1, 1), stride=(2, 2)))
    x = graph.max_pool(x, 3, stride=2, padding=1)
    left = graph.relu(graph.conv(x, "left", 32))
    right = graph.relu(graph.conv(x, "right", 48, (3, 3), padding=(2, 1), dilation=(2, 1)))
    x = graph.max_pool(graph.concat(left, right), 2)
    x = graph.add(graph.relu(graph.conv(x, "around", 80, (5, 5), padding=(2, 2))), x)
    x = graph.relu(graph.conv(x, "smaller", 32, stride=(2, 2)))
    return graph.relu(graph.conv(x, "classes", 10))


@pytest.mark.parametrize("target", [HOST, NARROW], ids=["host", "narrow"])
@pytest.mark.parametrize("shape", [(1, 3, 40, 40), (2, 3, 33, 51)])
def test_full_convolutions_and_what_lies_between_stay_in_blocks(shape, target):
    graph = Graph(*shape)
    x = plain_convolutions(graph, graph.input)
    program = graph.program(graph.pool(x))
    compiled = graph.check(program, target)
    assert layouts(program, target) == [5, 5, 5, 5, 5, 5, 5, 5, 4, 4]
    assert [layer.schedule for layer in compiled.layers][:9] == [
        "conv_blocked",
        "lanes",
        "pointwise_blocked",
        "conv_blocked",
        "concat_blocked",
        "lanes",
        "conv_blocked",
        "conv_blocked",
        "conv_blocked",
    ]


@pytest.mark.parametrize("channels", [18, 10, 37])
def test_channels_that_fill_no_blocks_stay_plain(channels):
    graph = Graph(1, 3, 12, 10)
    x = graph.relu(graph.conv(graph.input, "first", 16, (3, 3), padding=(1, 1)))
    x = graph.relu(graph.conv(x, "second", channels, (3, 3), padding=(1, 1)))
    x = graph.concat(x, graph.relu(graph.conv(x, "third", channels)))
    x = graph.max_pool(graph.relu(graph.conv(x, "fourth", 32, (3, 3))), 2)
    program = graph.program(x)
    graph.check(program)
    assert layouts(program)[1] == 4


def test_readers_that_know_no_blocks_keep_tensors_plain():
    graph = Graph(1, 16, 8, 8)
    x = graph.relu(graph.conv(graph.input, "first", 32, (3, 3), padding=(1, 1)))
    turned = graph.emit("turned", relax.op.permute_dims(x, [0, 1, 3, 2]), graph.exact[x].transpose(2, 3))
    y = graph.conv(x, "second", 32, (3, 3), padding=(1, 1))
    program = graph.program(graph.concat(turned, y))
    graph.check(program)
    assert set(layouts(program)) == {4}


@pytest.mark.parametrize("target", [HOST, NARROW], ids=["host", "narrow"])
@pytest.mark.parametrize("axes", [(2, 3), (1,)], ids=["channels", "pixels"])
def test_maps_that_factors_scale_stay_in_blocks(axes, target):
    graph = Graph(1, 3, 12, 10)
    x = graph.relu(graph.conv(graph.input, "first", 32, (3, 3), padding=(1, 1)))
    most = relax.op.max(x, list(axes), keepdims=True)
    factors = graph.emit("factors", most, graph.exact[x].amax(axes, keepdim=True))
    scaled = graph.emit("scaled", relax.op.multiply(x, factors), graph.exact[x] * graph.exact[factors])
    program = graph.program(graph.pool(graph.relu(graph.conv(scaled, "last", 32))))
    graph.check(program, target)
    blocked = [5, 4, 5, 5, 4] if axes == (2, 3) else [4, 4, 4, 5, 4]
    assert layouts(program, target) == blocked


def test_a_border_around_one_pixel_stays_plain():
    graph = Graph(1, 3, 8, 1)
    x = graph.relu(graph.conv(graph.input, "first", 32))
    x = graph.depthwise(x, "column", padding=(1, 1))
    x = graph.pool(graph.relu(graph.conv(x, "second", 32)))
    graph.check(graph.program(x))


def test_two_readers_of_a_depthwise_layer_keep_it():
    graph = Graph(1, 16, 8, 8)
    x = graph.relu(graph.conv(graph.input, "first", 32))
    x = graph.depthwise(x, "shared", padding=(2, 2), dilation=(2, 2))
    left = graph.depthwise(x, "left", padding=(1, 1))
    right = graph.relu(graph.conv(x, "right", 32))
    y = graph.relu(graph.conv(left, "after", 32))
    compiled = graph.check(graph.program(graph.pool(y), graph.pool(right)))
    assert not any("shared" in layer.modules and len(layer.modules) > 1 for layer in compiled.layers)


@pytest.mark.parametrize("groups", [1, 2, 8], ids=["all", "grouped", "depthwise"])
def test_scales_are_folded_into_any_convolution(groups):
    graph = Graph(1, 8, 4, 4)
    x = graph.depthwise(graph.input, "first", padding=(5, 5), dilation=(5, 5))
    x = graph.depthwise(x, "second", padding=(4, 6), dilation=(4, 6))
    x = graph.conv(x, "reader", 16, (3, 3), padding=(1, 1), groups=groups)
    program = graph.program(graph.relu(x))
    assert fold_scales(program, HOST).folded == {"reader": {"first": 9 * 128, "second": 9 * 128}}
    compiled = graph.check(program)
    assert compiled.layers[0].modules[:3] == ("first", "second", "reader")
    assert compiled.layers[0].macs == 2 * 9 * 128 + 9 * 8 // groups * 16 * 16


@pytest.mark.parametrize(
    "options",
    [
        {"padding": (3, 3), "dilation": (3, 3)},  # more than one tap is left
        {"padding": (5, 5), "dilation": (5, 5), "weight": np.full((8, 1, 3, 3), np.inf)},
        {"padding": (5, 5), "dilation": (5, 5), "weight": np.full((8, 1, 3, 3), 1e38)},  # overflows with the reader's
        {"padding": (5, 5), "dilation": (5, 5), "weight": np.full((8, 1, 3, 3), 1e-38)},
    ],
    ids=["alive", "infinite", "overflow", "underflow"],
)
def test_scales_that_are_none_or_not_exact_are_kept(options):
    graph = Graph(1, 8, 4, 4)
    x = graph.depthwise(graph.input, "first", **options)
    program = graph.program(graph.conv(x, "reader", 8, weight=RANDOM.standard_normal((8, 8, 1, 1)) * 11))
    assert not fold_scales(program, HOST).folded


def test_scales_with_other_readers_are_kept():
    graph = Graph(1, 8, 4, 4)
    x = graph.depthwise(graph.input, "first", padding=(5, 5), dilation=(5, 5))
    y = graph.conv(x, "reader", 8)
    program = graph.program(graph.add(x, y))
    assert not fold_scales(program, HOST).folded
    graph.check(program)


def test_a_scale_read_by_two_convolutions_is_folded_into_both():
    graph = Graph(1, 8, 4, 4)
    x = graph.depthwise(graph.input, "first", padding=(5, 5), dilation=(5, 5))
    y = graph.add(graph.conv(x, "left", 8), graph.conv(x, "right", 8))
    program = graph.program(graph.relu(y))
    assert fold_scales(program, HOST).folded == {"left": {"first": 9 * 128}}
    graph.check(program)


def test_fold_scales_before_and_after():
    centre = np.arange(1, 3, dtype="float32")
    dilated = np.full((2, 1, 3, 3), 7, "float32")
    dilated[:, 0, 1, 1] = centre
    plain = np.ones((2, 1, 1, 1), "float32")

    @I.ir_module
    class Before:
        @R.function
        def main(
            x: R.Tensor((1, 2, 4, 4), "float32"),
            w: R.Tensor((2, 1, 3, 3), "float32"),
            v: R.Tensor((2, 1, 1, 1), "float32"),
        ):
            with R.dataflow():
                dilated = R.nn.conv2d(x, w, padding=[4, 4], dilation=[4, 4], groups=2)
                gv = R.nn.conv2d(dilated, v, groups=2)
                R.output(gv)
            return gv

    @I.ir_module
    class After:
        @R.function
        def main(x: R.Tensor((1, 2, 4, 4), "float32"), v: R.Tensor((2, 1, 1, 1), "float32")):
            with R.dataflow():
                gv = R.nn.conv2d(x, v, groups=2)
                R.output(gv)
            return gv

    before = relax.transform.BindParams("main", {"w": dilated, "v": plain})(Before)
    after = relax.transform.BindParams("main", {"v": plain * centre.reshape(2, 1, 1, 1)})(After)
    program = Program(name="", source="", module=before, inputs=(), outputs=(), vectors=(), parameters=0)
    tvm.ir.assert_structural_equal(fold_scales(program, HOST).module["main"], after["main"])


@pytest.mark.parametrize("name", [name for name, board in TARGETS.items() if board.kind in ("llvm", "arm_cpu")])
def test_the_papers_network_on_every_cpu(name):
    """Every convolution is served, those that scale are gone, the pairs are one kernel, and nothing is forgotten."""
    program = scheduled(registered("dilated-net"), TARGETS[name])
    assert sum(layer.macs for layer in program.layers) == 84_058_112
    named = {name for layer in program.layers for name in layer.modules}
    assert {f"joint.{number}.{part}" for number in range(9) for part in ("dilated", "depthwise", "pointwise")} <= named
    served = [layer.schedule for layer in program.layers if layer.modules[0].startswith("joint")]
    assert set(served) == {"depthwise_rows", "depthwise_blocked", "pointwise_blocked"}
    assert served.count("depthwise_blocked") == 8
    assert served.count("pointwise_blocked") == 9
    assert [layer.kernel for layer in program.layers] == [
        binding.value.args[0].name_hint for binding in kernel_calls(program.module)
    ]


@pytest.mark.parametrize("added", [0.0, float(np.finfo("float32").min)])
def test_maxima_along_rows_are_exact(added):
    """They are found in parts, and the largest of −∞ is −∞, of the lowest numbers the lowest, and of NaN NaN."""
    graph = Graph(40, 64)
    graph.array[:3] = -np.inf
    graph.array[3, ::2] = -np.inf
    graph.array[4] = np.finfo("float32").min
    graph.array[5, 7], graph.array[6, 60] = np.nan, np.inf
    most = graph.builder.emit(relax.op.max(graph.input, [-1], keepdims=True))
    value = relax.op.add(most, relax.const(np.float32(added)))
    program = graph.program(graph.emit("most", value, graph.exact[graph.input].amax(-1, keepdim=True)))
    compiled = run_stages(program, HOST)
    library = tvm.relax.build(compiled.module, tvm.target.Target(tvm_target_dict(HOST)), relax_pipeline=None)
    given = relax.VirtualMachine(library, tvm.cpu())["main"](tvm.runtime.tensor(graph.array)).numpy()
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(given, graph.array.max(-1, keepdims=True) + np.float32(added))


@pytest.mark.parametrize(("rows", "rule"), [(1, "dense"), (3, "dense"), (4, "products")])
def test_weights_of_few_rows_are_turned_round(rows, rule):
    graph = Graph(rows, 64)
    weight = RANDOM.standard_normal((64, 16)).astype("float32")
    exact = graph.exact[graph.input] @ torch.from_numpy(weight).double()
    program = graph.program(graph.emit("product", relax.op.matmul(graph.input, relax.const(weight)), exact))
    compiled = graph.check(program)
    assert [layer.schedule for layer in compiled.layers] == [rule]
    assert compiled.layers[0].macs == rows * 64 * 16


@pytest.mark.parametrize("name", ["mobilenet-v1", "squeezenet", "small-vgg", "networks:inception"])
def test_other_networks_stay_right(name):
    program = import_model(name, [parse_input_shape("1x3x10x10")]) if ":" in name else registered(name)
    compiled = run_stages(program, HOST)
    library = tvm.relax.build(compiled.module, tvm.target.Target(tvm_target_dict(HOST)), relax_pipeline=None)
    main = relax.VirtualMachine(library, tvm.cpu())["main"]
    for vector in program.vectors:
        given = main(*map(tvm.runtime.tensor, vector.inputs))
        output = given if isinstance(given, tvm.runtime.Tensor) else given[0]
        exact = vector.outputs[0]
        allowed = 3e-5 * np.abs(exact[np.isfinite(exact)]).max(initial=1)
        np.testing.assert_allclose(output.numpy(), exact, rtol=0, atol=allowed)
    slow = [layer for layer in compiled.layers if layer.schedule == "default"]
    assert sum(layer.bytes for layer in slow) <= 32 * 1024, "only what is tiny is left to TVM's default"


def test_packing_changes_no_weight():
    program = run_stages(registered("dilated-net"), HOST)
    plain = sum(parameter.numel() for parameter in MODELS["dilated-net"]().parameters())
    scales = 9 * (1024 + 1024)  # the dilated layers of the last two modules
    shifts = 32 + 64 + 128 + 256 + 512 + 512 + 1024 + 1024 + 1024  # of two for each batch normalisation one is left
    assert program.memory["weights_bytes"] == 4 * (plain - scales - shifts)


@pytest.mark.parametrize(("dtype", "shape"), [("float64", ()), ("int64", (1, 1)), ("float32", (1,)), ("float16", ())])
def test_a_reshaped_constant_keeps_dtype_and_shape(dtype, shape):
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((2, 3), dtype))
    with builder.function("main", [x]):
        with builder.dataflow():
            view = builder.emit(relax.op.reshape(relax.const(np.array([7], dtype), dtype), shape))
            result = builder.emit_output(relax.op.add(x, view))
        builder.emit_func_output(result)
    main = fold_views(builder.get())["main"]
    ((binding,),) = (block.bindings for block in main.body.blocks)
    given = binding.value.args[1].value.numpy()
    assert (str(given.dtype), given.shape, given.item()) == (dtype, shape, 7)
