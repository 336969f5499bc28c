"""Give each layer of a quantised network a kernel for CPUs or GPUs, and its tensors the form that these read."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

from tvm import relax

from tvmflow.integer.frontend import INPUT
from tvmflow.integer.network import IntegerLayer, IntegerNetwork
from tvmflow.network.names import PATH_SEPARATOR
from tvmflow.passes.fuse_operators import call_bytes, constant_bytes, kernel_calls
from tvmflow.schedules.cpu.integer import RULES, Kernel, Task, Tensor
from tvmflow.schedules.cpu.integer.depthwise import fuses
from tvmflow.schedules.cuda import integer as cuda
from tvmflow.schedules.instructions import instructions_of
from tvmflow.schedules.integers import round_up
from tvmflow.spec import Layer, Program, Target

OFFSETS = {("int8", "uint8"): 128, ("uint8", "int8"): -128}
"""What is added to values of the first dtype to store them in the second."""


def integer_kernels(program: Program, target: Target) -> Program:
    """`main` is made anew from `Program.integer`; two depthwise layers in a row share a kernel on CPUs."""
    network: IntegerNetwork | None = program.integer
    assert network is not None
    builder = relax.BlockBuilder()
    values = {INPUT: relax.Var(INPUT, relax.TensorType(network.input_shape, "int8"))}
    _, channels, height, width = network.input_shape
    tensors = {INPUT: Tensor(channels=channels, size=(height, width), dtype="int8", shape=network.input_shape)}
    groups = _groups(network, target)
    names: list[str] = []
    with builder.function("main", [values[INPUT]]):
        with builder.dataflow():
            for layers in groups:
                last = layers[-1]
                tensors[last.name] = _form(last, network, groups, target)
                (read,) = layers[0].inputs
                rule, kernel = _make(Task(layers=layers, source=tensors[read], result=tensors[last.name]), target)
                names.append(rule)
                func = builder.add_func(kernel.func, f"integer_{rule}")
                arguments = relax.Tuple([values[read], *(relax.const(array) for array in kernel.constants)])
                form = tensors[last.name]
                call = relax.call_tir(func, arguments, relax.TensorType(form.shape, form.memory_dtype))
                emit = builder.emit_output if last is network.layers[-1] else builder.emit
                values[last.name] = emit(call, last.name.replace(".", PATH_SEPARATOR))
        builder.emit_func_output(values[network.layers[-1].name])
    module = builder.get()
    known = {layer.name: described for layer, described in zip(network.layers, program.layers, strict=True)}
    described = tuple(
        Layer(
            kernel=call.value.args[0].name_hint,
            modules=tuple(itertools.chain.from_iterable(known[layer.name].modules for layer in layers)),
            macs=sum(known[layer.name].macs for layer in layers),
            bytes=call_bytes(call),
            live_macs=sum(layer.live_macs for layer in layers if layer.kind != "pool"),
            weight_bytes=constant_bytes(call),
            schedule=f"integer {rule}",
        )
        for layers, rule, call in zip(groups, names, kernel_calls(module), strict=True)
    )
    return replace(program, module=module, layers=described)


def _make(task: Task, target: Target) -> tuple[str, Kernel]:
    """The first rule that fits, and its kernel."""
    rules = RULES if target.gpu is None else cuda.RULES
    made = ((name, rule(task, target)) for name, rule in rules.items())
    return next((name, kernel) for name, kernel in made if kernel is not None)


def _groups(network: IntegerNetwork, target: Target) -> list[tuple[IntegerLayer, ...]]:
    groups: list[tuple[IntegerLayer, ...]] = []
    for layer in network.layers:
        before = groups[-1] if groups else ()
        if (
            target.gpu is None
            and len(before) == 1
            and layer.inputs == (before[0].name,)
            and _readers(network, before[0].name) == [layer]
            and fuses(before[0], layer, target)
        ):
            groups[-1] = (before[0], layer)
        else:
            groups.append((layer,))
    return groups


def _readers(network: IntegerNetwork, name: str) -> list[IntegerLayer]:
    return [layer for layer in network.layers if name in layer.inputs]


def _form(
    layer: IntegerLayer, network: IntegerNetwork, groups: Sequence[tuple[IntegerLayer, ...]], target: Target
) -> Tensor:
    """Of a layer's result: NCHW for the user, else as its readers' instructions want it."""
    channels, *size = layer.output_shape[1:]
    plain = Tensor(channels=channels, size=(size[0], size[1]), dtype=layer.dtype, shape=tuple(network.output_shape))
    if layer is network.layers[-1]:
        return plain
    if target.gpu is not None:
        return cuda.form(layer, _readers(network, layer.name))
    instructions = instructions_of(target)
    stored = math.prod(size), round_up(channels, instructions.lanes)
    wanted = instructions.data
    if wanted == "uint8" and layer.minimum >= 0:
        return replace(plain, shape=stored, dtype=wanted)
    if wanted == layer.dtype or any(reader.groups != 1 for reader in _readers(network, layer.name)):
        return replace(plain, shape=stored)
    return replace(plain, shape=stored, dtype=wanted, offset=OFFSETS.get((layer.dtype, wanted), 0))
