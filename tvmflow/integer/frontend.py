"""A quantised network becomes a Program: plain integer kernels in Relax, golden vectors from its reference."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tvmflow.integer.network import IntegerLayer, IntegerNetwork, Scheme, load
from tvmflow.models import accuracy, quantized
from tvmflow.network.names import PATH_SEPARATOR
from tvmflow.spec import Layer, Program, TensorSpec, UserError, Vector

if TYPE_CHECKING:
    from tvm import te


INPUT, OUTPUT = "input", "output"


def integer_program(network: IntegerNetwork, source: str = "") -> Program:
    """`network` on int8 N×C×H×W → int8 logits. Its kernels are fused already: `Program.layers` has them all.

    Golden vectors are noise over the whole range, a noisy image, and the edges, with what the reference makes of them.
    """
    from tvm import relax

    from tvmflow.passes.fuse_operators import kernel_calls, tensor_bytes

    builder = relax.BlockBuilder()
    values: dict[str, Any] = {INPUT: relax.Var(INPUT, relax.TensorType(network.input_shape, "int8"))}
    with builder.function("main", [values[INPUT]]):
        with builder.dataflow():
            for layer in network.layers:
                (read,) = layer.inputs
                shape = network.output_shape if layer is network.layers[-1] else layer.output_shape
                arrays = [relax.const(array) for array in (layer.weight, layer.bias, layer.factor)]
                call = builder.call_te(
                    functools.partial(_emit, layer, shape),
                    values[read],
                    *arrays,
                    primfunc_name_hint=f"integer_{layer.kind}",
                )
                emit = builder.emit_output if layer is network.layers[-1] else builder.emit
                values[layer.name] = emit(call, layer.name.replace(".", PATH_SEPARATOR))
        builder.emit_func_output(values[network.layers[-1].name])
    module = builder.get()
    vectors = _vectors(network)
    return Program(
        name=network.name,
        source=source or network.name,
        module=module,
        inputs=(TensorSpec(name=INPUT, shape=tuple(network.input_shape), dtype="int8"),),
        outputs=(TensorSpec(name=OUTPUT, shape=vectors[0].outputs[0].shape, dtype=network.layers[-1].dtype),),
        vectors=vectors,
        parameters=sum(layer.weight.size + layer.bias.size for layer in network.layers if layer.kind != "pool"),
        labels=network.labels,
        preprocessing=network.preprocessing,
        layers=tuple(
            Layer(
                kernel=call.value.args[0].name_hint,
                modules=tuple(layer.modules),
                macs=0 if layer.kind == "pool" else layer.macs,  # as in float, where a pool has none
                bytes=sum(tensor_bytes(tensor.ty) for tensor in (*call.value.args[1].fields, call.var)),
            )
            for layer, call in zip(network.layers, kernel_calls(module), strict=True)
        ),
        integer=network,
    )


DEFAULT_SCHEME: dict[str, Scheme] = {"vta": "power-of-two"}
"""Of kinds of targets that requantise by shifts; all others take the scheme per channel."""


def import_quantized(model: str, kind: str, scheme: Scheme | None = None) -> Program:
    """A network of the registry that comes quantised, or a .safetensors file of `tvmflow quantize`.

    The scheme is by default the one for that `kind` of target, or the file's. Raises UserError.
    """
    wanted = DEFAULT_SCHEME.get(kind, "per-channel")
    if not model.endswith(".safetensors"):
        program = integer_program(quantized(model, scheme or wanted), f"tvmflow.models:{model}")
        return replace(program, accuracy=accuracy(model, scheme or wanted))
    network = load(Path(model))
    if scheme not in (None, network.scheme):
        raise UserError(f"{model} was quantised by the scheme {network.scheme}, not {scheme}.")
    return integer_program(network, model)


def _emit(
    layer: IntegerLayer, shape: Sequence[int], data: te.Tensor, weight: te.Tensor, bias: te.Tensor, factor: te.Tensor
) -> te.Tensor:
    """A layer as loops: border, exact sum, requantisation. The result is of `shape`, 1×O×OH×OW or 1×O."""
    from tvm import te, tirx

    top, left = layer.padding
    _, channels, height, width = layer.input_shape
    group_inputs, *taps = layer.weight.shape[1:]
    group_outputs = layer.output_shape[1] // layer.groups

    def inside(n: Any, c: Any, y: Any, x: Any) -> Any:
        within = tirx.all(y >= top, y < top + height, x >= left, x < left + width)
        return tirx.if_then_else(within, data[n, c, y - top, x - left], tirx.const(0, data.dtype))

    bordered = data
    if top or left:
        bordered = te.compute((1, channels, height + 2 * top, width + 2 * left), inside, name="border")
    c, r, s = (te.reduce_axis((0, length), name) for length, name in zip((group_inputs, *taps), "crs", strict=True))

    def product(n: Any, o: Any, y: Any, x: Any) -> Any:
        channel = tirx.indexdiv(o, group_outputs) * group_inputs + c
        row = y * layer.stride[0] + r * layer.dilation[0]
        column = x * layer.stride[1] + s * layer.dilation[1]
        return bordered[n, channel, row, column].astype("int32") * weight[o, c, r, s].astype("int32")

    total = te.compute(layer.output_shape, lambda *place: te.sum(product(*place), axis=[c, r, s]), name="total")

    def finish(n: Any, o: Any, *pixel: Any) -> Any:
        value = total[(n, o, *(pixel or (0, 0)))] + bias[o]
        if layer.multiplier is not None:
            wide = value.astype("int64") * factor[o].astype("int64") + tirx.const(1 << 31, "int64")
            value = (wide >> tirx.const(32, "int64")).astype("int32")
        else:
            one = tirx.const(1, "int32")
            half = tirx.if_then_else(factor[o] > 0, one << tirx.max(factor[o] - 1, 0), tirx.const(0, "int32"))
            value = (value + half) >> factor[o]
        return tirx.max(tirx.min(value, layer.maximum), layer.minimum).astype(layer.dtype)

    return te.compute(tuple(shape), finish, name="requantised")


def _vectors(network: IntegerNetwork) -> tuple[Vector, ...]:
    rng = np.random.default_rng(20200401)
    shape = tuple(network.input_shape)
    checkerboard = np.where(np.indices(shape).sum(0) % 2 == 0, -128, 127)
    arrays: dict[str, np.ndarray] = {
        **{f"noise-{number}": rng.integers(-128, 128, shape) for number in range(3)},
        "image": network.quantize_input(rng.standard_normal(shape).astype(np.float32)),
        "zeros": np.zeros(shape),
        "constant": np.full(shape, 64),
        "lowest": np.full(shape, -128),
        "highest": np.full(shape, 127),
        "checkerboard": checkerboard,
    }
    return tuple(_vector(name, array.astype(np.int8), network) for name, array in arrays.items())


def _vector(name: str, array: np.ndarray, network: IntegerNetwork) -> Vector:
    return Vector(name=name, inputs=(array,), outputs=(network.run(array),))


def graphless_program(network: IntegerNetwork, source: str = "") -> Program:
    """`integer_program` without the Relax module and its layers, for backends that compile the network itself."""
    vectors = _vectors(network)
    return Program(
        name=network.name,
        source=source or network.name,
        module=None,
        inputs=(TensorSpec(name=INPUT, shape=tuple(network.input_shape), dtype="int8"),),
        outputs=(TensorSpec(name=OUTPUT, shape=vectors[0].outputs[0].shape, dtype=network.layers[-1].dtype),),
        vectors=vectors,
        parameters=sum(layer.weight.size + layer.bias.size for layer in network.layers if layer.kind != "pool"),
        labels=network.labels,
        preprocessing=network.preprocessing,
        integer=network,
    )
