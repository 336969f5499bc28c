"""The stages of a microcontroller: layers become functions over plain pointers and one static arena.

A function of the module carries what its call needs in its attributes: LAYERS, the names of what it computes; READS,
the functions and inputs whose tensors it reads; RESULT, bytes of its own; OUTPUT, which output of the network that is,
or −1; CONSTANTS, name → tensor in flash; SCRATCH, name → bytes; IN_PLACE, which of what it reads it overwrites, or −1;
and, once placed, ARGUMENTS: where each pointer points, an input or an output, an offset in the arena or the name of a
constant. An input or an output is "input 0", "output 1", as no constant is called.

A tensor that is an output of the network lies where the caller wants it from the beginning, also for the layers that
read it, and nothing but its own kernel writes to it.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import tvm
from tvm import tirx

from tvmflow.integer.graph import FloatGraph, FloatLayer, FloatNode
from tvmflow.integer.layers import IntegerLayer, IntegerNode
from tvmflow.integer.network import IntegerNetwork
from tvmflow.integer.operators import OUTSIDE, Gather
from tvmflow.integer.reader import float_graph
from tvmflow.network.names import module_path
from tvmflow.passes.arena import least, pack
from tvmflow.passes.lifetimes import Tensor, live_bytes
from tvmflow.passes.portable_c import lower_loops
from tvmflow.schedules.cortex_m import LONGEST_CHAIN, AdaptedLayer, AnyLayer, Kernel, Node, choose
from tvmflow.schedules.nodes import VALUES_OF_FLOATS
from tvmflow.spec import Layer, Program, Target, UnsupportedOperatorError
from tvmflow.targets.cortex_m.attributes import (
    ARGUMENTS,
    CONSTANTS,
    IN_PLACE,
    LAYERS,
    NOTHING,
    OUTPUT,
    READS,
    RESULT,
    SCRATCH,
)
from tvmflow.targets.cortex_m.check import check_arena
from tvmflow.targets.cortex_m.facts import Mcu

PURPOSE = "compiled for a microcontroller in float32"
Graph = FloatGraph | IntegerNetwork


def choose_kernels(program: Program, target: Target) -> Program:
    """The integer network becomes functions in execution order, each of one layer or of a chain of them."""
    network: IntegerNetwork | None = program.integer
    assert network is not None
    return _choose(program, network, network.layers, target)


def graph_of(program: Program) -> FloatGraph:
    """The layers of a float32 network. Raises UnsupportedOperatorError, UserError."""
    graph = float_graph(program, PURPOSE)
    missing: dict[str, list[str]] = defaultdict(list)
    for layer in graph.layers:
        if isinstance(layer, FloatNode) and type(layer.operator) not in VALUES_OF_FLOATS:
            missing[layer.kind].append(layer.modules[0] if layer.modules else layer.name)
    if missing:
        shown = ", ".join(f"{kind} ({', '.join(paths[:3])})" for kind, paths in missing.items())
        raise UnsupportedOperatorError(
            f"{program.name} can't be {PURPOSE}: without a C library there is no {shown}.",
            {kind: tuple(paths) for kind, paths in missing.items()},
        )
    return graph


def choose_float_kernels(program: Program, target: Target) -> Program:
    """`choose_kernels` for the float32 network in `main`. Raises UnsupportedOperatorError, UserError."""
    folded = {module_path(name): works for name, works in program.folded.items()}
    graph = graph_of(program)
    layers = tuple(
        replace(layer, modules=(*map(module_path, folded.get(layer.name, {})), *layer.modules))
        for layer in graph.layers
    )
    return _choose(program, graph, layers, target, folded)


def _choose(
    program: Program,
    graph: Graph,
    network: Sequence[AnyLayer],
    target: Target,
    folded: Mapping[str, Mapping[str, int]] = MappingProxyType({}),
) -> Program:
    """`network` are the graph's layers; `folded` is by their names, too."""
    network, outputs = _with_copies(network, [port.source for port in graph.outputs])
    network = _with_adapted(network, [port.name for port in graph.inputs], outputs)
    made_by = {port.name: f"input {number}" for number, port in enumerate(graph.inputs)}
    dtypes = {port.name: spec.dtype for port, spec in zip(graph.inputs, program.inputs, strict=True)}
    dtypes |= {layer.name: layer.dtype for layer in network}
    last_read = {name: step for step, layer in enumerate(network) for name in layer.inputs}
    kept = {*outputs, *made_by}  # the caller's inputs are read only, and what he gets is left as it is
    functions: dict[str, tirx.PrimFunc] = {}
    frugal: dict[str, tirx.PrimFunc] = {}
    layers: list[Layer] = []
    step = 0
    while step < len(network):
        chain = _chain(network[step:], outputs)
        read = list(dict.fromkeys(chain[0].inputs))
        free = [name not in kept and last_read[name] == step for name in read]
        given = chain, [dtypes[name] for name in read], Mcu.of(target).core, free, outputs
        kernel = _kernel_of(*given, frugal=False)
        smaller = _kernel_of(*given, frugal=True) if kernel.in_place is None and any(free) else kernel
        name = f"{len(layers):02}_{re.sub(r'[^0-9A-Za-z]+', '_', kernel.layers[0].name)}"
        last = kernel.layers[-1].name
        output = outputs.index(last) if last in outputs else NOTHING
        reads = [made_by[source] for source in read]
        functions[name] = _annotate(kernel, reads, output)
        if smaller.in_place != kernel.in_place and smaller.layers == kernel.layers:
            frugal[name] = _annotate(smaller, reads, output)
        layers.append(_describe(kernel, name, folded))
        made_by[last] = name
        step += len(kernel.layers)
    return replace(program, module=tvm.IRModule(_spared(functions, frugal)), layers=tuple(layers))


