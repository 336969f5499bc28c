"""ONNX operators and how each becomes Relax, and the walk over a graph that converts them."""

from __future__ import annotations

import re
from collections import ChainMap, defaultdict
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any

import numpy as np
import onnx
import tvm
from onnx import helper, numpy_helper
from tvm import relax
from tvm.relax import op

from tvmflow.network import onnx_graph
from tvmflow.network.foreign import report_unsupported
from tvmflow.network.names import BindingNames
from tvmflow.network.onnx_nodes import (
    convolutions,
    elementwise,
    normalization,
    pools,
    products,
    quantized,
    recurrent,
    reductions,
    resize,
    shapes,
    vision,
)
from tvmflow.network.onnx_nodes.elementwise import binary, unary, variadic
from tvmflow.network.onnx_nodes.node import Node, constant, is_constant, shape_of
from tvmflow.network.onnx_reference import evaluate
from tvmflow.network.precision import Precision
from tvmflow.spec import TensorSpec, UnsupportedOperatorError
from tvmflow.system import limits

Convert = Callable[[Node], Any]
Values = MutableMapping[str, Any]

OPERATORS: dict[str, Convert] = {
    # element-wise arithmetic and comparisons
    "Abs": unary(op.abs),
    "Acos": unary(op.acos),
    "Acosh": unary(op.acosh),
    "Add": binary(op.add),
    "And": binary(op.logical_and),
    "Asin": unary(op.asin),
    "Asinh": unary(op.asinh),
    "Atan": unary(op.atan),
    "Atanh": unary(op.atanh),
    "BitShift": elementwise.bit_shift,
    "BitwiseAnd": binary(op.bitwise_and),
    "BitwiseNot": unary(op.bitwise_not),
    "BitwiseOr": binary(op.bitwise_or),
    "BitwiseXor": binary(op.bitwise_xor),
    "Cast": elementwise.cast,
    "CastLike": elementwise.cast_like,
    "Ceil": unary(op.ceil),
    "Clip": elementwise.clip,
    "Cos": unary(op.cos),
    "Cosh": unary(op.cosh),
    "Div": elementwise.divide,
    "Dropout": elementwise.dropout,
    "Equal": binary(op.equal),
    "Erf": unary(op.erf),
    "Exp": unary(op.exp),
    "Floor": unary(op.floor),
    "Greater": binary(op.greater),
    "GreaterOrEqual": binary(op.greater_equal),
    "Identity": elementwise.identity,
    "IsInf": elementwise.is_infinite,
    "IsNaN": unary(op.isnan),
    "Less": binary(op.less),
    "LessOrEqual": binary(op.less_equal),
    "Log": unary(op.log),
    "Max": elementwise.maximum,
    "Mean": elementwise.mean,
    "Min": elementwise.minimum,
    "Mod": elementwise.modulo,
    "Mul": binary(op.multiply),
    "Neg": unary(op.negative),
    "Not": unary(op.logical_not),
    "Or": binary(op.logical_or),
    "Pow": elementwise.power,
    "Reciprocal": lambda node: op.divide(node.like(1), node.inputs[0]),
    "Round": unary(op.round),
    "Sign": unary(op.sign),
    "Sin": unary(op.sin),
    "Sinh": unary(op.sinh),
    "Sqrt": unary(op.sqrt),
    "Sub": binary(op.subtract),
    "Sum": variadic(op.add),
    "Tan": unary(op.tan),
    "Where": elementwise.select,
    "Xor": binary(op.logical_xor),
    # activations
    "Celu": elementwise.celu,
    "Elu": elementwise.elu,
    "Gelu": elementwise.gelu,
    "HardSigmoid": elementwise.hard_sigmoid,
    "HardSwish": elementwise.hard_swish,
    "LeakyRelu": elementwise.leaky_relu,
    "Mish": elementwise.mish,
    "PRelu": elementwise.prelu,
    "Relu": elementwise.relu,
    "Selu": elementwise.selu,
    "Shrink": elementwise.shrink,
    "Sigmoid": unary(op.sigmoid),
    "Softplus": elementwise.softplus,
    "Softsign": elementwise.softsign,
    "Swish": elementwise.swish,
    "Tanh": unary(op.tanh),
    "ThresholdedRelu": elementwise.thresholded_relu,
    # shapes, slices, gathers
    "Compress": shapes.compress,
    "Concat": shapes.concat,
    "ConcatFromSequence": shapes.concat_from_sequence,
    "ConstantOfShape": shapes.constant_of_shape,
    "DepthToSpace": shapes.depth_to_space,
    "Expand": shapes.expand,
    "EyeLike": shapes.eye_like,
    "Flatten": shapes.flatten,
    "Gather": shapes.gather,
    "GatherElements": shapes.gather_elements,
    "GatherND": shapes.gather_nd,
    "OneHot": shapes.one_hot,
    "Pad": shapes.pad,
    "Reshape": shapes.reshape_,
    "ReverseSequence": shapes.reverse_sequence,
    "Scatter": shapes.scatter_elements,
    "ScatterElements": shapes.scatter_elements,
    "ScatterND": shapes.scatter_nd,
    "SequenceAt": shapes.sequence_at,
    "SequenceConstruct": shapes.sequence_construct,
    "SequenceEmpty": shapes.sequence_empty,
    "SequenceErase": shapes.sequence_erase,
    "SequenceInsert": shapes.sequence_insert,
    "SequenceLength": shapes.sequence_length,
    "Slice": shapes.slice_,
    "SpaceToDepth": shapes.space_to_depth,
    "Split": shapes.split,
    "SplitToSequence": shapes.split_to_sequence,
    "Squeeze": shapes.squeeze,
    "Tile": shapes.tile,
    "Transpose": shapes.transpose,
    "Trilu": shapes.trilu,
    "Unsqueeze": shapes.unsqueeze,
    # reductions and what goes along an axis
    "ArgMax": reductions.arg_extreme,
    "ArgMin": reductions.arg_extreme,
    "CumProd": reductions.cumulative(op.cumprod),
    "CumSum": reductions.cumulative(op.cumsum),
    "Hardmax": reductions.hardmax,
    "LRN": reductions.local_response_normalization,
    "LogSoftmax": reductions.log_softmax,
    "LpNormalization": reductions.lp_normalization,
    "ReduceL1": reductions.reduce_l1,
    "ReduceL2": reductions.reduce_l2,
    "ReduceLogSum": reductions.reduce_log_sum,
    "ReduceLogSumExp": reductions.reduce_log_sum_exp,
    "ReduceMax": reductions.reduce_max,
    "ReduceMean": reductions.reduce_mean,
    "ReduceMin": reductions.reduce_min,
    "ReduceProd": reductions.reduce_prod,
    "ReduceSum": reductions.reduce_sum,
    "ReduceSumSquare": reductions.reduce_sum_square,
    "Softmax": reductions.softmax,
    "TopK": reductions.top_k,
    # layers
    "AveragePool": pools.average_pool,
    "BatchNormalization": normalization.batch_normalization,
    "Conv": convolutions.conv,
    "ConvTranspose": convolutions.conv_transpose,
    "Einsum": products.einsum,
    "GRU": recurrent.gru,
    "Gemm": products.gemm,
    "GlobalAveragePool": pools.global_average_pool,
    "GlobalLpPool": pools.global_lp_pool,
    "GlobalMaxPool": pools.global_max_pool,
    "GridSample": vision.grid_sample,
    "GroupNormalization": normalization.group_normalization,
    "InstanceNormalization": normalization.instance_normalization,
    "LSTM": recurrent.lstm,
    "LayerNormalization": normalization.layer_normalization,
    "LpPool": pools.lp_pool,
    "MatMul": products.matmul,
    "MaxPool": pools.max_pool,
    "MaxUnpool": pools.max_unpool,
    "MeanVarianceNormalization": normalization.mean_variance_normalization,
    "RMSNormalization": normalization.rms_normalization,
    "RNN": recurrent.rnn,
    "RoiAlign": vision.roi_align,
    "Resize": resize.resize,
    "Upsample": resize.upsample,
    # quantised
    "ConvInteger": quantized.conv_integer,
    "DequantizeLinear": quantized.dequantize_linear,
    "DynamicQuantizeLinear": quantized.dynamic_quantize_linear,
    "MatMulInteger": products.matmul_integer,
    "QLinearConv": quantized.qlinear_conv,
    "QLinearMatMul": quantized.qlinear_matmul,
    "QuantizeLinear": quantized.quantize_linear,
    # ONNX Runtime's own
    "com.microsoft.BiasGelu": elementwise.bias_gelu,
    "com.microsoft.DequantizeLinear": quantized.dequantize_linear,
    "com.microsoft.DynamicQuantizeMatMul": quantized.dynamic_quantize_matmul,
    "com.microsoft.FastGelu": elementwise.fast_gelu,
    "com.microsoft.FusedConv": convolutions.fused_conv,
    "com.microsoft.FusedGemm": lambda node: convolutions.activated(node, products.gemm(node)),
    "com.microsoft.FusedMatMul": products.fused_matmul,
    "com.microsoft.Gelu": elementwise.gelu,
    "com.microsoft.MatMulIntegerToFloat": quantized.matmul_integer_to_float,
    "com.microsoft.QLinearAdd": quantized.qlinear_binary(op.add),
    "com.microsoft.QLinearConcat": quantized.qlinear_concat,
    "com.microsoft.QLinearGlobalAveragePool": quantized.qlinear_global_average,
    "com.microsoft.QLinearLeakyRelu": quantized.qlinear_unary(
        lambda node, data: op.nn.leakyrelu(data, node.get("alpha", 0.01))
    ),
    "com.microsoft.QLinearMul": quantized.qlinear_binary(op.multiply),
    "com.microsoft.QLinearSigmoid": quantized.qlinear_unary(lambda node, data: op.sigmoid(data)),
    "com.microsoft.QuantizeLinear": quantized.quantize_linear,
    "com.microsoft.QuickGelu": elementwise.swish,
    "com.microsoft.SkipLayerNormalization": normalization.skip_layer_normalization,
}
"""Operators of ONNX by name, those of other domains with the domain before it."""

