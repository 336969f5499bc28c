"""A float32 network in Relax as a chain of layers, which is what the kernels of microcontrollers are made of.

It serves whatever was imported, .pt2 and .onnx files included. Batch normalisation has been folded before.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.relax.analysis import post_order_visit

from tvmflow.chain import FloatLayer
from tvmflow.frontend import module_path
from tvmflow.passes.fuse_operators import OWN_NAMES
from tvmflow.passes.multiply_adds import static_shape
from tvmflow.spec import Program, UnsupportedOperatorError, UserError


def read_layers(program: Program) -> tuple[FloatLayer, ...]:
    """The layers of `main` in execution order, each reading the one before; their names are those of bindings.

    Raises UnsupportedOperatorError, and UserError if the network takes anything but one image.
    """
    inputs, outputs = program.inputs, program.outputs
    if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].shape[0] != 1 or len(outputs) != 1:
        shown = ", ".join("×".join(map(str, spec.shape)) for spec in inputs)
        raise UserError(
            f"{program.name} has inputs of {shown} and {len(outputs)} outputs; microcontrollers take networks of one "
            "input, 1×C×H×W, and one output."
        )
    if {inputs[0].dtype, outputs[0].dtype} != {"float32"}:
        raise UserError(f"{program.name} is {inputs[0].dtype}; microcontrollers take float32 and int8.")
    clean = [relax.transform.CanonicalizeBindings(), relax.transform.DeadCodeElimination()]
    main = tvm.ir.transform.Sequential(clean)(program.module)["main"]
    bindings = [binding for block in main.body.blocks for binding in block.bindings]
    uses = Counter(var for binding in bindings for var in _variables(binding.value))
    layers: tuple[FloatLayer, ...] = ()
    shape: tuple[int, ...] = inputs[0].shape
    before = main.params[0]
    missing: defaultdict[str, list[str]] = defaultdict(list)
    for binding in bindings:
        name, value = binding.var.name, binding.value
        operator = getattr(getattr(value, "op", None), "name", "").removeprefix("relax.").removeprefix("nn.")
        in_chain = _variables(value) == [before] and uses[before] == 1
        before = binding.var
        if in_chain and isinstance(value, relax.Var):
            continue
        made = OPERATORS[operator](layers, shape, name, value) if in_chain and operator in OPERATORS else None
        if made is None:
            missing[operator if in_chain else f"{operator} of branches"].append(module_path(name))
            shape = static_shape(binding.var.ty) if isinstance(binding.var.ty, relax.TensorType) else shape
            continue
        layers, shape = made, made[-1].output_shape if made else shape
    if missing:
        shown = ", ".join(f"{operator} ({', '.join(paths[:3])})" for operator, paths in missing.items())
        raise UnsupportedOperatorError(
            f"{program.name} can't be compiled for a microcontroller: float32 is for chains of convolution, batch "
            f"normalisation, ReLU, global average pooling and linear layers, and it has {shown}.",
            {operator: tuple(paths) for operator, paths in missing.items()},
        )
    if not layers:
        raise UserError(f"{program.name} has no layers to compile.")
    return tuple(
        replace(layer, modules=(*map(module_path, program.folded.get(layer.name, {})), *layer.modules))
        for layer in layers
    )


def _variables(value: Any) -> list[relax.Var]:
    found: list[relax.Var] = []
    post_order_visit(value, lambda part: found.append(part) if isinstance(part, relax.Var) else None)
    return found


Layers = tuple[FloatLayer, ...]
Take = Callable[[Layers, tuple[int, ...], str, relax.Call], Layers | None]
"""(layers, the map 1×C×H×W that they make, name, operator) → the layers with its work added, None if they can't."""


def _convolution(layers: Layers, shape: tuple[int, ...], name: str, call: relax.Call) -> Layers | None:
    attributes = call.attrs
    layouts = [str(getattr(attributes, f"{tensor}_layout")) for tensor in ("data", "kernel", "out")]
    top, left, bottom, right = map(int, attributes.padding)
    weight = _constant(call.args[1])
    if weight is None or layouts != ["NCHW", "OIHW", "NCHW"] or (top, left) != (bottom, right):
        return None
    layer = FloatLayer(
        name=name,
        modules=(module_path(name),),
        kind="conv2d",
        weight=weight,
        bias=np.zeros(len(weight)),
        stride=_pair(attributes.strides),
        padding=(top, left),
        dilation=_pair(attributes.dilation),
        groups=int(attributes.groups),
        input_shape=static_shape(call.args[0].ty),
        output_shape=static_shape(call.ty),
    )
    return (*layers, layer) if layer.input_shape == shape else None


