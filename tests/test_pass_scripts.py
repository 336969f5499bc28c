"""Each graph pass on the smallest program that it changes, before and after, as TVMScript.

Constants are bound to parameters of `main` by `program_of`, which keeps the programs readable.
"""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T

from tvmflow.passes.fold_batchnorm import fold_batchnorm
from tvmflow.passes.fuse_operators import fuse_operators
from tvmflow.passes.narrow_floats import narrow
from tvmflow.passes.relayout import Blocked, Transposed, relayout
from tvmflow.passes.rename import rename
from tvmflow.spec import Layer, Program
from tvmflow.targets import TARGETS
from tvmflow.targets.cpu.passes.block_channels import block_channels
from tvmflow.targets.cpu.passes.fuse_depthwise import fuse_depthwise
from tvmflow.targets.cpu.passes.transpose_dense import transpose_dense
from tvmflow.targets.cuda.passes.flatten_averages import flatten_averages

BOARD = TARGETS["raspberry-pi-4b"]
RANDOM = np.random.default_rng(0)


def program_of(module: tvm.IRModule, layers: tuple[Layer, ...] = (), **constants: np.ndarray) -> Program:
    bound = relax.transform.BindParams("main", {name: array.astype("float32") for name, array in constants.items()})
    return Program(
        name="", source="", module=bound(module), inputs=(), outputs=(), vectors=(), parameters=0, layers=layers
    )


def layer(name: str, macs: int = 0, traffic: int = 0, module: str = "") -> Layer:
    return Layer(kernel=name, modules=(module or name,), macs=macs, bytes=traffic)


def assert_same(given: Program, module: tvm.IRModule, **constants: np.ndarray) -> None:
    tvm.ir.assert_structural_equal(given.module, program_of(module, **constants).module)


def test_fold_batchnorm():
    """The scale goes into the weights, the shift stays; the convolution keeps its name."""

    @I.ir_module
    class Before:
        @R.function
        def main(
            x: R.Tensor((1, 2, 4, 4), "float32"),
            w: R.Tensor((2, 2, 1, 1), "float32"),
            gamma: R.Tensor((2,), "float32"),
            beta: R.Tensor((2,), "float32"),
            mean: R.Tensor((2,), "float32"),
            variance: R.Tensor((2,), "float32"),
        ):
            with R.dataflow():
                pointwise = R.nn.conv2d(x, w)
                bn = R.nn.batch_norm(pointwise, gamma, beta, mean, variance, axis=1, epsilon=0.0)
                gv = bn[0]
                R.output(gv)
            return gv

    @I.ir_module
    class After:
        @R.function
        def main(
            x: R.Tensor((1, 2, 4, 4), "float32"),
            w: R.Tensor((2, 2, 1, 1), "float32"),
            shift: R.Tensor((1, 2, 1, 1), "float32"),
        ):
            with R.dataflow():
                pointwise = R.nn.conv2d(x, w)
                gv = R.add(pointwise, shift)
                R.output(gv)
            return gv

    weight = np.array([[1, 2], [3, 4]]).reshape(2, 2, 1, 1)
    gamma, beta, mean, variance = np.array([[2, 3], [5, 7], [1, 2], [4, 16]])  # exact in float32
    scale = gamma / np.sqrt(variance)
    before = program_of(Before, w=weight, gamma=gamma, beta=beta, mean=mean, variance=variance)
    folded = fold_batchnorm(before, BOARD)
    shift = (beta - mean * scale).reshape(1, 2, 1, 1)
    assert_same(folded, After, w=weight * scale.reshape(2, 1, 1, 1), shift=shift)
    assert folded.module["main"].body.blocks[0].bindings[0].var.name == "pointwise"


