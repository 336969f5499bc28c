"""Turn operators into kernels: legalise to TensorIR, fuse element-wise tails, and note whose work each one does."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import replace

import tvm
from tvm import relax, tirx
from tvm.relax.expr_functor import PyExprMutator, mutator

from tvmflow.network.names import module_path
from tvmflow.passes.exact_floats import exact_floats
from tvmflow.passes.infinite_extremes import infinite_extremes
from tvmflow.passes.multiply_adds import live_macs, multiply_adds, static_shape
from tvmflow.passes.root_blocks import root_blocks
from tvmflow.passes.spread_taps import LEGALISED
from tvmflow.passes.tile_by_tables import tiled
from tvmflow.spec import Layer, Program, Target

BROADCAST, REDUCTION, OUT_ELEMENTWISE, OPAQUE = 1, 3, 4, 8
"""TVM's OpPatternKind. Behind the third only what is element-wise may follow in the same kernel."""
OWN_NAMES = re.compile(r"[lg]v\d*")
"""Names that TVM gives to bindings which have none from the importer."""


def fuse_operators(program: Program, target: Target) -> Program:
    """Afterwards `main` is a sequence of `call_tir`, one for each of `Program.layers`, in the same order."""
    macs = {binding.var.name: multiply_adds(binding.value) for binding in _bindings(program.module)}
    macs |= {name: count for works in program.folded.values() for name, count in works.items()}
    legal = tvm.ir.transform.Sequential(
        [
            relax.backend.DispatchSortScan(),
            relax.transform.LegalizeOps({**LEGALISED, "relax.tile": tiled}),
            root_blocks,
            infinite_extremes,
            exact_floats,
            _begin_with_borders,
            relax.transform.AnnotateTIROpPattern(),
            _begin_with_scales,
            relax.transform.FoldConstant(),
            relax.transform.DeadCodeElimination(),
        ]
    )(program.module)
    grouped = relax.transform.FuseOps()(legal)
    members = _members(legal)
    fused = relax.transform.FuseTIR()(grouped)
    views = relax.transform.RewriteDataflowReshape()(fused)
    module = relax.transform.DeadCodeElimination()(views)
    computed = (  # in order, for several results may have one name
        _is_call_tir(view.value)
        for binding, view in zip(_bindings(fused), _bindings(views), strict=True)
        if _is_call_tir(binding.value)
    )
    layers = []
    for binding, names, is_kernel in zip(kernel_calls(fused), members, computed, strict=True):
        if not is_kernel:
            continue  # a reshape: a view from here on
        names = list(dict.fromkeys(work for name in names for work in (*program.folded.get(name, ()), name)))
        named = [name for name in names if name in macs and not OWN_NAMES.fullmatch(name)]
        layers.append(
            Layer(
                kernel=binding.value.args[0].name_hint,
                modules=tuple(dict.fromkeys(module_path(name) for name in named)),
                macs=sum(macs.get(name, 0) for name in names),
                bytes=call_bytes(binding),
                live_macs=live_macs(fused[binding.value.args[0]], sum(macs.get(name, 0) for name in names)),
                weight_bytes=constant_bytes(binding),
            )
        )
    return replace(program, module=module, layers=tuple(layers))