REASONS: dict[str, str] = {
    **dict.fromkeys(
        ("NonMaxSuppression", "NonZero", "Unique"), "how many results it has depends on the values, not on the shapes"
    ),
    **dict.fromkeys(("Loop", "Scan", "SequenceMap"), "loops are not unrolled; export the network with a fixed length"),
    **dict.fromkeys(
        ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"),
        "it draws random numbers, and the answers can't be verified",
    ),
    **dict.fromkeys(
        ("RegexFullMatch", "StringConcat", "StringNormalizer", "StringSplit", "TfIdfVectorizer"), "it works on text"
    ),
}
"""Why operators that can't become kernels of fixed shape can't."""


def import_graph(model: onnx.ModelProto, inputs: Sequence[TensorSpec]) -> tvm.IRModule:
    """The model as a Relax module: its function `main` has the file's inputs, and its bindings are named after nodes.

    Raises UnsupportedOperatorError, and whatever TVM has against a node that ONNX's checker let pass.
    """
    return Walk(model).run(inputs)


class Walk:
    """Converts nodes in order. Values that are known are computed by the reference, so shapes become constants."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.opsets = {_domain(entry.domain): entry.version for entry in model.opset_import}
        self.builder = relax.BlockBuilder()
        self.names = BindingNames()
        self.emit = Precision().wrap(self.names.wrap(self.builder.emit))
        self.borders: dict[relax.Var, tuple[relax.Expr, Sequence[int]]] = {}
        self.missing: defaultdict[str, list[str]] = defaultdict(list)
        self.refused: list[UnsupportedOperatorError] = []

    def run(self, inputs: Sequence[TensorSpec]) -> tvm.IRModule:
        graph = self.model.graph
        parameters = [relax.Var(spec.name, relax.TensorType(spec.shape, spec.dtype)) for spec in inputs]
        values: Values = {spec.name: parameter for spec, parameter in zip(inputs, parameters, strict=True)}
        with self.builder.function("main", params=parameters):
            try:
                with self.builder.dataflow():
                    self.convert_graph(graph, values)
                    self.refused += [
                        _refusal("sequence", entry.name, "an output of the network is a tensor")
                        for entry in graph.output
                        if isinstance(values[entry.name], list)
                    ]
                    self.report()
                    self.names.current = ""
                    results = self.results([values[entry.name] for entry in graph.output])
                    output = self.builder.emit_output(results[0] if len(results) == 1 else relax.Tuple(results))
            except BaseException:
                self.builder._end_block()  # TVM complains on standard error of blocks that an error left open
                raise
            self.builder.emit_func_output(output)
        return self.builder.get()

    def results(self, values: Sequence[relax.Expr]) -> list[relax.Expr]:
        """Each result as a value of its own: inputs, constants and the same one twice have other owners."""
        own: list[relax.Expr] = []
        for value in values:
            computed = isinstance(value, relax.Var) and isinstance(value, relax.DataflowVar) and value not in own
            own.append(value if computed else self.builder.emit(_copy(value)))
        return own

    def convert_graph(self, graph: onnx.GraphProto, values: Values) -> None:
        for tensor in graph.initializer:
            values[tensor.name] = self.initializer(tensor)
        for tensor in graph.sparse_initializer:
            raise _refusal("a sparse initializer", tensor.values.name, "weights are dense")
        for node in onnx_graph.needed_nodes(graph):
            self.convert_node(node, values)

    def initializer(self, tensor: onnx.TensorProto) -> Any:
        array = numpy_helper.to_array(tensor)
        if str(array.dtype) in DTYPES:
            return constant(array)
        dtype = onnx.TensorProto.DataType.Name(tensor.data_type)
        self.refused.append(_refusal("an initializer", tensor.name, f"it is of {dtype}"))
        return MISSING

    def convert_node(self, node: onnx.NodeProto, values: Values) -> None:
        inputs = [values[name] if name else None for name in node.input]
        if any(value is MISSING for value in inputs):
            self.check_known(node)
            values.update(dict.fromkeys(node.output, MISSING))
            return
        known = self.known(node, inputs)
        made = self.converted(node, inputs, values) if known is None else known
        for name, value in zip(node.output, made, strict=False):
            if name:
                values[name] = value

    def known(self, node: onnx.NodeProto, inputs: Sequence[Any]) -> list[Any] | None:
        """The results of a node that needs no inputs of the network, as constants."""
        if _domain(node.domain) == "" and node.op_type == "Constant":
            return [self.initializer(numpy_helper.from_array(_constant_value(node), node.output[0]))]
        if _domain(node.domain) == "" and node.op_type in ("Shape", "Size"):
            return [constant(_shape_value(node, shape_of(inputs[0])))]
        if node.op_type in REASONS or any(attribute.HasField("g") for attribute in node.attribute):
            return None
        given = [value for value in inputs if value is not None]
        if not all(is_constant(value) for value in given) or _domain(node.domain) + node.op_type in CREATED:
            return None
        arrays = {name: value.value.numpy() for name, value in zip(node.input, inputs, strict=True) if name}
        results = evaluate(node, self.model.opset_import, arrays)
        if results is None or not all(str(result.dtype) in DTYPES for result in results):
            return None
        if sum(result.nbytes for result in results) > max(MOST_MADE, sum(array.nbytes for array in arrays.values())):
            return None
        names = iter(results)
        return [constant(next(names)) if name else None for name in node.output]

    def converted(self, node: onnx.NodeProto, inputs: Sequence[Any], values: Values) -> Sequence[Any]:
        key = _key(node)
        if key == "If":
            return self.branch(node, inputs[0], values)
        if key not in OPERATORS:
            if (graph := self.expanded(node, inputs)) is not None:
                inner: Values = ChainMap({}, values)
                self.convert_graph(graph, inner)
                return [inner[name] if name else None for name in node.output]
            self.check_known(node)
            return [MISSING] * len(node.output)
        name = node.name or next(name for name in node.output if name)
        self.names.current = _layer_name(node) or node.op_type
        described = Node(
            operator=key,
            name=name,
            opset=self.opsets.get(_domain(node.domain), 1),
            attributes={attribute.name: _attribute_value(attribute) for attribute in node.attribute},
            inputs=inputs,
            results=len(node.output),
            bind=self.bind,
            call_te=self.builder.call_te,
            borders=self.borders,
        )
        try:
            made = OPERATORS[key](described)
        except UnsupportedOperatorError as error:
            self.refused.append(error)
            return [MISSING] * len(node.output)
        results = [self.bound(value) for value in (made if isinstance(made, tuple) else (made,))]
        for result in results:
            if isinstance(result, relax.Expr) and isinstance(result.ty, relax.TensorType):
                limits.check_tensor(shape_of(result), f"The result of {name}")
        return results

    def bound(self, value: Any) -> Any:
        return self.bind(value) if isinstance(value, relax.Expr) else value

    def bind(self, value: relax.Expr) -> relax.Expr:
        """Bind a call, and the calls inside it, under names of their own; nested ones would get none."""
        if isinstance(value, relax.Var) or is_constant(value):
            return value
        if isinstance(value, relax.Call):
            arguments = [self.bind(part) if isinstance(part, relax.Call) else part for part in value.args]
            value = relax.Call(value.op, arguments, value.attrs, value.ty_args)
        return self.emit(value)

    def branch(self, node: onnx.NodeProto, condition: relax.Expr, values: Values) -> Sequence[Any]:
        """The branch that a known condition takes."""
        if not is_constant(condition):
            self.refused.append(_refusal("If", node.name or node.output[0], "its condition depends on the inputs"))
            return [MISSING] * len(node.output)
        wanted = "then_branch" if condition.value.numpy().any() else "else_branch"
        graph = next(attribute.g for attribute in node.attribute if attribute.name == wanted)
        inner: Values = ChainMap({}, values)
        self.convert_graph(graph, inner)
        return [inner[entry.name] for entry in graph.output]

    def expanded(self, node: onnx.NodeProto, inputs: Sequence[Any]) -> onnx.GraphProto | None:
        if any(isinstance(value, list) for value in inputs):
            return None
        types = {
            name: helper.make_tensor_type_proto(
                helper.np_dtype_to_tensor_dtype(np.dtype(str(value.ty.dtype))), shape_of(value)
            )
            for name, value in zip(node.input, inputs, strict=True)
            if name
        }
        return onnx_graph.expand(node, self.model, types)

    def check_known(self, node: onnx.NodeProto) -> None:
        """Note an operator that can't be converted, so that the message has all of them."""
        key, where = _key(node), node.name or node.output[0]
        if key in REASONS:
            self.refused.append(_refusal(key, where, REASONS[key]))
        elif key not in OPERATORS and key not in ("Constant", "If", "Shape", "Size"):
            self.missing[key].append(where)

    def report(self) -> None:
        if self.refused:
            raise self.refused[0]
        report_unsupported(self.missing)


