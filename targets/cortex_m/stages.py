"""The stages of a microcontroller: layers become functions over plain pointers and one static arena.

A function of the module carries what its call needs in its attributes: READS, the function whose result it reads;
RESULT, bytes of its own; CONSTANTS, name → tensor in flash; SCRATCH, name → bytes; IN_PLACE; and, once placed,
ARGUMENTS: where each pointer points, "input", "output", an offset in the arena or the name of a constant.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from types import MappingProxyType

import numpy as np
import tvm
from tvm import tirx

from tvmflow.integer.graph import FloatLayer
from tvmflow.integer.layers import IntegerLayer
from tvmflow.integer.network import IntegerNetwork
from tvmflow.integer.reader import float_graph
from tvmflow.network.names import module_path
from tvmflow.passes.lifetimes import Tensor, live_bytes
from tvmflow.schedules.cortex_m import LONGEST_CHAIN, AnyLayer, Kernel, choose
from tvmflow.spec import Layer, Program, Target, UserError
from tvmflow.targets.cortex_m.arena import pack

READS, RESULT, CONSTANTS, SCRATCH, IN_PLACE, ARGUMENTS = (
    f"tvmflow.{name}" for name in ("reads", "result", "constants", "scratch", "in_place", "arguments")
)


def choose_kernels(program: Program, target: Target) -> Program:
    """The integer network becomes functions in execution order, each of one layer or of a chain of them."""
    network: IntegerNetwork | None = program.integer
    assert network is not None
    if not network.is_chain or not all(isinstance(layer, IntegerLayer) for layer in network.layers):
        raise UserError(f"A microcontroller takes chains of layers with weights, and {network.name} is none.")
    return _choose(program, network.layers, {layer.name: layer.inputs[0] for layer in network.layers}, target)


def chain_of(program: Program) -> tuple[FloatLayer, ...]:
    """The layers of a float32 network. Raises UnsupportedOperatorError, UserError for what is no chain."""
    graph = float_graph(program, "compiled for a microcontroller in float32")
    layers = tuple(layer for layer in graph.layers if isinstance(layer, FloatLayer))
    names = [graph.inputs[0].name, *(layer.name for layer in layers)]
    if len(layers) < len(graph.layers) or any(
        layer.inputs != (name,) for layer, name in zip(layers, names, strict=False)
    ):
        raise UserError(f"{program.name} can't be compiled for a microcontroller: it is no chain.")
    return layers


def choose_float_kernels(program: Program, target: Target) -> Program:
    """`choose_kernels` for the float32 network in `main`. Raises UnsupportedOperatorError, UserError."""
    folded = {module_path(name): works for name, works in program.folded.items()}
    layers = tuple(
        replace(layer, modules=(*map(module_path, folded.get(layer.name, {})), *layer.modules))
        for layer in chain_of(program)
    )
    reads = dict(zip((layer.name for layer in layers), ("input", *(layer.name for layer in layers)), strict=False))
    return _choose(program, layers, reads, target, folded)


def _choose(
    program: Program,
    network: Sequence[AnyLayer],
    reads: Mapping[str, str],
    target: Target,
    folded: Mapping[str, Mapping[str, int]] = MappingProxyType({}),
) -> Program:
    """`reads` has for each layer the name of the one that it reads, or "input"; `folded` is by layers' names, too."""
    assert target.mcu is not None
    readers = list(reads.values())
    dtypes = {"input": program.inputs[0].dtype, **{layer.name: layer.dtype for layer in network}}
    made_by = {"input": "input"}
    functions: dict[str, tirx.PrimFunc] = {}
    layers: list[Layer] = []
    left = list(network)
    while left:
        read = reads[left[0].name]
        # the caller's input is read only, and the last kernel writes to where the caller wants it
        writable = read != "input" and readers.count(read) == 1 and len(left) > LONGEST_CHAIN
        kernel = choose(_chain(left, reads), dtypes[read], target.mcu.core, writable=writable)
        name = f"{len(layers):02}_{re.sub(r'[^0-9A-Za-z]+', '_', kernel.layers[0].name)}"
        functions[name] = _annotate(kernel, made_by[read])
        layers.append(_describe(kernel, name, folded))
        made_by[kernel.layers[-1].name] = name
        left = left[len(kernel.layers) :]
    return replace(program, module=tvm.IRModule(functions), layers=tuple(layers))


