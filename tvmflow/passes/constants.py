"""Constants of a Relax module as NumPy arrays, and whether they survive being scaled."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from tvmflow.passes.multiply_adds import static_shape


def is_constant(value: relax.Expr) -> bool:
    return isinstance(value, tvm.ir.expr.GenericConst)


def operator(value: relax.Expr) -> str:
    """The name of the operator that `value` calls, "relax.add" for one; empty where it calls none."""
    return getattr(getattr(value, "op", None), "name", "")


def read_constants(bindings: Iterable[relax.VarBinding]) -> dict[relax.Var, np.ndarray]:
    """The variables whose values are constants that were only given another shape or order of axes."""
    found: dict[relax.Var, np.ndarray] = {}

    def value_of(expr: relax.Expr) -> np.ndarray | None:
        return expr.value.numpy() if is_constant(expr) else found.get(expr)

    for binding in bindings:
        value = binding.value
        name = operator(value)
        if name not in ("relax.reshape", "relax.expand_dims", "relax.permute_dims"):
            continue
        array = value_of(value.args[0])
        if array is not None:
            axes = value.attrs.axes if name == "relax.permute_dims" else None
            turned = array.transpose(None if axes is None else [int(axis) for axis in axes])
            found[binding.var] = turned if name == "relax.permute_dims" else array.reshape(static_shape(value.ty))
    return found


def fold_views(module: tvm.IRModule) -> tvm.IRModule:
    """`module` with constants of another shape or order of axes for those that `main` only gives one.

    TVM's FoldConstant compiles and runs a kernel for each shape of them.
    """
    main = module["main"]
    bindings = [binding for block in main.body.blocks for binding in block.bindings]
    found = {
        var: relax.const(np.asarray(array, order="C"), str(array.dtype))
        for var, array in read_constants(bindings).items()
        if isinstance(var, relax.DataflowVar) and array.dtype.kind in "biuf"  # neither a result nor one of ml_dtypes
    }
    if not found:
        return module
    module = tvm.IRModule(module.functions, attrs=module.attrs)
    module["main"] = _Views(found).visit_expr(main)
    return relax.transform.DeadCodeElimination()(module)


@mutator
class _Views(PyExprMutator):
    def __init__(self, constants: Mapping[relax.Var, relax.Expr]) -> None:
        super().__init__()
        self.constants = constants

    def visit_dataflow_var_(self, var: relax.DataflowVar) -> relax.Expr:
        return self.constants[var] if var in self.constants else super().visit_dataflow_var_(var)


def keeps_precision(before: np.ndarray, scaled: np.ndarray) -> bool:
    """Whether nothing that was finite overflows, vanishes, or falls below what `before`'s dtype holds in full."""
    given = scaled.astype(before.dtype)
    lost = (np.abs(given) < np.finfo(before.dtype).tiny) & (scaled != 0)
    return bool(np.isfinite(given).all() and not lost.any() and not ((given == 0) & (before != 0)).any())