def _kernel_of(
    chain: Sequence[AnyLayer],
    dtypes: Sequence[str],
    core: str,
    free: Sequence[bool],
    outputs: Collection[str],
    *,
    frugal: bool,
) -> Kernel:
    """Of the first layer of a chain, or of more of them. Of what it reads, what is `free` is read by nobody later.

    Nothing is overwritten where the result is an output of the network, which has a place of its own.
    """
    if any(layer.name in outputs for layer in chain):
        kernel = choose(chain, dtypes, core, [False] * len(free), frugal)
        if len(kernel.layers) > 1 or chain[0].name in outputs:
            return kernel
        chain = chain[:1]
    return choose(chain, dtypes, core, free, frugal)


def _spared(functions: Mapping[str, tirx.PrimFunc], frugal: Mapping[str, tirx.PrimFunc]) -> Mapping[str, tirx.PrimFunc]:
    """As few of the kernels that save memory by more instructions as the smallest arena takes.

    From all of them on, one after the other is given up if the arena stays as it is.
    """

    chosen = {**functions, **frugal}
    smallest = _arena_bytes(chosen)

    def is_as_small(others: Mapping[str, tirx.PrimFunc]) -> bool:
        # packing takes longer, and isn't always as good as the bound
        return least(list(_tensors(others).tensors.values())) <= smallest >= _arena_bytes(others)

    if is_as_small(functions):
        return functions
    for name in frugal:
        without = {**chosen, name: functions[name]}
        if is_as_small(without):
            chosen = without
    return chosen


def _arena_bytes(functions: Mapping[str, tirx.PrimFunc]) -> int:
    return pack(list(_tensors(functions).tensors.values()))[1]


def _with_copies(network: Sequence[AnyLayer], outputs: Sequence[str]) -> tuple[Sequence[AnyLayer], Sequence[str]]:
    """The layers and the outputs' sources, where each output has a layer of its own.

    A layer that gives several outputs is followed by copies.
    """
    layers, sources = list(network), list(outputs)
    by_name = {layer.name: layer for layer in network}
    for number, source in enumerate(outputs):
        if source in sources[:number]:
            given = by_name[source]
            shape, count = given.output_shape, math.prod(given.output_shape)
            places = np.arange(count, dtype=np.int32).reshape(shape)
            name = f"{source} output {number}"
            common: dict[str, Any] = {
                "name": name,
                "modules": given.modules,
                "inputs": (source,),
                "operator": Gather(places=places),
            }
            common |= {"input_shapes": (shape,), "output_shape": shape}
            if isinstance(given, FloatLayer | FloatNode):
                layers.append(FloatNode(**common))
            else:
                limits: dict[str, Any] = {"minimum": given.minimum, "maximum": given.maximum}
                layers.append(IntegerNode(**common, **limits, dtype=given.dtype, scale=given.scale))
            sources[number] = name
    return layers, sources


