"""A quantised network becomes a Program: plain integer kernels in Relax, golden vectors from its reference."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tvmflow.integer.file import load
from tvmflow.integer.layers import IntegerLayer, IntegerNode, Scheme
from tvmflow.integer.network import IntegerNetwork, canonical
from tvmflow.integer.operators import Shape
from tvmflow.integer.quantised import onnx_graph, onnx_reader, pt2_reader
from tvmflow.integer.reference import quantize
from tvmflow.integer.tflite.reader import read
from tvmflow.integer.tflite.schema import SUFFIX
from tvmflow.models import accuracy, quantized
from tvmflow.network import pt2_archive
from tvmflow.network.foreign import quiet
from tvmflow.network.names import PATH_SEPARATOR
from tvmflow.network.rounding import rounding_of
from tvmflow.network.shapes import InputShape
from tvmflow.network.tflite.graph import is_quantised_tflite
from tvmflow.spec import Layer, Program, TensorSpec, UserError, Vector

if TYPE_CHECKING:
    from tvm import te

    from tvmflow.schedules.integer_tasks import Kernel, Tensor


def integer_program(network: IntegerNetwork, source: str = "") -> Program:
    """`network` on int8 inputs. Its kernels are fused already: `Program.layers` has them all.

    A tail isn't among them: that is joined to the integers' own kernels (`tail_program`), and outputs are its.

    Golden vectors are noise over the whole range, a noisy image, and the edges, with what the reference makes of them.
    """
    from tvm import relax

    from tvmflow.passes.fuse_operators import kernel_calls, tensor_bytes

    builder = relax.BlockBuilder()
    inputs = [relax.Var(port.name, relax.TensorType(port.shape, port.dtype)) for port in network.inputs]
    values: dict[str, Any] = dict(zip((port.name for port in network.inputs), inputs, strict=True))
    tensors = {port.name: plain_tensor(canonical(port.shape), port.dtype, port.shape) for port in network.inputs}
    shapes = {port.source: port.shape for port in network.outputs}
    with builder.function("main", inputs):
        with builder.dataflow():
            for layer in network.layers:
                shape = shapes.get(layer.name, layer.output_shape)
                read = [values[name] for name in layer.inputs]
                tensors[layer.name] = plain_tensor(layer.output_shape, layer.dtype, shape)
                if isinstance(layer, IntegerLayer):
                    arrays = [relax.const(array) for array in (layer.weight, layer.bias, *layer.factors)]
                    call = builder.call_te(
                        functools.partial(_emit, layer, shape),
                        *read,
                        *arrays,
                        primfunc_name_hint=f"integer_{layer.kind}",
                    )
                else:
                    kernel = _plain_kernel(layer, [tensors[name] for name in layer.inputs], tensors[layer.name])
                    func = builder.add_func(kernel.func, f"integer_{layer.kind}")
                    given = relax.Tuple([*read, *(relax.const(array) for array in kernel.constants)])
                    call = relax.call_tir(func, given, relax.TensorType(shape, layer.dtype))
                emit = builder.emit_output if layer.name in shapes else builder.emit
                values[layer.name] = emit(call, layer.name.replace(".", PATH_SEPARATOR))
        outputs = [values[port.source] for port in network.outputs]
        builder.emit_func_output(outputs[0] if len(outputs) == 1 else relax.Tuple(outputs))
    module = builder.get()
    layers = tuple(
        Layer(
            kernel=call.value.args[0].name_hint,
            modules=tuple(layer.modules),
            macs=0 if layer.kind == "pool" else layer.macs,  # as in float, where a pool has none
            bytes=sum(tensor_bytes(tensor.ty) for tensor in (*call.value.args[1].fields, call.var)),
        )
        for layer, call in zip(network.layers, kernel_calls(module), strict=True)
    )
    return replace(graphless_program(network, source), module=module, layers=layers)


def tail_program(network: IntegerNetwork) -> Program:
    """What stays in float32 as a network of its own, which reads the integer layers' outputs. It has no vectors."""
    from tvmflow.network.names import name_outputs
    from tvmflow.network.onnx_operators import import_graph

    tail = network.tail
    assert tail is not None
    with quiet():
        module = name_outputs(import_graph(tail.model, tail.inputs))
    return Program(
        name=network.name,
        source=network.name,
        module=module,
        inputs=tail.inputs,
        outputs=tail.outputs,
        vectors=(),
        parameters=tail.parameters,
    )