def _chain(layers: Sequence[AnyLayer], reads: Mapping[str, str]) -> Sequence[AnyLayer]:
    """The first layers, as far as each is read by the next and by nobody else."""
    readers = list(reads.values())
    for count, (earlier, later) in enumerate(pairwise(layers), 1):
        if reads[later.name] != earlier.name or readers.count(earlier.name) != 1:
            return layers[:count]
    return layers


def _annotate(kernel: Kernel, reads: str) -> tirx.PrimFunc:
    constants = {name: tvm.runtime.tensor(np.ascontiguousarray(array)) for name, array in kernel.constants.items()}
    attributes = {
        READS: reads,
        RESULT: _bytes(kernel.layers[-1].output_shape, kernel.layers[-1].dtype),
        CONSTANTS: constants,
        SCRATCH: dict(kernel.scratch),
        IN_PLACE: kernel.in_place,
    }
    func = kernel.func
    for name, value in attributes.items():
        func = func.with_attr(name, value)
    return func


def _describe(kernel: Kernel, name: str, folded: Mapping[str, Mapping[str, int]]) -> Layer:
    first, last = kernel.layers[0], kernel.layers[-1]
    touched = sum(_bytes(shape, last.dtype) for shape in (first.input_shape, last.output_shape))
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
    last_read = {func.attrs[READS]: step for step, func in enumerate(functions.values())}
    lies_in = {"input": "input"}
    tensors: dict[str, Tensor] = {}
    for step, (name, func) in enumerate(functions.items()):
        for scratch, size in func.attrs[SCRATCH].items():
            key = f"{name} {scratch}"
            tensors[key] = Tensor(name=key, bytes=int(size), first=step, last=step)
        if name not in last_read:
            lies_in[name] = "output"
        elif func.attrs[IN_PLACE]:
            lies_in[name] = lies_in[func.attrs[READS]]
            tensors[lies_in[name]] = replace(tensors[lies_in[name]], last=last_read[name])
        else:
            lies_in[name] = name
            tensors[name] = Tensor(name=name, bytes=int(func.attrs[RESULT]), first=step, last=last_read[name])
    offsets, size = pack(list(tensors.values()))
    placed = {}
    for name, func in functions.items():
        pointed = [lies_in[func.attrs[READS]], *([] if func.attrs[IN_PLACE] else [lies_in[name]])]
        pointed += [f"{name} {scratch}" for scratch in func.attrs[SCRATCH]]
        arguments = [str(offsets.get(key, key)) for key in pointed]
        placed[name] = func.with_attr(ARGUMENTS, [*arguments, *func.attrs[CONSTANTS]])
    weights = sum(tensor.numpy().nbytes for func in functions.values() for tensor in func.attrs[CONSTANTS].values())
    memory = {**program.memory, "weights_bytes": weights, "activations_bytes": size}
    live = live_bytes(list(tensors.values()), len(functions))
    layers = tuple(replace(layer, live_bytes=count) for layer, count in zip(program.layers, live, strict=True))
    return replace(program, module=tvm.IRModule(placed), memory=memory, layers=layers)


def lower_kernels(program: Program, target: Target) -> Program:
    """Loops become what a code generator takes. Without a packed interface the pointers stay plain arguments."""
    transform = tirx.transform
    passes = [
        transform.BindTarget(tvm.target.Target.current().with_host(tvm.target.Target.current())),
        transform.FlattenBuffer(),
        transform.NarrowDataType(32),
        transform.VectorizeLoop(True),
        transform.UnrollLoop(),
        transform.StmtSimplify(),
        transform.RemoveNoOp(),
        transform.LowerIntrin(),
    ]
    with tvm.transform.PassContext(opt_level=3):
        module = tvm.transform.Sequential(passes)(program.module)
    return replace(program, module=module)


def functions_of(program: Program) -> dict[str, tirx.PrimFunc]:
    """The functions of the module in execution order."""
    return {layer.kernel: program.module[layer.kernel] for layer in program.layers}
