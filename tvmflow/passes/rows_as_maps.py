"""Make maps of one row of the tensors between one-dimensional convolutions, and two-dimensional layers of the layers.

A row of W numbers a channel is a map of 1×W, and a convolution along it one whose filter has the height 1: the same
numbers in the same order. So one set of rules serves both, and there are none for three dimensions alone.

A change of shape costs nothing by itself, but no kernel reaches across it: a tail behind it isn't fused, and a tensor
that is read through it can't have its channels in blocks. Therefore what lies between the convolutions is taken along,
and the shape changes back only where something reads a row that isn't known here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import tvm
import tvm_ffi
from tvm import relax, s_tir, te, tirx
from tvm.ir import TensorLoad
from tvm.relax.expr_functor import PyExprMutator, mutator

from tvmflow.network.names import NUMBER_SEPARATOR
from tvmflow.passes.constants import is_constant, operator
from tvmflow.schedules.convolutions import is_plain, is_reduction, loads, substitute
from tvmflow.spec import Program, Target

ELEMENTWISE = frozenset(
    f"relax.{name}"
    for name in (
        *("abs", "ceil", "clip", "cos", "cosh", "erf", "exp", "floor", "log", "negative", "round", "rsqrt", "sigmoid"),
        *("sign", "sin", "sinh", "sqrt", "square", "tan", "tanh", "trunc", "astype", "isnan", "isinf", "isfinite"),
        *("nn.gelu", "nn.gelu_tanh", "nn.leakyrelu", "nn.relu", "nn.selu", "nn.silu", "nn.softplus", "logical_not"),
        *("add", "subtract", "multiply", "divide", "maximum", "minimum", "power", "where", "atan2", "log_add_exp"),
        *("equal", "not_equal", "less", "less_equal", "greater", "greater_equal"),
        *("logical_and", "logical_or", "logical_xor"),
    )
)
"""Operators that do the same to each element, of operands that are broadcast."""

VIEWS = ("relax.reshape", "relax.squeeze", "relax.expand_dims", "relax.flatten")

REDUCTIONS: Mapping[str, Callable[..., relax.Expr]] = {
    "relax.mean": relax.op.mean,
    "relax.sum": relax.op.sum,
    "relax.max": relax.op.max,
    "relax.min": relax.op.min,
}

POOLING: Mapping[str, Callable[..., relax.Expr]] = {
    "relax.nn.max_pool1d": relax.op.nn.max_pool2d,
    "relax.nn.avg_pool1d": relax.op.nn.avg_pool2d,
}


def rows_as_maps(program: Program, target: Target) -> Program:
    """In `Program.module`, if it has such a convolution; the shapes of what the user gives and gets stay."""
    module = program.module
    lift = _Lift(module)
    main = lift.visit_expr(module["main"])
    if not lift.convolutions:
        return program
    module = lift.builder_.get()
    module["main"] = main
    return replace(program, module=relax.transform.DeadCodeElimination()(module))


def _shape(value: relax.Expr) -> tuple[int, ...] | None:
    """None if it isn't a tensor of known shape."""
    tensor = value.ty
    if not isinstance(tensor, relax.TensorType) or not isinstance(tensor.shape, relax.ShapeExpr):
        return None
    dims = tensor.shape.values
    return tuple(map(int, dims)) if all(isinstance(dim, tirx.IntImm) for dim in dims) else None


