"""Give each layer of a quantised network a kernel for CPUs or GPUs, and its tensors the form that these read."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from tvm import relax

from tvmflow.integer.frontend import plain_tensor
from tvmflow.integer.layers import AnyIntegerLayer, IntegerLayer, IntegerNode
from tvmflow.integer.network import IntegerNetwork, canonical
from tvmflow.integer.operators import Concat, Sum
from tvmflow.network.names import PATH_SEPARATOR
from tvmflow.passes.fuse_operators import call_bytes, constant_bytes, kernel_calls, tensor_bytes
from tvmflow.schedules import registry
from tvmflow.schedules.integer_tasks import Kernel, Task, Tensor
from tvmflow.spec import Layer, Program, Target

Names = tuple[str, ...]
Group = tuple[AnyIntegerLayer, ...]
"""Layers that share a kernel."""


def integer_kernels(program: Program, target: Target) -> Program:
    """`main` is made anew from `Program.integer`.

    On CPUs two depthwise layers in a row share a kernel, a sum is done in that of a layer that gives it an operand, and
    a concatenation is where the layers before it store what they give (`slices_of`): the first of these gets the whole
    tensor to write to, and the others go on in it.
    """
    network: IntegerNetwork | None = program.integer
    assert network is not None
    builder = relax.BlockBuilder()
    inputs = [relax.Var(port.name, relax.TensorType(port.shape, port.dtype)) for port in network.inputs]
    values = dict(zip((port.name for port in network.inputs), inputs, strict=True))
    tensors = {port.name: plain_tensor(canonical(port.shape), port.dtype, port.shape) for port in network.inputs}
    groups, slices = _groups(network, target), slices_of(network, target)
    names: list[str] = []
    with builder.function("main", inputs):
        with builder.dataflow():
            for layers in groups:
                last, (linear, tail) = layers[-1], _parts(layers)
                written = [layer for layer in layers if layer.name in slices]
                form = _form(last, network, target)
                whole = slices[written[0].name].whole.name if written else last.name
                sources = [*linear[0].inputs, *_others(layers)]
                task = Task(
                    layers=linear,
                    sources=tuple(tensors[name] for name in sources),
                    result=slices[written[0].name].form if written else form,
                    tail=tail,
                )
                rule, kernel = _make(task, target)
                names.append(rule)
                kinds = [rule if rule != "node" else last.kind, *(node.kind for node in layers[len(linear) :])]
                func = builder.add_func(kernel.func, f"integer_{'_'.join(kinds)}")
                given = [*(values[name] for name in sources), *(relax.const(array) for array in kernel.constants)]
                kind = relax.TensorType(task.result.shape, task.result.memory_dtype)
                if written and whole in values:
                    arguments = relax.Tuple([*given, values[whole]])
                    call = relax.call_tir_inplace(func, arguments, len(given), kind)
                else:
                    call = relax.call_tir(func, relax.Tuple(given), kind)
                tensors[last.name] = form
                emit = builder.emit_output if network.is_output(last.name) else builder.emit
                values[last.name] = values[whole] = emit(call, last.name.replace(".", PATH_SEPARATOR))
        outputs = [values[port.source] for port in network.outputs]
        builder.emit_func_output(outputs[0] if len(outputs) == 1 else relax.Tuple(outputs))
    module = builder.get()
    known = {layer.name: described for layer, described in zip(network.layers, program.layers, strict=True)}
    described = tuple(
        Layer(
            kernel=call.value.args[0].name_hint,
            modules=tuple(itertools.chain.from_iterable(known[layer.name].modules for layer in layers)),
            macs=sum(known[layer.name].macs for layer in layers),
            bytes=_bytes(call, layers, slices),
            live_macs=sum(layer.live_macs for layer in layers if layer.kind != "pool"),
            weight_bytes=constant_bytes(call),
            schedule=f"integer {rule}",
        )
        for layers, rule, call in zip(groups, names, kernel_calls(module), strict=True)
    )
    return replace(program, module=module, layers=described)


def tensors_between(network: IntegerNetwork, target: Target) -> list[tuple[Group, Tensor]]:
    """The layers of each kernel that a build for that board makes, in order, and how its result lies in memory."""
    slices = slices_of(network, target)
    return [
        (layers, slices[layers[-1].name].form if layers[-1].name in slices else _form(layers[-1], network, target))
        for layers in _groups(network, target)
    ]


def tensors_of(network: IntegerNetwork, target: Target, found: Sequence[np.ndarray]) -> list[tuple[Names, np.ndarray]]:
    """For each kernel that a build for that board makes, the names of its layers, and the last one's tensor.

    `found` is what the kernels left, of all runs, as it lies in memory; the tensors are int64 N×C×H×W. Kernels of a
    tail, which come last, are none of them.
    """
    tensors, forms = [], tensors_between(network, target)
    for (layers, form), stack in zip(forms, found[: len(forms)], strict=True):
        last = layers[-1]
        _, channels, height, width = last.output_shape
        values = stack.view(form.dtype) if form.packed else stack
        if form.is_plain:
            values = values.reshape(-1, channels, height, width)
        else:
            pixels = values.reshape(-1, height * width, form.stored)[:, :, form.first : form.first + channels]
            values = pixels.transpose(0, 2, 1).reshape(-1, channels, height, width)
        names = tuple(layer.name for layer in layers)
        tensors.append((names, values.astype(np.int64) - form.offset))
    return tensors


def _make(task: Task, target: Target) -> tuple[str, Kernel]:
    """The first rule that fits, and its kernel."""
    made = ((name, rule(task, target)) for name, rule in registry.integer(target).RULES.items())
    return next((name, kernel) for name, kernel in made if kernel is not None)


@dataclass(frozen=True, kw_only=True)
class Slice:
    """Where a layer's result lies in that of `whole`, which is concatenated of it and others."""

    whole: IntegerNode
    form: Tensor