@tvm.transform.module_pass(opt_level=0, name="begin_with_borders")
def _begin_with_borders(module: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
    """Have a border begin a kernel: as the end of a convolution's it would leave that to no rule.

    FuseOps then takes it for something like a convolution itself, behind which element-wise work may come.
    """
    for var, func in module.functions.items():
        if isinstance(func, tirx.PrimFunc) and re.fullmatch(r"pad\d*", var.name_hint):
            module[var] = func.with_attr("op_pattern", OUT_ELEMENTWISE)
    return module


@tvm.transform.module_pass(opt_level=0, name="begin_with_scales")
def _begin_with_scales(module: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
    """Have what spreads a small sum over a map begin a kernel, as the factors of squeeze-and-excite.

    At the end of the sum's own kernel it would be all of that kernel's loops, and each element would ask for the sum.
    """
    apart = _Scales(module)
    main = apart.visit_expr(module["main"])
    if not apart.found:
        return module
    module = apart.builder_.get()
    module["main"] = main
    return module


@mutator
class _Scales(PyExprMutator):
    """Calls that spread a sum get a kernel of their own that is marked so."""

    def __init__(self, module: tvm.IRModule) -> None:
        super().__init__(module)
        self.original = module
        self.bound = {binding.var: binding.value for binding in _bindings(module)}
        self.sums: dict[relax.Var, bool] = {}
        self.found = 0

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        call = binding.value
        if not self._spreads_a_sum(binding):
            super().visit_var_binding_(binding)
            return
        kernel = self.original[call.args[0]].with_attr("op_pattern", OUT_ELEMENTWISE)
        name = self.builder_.add_func(kernel, f"{call.args[0].name_hint}_of_sum")
        is_output = self.builder_.current_block_is_dataflow() and not isinstance(binding.var, relax.DataflowVar)
        emit = self.builder_.emit_output if is_output else self.builder_.emit
        arguments = [name, *(self.visit_expr(argument) for argument in call.args[1:])]
        self.set_var_remap(
            binding.var, emit(relax.Call(call.op, arguments, call.attrs, call.ty_args), binding.var.name)
        )
        self.found += 1

    def _spreads_a_sum(self, binding: relax.VarBinding) -> bool:
        if not _is_call_tir(binding.value) or self._pattern(binding.value) > BROADCAST:
            return False
        made = binding.var.ty
        if isinstance(made, relax.TupleType):
            return False
        elements = math.prod(static_shape(made))
        return any(
            math.prod(static_shape(given.ty)) < elements and self._is_sum(given)
            for given in binding.value.args[1].fields
            if isinstance(given, relax.Var)
        )

    def _is_sum(self, var: relax.Var) -> bool:
        """Whether it is a sum, or what element-wise work has made of one."""
        if var not in self.sums:
            self.sums[var] = self._comes_of_a_sum(var)
        return self.sums[var]

    def _comes_of_a_sum(self, var: relax.Var) -> bool:
        value = self.bound.get(var)
        if value is None or not _is_call_tir(value):
            return False
        if (pattern := self._pattern(value)) > BROADCAST:
            return pattern in (REDUCTION, OUT_ELEMENTWISE)
        return any(self._is_sum(given) for given in value.args[1].fields if isinstance(given, relax.Var))

    def _pattern(self, call: relax.Call) -> int:
        return int((self.original[call.args[0]].attrs or {}).get("op_pattern", OPAQUE))


def _bindings(module: tvm.IRModule) -> Iterator[relax.VarBinding]:
    for block in module["main"].body.blocks:
        yield from block.bindings


def kernel_calls(module: tvm.IRModule) -> list[relax.VarBinding]:
    """Bindings of `main` that call a kernel: `call_tir`, or a group of them that FuseOps made a function of."""
    return [
        binding
        for binding in _bindings(module)
        if isinstance(binding.value, relax.Call)
        and (isinstance(binding.value.op, tvm.ir.GlobalVar) or _is_call_tir(binding.value))
    ]


def _is_call_tir(value: relax.Expr) -> bool:
    return isinstance(value, relax.Call) and getattr(value.op, "name", "") in (
        "relax.call_tir",
        "relax.call_tir_inplace",
    )


def _members(legal: tvm.IRModule) -> list[list[str]]:
    """For each kernel call that FuseOps makes of `legal`, the names of the bindings whose work it does.

    FuseOps renames results and makes one function of equal groups, after which nothing says which call was which. It
    groups by the graph and by the patterns of kernels, not by their names, so here it groups a copy in which each call
    has a kernel of its own: the groups are the same, in the same order, and their kernels tell whose they are.
    """
    apart = _Apart(legal)
    main = apart.visit_expr(legal["main"])
    copy = apart.builder_.get()
    copy["main"] = main
    grouped = relax.transform.FuseOps()(copy)
    found = []
    for binding in kernel_calls(grouped):
        called, steps = binding.value.op, [binding.value]
        if isinstance(called, tvm.ir.GlobalVar):
            steps = [step.value for block in grouped[called].body.blocks for step in block.bindings]
        found.append([apart.origin[step.args[0].name_hint] for step in steps if _is_call_tir(step)])
    return found


@mutator
class _Apart(PyExprMutator):
    """Gives each call of `main` a kernel of its own; `origin` says which binding each kernel is of."""

    def __init__(self, module: tvm.IRModule) -> None:
        super().__init__(module)
        self.original = module
        self.origin: dict[str, str] = {}

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        call = binding.value
        if not _is_call_tir(call):
            super().visit_var_binding_(binding)
            return
        name = f"call{len(self.origin)}"  # an attribute too, for the builder makes one of equal functions
        kernel = self.builder_.add_func(self.original[call.args[0]].with_attr("call", name), name)
        self.origin[kernel.name_hint] = binding.var.name
        is_output = self.builder_.current_block_is_dataflow() and not isinstance(binding.var, relax.DataflowVar)
        emit = self.builder_.emit_output if is_output else self.builder_.emit
        arguments = [kernel, *(self.visit_expr(argument) for argument in call.args[1:])]
        self.set_var_remap(binding.var, emit(relax.Call(call.op, arguments, call.attrs, call.ty_args)))


def tensor_bytes(tensor: relax.Type) -> int:
    if isinstance(tensor, relax.TupleType):
        return sum(tensor_bytes(field) for field in tensor.fields)
    return math.prod(static_shape(tensor)) * tvm.DataType(str(tensor.dtype)).bits // 8


def call_bytes(binding: relax.VarBinding) -> int:
    """Of all tensors that a `call_tir` reads or writes."""
    return sum(tensor_bytes(tensor.ty) for tensor in (*binding.value.args[1].fields, binding.var))


def constant_bytes(binding: relax.VarBinding) -> int:
    """Of the constants that a `call_tir` reads."""
    fields = binding.value.args[1].fields
    return sum(tensor_bytes(field.ty) for field in fields if isinstance(field, tvm.ir.expr.GenericConst))


def kernels(module: tvm.IRModule) -> dict[str, tirx.PrimFunc]:
    """The kernels of a fused module by name."""
    return {var.name_hint: func for var, func in module.functions.items() if isinstance(func, tirx.PrimFunc)}
