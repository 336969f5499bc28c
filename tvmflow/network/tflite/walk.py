"""The walk over a float `.tflite` file's operators: maps lie with their channels first, all else as in the file.

A tensor of four dimensions is a map. It has its values in the file's order, with the channels last, or with the
channels second, as kernels take them; the other order is made where somebody needs it, once. What works element by
element leaves maps as they lie, so that a network of convolutions is turned round at its input and its outputs alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import tvm
from tvm import relax
from tvm.relax import op

from tvmflow.integer.tflite.model import ABSENT, FileGraph, FileOperator
from tvmflow.integer.tflite.values import plain_name
from tvmflow.network.names import BindingNames
from tvmflow.network.onnx_nodes.node import constant, is_constant, permute, reshape, shape_of
from tvmflow.network.precision import Precision
from tvmflow.network.tflite.graph import Operation, Shape, sizes
from tvmflow.spec import TensorSpec
from tvmflow.system import limits
from tvmflow.system.untrusted import MalformedError

FIRST, LAST = (0, 3, 1, 2), (0, 2, 3, 1)
"""Where the axes of a map with its channels first lie in the file, and the other way round."""


@dataclass(eq=False, kw_only=True)
class Value:
    """A tensor of the file's `shape`: in the file's order (`plain`), with the channels of a map second, or both.

    `is_map` says that it was computed with the channels second, which is what element-wise operators go on with. A map
    that is another one with a border of zeros says so in `border`: that one, and what is above, to the left, below and
    to the right of it; a convolution takes the border over.
    """

    shape: Shape
    dtype: str
    plain: relax.Expr | None = None
    channels_first: relax.Expr | None = None
    is_map: bool = False
    border: tuple[relax.Expr, Sequence[int]] | None = None

    @property
    def is_constant(self) -> bool:
        return self.plain is not None and is_constant(self.plain)


Make = Callable[["Call"], "Value | tuple[Value, ...]"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Call(Operation):
    """An operator while it is converted. `values` are what it reads, None where that is left out."""

    values: tuple[Value | None, ...]
    walk: Walk = field(repr=False)

    def value(self, place: int = 0) -> Value:
        found = self.values[place] if self.given(place) else None
        if found is None:
            raise MalformedError(f"{self.kind} lacks a tensor that it needs")
        return found

    def plain(self, place: int = 0) -> relax.Expr:
        return self.walk.plain(self.value(place))

    def channels_first(self, place: int = 0) -> relax.Expr:
        self.map_shape(place)
        return self.walk.channels_first(self.value(place))

    def bind(self, value: relax.Expr) -> relax.Expr:
        return self.walk.bind(value)

    def kernel(self, make: Callable, *tensors: object, facts: Mapping[str, object]) -> relax.Var:
        given = (constant(value) if isinstance(value, np.ndarray) else value for value in tensors)
        name = self.kind.lower()
        return self.bind(self.walk.builder.call_te(make, *given, primfunc_name_hint=name, primfunc_attrs=facts))

    def as_file(self, result: relax.Expr) -> Value:
        """What is computed in the file's order."""
        result = self.bind(result)
        return Value(shape=shape_of(result), dtype=str(result.ty.dtype), plain=result)

    def as_map(self, result: relax.Expr) -> Value:
        """What is computed with the channels first."""
        result = self.bind(result)
        shape = shape_of(result)
        lies = tuple(shape[axis] for axis in LAST)
        return Value(shape=lies, dtype=str(result.ty.dtype), channels_first=result, is_map=True)

    def in_order(self, places: Sequence[int]) -> tuple[list[relax.Expr], Callable[[relax.Expr], Value], bool]:
        """Operands in one order, and what makes a value of the result; the last says whether channels are first.

        That is the order of maps if one lies so already. Operands of fewer dimensions get ones in front.
        """
        values = [self.value(place) for place in places]
        rank = max(len(value.shape) for value in values)
        maps = rank == 4 and any(value.is_map for value in values)
        if not maps:
            return [self.walk.plain(value) for value in values], self.as_file, False
        operands = []
        for value in values:
            if len(value.shape) == 4:
                operands.append(self.walk.channels_first(value))
            else:
                raised = reshape(self.walk.plain(value), (*[1] * (4 - len(value.shape)), *value.shape))
                operands.append(permute(self.bind(raised), FIRST))
        return [self.bind(operand) for operand in operands], self.as_map, True


