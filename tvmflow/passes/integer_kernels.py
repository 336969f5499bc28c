"""Give each layer of a quantised network a kernel for CPUs or GPUs, and its tensors the form that these read."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

from tvm import relax

from tvmflow.integer.frontend import plain_tensor
from tvmflow.integer.layers import AnyIntegerLayer, IntegerLayer
from tvmflow.integer.network import IntegerNetwork, canonical
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
    inputs = [relax.Var(port.name, relax.TensorType(port.shape, port.dtype)) for port in network.inputs]
    values = dict(zip((port.name for port in network.inputs), inputs, strict=True))
    tensors = {port.name: plain_tensor(canonical(port.shape), port.dtype, port.shape) for port in network.inputs}
    groups = _groups(network, target)
    names: list[str] = []
    with builder.function("main", inputs):
        with builder.dataflow():
            for layers in groups:
                last = layers[-1]
                tensors[last.name] = _form(last, network, target)
                sources = layers[0].inputs
                task = Task(layers=layers, sources=tuple(tensors[name] for name in sources), result=tensors[last.name])
                rule, kernel = _make(task, target)
                names.append(rule)
                func = builder.add_func(kernel.func, f"integer_{rule if rule != 'node' else last.kind}")
                constants = [relax.const(array) for array in kernel.constants]
                arguments = relax.Tuple([*(values[name] for name in sources), *constants])
                form = tensors[last.name]
                call = relax.call_tir(func, arguments, relax.TensorType(form.shape, form.memory_dtype))
                emit = builder.emit_output if network.is_output(last.name) else builder.emit
                values[last.name] = emit(call, last.name.replace(".", PATH_SEPARATOR))
        outputs = [values[port.source] for port in network.outputs]
        builder.emit_func_output(outputs[0] if len(outputs) == 1 else relax.Tuple(outputs))
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


def tensors_between(network: IntegerNetwork, target: Target) -> list[tuple[tuple[AnyIntegerLayer, ...], Tensor]]:
    """The layers of each kernel that a build for that board makes, in order, and how its result lies in memory."""
    return [(layers, _form(layers[-1], network, target)) for layers in _groups(network, target)]


def _make(task: Task, target: Target) -> tuple[str, Kernel]:
    """The first rule that fits, and its kernel."""
    rules = RULES if target.gpu is None else cuda.RULES
    made = ((name, rule(task, target)) for name, rule in rules.items())
    return next((name, kernel) for name, kernel in made if kernel is not None)


def _groups(network: IntegerNetwork, target: Target) -> list[tuple[AnyIntegerLayer, ...]]:
    groups: list[tuple[AnyIntegerLayer, ...]] = []
    for layer in network.layers:
        before = groups[-1] if groups else ()
        if (
            target.gpu is None
            and isinstance(layer, IntegerLayer)
            and len(before) == 1
            and isinstance(before[0], IntegerLayer)
            and layer.inputs == (before[0].name,)
            and network.readers(before[0].name) == [layer]
            and not network.is_output(before[0].name)
            and fuses(before[0], layer, target)
        ):
            groups[-1] = (before[0], layer)
        else:
            groups.append((layer,))
    return groups


def _form(layer: AnyIntegerLayer, network: IntegerNetwork, target: Target) -> Tensor:
    """Of a layer's result: as the user gets it, else as its readers' instructions want it."""
    for port in network.outputs:
        if port.source == layer.name:
            return plain_tensor(layer.output_shape, layer.dtype, port.shape)
    readers = network.readers(layer.name)
    if target.gpu is not None:
        return cuda.form(layer, readers)
    channels, *size = layer.output_shape[1:]
    instructions = instructions_of(target)
    stored = math.prod(size), round_up(channels, instructions.lanes)
    tensor = Tensor(channels=channels, size=(size[0], size[1]), dtype=layer.dtype, shape=stored)
    wanted = instructions.data
    if wanted == "uint8" and layer.minimum >= 0:
        return replace(tensor, dtype=wanted)
    if wanted == layer.dtype or any(isinstance(reader, IntegerLayer) and reader.groups != 1 for reader in readers):
        return tensor
    if not any(isinstance(reader, IntegerLayer) for reader in readers):
        return tensor
    return replace(tensor, dtype=wanted, offset=OFFSETS.get((layer.dtype, wanted), 0))