MISSING = object()
"""Stands for the results of nodes that can't be converted."""

DTYPES = frozenset(elementwise.CASTS)
"""Of values."""

MOST_MADE = 1 << 20
"""Bytes that a constant may have which is larger than what it is made from."""

CREATED = {"Identity", "SequenceConstruct", "SequenceEmpty"}
"""Converted even where all is known: no more than a name, or lists."""


def _layer_name(node: onnx.NodeProto) -> str:
    """The path of the PyTorch module that a node comes from, where PyTorch's exporters noted it, else the node's name.

    The newer exporter notes scopes, whose last is the operator in its module; without a module it is that operator.
    The older one writes `/features/features.0/conv/Conv_1`: scopes, of which those in a list begin with the list's
    own name, and the operator.
    """
    noted = next((entry.value for entry in node.metadata_props if entry.key == "pkg.torch.onnx.name_scopes"), "")
    scopes = re.findall(r"'([^']*)'", noted)
    if found := next((scope for scope in scopes[-2::-1] if scope), "") or "".join(scopes[-1:]):
        return found
    name = node.name or next(name for name in node.output if name)
    *parts, last = name.strip("/").split("/")
    if not name.startswith("/") or not parts or not re.fullmatch(rf"{re.escape(node.op_type)}(_\d+)?", last):
        return name.strip("/").replace("/", ".")
    path: list[str] = []
    for part in parts:
        if path and part.startswith(f"{path[-1]}."):
            path.pop()
        path.append(part)
    return ".".join(path)