class Walk:
    """Converts operators in order, into the function `main`."""

    def __init__(self, graph: FileGraph, converters: Mapping[str, Make]) -> None:
        self.graph = graph
        self.converters = converters
        self.builder = relax.BlockBuilder()
        self.names = BindingNames()
        self.emit = Precision().wrap(self.names.wrap(self.builder.emit))
        self.values: dict[int, Value] = {}

    def run(self, inputs: Sequence[TensorSpec], known: Mapping[int, np.ndarray]) -> tvm.IRModule:
        """`known` has the values of tensors that depend on no input, by number. Raises MalformedError, UserError."""
        parameters = [relax.Var(spec.name, relax.TensorType(spec.shape, spec.dtype)) for spec in inputs]
        for number, parameter, spec in zip(self.graph.inputs, parameters, inputs, strict=True):
            self.values[number] = Value(shape=spec.shape, dtype=spec.dtype, plain=parameter)
        for number, array in known.items():
            self.values[number] = Value(shape=array.shape, dtype=str(array.dtype), plain=constant(array))
        with self.builder.function("main", params=parameters):
            try:
                with self.builder.dataflow():
                    for operator in self.graph.operators:
                        if any(number not in known for number in operator.outputs):
                            self.convert(operator)
                    self.names.current = ""
                    results = self.results()
                    output = self.builder.emit_output(results[0] if len(results) == 1 else relax.Tuple(results))
            except BaseException:
                self.builder._end_block()  # TVM complains on standard error of blocks that an error left open
                raise
            self.builder.emit_func_output(output)
        return self.builder.get()

    def convert(self, operator: FileOperator) -> None:
        if not operator.outputs or ABSENT in operator.outputs:
            raise MalformedError(f"{operator.kind} gives nothing")
        values = tuple(None if number == ABSENT else self.values[number] for number in operator.inputs)
        result = self.graph.tensors[operator.outputs[0]]
        call = Call(
            operator=operator,
            shapes=tuple(None if value is None else value.shape for value in values),
            constants=tuple(
                value.plain.value.numpy() if value is not None and value.is_constant else None  # type: ignore[union-attr]
                for value in values
            ),
            result=result,
            values=values,
            walk=self,
        )
        self.names.current = plain_name(result.name)
        made = self.converters[operator.kind](call)
        made = made if isinstance(made, tuple) else (made,)
        if len(made) != len(operator.outputs):
            raise MalformedError(f"{operator.kind} gives {len(made)} tensors, and the file has {len(operator.outputs)}")
        for number, value in zip(operator.outputs, made, strict=True):
            tensor = self.graph.tensors[number]
            limits.check_tensor(value.shape, f"The result of {operator.kind}")
            if tensor.shape and tuple(tensor.shape) != tuple(value.shape):
                raise MalformedError(
                    f"{operator.kind} makes {sizes(value.shape)} of what it reads, and the file says "
                    f"{sizes(tensor.shape)}"
                )
            if value.dtype != tensor.dtype:
                raise MalformedError(f"{operator.kind} makes {value.dtype}, and the file says {tensor.dtype}")
            self.values[number] = value

    def results(self) -> list[relax.Expr]:
        """Each result as a value of its own: inputs, constants and the same one twice have other owners."""
        own: list[relax.Expr] = []
        for number in self.graph.outputs:
            value = self.plain(self.values[number])
            computed = isinstance(value, relax.DataflowVar) and value not in own
            own.append(value if computed else self.builder.emit(op.broadcast_to(value, shape_of(value))))
        return own

    def bind(self, value: relax.Expr) -> relax.Expr:
        """Bind a call, and the calls inside it, under names of their own; nested ones would get none."""
        if isinstance(value, relax.Var) or is_constant(value):
            return value
        if isinstance(value, relax.Call):
            arguments = [self.bind(part) if isinstance(part, relax.Call) else part for part in value.args]
            value = relax.Call(value.op, arguments, value.attrs, value.ty_args)
        return self.emit(value)

    def plain(self, value: Value) -> relax.Expr:
        if value.plain is None:
            assert value.channels_first is not None
            value.plain = self._turned(value.channels_first, LAST, value.shape)
        return value.plain

    def channels_first(self, value: Value) -> relax.Expr:
        if value.channels_first is None:
            assert value.plain is not None
            value.channels_first = self._turned(value.plain, FIRST, tuple(value.shape[axis] for axis in FIRST))
        return value.channels_first

    def _turned(self, value: relax.Expr, axes: Sequence[int], shape: Shape) -> relax.Expr:
        """The other order; a map of one pixel or one channel has its values in the same one."""
        batch, *pixels, channels = shape if axes is LAST else (shape[0], *shape[2:], shape[1])
        del batch
        if channels == 1 or math.prod(pixels) == 1:
            return self.bind(reshape(value, shape))
        return self.bind(permute(value, axes))