def _with_adapted(layers: Sequence[AnyLayer], inputs: Collection[str], outputs: Collection[str]) -> Sequence[AnyLayer]:
    """The layers, where a convolution itself knows what lies beyond its input, and how the network's input lies.

    Networks with zero points of their own have borders of that number, and those of TensorFlow have images as H×W×C;
    their readers make a layer of either, which is a copy of the whole tensor.
    """
    readers: dict[str, list[AnyLayer]] = defaultdict(list)
    for layer in layers:
        for source in layer.inputs:
            readers[source].append(layer)
    copies: dict[str, _Copy] = {}
    for layer in layers:
        copy = _copy_of(layer)
        if copy is None or layer.name in outputs or (copy.interleaved and copy.node.inputs[0] not in inputs):
            continue
        if all(_reads_copies(reader, copy) for reader in readers[layer.name]):
            copies[layer.name] = copy
    found: list[AnyLayer] = []
    for layer in layers:
        if layer.name in copies:
            continue
        copy = copies.get(layer.inputs[0])
        if copy is not None:
            assert isinstance(layer, IntegerLayer)
            kept = {field.name: getattr(layer, field.name) for field in fields(IntegerLayer)}
            kept |= {"inputs": copy.node.inputs, "input_shape": copy.shape, "padding": copy.padding}
            kept |= {"modules": tuple(dict.fromkeys((*copy.node.modules, *layer.modules)))}
            layer = AdaptedLayer(**kept, border=copy.border, interleaved=copy.interleaved)
        found.append(layer)
    return found


@dataclass(frozen=True, kw_only=True)
class _Copy:
    """A layer that puts a border around maps, and may have its input as H×W×C; `shape` is the input's as 1×C×H×W."""

    node: IntegerNode
    shape: tuple[int, int, int, int]
    padding: tuple[int, int, int, int]
    border: int
    interleaved: bool


def _reads_copies(layer: AnyLayer, copy: _Copy) -> bool:
    """Whether a layer can read the original: depthwise kernels read planes."""
    if not isinstance(layer, IntegerLayer) or layer.kind != "conv2d" or any(layer.padding):
        return False
    return not copy.interleaved or layer.groups == 1


def _copy_of(layer: AnyLayer) -> _Copy | None:
    """What the layer does, if it is no more than that."""
    if not isinstance(layer, IntegerNode) or not isinstance(layer.operator, Gather):
        return None
    places, given = layer.operator.places, layer.input_shape
    rows, columns = (np.flatnonzero((places != OUTSIDE).any(axis)) for axis in ((0, 1, 3), (0, 1, 2)))
    if not len(rows):
        return None
    top, left = int(rows[0]), int(columns[0])
    count = np.arange(math.prod(given))
    for interleaved in (False, True):
        shape = (1, given[3], given[1], given[2]) if interleaved else (1, given[1], given[2], given[3])
        plain = np.moveaxis(count.reshape(given), 3, 1) if interleaved else count.reshape(given)
        whole = np.full(places.shape, OUTSIDE)
        inner = whole[:, :, top : top + shape[2], left : left + shape[3]]
        if inner.shape != shape or (interleaved and shape == tuple(given)):
            continue
        inner[...] = plain
        if np.array_equal(whole, places):
            below, right = places.shape[2] - top - shape[2], places.shape[3] - left - shape[3]
            padding = top, left, below, right
            return _Copy(
                node=layer, shape=shape, padding=padding, border=int(layer.operator.outside), interleaved=interleaved
            )
    return None


def _chain(layers: Sequence[AnyLayer], outputs: Sequence[str]) -> Sequence[AnyLayer]:
    """The first layers, as far as a kernel may take them: with weights, each read by the next and by nobody else."""
    count = 1
    while count < min(len(layers), LONGEST_CHAIN):
        earlier, later = layers[count - 1 : count + 1]
        if isinstance(earlier, Node) or isinstance(later, Node):
            break
        readers = sum(earlier.name in layer.inputs for layer in layers[count:])
        if later.inputs != (earlier.name,) or readers != 1 or earlier.name in outputs:
            break
        count += 1
    return layers[:count]


def _annotate(kernel: Kernel, reads: Sequence[str], output: int) -> tirx.PrimFunc:
    constants = {name: tvm.runtime.tensor(np.ascontiguousarray(array)) for name, array in kernel.constants.items()}
    attributes = {
        LAYERS: [layer.name for layer in kernel.layers],
        READS: list(reads),
        RESULT: _bytes(kernel.layers[-1].output_shape, kernel.layers[-1].dtype),
        OUTPUT: output,
        CONSTANTS: constants,
        SCRATCH: dict(kernel.scratch),
        IN_PLACE: NOTHING if kernel.in_place is None else kernel.in_place,
    }
    func = kernel.func
    for name, value in attributes.items():
        func = func.with_attr(name, value)
    return func


