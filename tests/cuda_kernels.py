"""Kernels for the tests of CUDA schedules: operators made one kernel, and a run of many of them on the stand-in."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import tirx
from tvm.ir import Expr


@dataclass(frozen=True, kw_only=True)
class Case:
    """A kernel of one rule: `shapes` of its arguments, `emit(builder, *variables)` and `oracle(*float64 tensors)`."""

    rule: str
    name: str
    shapes: tuple[tuple[int, ...], ...]
    emit: Callable[..., Expr]
    oracle: Callable[..., Any]

    def prim_func(self) -> tirx.PrimFunc:
        return joined(self.shapes, self.emit)

    def arrays(self) -> list[np.ndarray]:
        generator = np.random.default_rng(len(self.name))
        return [generator.standard_normal(shape).astype(np.float32) for shape in self.shapes]

    def wanted(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """What PyTorch computes in float64."""
        import torch

        return self.oracle(*(torch.from_numpy(array).double() for array in arrays)).numpy()


def joined(shapes: Sequence[Sequence[int]], emit: Callable[..., Expr], dtype: str = "float32") -> tirx.PrimFunc:
    """All that `emit` emits as one kernel, as FuseTIR makes it."""
    from tvm import relax

    def variables() -> list[relax.Var]:
        return [relax.Var(f"input{place}", relax.TensorType(shape, dtype)) for place, shape in enumerate(shapes)]

    builder = relax.BlockBuilder()
    parameters = variables()
    with builder.function("main", parameters):
        with builder.dataflow():
            result = builder.emit_output(emit(builder, *parameters))
        builder.emit_func_output(result)
    legal = relax.transform.LegalizeOps()(builder.get())
    body = legal["main"]
    kernels = {name: func for name, func in legal.functions.items() if name.name_hint != "main"}
    builder = relax.BlockBuilder(tvm.IRModule(kernels))
    together = builder.add_func(
        relax.Function(body.params, body.body, body.ret_ty).with_attr("Primitive", True), "joined"
    )
    parameters = variables()
    with builder.function("main", parameters):
        with builder.dataflow():
            result = builder.emit_output(relax.Call(together, parameters))
        builder.emit_func_output(result)
    module = relax.transform.DeadCodeElimination()(relax.transform.FuseTIR()(builder.get()))
    (func,) = (func for func in module.functions.values() if isinstance(func, tirx.PrimFunc))
    return func


def run(
    module: str,
    target: dict[str, Any],
    jobs: Sequence[tuple[str, list[np.ndarray], tuple[int, ...]]],
    orders: Sequence[str] = ("forward",),
) -> list[list[np.ndarray]]:
    """By `standin.call`: results of kernels of a scheduled module (JSON), of each its name, arguments and shape.

    Once for each order of threads in a block.
    """
    from tvmflow.targets.cuda import standin

    standin.use_for_kernels()
    library = tvm.compile(tvm.ir.load_json(module), target=tvm.target.Target(target))
    device = tvm.cuda(0)
    found = []
    for order in orders:
        os.environ["TVMFLOW_STANDIN_ORDER"] = order
        found.append([])
        for name, arrays, shape in jobs:
            tensors = [tvm.runtime.tensor(array, device) for array in arrays]
            output = tvm.runtime.tensor(np.full(shape, np.nan, np.float32), device)
            library[name](*tensors, output)
            found[-1].append(output.numpy())
    return found