def _dense(layers: Layers, shape: tuple[int, ...], name: str, call: relax.Call) -> Layers | None:
    """A linear layer that reads flattened maps is a convolution over the whole map."""
    weight = _constant(call.args[1])
    if weight is None or weight.ndim != 2 or static_shape(call.args[0].ty) != (1, int(np.prod(shape))):
        return None
    layer = FloatLayer(
        name=name,
        modules=(module_path(name),),
        kind="dense" if shape[2:] == (1, 1) else "conv2d",
        weight=weight.T.reshape(-1, *shape[1:]),
        bias=np.zeros(weight.shape[1]),
        input_shape=shape,
        output_shape=(1, weight.shape[1], 1, 1),
    )
    return (*layers, layer)


def _mean(layers: Layers, shape: tuple[int, ...], name: str, call: relax.Call) -> Layers | None:
    """The global average pool."""
    rank = len(static_shape(call.args[0].ty))
    if rank != 4 or {int(axis) % rank for axis in call.attrs.axis or ()} != {2, 3}:
        return None
    _, channels, height, width = shape
    layer = FloatLayer(
        name=name,
        modules=(module_path(name),),
        kind="pool",
        weight=np.full((channels, 1, height, width), 1 / (height * width)),
        bias=np.zeros(channels),
        groups=channels,
        input_shape=shape,
        output_shape=(1, channels, 1, 1),
    )
    return (*layers, layer)


def _channelwise(layers: Layers, shape: tuple[int, ...], name: str, call: relax.Call) -> Layers | None:
    """Biases, and what is left of a batch normalisation: one constant for each channel, on the right but for sums."""
    constants = [array for array in map(_constant, call.args) if array is not None]
    operator = call.op.name.removeprefix("relax.")
    if not layers or layers[-1].relu or layers[-1].kind == "pool" or len(constants) != 1:
        return None
    if operator in ("subtract", "divide") and _constant(call.args[1]) is None:
        return None
    whole = np.broadcast_to(constants[0], static_shape(call.ty))
    if whole.size != np.prod(shape):
        return None
    whole = whole.reshape(shape[1:])
    channel = whole[:, 0, 0]
    if not np.array_equal(np.broadcast_to(channel[:, None, None], whole.shape), whole):
        return None
    weight, bias = layers[-1].weight, layers[-1].bias
    if operator in ("add", "subtract"):
        return _extended(layers, name, bias=bias + channel if operator == "add" else bias - channel)
    factor = channel if operator == "multiply" else 1 / channel
    return _extended(layers, name, weight=weight * factor[:, None, None, None], bias=bias * factor)


def _relu(layers: Layers, shape: tuple[int, ...], name: str, call: relax.Call) -> Layers | None:
    return _extended(layers, name, relu=True) if layers else None


def _view(layers: Layers, shape: tuple[int, ...], name: str, call: relax.Call) -> Layers | None:
    """The same map, or all of it in a row."""
    return layers if static_shape(call.ty) in (shape, (1, int(np.prod(shape)))) else None


OPERATORS: dict[str, Take] = {
    "conv2d": _convolution,
    "matmul": _dense,
    "mean": _mean,
    "relu": _relu,
    **dict.fromkeys(("add", "subtract", "multiply", "divide"), _channelwise),
    **dict.fromkeys(("reshape", "flatten", "squeeze"), _view),
}


def _extended(layers: Layers, name: str, **changes: Any) -> Layers:
    """The last layer does this module's work as well."""
    last = layers[-1]
    own = () if OWN_NAMES.fullmatch(name) else (module_path(name),)
    modules = tuple(dict.fromkeys((*last.modules, *own)))
    return (*layers[:-1], replace(last, modules=modules, **changes))


def _constant(value: relax.Expr) -> np.ndarray | None:
    return value.value.numpy().astype(np.float64) if isinstance(value, tvm.ir.expr.GenericConst) else None


def _pair(values: Any) -> tuple[int, int]:
    first, second = map(int, values)
    return first, second