def plain_tensor(inside: Shape, dtype: str, shape: Shape) -> Tensor:
    """A tensor of 1×C×H×W as the user gives or gets it, in a shape of his."""
    from tvmflow.schedules.integer_tasks import Tensor

    _, channels, height, width = inside
    return Tensor(channels=channels, size=(height, width), dtype=dtype, shape=tuple(shape))


def _plain_kernel(layer: IntegerNode, sources: Sequence[Tensor], result: Tensor) -> Kernel:
    from tvmflow.schedules.cpu.integer.node import node
    from tvmflow.schedules.integer_tasks import Task

    made = node(Task(layers=(layer,), sources=tuple(sources), result=result), None)
    assert made is not None
    return made


OWN = ".safetensors"
"""The suffix of files of `tvmflow quantize`."""


def is_integer(model: str) -> bool:
    """Whether this names a file that `load_network` takes."""
    return model.endswith(OWN) or comes_quantised(model)


def comes_quantised(model: str) -> bool:
    """Whether this names a file that others quantised, which can be built as it is."""
    if model.endswith(onnx_graph.SUFFIX):
        return Path(model).is_file() and onnx_graph.is_quantised(Path(model))
    if model.endswith(pt2_reader.SUFFIX):
        return Path(model).is_file() and pt2_archive.is_quantised(Path(model))
    return is_quantised_tflite(model)


def load_network(path: Path, shapes: Sequence[InputShape] = ()) -> IntegerNetwork:
    """A file of `tvmflow quantize`, or a quantised .tflite, .onnx or .pt2 file.

    `shapes` are of inputs that an .onnx file leaves open. Raises UserError, UnsupportedOperatorError.
    """
    if not path.is_file():
        raise UserError(f"There is no file {path}; --model takes a path to a file that exists.")
    if path.suffix == onnx_graph.SUFFIX:
        return onnx_reader.read(path, shapes)
    if shapes:
        raise UserError(f"--input-shape can't be chosen for {path}, which has the shapes of its inputs.")
    if path.suffix == pt2_reader.SUFFIX:
        return pt2_reader.read(path)
    return read(path) if path.suffix == SUFFIX else load(path)


def import_quantized(
    model: str, scheme: Scheme | None = None, shapes: Sequence[InputShape] = (), *, preferred: Scheme = "per-channel"
) -> Program:
    """A network of the registry that comes quantised, or a file that `load_network` takes.

    Without a `scheme` it is what the file was quantised by, else the one that is `preferred`, as a kind of target says
    (`tvmflow.targets.KINDS`). Raises UserError.
    """
    if not is_integer(model):
        program = integer_program(find_network(model, scheme, preferred=preferred), f"tvmflow.models:{model}")
        return replace(program, accuracy=accuracy(model, scheme or preferred))
    return integer_program(find_network(model, scheme, shapes), model)


def find_network(
    model: str, scheme: Scheme | None = None, shapes: Sequence[InputShape] = (), *, preferred: Scheme = "per-channel"
) -> IntegerNetwork:
    """What `import_quantized` makes a Program of. Raises UserError."""
    if not is_integer(model):
        return quantized(model, scheme or preferred)
    network = load_network(Path(model), shapes)
    if scheme not in (None, network.scheme):
        raise UserError(f"{model} was quantised by the scheme {network.scheme}, not {scheme}.")
    return network