def _as_map(shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of what is broadcast to rows, as it is broadcast to maps: an axis of 1 before the last of several."""
    return tuple(shape) if len(shape) < 2 else (*shape[:-1], 1, shape[-1])


def _is_map_of(shape: Sequence[int] | None, row: Sequence[int] | None) -> bool:
    return shape is not None and row is not None and len(row) == 3 and tuple(shape) == _as_map(row)


def _axis(axis: int) -> int:
    """Where an axis of a row is in a map."""
    return 3 if int(axis) % 3 == 2 else int(axis) % 3


@mutator
class _Lift(PyExprMutator):
    """Bindings of rows become bindings of maps, under the same names.

    `maps` are the rows that are maps now. Where one of them is read as a row, a view of it is made, once; `views` are
    the other way around: rows, the user's for one, that were read as maps.
    """

    def __init__(self, module: tvm.IRModule) -> None:
        super().__init__(module)
        self.module = module
        self.maps: dict[relax.Var, relax.Expr] = {}
        self.views: dict[relax.Var, relax.Expr] = {}
        self.flat: set[relax.Var] = set()  # of `maps`, those that have a view
        self.tuples: dict[relax.Var, relax.Var] = {}
        self.convolutions = 0
        self.rewrites: dict[str, Callable[[relax.Call], relax.Expr | None]] = {
            **dict.fromkeys(ELEMENTWISE, self.elementwise),
            **dict.fromkeys(POOLING, self.pool),
            "relax.nn.conv1d": self.convolution,
            "relax.nn.conv1d_transpose": self.convolution,
            "relax.nn.prelu": self.prelu,
            "relax.nn.pad": self.pad,
            "relax.concat": self.concat,
            "relax.strided_slice": self.strided_slice,
            "relax.call_tir": self.kernel,
        }

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        var, value = binding.var, binding.value
        if operator(value) in VIEWS and self.view(var, value):
            return
        if operator(value) in REDUCTIONS and self.reduction(var, value):
            return
        if operator(value) == "relax.split" and value.args[0] in self.maps:
            made = relax.op.split(self.maps[value.args[0]], value.attrs.indices_or_sections, _axis(value.attrs.axis))
            self.tuples[var] = self.builder_.emit(made, var.name)
        elif isinstance(value, relax.TupleGetItem) and value.tuple_value in self.tuples:
            self.bind_map(var, relax.TupleGetItem(self.tuples[value.tuple_value], value.index))
        else:
            rewrite = self.rewrites.get(operator(value))
            made = rewrite(value) if rewrite else None
            self.bind_map(var, made) if made is not None else super().visit_var_binding_(binding)

    def bind(self, var: relax.Var, value: relax.Expr, name: str) -> None:
        is_output = self.builder_.current_block_is_dataflow() and not isinstance(var, relax.DataflowVar)
        emit = self.builder_.emit_output if is_output else self.builder_.emit
        self.set_var_remap(var, emit(value, name))

    def bind_map(self, var: relax.Var, value: relax.Expr) -> None:
        """The row `var` is the map `value` from here on. A result of the network is a row as well."""
        self.maps[var] = self.builder_.emit(value, var.name)
        if not isinstance(var, relax.DataflowVar):
            self.flatten(var)

    def flatten(self, var: relax.Var) -> None:
        self.flat.add(var)
        self.bind(var, relax.op.reshape(self.maps[var], _shape(var)), _row_name(var))

    def visit_dataflow_var_(self, var: relax.DataflowVar) -> relax.Expr:
        """A row that isn't one any more is read as such."""
        if var in self.maps and var not in self.flat:
            self.flatten(var)
        elif var in self.tuples and var not in self.flat:
            self.flat.add(var)
            parts = [relax.TupleGetItem(self.tuples[var], index) for index in range(len(var.ty.fields))]
            rows = [
                self.builder_.emit(relax.op.reshape(self.builder_.emit(part), [int(dim) for dim in field.shape.values]))
                for part, field in zip(parts, var.ty.fields, strict=True)
            ]
            self.bind(var, relax.Tuple(rows), _row_name(var))
        return super().visit_dataflow_var_(var)

    def raised(self, value: relax.Expr) -> relax.Expr | None:
        """What is read beside maps, or by a convolution, as a map; None if its shape isn't known."""
        shape = _shape(value)
        if shape is None or len(shape) > 3:
            return None
        if len(shape) < 2:
            return self.visit_expr(value)
        if is_constant(value):
            return relax.const(value.value.numpy().reshape(_as_map(shape)), str(value.ty.dtype))
        if value in self.maps:
            return self.maps[value]
        if value not in self.views:
            made = relax.op.reshape(self.visit_expr(value), _as_map(shape))
            self.views[value] = self.builder_.emit(made, _row_name(value))
        return self.views[value]

    def view(self, var: relax.Var, call: relax.Call) -> bool:
        """What has the shape of a map is the map itself, and a row that is made of a map is that map."""
        given, wanted, shape = call.args[0], _shape(var), _shape(call.args[0])
        is_inner = isinstance(var, relax.DataflowVar)
        if given in self.maps and wanted is not None:
            if is_inner and _is_map_of(wanted, shape):
                self.set_var_remap(var, self.maps[given])
            else:
                self.bind(var, relax.op.reshape(self.maps[given], wanted), var.name)
            return True
        if is_inner and isinstance(given, relax.Var) and _is_map_of(shape, wanted):
            self.maps[var] = self.visit_expr(given)
            return True
        return False

    def reduction(self, var: relax.Var, call: relax.Call) -> bool:
        """Along the axes that there are now. Where the last one stays and others vanish, what is left is no map."""
        axes = range(3) if call.attrs.axis is None else sorted({int(axis) % 3 for axis in call.attrs.axis})
        if call.args[0] not in self.maps or not (call.attrs.keepdims or 2 in axes):
            return False
        places = [place for axis in axes for place in ((2, 3) if axis == 2 else (axis,))]
        made = REDUCTIONS[operator(call)](self.maps[call.args[0]], places, call.attrs.keepdims)
        if call.attrs.keepdims:
            self.bind_map(var, made)
        else:
            self.bind(var, made, var.name)
        return True

    def convolution(self, call: relax.Call) -> relax.Expr | None:
        """An ordinary one or a transposed one; weights that aren't known stay as they are, for no rule packs them."""
        transposed = "transpose" in operator(call)
        layouts = str(call.attrs.data_layout), str(call.attrs.kernel_layout), str(call.attrs.out_layout)
        if layouts != ("NCW", "IOW" if transposed else "OIW", "NCW") or not is_constant(call.args[1]):
            return None
        data, weight = map(self.raised, call.args)
        if data is None or weight is None:
            return None
        self.convolutions += 1
        left, right = (int(width) for width in call.attrs.padding)
        more = {"output_padding": (0, int(call.attrs.output_padding[0]))} if transposed else {}
        return (relax.op.nn.conv2d_transpose if transposed else relax.op.nn.conv2d)(
            data,
            weight,
            strides=(1, int(call.attrs.strides[0])),
            padding=(0, left, 0, right),
            dilation=(1, int(call.attrs.dilation[0])),
            groups=int(call.attrs.groups),
            out_dtype=call.attrs.out_dtype,
            **more,
        )

    def pool(self, call: relax.Call) -> relax.Expr | None:
        if call.args[0] not in self.maps or (str(call.attrs.layout), str(call.attrs.out_layout)) != ("NCW", "NCW"):
            return None
        left, right = (int(width) for width in call.attrs.padding)
        return POOLING[operator(call)](
            self.maps[call.args[0]],
            pool_size=(1, int(call.attrs.pool_size[0])),
            strides=(1, int(call.attrs.strides[0])),
            padding=(0, left, 0, right),
            dilation=(1, int(call.attrs.dilation[0])),
            ceil_mode=bool(call.attrs.ceil_mode),
            count_include_pad=bool(call.attrs.count_include_pad),
        )

    def elementwise(self, call: relax.Call) -> relax.Expr | None:
        """Operands that are broadcast to a map read as maps too; numbers among the arguments stay."""
        if not any(argument in self.maps for argument in call.args) or len(_shape(call) or ()) != 3:
            return None
        arguments = [
            self.raised(argument) if isinstance(argument.ty, relax.TensorType) else self.visit_expr(argument)
            for argument in call.args
        ]
        if any(argument is None for argument in arguments):
            return None
        return relax.Call(call.op, arguments, call.attrs, call.ty_args)

    def prelu(self, call: relax.Call) -> relax.Expr | None:
        if call.args[0] not in self.maps:
            return None
        return relax.op.nn.prelu(self.maps[call.args[0]], self.visit_expr(call.args[1]), _axis(call.attrs.axis))

    def pad(self, call: relax.Call) -> relax.Expr | None:
        if call.args[0] not in self.maps:
            return None
        widths = [int(width) for width in call.attrs.pad_width]
        return relax.op.nn.pad(
            self.maps[call.args[0]], [*widths[:4], 0, 0, *widths[4:]], call.attrs.pad_mode, call.attrs.pad_value
        )

    def concat(self, call: relax.Call) -> relax.Expr | None:
        fields = call.args[0].fields if isinstance(call.args[0], relax.Tuple) else ()
        if not any(field in self.maps for field in fields) or call.attrs.axis is None:
            return None
        parts = [self.raised(field) for field in fields]
        return None if any(part is None for part in parts) else relax.op.concat(parts, _axis(call.attrs.axis))

    def strided_slice(self, call: relax.Call) -> relax.Expr | None:
        data, axes, *others = call.args
        if data not in self.maps or not isinstance(axes, relax.Tuple):
            return None
        places = [_axis(axis.value) for axis in axes.fields]
        return relax.op.strided_slice(self.maps[data], places, *others, assume_inbound=call.attrs.assume_inbound)

    def kernel(self, call: relax.Call) -> relax.Expr | None:
        """A kernel of an importer's own that does the same to each element."""
        given, shape = call.args[1].fields, _shape(call)
        if not any(value in self.maps for value in given) or any(_shape(value) != shape for value in given):
            return None
        func = self.module[call.args[0]]
        body = _element(func)
        if shape is None or len(shape) != 3 or body is None or len(func.params) != len(given) + 1:
            return None

        def computed(*tensors: te.Tensor) -> te.Tensor:
            def element(n: Any, c: Any, y: Any, x: Any) -> Any:
                def read(load: TensorLoad) -> Any:
                    place = next(i for i, param in enumerate(func.params) if param.same_as(load.source))
                    return tensors[place][n, c, y, x]

                replaced = tvm_ffi.structural_map(body.body.value, (TensorLoad, read), order="post")
                axes = [axis.var for axis in body.iter_vars]
                return substitute(replaced, dict(zip(axes, (n, c, x), strict=True)))

            return te.compute(_as_map(shape), element)

        name = call.args[0].name_hint
        return self.builder_.call_te(computed, *map(self.raised, given), primfunc_name_hint=name)


def _row_name(var: relax.Var) -> str:
    """Of the same module; the name itself is that of the layer, whose work is counted by it."""
    return f"{var.name}{NUMBER_SEPARATOR}view"


def _element(func: tirx.PrimFunc) -> s_tir.SBlock | None:
    """The only step of a kernel if each element of the result depends on those at the same place alone."""
    sch = s_tir.Schedule(func)
    names = sch.get_child_blocks(sch.get_sblock("root"))
    if len(names) != 1 or not is_plain(sch, names[0]) or is_reduction(sch.get(names[0])):
        return None
    block = sch.get(names[0])
    axes = [axis.var for axis in block.iter_vars]
    accesses = [block.body.indices, *(load.indices for load in loads(block.body.value))]
    aligned = all(
        len(indices) == len(axes) and all(index.same_as(axis) for index, axis in zip(indices, axes, strict=True))
        for indices in accesses
    )
    return block if aligned and block.body.buffer.same_as(func.params[-1]) else None
