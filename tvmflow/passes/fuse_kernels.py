"""Make one kernel of two, of which the second alone reads the first, wherever a schedule serves the two together."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace

import tvm
from tvm import relax, tirx
from tvm.relax.expr_functor import PyExprMutator, mutator

from tvmflow.passes.fuse_operators import kernel_calls, tensor_bytes
from tvmflow.spec import Layer, Program

Pays = Callable[[tirx.PrimFunc, tirx.PrimFunc, int], bool]
"""Whether two kernels should be one: the first, the second, and by which argument the second reads the first."""


def fuse_kernels(program: Program, pays: Pays) -> Program:
    """Two entries of `Program.layers` become one, which names the modules of both. A kernel is in one pair at most."""
    pairs = _pairs(program.module, pays)
    if not pairs:
        return program
    mutate = _Fuse(program.module, pairs)
    updated = mutate.visit_expr(program.module["main"])
    module = mutate.builder_.get()
    module["main"] = updated
    module = tvm.ir.transform.Sequential([relax.transform.FuseTIR(), relax.transform.DeadCodeElimination()])(module)
    return replace(program, module=module, layers=_layers(program, pairs, module))


Pairs = dict[relax.Var, relax.VarBinding]
"""Result of the second kernel → the call of the first."""


def _pairs(module: tvm.IRModule, pays: Pays) -> Pairs:
    pairs: Pairs = {}
    body = module["main"].body
    readers: dict[relax.Var, list[relax.Var]] = defaultdict(list)
    for binding in (binding for block in body.blocks for binding in block.bindings):
        for var in _read_by(binding.value):
            readers[var].append(binding.var)
    returned = _read_by(body.body)
    for first, second in itertools.pairwise(kernel_calls(module)):
        found = readers[first.var]
        if len(found) != 1 or not found[0].same_as(second.var) or first.var in pairs or first.var in returned:
            continue
        func = module[second.value.args[0]]
        places = [place for place, value in enumerate(second.value.args[1].fields) if value.same_as(first.var)]
        if len(places) == 1 and pays(module[first.value.args[0]], func, places[0]):
            pairs[second.var] = first
    return pairs


def _read_by(value: relax.Expr) -> set[relax.Var]:
    found: set[relax.Var] = set()
    relax.analysis.post_order_visit(value, lambda e: found.add(e) if isinstance(e, relax.Var) else None)
    return found


def _layers(program: Program, pairs: Pairs, module: tvm.IRModule) -> tuple[Layer, ...]:
    layers: list[Layer] = []
    for layer, binding in zip(program.layers, kernel_calls(program.module), strict=True):
        if binding.var in pairs:
            first = layers.pop()
            layer = replace(
                layer,
                modules=(*first.modules, *layer.modules),
                macs=first.macs + layer.macs,
                live_macs=_both(first.live_macs, layer.live_macs),
                weight_bytes=_both(first.weight_bytes, layer.weight_bytes),
                bytes=first.bytes + layer.bytes - 2 * tensor_bytes(pairs[binding.var].var.ty),
            )
        layers.append(layer)
    calls = kernel_calls(module)
    return tuple(replace(layer, kernel=call.value.args[0].name_hint) for layer, call in zip(layers, calls, strict=True))


def _both(first: int | None, second: int | None) -> int | None:
    return None if first is None or second is None else first + second


@mutator
class _Fuse(PyExprMutator):
    """Pairs become calls of functions that call both kernels; TVM makes one kernel of such a function."""

    def __init__(self, module: tvm.IRModule, pairs: Pairs) -> None:
        super().__init__(module)
        self.pairs = pairs
        self.firsts = {first.var for first in pairs.values()}
        self.made: dict[tuple[tvm.ir.GlobalVar, tvm.ir.GlobalVar], tvm.ir.GlobalVar] = {}

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        if binding.var in self.firsts:
            return
        if binding.var not in self.pairs:
            super().visit_var_binding_(binding)
            return
        first, second = self.pairs[binding.var].value, binding.value
        values = [*first.args[1].fields]
        values += [value for value in second.args[1].fields if not value.same_as(self.pairs[binding.var].var)]
        key = first.args[0], second.args[0]
        if key not in self.made:
            self.made[key] = self.builder_.add_func(
                _together(self.pairs[binding.var], binding, values), f"{key[0].name_hint}_{key[1].name_hint}"
            )
        emit = self.builder_.emit if isinstance(binding.var, relax.DataflowVar) else self.builder_.emit_output
        call = relax.Call(self.made[key], [self.visit_expr(value) for value in values])
        self.set_var_remap(binding.var, emit(call, binding.var.name))


def _together(first: relax.VarBinding, second: relax.VarBinding, values: list[relax.Expr]) -> relax.Function:
    """A function of `values` that does what the two calls do."""
    params = [relax.Var(f"value_{place}", value.ty) for place, value in enumerate(values)]
    count = len(first.value.args[1].fields)
    rest = iter(params[count:])
    builder = relax.BlockBuilder()
    with builder.function("main", params, attrs={"Primitive": True}):
        with builder.dataflow():
            between = builder.emit(_call(first.value, params[:count]))
            given = [between if v.same_as(first.var) else next(rest) for v in second.value.args[1].fields]
            result = builder.emit_output(_call(second.value, given))
        builder.emit_func_output(result)
    return builder.get()["main"].without_attr("global_symbol")


def _call(call: relax.Call, arguments: list[relax.Expr]) -> relax.Call:
    return relax.Call(call.op, [call.args[0], relax.Tuple(arguments)], call.attrs, call.ty_args)