def slices_of(network: IntegerNetwork, target: Target) -> dict[str, Slice]:
    """Of the layers whose kernels write into a concatenation of channels at once, so that nothing is copied there.

    These are convolutions of all channels with all, maybe with sums behind them, whose results nothing else reads and
    whose channels, but for the last's, are whole vectors.
    """
    lanes, found = registry.integer(target).slice_of(target), dict[str, Slice]()
    if lanes is None:
        return {}
    groups = {group[-1].name: group for group in _shared(network, target)}
    for layer in network.layers:
        before = [groups.get(name) for name in layer.inputs]
        if layer.kind != Concat.kind or network.is_output(layer.name) or layer.operator.axis != 1:  # type: ignore[union-attr]
            continue
        *others, _ = (network.shapes[name][1] for name in layer.inputs)
        if any(count % lanes for count in others) or not all(
            group is not None and _writes_into(layer, group, network) for group in before
        ):
            continue
        form, first = _form(layer, network, target), 0
        for name in layer.inputs:
            channels = network.shapes[name][1]
            found[name] = Slice(whole=layer, form=replace(form, channels=channels, first=first))  # type: ignore[arg-type]
            first += channels
    return found


def _writes_into(whole: AnyIntegerLayer, group: Group, network: IntegerNetwork) -> bool:
    """Whether the last of a kernel's layers gives what is concatenated as it is there, and its rule can store it so."""
    (first, *_), last = group, group[-1]
    return (
        isinstance(first, IntegerLayer)
        and first.groups == 1
        and whole.inputs.count(last.name) == 1
        and network.readers(last.name) == [whole]
        and not network.is_output(last.name)
        and last.dtype == whole.dtype
        and whole.minimum <= last.minimum
        and last.maximum <= whole.maximum
    )


def _bytes(call: relax.VarBinding, layers: Group, slices: Mapping[str, Slice]) -> int:
    """What a kernel reads and writes; of a whole that it goes on in, its own part."""
    written = next((slices[layer.name].form for layer in layers if layer.name in slices), None)
    if written is None:
        return call_bytes(call)
    whole = tensor_bytes(call.var.ty)
    tensors = call_bytes(call) - whole * (2 if call.value.op.name.endswith("inplace") else 1)
    return tensors + whole * written.channels // written.stored


def _groups(network: IntegerNetwork, target: Target) -> list[Group]:
    """The layers of each kernel; a concatenation that others write into is done with the last of them."""
    groups, slices = _shared(network, target), slices_of(network, target)
    last = {slices[group[-1].name].whole.name: group[-1].name for group in groups if group[-1].name in slices}
    wholes = {name: slices[name].whole for name in last.values()}
    return [
        (*group, wholes[group[-1].name]) if group[-1].name in wholes else group
        for group in groups
        if group[-1].name not in last
    ]


def _shared(network: IntegerNetwork, target: Target) -> list[Group]:
    """The layers of each kernel. One that others follow in is computed where they are, as nothing else waits for it."""
    groups: list[Group] = []
    for layer in network.layers:
        place = _joined(groups, layer, network, target)
        group = () if place is None else groups.pop(place)
        groups.append((*group, layer))
    return groups


def _joined(groups: list[Group], layer: AnyIntegerLayer, network: IntegerNetwork, target: Target) -> int | None:
    """The last of the groups whose kernel the layer can share. All that it reads then lies as kernels want it."""
    rules = registry.integer(target)
    users = {port.name for port in network.inputs} | {port.source for port in network.outputs}
    if not users.isdisjoint(layer.inputs):
        return None
    for place in range(len(groups) - 1, -1, -1):
        before = groups[place][-1]
        if (
            layer.inputs.count(before.name) == 1
            and network.readers(before.name) == [layer]
            and not network.is_output(before.name)
            and rules.joins(groups[place], layer, target)
        ):
            return place
    return None


def _parts(group: Group) -> tuple[Group, tuple[IntegerNode, ...]]:
    """The layers of a kernel that come first, and the nodes that follow in the same kernel."""
    if isinstance(group[0], IntegerNode):
        return group, ()
    return (
        tuple(layer for layer in group if isinstance(layer, IntegerLayer)),
        tuple(layer for layer in group if isinstance(layer, IntegerNode) and isinstance(layer.operator, Sum)),
    )


def _others(group: Group) -> list[str]:
    """What the nodes of a kernel's tail read, but for what is computed in it."""
    _, tail = _parts(group)
    known = {layer.name for layer in group}
    return [name for node in tail for name in node.inputs if name not in known]


def _form(layer: AnyIntegerLayer, network: IntegerNetwork, target: Target) -> Tensor:
    """Of a layer's result: as the user gets it, else as its readers' instructions want it."""
    for port in network.outputs:
        if port.source == layer.name:
            return plain_tensor(layer.output_shape, layer.dtype, port.shape)
    readers = network.readers(layer.name)
    return registry.integer(target).form(layer, readers, target)