def _domain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def _key(node: onnx.NodeProto) -> str:
    domain = _domain(node.domain)
    return f"{domain}.{node.op_type}" if domain else node.op_type


def _refusal(operator: str, where: str, reason: str) -> UnsupportedOperatorError:
    return UnsupportedOperatorError(
        f"The network's {operator} ({where}) is not supported: {reason}.", {operator: (where,)}
    )


def _attribute_value(attribute: onnx.AttributeProto) -> Any:
    value = helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    if attribute.type == onnx.AttributeProto.STRINGS:
        return [item.decode("utf-8", "replace") for item in value]
    return list(value) if attribute.type in (onnx.AttributeProto.INTS, onnx.AttributeProto.FLOATS) else value


def _constant_value(node: onnx.NodeProto) -> np.ndarray:
    dtypes = {"value_float": "float32", "value_floats": "float32", "value_int": "int64", "value_ints": "int64"}
    for attribute in node.attribute:
        if attribute.name == "value":
            return numpy_helper.to_array(attribute.t)
        if attribute.name in dtypes:
            return np.array(helper.get_attribute_value(attribute), dtypes[attribute.name])
    raise _refusal("Constant", node.name or node.output[0], "its value is text or sparse")


def _shape_value(node: onnx.NodeProto, shape: tuple[int, ...]) -> np.ndarray:
    if node.op_type == "Size":
        return np.array(int(np.prod(shape, dtype="int64")), "int64")
    given: Mapping[str, int] = {attribute.name: attribute.i for attribute in node.attribute}
    return np.array(shape[given.get("start", 0) : given.get("end")], "int64")


def _copy(value: relax.Expr) -> relax.Expr:
    """The same values computed anew."""
    return op.broadcast_to(value, shape_of(value))
