"""One program behind another: the second reads what the first gives, in one `main`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import tvm
from tvm import relax

from tvmflow.spec import Program


def join_programs(first: Program, second: Program) -> Program:
    """`first`, whose outputs are what `second` reads, with the kernels of both in a row; the outputs are `second`'s."""
    builder = relax.BlockBuilder()
    params = list(first.module["main"].params)
    names: list[dict[str, str]] = [{}, {}]
    with builder.function("main", params):
        with builder.dataflow():
            values: dict[Any, Any] = {param: param for param in params}
            given = _emitted(builder, first.module, values, names[0])
            values = dict(zip(second.module["main"].params, given, strict=True))
            results = _emitted(builder, second.module, values, names[1])
            outputs = [builder.emit_output(result) for result in results]
        builder.emit_func_output(outputs[0] if len(outputs) == 1 else relax.Tuple(outputs))
    layers = [
        replace(layer, kernel=known[layer.kernel])
        for program, known in zip((first, second), names, strict=True)
        for layer in program.layers
    ]
    return replace(first, module=builder.get(), layers=tuple(layers), folded={**first.folded, **second.folded})


def _emitted(
    builder: relax.BlockBuilder, module: tvm.IRModule, values: dict[Any, Any], names: dict[str, str]
) -> list[Any]:
    """Emit all bindings of a module's `main`, of whose parameters `values` are known, and give its results.

    `names` is what kernels were called → what they are called now.
    """
    kernels: dict[Any, Any] = {}

    def moved(value: Any) -> Any:
        if isinstance(value, tvm.ir.GlobalVar):
            if value not in kernels:
                kernels[value] = builder.add_func(module[value], value.name_hint)
                names[value.name_hint] = kernels[value].name_hint
            return kernels[value]
        if isinstance(value, relax.Var):
            return values[value]
        if isinstance(value, relax.Tuple):
            return relax.Tuple([moved(field) for field in value.fields])
        if isinstance(value, relax.TupleGetItem):
            return relax.TupleGetItem(moved(value.tuple_value), value.index)
        if isinstance(value, relax.Call):
            return relax.Call(value.op, [moved(argument) for argument in value.args], value.attrs, value.ty_args)
        return value

    main = module["main"]
    for block in main.body.blocks:
        for binding in block.bindings:
            value = moved(binding.value)
            plain = isinstance(value, relax.Var | relax.Tuple)
            values[binding.var] = value if plain else builder.emit(value, binding.var.name)
    result = moved(main.body.body)
    return list(result.fields) if isinstance(result, relax.Tuple) else [result]