def _describe(kernel: Kernel, name: str, folded: Mapping[str, Mapping[str, int]]) -> Layer:
    first, last = kernel.layers[0], kernel.layers[-1]
    touched = sum(_bytes(shape, last.dtype) for shape in (*first.input_shapes, last.output_shape))
    return Layer(
        kernel=name,
        modules=tuple(module for layer in kernel.layers for module in layer.modules),
        macs=sum(
            sum(folded.get(layer.name, {}).values()) + (layer.macs if layer.kind != "pool" else 0)  # it only adds
            for layer in kernel.layers
        ),
        bytes=touched + sum(array.nbytes for array in kernel.constants.values()),
        live_macs=sum(layer.live_macs for layer in kernel.layers if layer.kind != "pool"),
        weight_bytes=sum(array.nbytes for array in kernel.constants.values()),
        schedule=kernel.schedule,
    )


def _bytes(shape: Sequence[int], dtype: str) -> int:
    return int(np.prod(shape)) * np.dtype(dtype).itemsize


def place_tensors(program: Program, target: Target) -> Program:
    """Every pointer gets its place: activations and scratch share one arena, packed by lifetime."""
    functions = functions_of(program)
    found = _tensors(functions)
    tensors, lies_in = found.tensors, found.lies_in
    offsets, size = pack(list(tensors.values()))
    placed = {}
    for name, func in functions.items():
        pointed = [lies_in.get(read, read) for read in func.attrs[READS]]
        if int(func.attrs[IN_PLACE]) == NOTHING:
            pointed.append(lies_in[name])
        pointed += [f"{name} {scratch}" for scratch in func.attrs[SCRATCH]]
        arguments = [str(offsets.get(key, key)) for key in pointed]
        placed[name] = func.with_attr(ARGUMENTS, [*arguments, *func.attrs[CONSTANTS]])
    weights = sum(tensor.numpy().nbytes for func in functions.values() for tensor in func.attrs[CONSTANTS].values())
    memory = {**program.memory, "weights_bytes": weights, "activations_bytes": size}
    live = live_bytes(list(tensors.values()), len(functions))
    layers = tuple(replace(layer, live_bytes=count) for layer, count in zip(program.layers, live, strict=True))
    check_arena(placed, size)
    return replace(program, module=tvm.IRModule(placed), memory=memory, layers=layers)


@dataclass(frozen=True, kw_only=True)
class _Tensors:
    """What lives in the arena, by name, and what each function's result is called there; outputs lie elsewhere."""

    tensors: Mapping[str, Tensor]
    lies_in: Mapping[str, str]


def _tensors(functions: Mapping[str, tirx.PrimFunc]) -> _Tensors:
    last_read = {str(read): step for step, func in enumerate(functions.values()) for read in func.attrs[READS]}
    lies_in: dict[str, str] = {}
    tensors: dict[str, Tensor] = {}
    for step, (name, func) in enumerate(functions.items()):
        for scratch, size in func.attrs[SCRATCH].items():
            key = f"{name} {scratch}"
            tensors[key] = Tensor(name=key, bytes=int(size), first=step, last=step)
        overwritten, output = int(func.attrs[IN_PLACE]), int(func.attrs[OUTPUT])
        last = last_read.get(name, step)
        if output != NOTHING:
            lies_in[name] = f"output {output}"
        else:
            lies_in[name] = name
            place = tensors[func.attrs[READS][overwritten]].lies_at if overwritten != NOTHING else ""
            tensors[name] = Tensor(name=name, bytes=int(func.attrs[RESULT]), first=step, last=last, place=place)
    return _Tensors(tensors=tensors, lies_in=lies_in)


def least_arena(program: Program) -> int:
    """Bytes of which no arena can have fewer, for these kernels in this order: what lives together at one of them."""
    return least(list(_tensors(functions_of(program)).tensors.values()))


def lower_kernels(program: Program, target: Target) -> Program:
    """Loops become what a code generator takes. Without a packed interface the pointers stay plain arguments."""
    return replace(program, module=lower_loops(program.module))


def functions_of(program: Program) -> dict[str, tirx.PrimFunc]:
    """The functions of the module in execution order."""
    return {layer.kernel: program.module[layer.kernel] for layer in program.layers}