def test_flatten_averages():
    """A mean that something else reads as well, or that is not only flattened, stays."""

    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 8, 4, 4), "float32"), y: R.Tensor((1, 8, 4, 4), "float32")):
            with R.dataflow():
                pool = R.mean(x, axis=[-1, -2], keepdims=True)
                flat = R.reshape(pool, R.shape([1, 8]))
                shared = R.mean(y, axis=[2, 3], keepdims=True)
                row = R.reshape(shared, R.shape([1, 8]))
                turned = R.mean(y, axis=[2, 3], keepdims=True)
                column = R.reshape(turned, R.shape([8, 1]))
                gv = (flat, row, shared, column)
                R.output(gv)
            return gv

    @I.ir_module
    class After:
        @R.function
        def main(x: R.Tensor((1, 8, 4, 4), "float32"), y: R.Tensor((1, 8, 4, 4), "float32")):
            with R.dataflow():
                pool = R.mean(x, axis=[-1, -2], keepdims=False)
                shared = R.mean(y, axis=[2, 3], keepdims=True)
                row = R.reshape(shared, R.shape([1, 8]))
                turned = R.mean(y, axis=[2, 3], keepdims=True)
                column = R.reshape(turned, R.shape([8, 1]))
                gv = (pool, row, shared, column)
                R.output(gv)
            return gv

    flattened = flatten_averages(program_of(Before), BOARD)
    assert_same(flattened, After)
    assert flattened.module["main"].body.blocks[0].bindings[0].var.name == "pool"


def test_rename():
    @I.ir_module
    class Module:
        @R.function
        def main(x: R.Tensor((2,), "float32")):
            with R.dataflow():
                before = R.nn.relu(x)
                gv = R.exp(before)
                R.output(gv)
            return gv

    renamed = rename(Module, {Module["main"].body.blocks[0].bindings[0].var: "after"})
    tvm.ir.assert_structural_equal(renamed, Module)  # names are no part of the structure
    assert [binding.var.name for binding in renamed["main"].body.blocks[0].bindings] == ["after", "gv"]


def test_fuse_operators():
    """Operators become kernels, the element-wise tail goes into the kernel before it, and its layer names both."""

    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 4), "float32"), w: R.Tensor((4, 2), "float32")):
            with R.dataflow():
                product = R.matmul(x, w)
                gv = R.nn.relu(product)
                R.output(gv)
            return gv

    @I.ir_module
    class After:
        @T.prim_func(private=True, s_tir=True)
        def fused_matmul_relu(
            x: T.Buffer((T.int64(1), T.int64(4)), "float32"),
            w: T.Buffer((T.int64(4), T.int64(2)), "float32"),
            result: T.Buffer((T.int64(1), T.int64(2)), "float32"),
        ):
            T.func_attr({"tirx.noalias": True})
            product = T.sblock_alloc_buffer((T.int64(1), T.int64(2)))
            for i, j, k in T.grid(T.int64(1), T.int64(2), T.int64(4)):
                with T.sblock("matmul"):
                    v_i, v_j, v_k = T.axis.remap("SSR", [i, j, k])
                    with T.init():
                        product[v_i, v_j] = T.float32(0)
                    product[v_i, v_j] = product[v_i, v_j] + x[v_i, v_k] * w[v_k, v_j]
            for i, j in T.grid(T.int64(1), T.int64(2)):
                with T.sblock("compute"):
                    v_i, v_j = T.axis.remap("SS", [i, j])
                    result[v_i, v_j] = T.max(product[v_i, v_j], T.float32(0))

        @R.function
        def main(x: R.Tensor((1, 4), "float32"), w: R.Tensor((4, 2), "float32")) -> R.Tensor((1, 2), "float32"):
            cls = After
            with R.dataflow():
                gv = R.call_tir(cls.fused_matmul_relu, (x, w), out_ty=R.Tensor((1, 2), "float32"))
                R.output(gv)
            return gv

    fused = fuse_operators(program_of(Before), BOARD)
    assert_same(fused, After)
    (only,) = fused.layers
    assert (only.kernel, only.modules, only.macs, only.bytes) == ("fused_matmul_relu", ("product",), 8, 4 * (4 + 8 + 2))