def _emit(
    layer: IntegerLayer,
    shape: Sequence[int],
    data: te.Tensor,
    weight: te.Tensor,
    bias: te.Tensor,
    factor: te.Tensor,
    shift: te.Tensor | None = None,
) -> te.Tensor:
    """A layer as loops: border, exact sum, requantisation. The result is of `shape`, as the user gets it."""
    from tvm import te, tirx, topi

    from tvmflow.schedules.integers import requantised_twice

    top, left, bottom, right = layer.padding
    _, channels, height, width = layer.input_shape
    group_inputs, *taps = layer.weight.shape[1:]
    group_outputs = layer.output_shape[1] // layer.groups

    def inside(n: Any, c: Any, y: Any, x: Any) -> Any:
        within = tirx.all(y >= top, y < top + height, x >= left, x < left + width)
        return tirx.if_then_else(within, maps[n, c, y - top, x - left], tirx.const(0, data.dtype))

    # a map that the user gave in another shape has its elements in the same order
    maps = data
    if tuple(data.shape) != layer.input_shape:
        maps = topi.reshape(data, layer.input_shape)
    bordered = maps
    if any(layer.padding):
        bordered = te.compute((1, channels, height + top + bottom, width + left + right), inside, name="border")
    c, r, s = (te.reduce_axis((0, length), name) for length, name in zip((group_inputs, *taps), "crs", strict=True))

    def product(n: Any, o: Any, y: Any, x: Any) -> Any:
        channel = tirx.indexdiv(o, group_outputs) * group_inputs + c
        row = y * layer.stride[0] + r * layer.dilation[0]
        column = x * layer.stride[1] + s * layer.dilation[1]
        return bordered[n, channel, row, column].astype("int32") * weight[o, c, r, s].astype("int32")

    total = te.compute(layer.output_shape, lambda *place: te.sum(product(*place), axis=[c, r, s]), name="total")

    def finish(n: Any, o: Any, y: Any, x: Any) -> Any:
        value = total[n, o, y, x] + bias[o]
        if shift is not None:
            value = requantised_twice(layer, value, factor[o], shift[o], lambda found: found) + layer.zero_point
        elif layer.multiplier is not None:
            wide = value.astype("int64") * factor[o].astype("int64") + tirx.const(1 << 31, "int64")
            value = (wide >> tirx.const(32, "int64")).astype("int32")
        else:
            one = tirx.const(1, "int32")
            half = tirx.if_then_else(factor[o] > 0, one << tirx.max(factor[o] - 1, 0), tirx.const(0, "int32"))
            value = (value + half) >> factor[o]
        return tirx.max(tirx.min(value, layer.maximum), layer.minimum).astype(layer.dtype)

    finished = te.compute(layer.output_shape, finish, name="requantised")
    return finished if tuple(shape) == layer.output_shape else topi.reshape(finished, tuple(shape))


def _vectors(network: IntegerNetwork) -> tuple[Vector, ...]:
    rng = np.random.default_rng(20200401)
    shapes = [tuple(port.shape) for port in network.inputs]

    def filled(value: int) -> list[np.ndarray]:
        return [np.full(shape, value) for shape in shapes]

    # drawn as int8, whose bits an input of uint8 takes as they are
    arrays: dict[str, list[np.ndarray]] = {
        **{f"noise-{number}": [rng.integers(-128, 128, shape) for shape in shapes] for number in range(3)},
        "image": [
            quantize(rng.standard_normal(shape).astype(np.float32), port.scale, port.zero_point, port.dtype)
            for shape, port in zip(shapes, network.inputs, strict=True)
        ],
        "zeros": filled(0),
        "constant": filled(64),
        "lowest": filled(-128),
        "highest": filled(127),
        "checkerboard": [np.where(np.indices(shape).sum(0) % 2 == 0, -128, 127) for shape in shapes],
    }
    return tuple(_vector(name, [array.astype(np.int8) for array in given], network) for name, given in arrays.items())


def _vector(name: str, arrays: Sequence[np.ndarray], network: IntegerNetwork) -> Vector:
    arrays = [array.view(port.dtype) for array, port in zip(arrays, network.inputs, strict=True)]
    outputs = network.answer(tuple(arrays))
    rounding: tuple[float, ...] = ()
    if network.tail is not None:
        rounding = rounding_of(lambda *given: network.answer(given), arrays, outputs)
    return Vector(name=name, inputs=tuple(arrays), outputs=outputs, rounding=rounding)


def graphless_program(network: IntegerNetwork, source: str = "") -> Program:
    """`integer_program` without the Relax module and its layers, for backends that compile the network itself."""
    return Program(
        name=network.name,
        source=source or network.name,
        module=None,
        inputs=tuple(TensorSpec(name=port.name, shape=tuple(port.shape), dtype=port.dtype) for port in network.inputs),
        outputs=network.answers,
        vectors=_vectors(network),
        parameters=network.parameters,
        labels=network.labels,
        preprocessing=network.preprocessing,
        integer=network,
    )