def test_relayout():
    @T.prim_func(private=True, s_tir=True)
    def before(x: T.Buffer((1, 6, 5), "float32"), y: T.Buffer((6, 5), "float32")):
        for i, j in T.grid(6, 5):
            with T.sblock("double"):
                v_i, v_j = T.axis.remap("SS", [i, j])
                y[v_i, v_j] = x[0, v_i, v_j] * T.float32(2)

    @T.prim_func(private=True, s_tir=True)
    def after(x: T.Buffer((1, 3, 5, 2), "float32"), y: T.Buffer((5, 6), "float32")):
        for i, j in T.grid(6, 5):
            with T.sblock("double"):
                v_i, v_j = T.axis.remap("SS", [i, j])
                y[v_j, v_i] = x[0, v_i // 2, v_j, v_i % 2] * T.float32(2)

    tvm.ir.assert_structural_equal(relayout(before, {0: Blocked(1, 2), 1: Transposed()}), after)


def test_transpose_dense():
    @I.ir_module
    class Before:
        @T.prim_func(private=True, s_tir=True)
        def matmul(
            x: T.Buffer((T.int64(1), T.int64(8)), "float32"),
            w: T.Buffer((T.int64(8), T.int64(4)), "float32"),
            y: T.Buffer((T.int64(1), T.int64(4)), "float32"),
        ):
            T.func_attr({"tirx.noalias": True})
            for i, j, k in T.grid(T.int64(1), T.int64(4), T.int64(8)):
                with T.sblock("matmul"):
                    v_i, v_j, v_k = T.axis.remap("SSR", [i, j, k])
                    with T.init():
                        y[v_i, v_j] = T.float32(0)
                    y[v_i, v_j] = y[v_i, v_j] + x[v_i, v_k] * w[v_k, v_j]

        @R.function
        def main(x: R.Tensor((1, 8), "float32"), w: R.Tensor((8, 4), "float32")) -> R.Tensor((1, 4), "float32"):
            cls = Before
            with R.dataflow():
                gv = R.call_tir(cls.matmul, (x, w), out_ty=R.Tensor((1, 4), "float32"))
                R.output(gv)
            return gv

    @I.ir_module
    class After:
        @T.prim_func(private=True, s_tir=True)
        def matmul_transposed(
            x: T.Buffer((T.int64(1), T.int64(8)), "float32"),
            w: T.Buffer((T.int64(4), T.int64(8)), "float32"),
            y: T.Buffer((T.int64(1), T.int64(4)), "float32"),
        ):
            T.func_attr({"tirx.noalias": True})
            for i, j, k in T.grid(T.int64(1), T.int64(4), T.int64(8)):
                with T.sblock("matmul"):
                    v_i, v_j, v_k = T.axis.remap("SSR", [i, j, k])
                    with T.init():
                        y[v_i, v_j] = T.float32(0)
                    y[v_i, v_j] = y[v_i, v_j] + x[v_i, v_k] * w[v_j, v_k]

        @R.function
        def main(x: R.Tensor((1, 8), "float32"), w: R.Tensor((4, 8), "float32")) -> R.Tensor((1, 4), "float32"):
            cls = After
            with R.dataflow():
                gv = R.call_tir(cls.matmul_transposed, (x, w), out_ty=R.Tensor((1, 4), "float32"))
                R.output(gv)
            return gv

    weight = RANDOM.standard_normal((8, 4))
    turned = transpose_dense(program_of(Before, (layer("matmul"),), w=weight), BOARD)
    assert_same(turned, After, w=weight.T)
    assert turned.layers == (layer("matmul_transposed", module="matmul"),)


def test_block_channels():
    """What lies between two kernels gets channels in blocks of 8, weights of as many as a tile has; the input stays."""

    @I.ir_module
    class Before:
        @T.prim_func(private=True, s_tir=True)
        def pointwise(
            x: T.Buffer((T.int64(1), T.int64(3), T.int64(2), T.int64(2)), "float32"),
            w: T.Buffer((T.int64(16), T.int64(3), T.int64(1), T.int64(1)), "float32"),
            y: T.Buffer((T.int64(1), T.int64(16), T.int64(2), T.int64(2)), "float32"),
        ):
            T.func_attr({"tirx.noalias": True})
            for n, f, i, j, c, r, s in T.grid(
                T.int64(1), T.int64(16), T.int64(2), T.int64(2), T.int64(3), T.int64(1), T.int64(1)
            ):
                with T.sblock("pointwise"):
                    v_n, v_f, v_i, v_j, v_c, v_r, v_s = T.axis.remap("SSSSRRR", [n, f, i, j, c, r, s])
                    with T.init():
                        y[v_n, v_f, v_i, v_j] = T.float32(0)
                    y[v_n, v_f, v_i, v_j] = (
                        y[v_n, v_f, v_i, v_j] + x[v_n, v_c, v_i + v_r, v_j + v_s] * w[v_f, v_c, v_r, v_s]
                    )

        @T.prim_func(private=True, s_tir=True)
        def pool(
            y: T.Buffer((T.int64(1), T.int64(16), T.int64(2), T.int64(2)), "float32"),
            z: T.Buffer((T.int64(1), T.int64(16)), "float32"),
        ):
            T.func_attr({"tirx.noalias": True})
            for n, f, i, j in T.grid(T.int64(1), T.int64(16), T.int64(2), T.int64(2)):
                with T.sblock("pool"):
                    v_n, v_f, v_i, v_j = T.axis.remap("SSRR", [n, f, i, j])
                    with T.init():
                        z[v_n, v_f] = T.float32(0)
                    z[v_n, v_f] = z[v_n, v_f] + y[v_n, v_f, v_i, v_j]

        @R.function
        def main(x: R.Tensor((1, 3, 2, 2), "float32"), w: R.Tensor((16, 3, 1, 1), "float32")) -> R.Tensor(
            (1, 16), "float32"
        ):
            cls = Before
            with R.dataflow():
                y = R.call_tir(cls.pointwise, (x, w), out_ty=R.Tensor((1, 16, 2, 2), "float32"))
                gv = R.call_tir(cls.pool, (y,), out_ty=R.Tensor((1, 16), "float32"))
                R.output(gv)
            return gv

    @I.ir_module
    class After:
        @T.prim_func(private=True, s_tir=True)
        def pointwise_blocked(
            x: T.Buffer((T.int64(1), T.int64(3), T.int64(2), T.int64(2)), "float32"),
            w: T.Buffer((T.int64(1), T.int64(3), T.int64(1), T.int64(1), T.int64(16)), "float32"),
            y: T.Buffer((T.int64(1), T.int64(2), T.int64(2), T.int64(2), T.int64(8)), "float32"),
        ):
            T.func_attr({"tirx.noalias": True})
            for n, f, i, j, c, r, s in T.grid(
                T.int64(1), T.int64(16), T.int64(2), T.int64(2), T.int64(3), T.int64(1), T.int64(1)
            ):
                with T.sblock("pointwise"):
                    v_n, v_f, v_i, v_j, v_c, v_r, v_s = T.axis.remap("SSSSRRR", [n, f, i, j, c, r, s])
                    with T.init():
                        y[v_n, v_f // 8, v_i, v_j, v_f % 8] = T.float32(0)
                    y[v_n, v_f // 8, v_i, v_j, v_f % 8] = (
                        y[v_n, v_f // 8, v_i, v_j, v_f % 8]
                        + x[v_n, v_c, v_i + v_r, v_j + v_s] * w[T.int64(0), v_c, v_r, v_s, v_f]
                    )

        @T.prim_func(private=True, s_tir=True)
        def pool_blocked(
            y: T.Buffer((T.int64(1), T.int64(2), T.int64(2), T.int64(2), T.int64(8)), "float32"),
            z: T.Buffer((T.int64(1), T.int64(16)), "float32"),
        ):
            T.func_attr({"tirx.noalias": True})
            for n, f, i, j in T.grid(T.int64(1), T.int64(16), T.int64(2), T.int64(2)):
                with T.sblock("pool"):
                    v_n, v_f, v_i, v_j = T.axis.remap("SSRR", [n, f, i, j])
                    with T.init():
                        z[v_n, v_f] = T.float32(0)
                    z[v_n, v_f] = z[v_n, v_f] + y[v_n, v_f // 8, v_i, v_j, v_f % 8]

        @R.function
        def main(x: R.Tensor((1, 3, 2, 2), "float32"), w: R.Tensor((1, 3, 1, 1, 16), "float32")) -> R.Tensor(
            (1, 16), "float32"
        ):
            cls = After
            with R.dataflow():
                y = R.call_tir(cls.pointwise_blocked, (x, w), out_ty=R.Tensor((1, 2, 2, 2, 8), "float32"))
                gv = R.call_tir(cls.pool_blocked, (y,), out_ty=R.Tensor((1, 16), "float32"))
                R.output(gv)
            return gv

    weight = RANDOM.standard_normal((16, 3, 1, 1))
    blocked = block_channels(program_of(Before, (layer("pointwise"), layer("pool")), w=weight), BOARD)
    assert_same(blocked, After, w=weight.transpose(1, 2, 3, 0)[None])
    assert [found.kernel for found in blocked.layers] == ["pointwise_blocked", "pool_blocked"]


def test_fuse_depthwise():
    """Two kernels become one, between whose sums the map is a buffer of the kernel's own."""

    @I.ir_module
    class Before:
        @T.prim_func(private=True, s_tir=True)
        def first(
            x: T.Buffer((T.int64(1), T.int64(1), T.int64(1), T.int64(6), T.int64(8)), "float32"),
            w: T.Buffer((T.int64(1), T.int64(1), T.int64(1), T.int64(3), T.int64(8)), "float32"),
            y: T.Buffer((T.int64(1), T.int64(1), T.int64(1), T.int64(4), T.int64(8)), "float32"),
        ):
            T.func_attr({"op_pattern": 4, "tirx.noalias": True})
            for n, f, i, j, c, r, s in T.grid(
                T.int64(1), T.int64(8), T.int64(1), T.int64(4), T.int64(1), T.int64(1), T.int64(3)
            ):
                with T.sblock("first"):
                    v_n, v_f, v_i, v_j, v_c, v_r, v_s = T.axis.remap("SSSSRRR", [n, f, i, j, c, r, s])
                    with T.init():
                        y[v_n, T.int64(0), v_i, v_j, v_f] = T.float32(0)
                    y[v_n, T.int64(0), v_i, v_j, v_f] = (
                        y[v_n, T.int64(0), v_i, v_j, v_f]
                        + x[v_n, T.int64(0), v_i + v_r, v_j + v_s, v_f + v_c] * w[T.int64(0), v_c, v_r, v_s, v_f]
                    )

        @T.prim_func(private=True, s_tir=True)
        def second(
            x: T.Buffer((T.int64(1), T.int64(1), T.int64(1), T.int64(4), T.int64(8)), "float32"),
            w: T.Buffer((T.int64(1), T.int64(1), T.int64(1), T.int64(3), T.int64(8)), "float32"),
            y: T.Buffer((T.int64(1), T.int64(1), T.int64(1), T.int64(2), T.int64(8)), "float32"),
        ):
            T.func_attr({"op_pattern": 4, "tirx.noalias": True})
            for n, f, i, j, c, r, s in T.grid(
                T.int64(1), T.int64(8), T.int64(1), T.int64(2), T.int64(1), T.int64(1), T.int64(3)
            ):
                with T.sblock("second"):
                    v_n, v_f, v_i, v_j, v_c, v_r, v_s = T.axis.remap("SSSSRRR", [n, f, i, j, c, r, s])
                    with T.init():
                        y[v_n, T.int64(0), v_i, v_j, v_f] = T.float32(0)
                    y[v_n, T.int64(0), v_i, v_j, v_f] = (
                        y[v_n, T.int64(0), v_i, v_j, v_f]
                        + x[v_n, T.int64(0), v_i + v_r, v_j + v_s, v_f + v_c] * w[T.int64(0), v_c, v_r, v_s, v_f]
                    )

        @R.function
        def main(
            x: R.Tensor((1, 1, 1, 6, 8), "float32"),
            v: R.Tensor((1, 1, 1, 3, 8), "float32"),
            w: R.Tensor((1, 1, 1, 3, 8), "float32"),
        ) -> R.Tensor((1, 1, 1, 2, 8), "float32"):
            cls = Before
            with R.dataflow():
                y = R.call_tir(cls.first, (x, v), out_ty=R.Tensor((1, 1, 1, 4, 8), "float32"))
                gv = R.call_tir(cls.second, (y, w), out_ty=R.Tensor((1, 1, 1, 2, 8), "float32"))
                R.output(gv)
            return gv

    @I.ir_module
    class After:
        @T.prim_func(private=True, s_tir=True)
        def first_second(
            x: T.Buffer((T.int64(1), T.int64(1), T.int64(1), T.int64(6), T.int64(8)), "float32"),
            v: T.Buffer((T.int64(1), T.int64(1), T.int64(1), T.int64(3), T.int64(8)), "float32"),
            w: T.Buffer((T.int64(1), T.int64(1), T.int64(1), T.int64(3), T.int64(8)), "float32"),
            z: T.Buffer((T.int64(1), T.int64(1), T.int64(1), T.int64(2), T.int64(8)), "float32"),
        ):
            T.func_attr({"tirx.noalias": True})
            y = T.sblock_alloc_buffer((T.int64(1), T.int64(1), T.int64(1), T.int64(4), T.int64(8)))
            for n, f, i, j, c, r, s in T.grid(
                T.int64(1), T.int64(8), T.int64(1), T.int64(4), T.int64(1), T.int64(1), T.int64(3)
            ):
                with T.sblock("first"):
                    v_n, v_f, v_i, v_j, v_c, v_r, v_s = T.axis.remap("SSSSRRR", [n, f, i, j, c, r, s])
                    with T.init():
                        y[v_n, T.int64(0), v_i, v_j, v_f] = T.float32(0)
                    y[v_n, T.int64(0), v_i, v_j, v_f] = (
                        y[v_n, T.int64(0), v_i, v_j, v_f]
                        + x[v_n, T.int64(0), v_i + v_r, v_j + v_s, v_f + v_c] * v[T.int64(0), v_c, v_r, v_s, v_f]
                    )
            for n, f, i, j, c, r, s in T.grid(
                T.int64(1), T.int64(8), T.int64(1), T.int64(2), T.int64(1), T.int64(1), T.int64(3)
            ):
                with T.sblock("second"):
                    v_n, v_f, v_i, v_j, v_c, v_r, v_s = T.axis.remap("SSSSRRR", [n, f, i, j, c, r, s])
                    with T.init():
                        z[v_n, T.int64(0), v_i, v_j, v_f] = T.float32(0)
                    z[v_n, T.int64(0), v_i, v_j, v_f] = (
                        z[v_n, T.int64(0), v_i, v_j, v_f]
                        + y[v_n, T.int64(0), v_i + v_r, v_j + v_s, v_f + v_c] * w[T.int64(0), v_c, v_r, v_s, v_f]
                    )

        @R.function
        def main(
            x: R.Tensor((1, 1, 1, 6, 8), "float32"),
            v: R.Tensor((1, 1, 1, 3, 8), "float32"),
            w: R.Tensor((1, 1, 1, 3, 8), "float32"),
        ) -> R.Tensor((1, 1, 1, 2, 8), "float32"):
            cls = After
            with R.dataflow():
                gv = R.call_tir(cls.first_second, (x, v, w), out_ty=R.Tensor((1, 1, 1, 2, 8), "float32"))
                R.output(gv)
            return gv

    weights = {name: RANDOM.standard_normal((1, 1, 1, 3, 8)) for name in "vw"}
    layers = layer("first", macs=96, traffic=416), layer("second", macs=48, traffic=288)
    fused = fuse_depthwise(program_of(Before, layers, **weights), BOARD)
    assert_same(fused, After, **weights)
    (only,) = fused.layers
    assert (only.kernel, only.modules) == ("first_second", ("first", "second"))
    assert (only.macs, only.bytes) == (144, 416 + 288 - 2 * 128)


def test_narrow_floats():
    """Sums in float16 or in float32; functions always in float32, choices and numbers as what they are mixed with."""

    @T.prim_func(private=True, s_tir=True)
    def before(x: T.Buffer((6,), "float32"), w: T.Buffer((4,), "float32"), y: T.Buffer((4,), "float32")):
        total = T.sblock_alloc_buffer((4,), "float32")
        for i in T.vectorized(4):
            total[i] = x[i] * w[i] + T.if_then_else(i < 2, x[i + 2], T.float32(0))
        for i in range(4):
            y[i] = T.exp(total[i]) + T.float32(2)

    @T.prim_func(private=True, s_tir=True)
    def sums(x: T.Buffer((6,), "float32"), w: T.Buffer((4,), "float16"), y: T.Buffer((4,), "float16")):
        total = T.sblock_alloc_buffer((4,), "float16")
        for i in T.vectorized(4):
            total[i] = T.Cast("float16", x[i]) * w[i] + T.if_then_else(i < 2, T.Cast("float16", x[i + 2]), T.float16(0))
        for i in range(4):
            y[i] = T.Cast("float16", T.exp(T.Cast("float32", total[i]))) + T.float16(2)

    @T.prim_func(private=True, s_tir=True)
    def storage(x: T.Buffer((6,), "float32"), w: T.Buffer((4,), "float16"), y: T.Buffer((4,), "float16")):
        total = T.sblock_alloc_buffer((4,), "float32")
        for i in T.vectorized(4):
            total[i] = x[i] * T.Cast("float32", w[i]) + T.if_then_else(i < 2, x[i + 2], T.float32(0))
        for i in range(4):
            y[i] = T.Cast("float16", T.exp(total[i]) + T.float32(2))

    tvm.ir.assert_structural_equal(narrow(before, (1, 2), sums=True), sums)
    tvm.ir.assert_structural_equal(narrow(before, (1, 2), sums=False), storage)
