"""The graph inside a `.pt2` file: a copy of it that holds nothing but what is known to be harmless.

PyTorch's reader looks operators up by any dotted name, imports what the kinds of arguments name, evaluates expressions
as Python, and writes the names of a graph into Python code that it then executes. So every value is checked here by an
allow-list before PyTorch is given it, and what is neither needed nor checked (stack traces, custom metadata) is left
out. The tables have the fields' names of PyTorch's schema, `torch._export.serde.schema`.
"""

from __future__ import annotations

import functools
import json
import keyword
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from tvmflow.network import pt2_expressions
from tvmflow.network.aten import OPERATORS
from tvmflow.network.foreign import report_unsupported
from tvmflow.system import limits

Check = Callable[[Any], Any]
"""Gives a clean copy of a value, or raises ValueError that says what the value is."""

INTEGERS = 1 << 63
"""Larger ones aren't of 64 bits."""
PATH = re.compile(r"[^'\"\\{}()\[\],;#\x00-\x1f\x7f]*")
"""Modules and weights, `joint.3.bn.weight`; keys of ModuleDicts may be no identifiers."""
SIZE_OPERATORS = {
    *(f"_operator.{name}" for name in ("eq", "ne", "le", "ge", "lt", "gt", "neg", "pos", "mul", "add", "sub", "mod")),
    *(f"_operator.{name}" for name in ("floordiv", "truediv", "and_", "or_", "getitem")),
    *(f"torch.sym_{name}" for name in ("not", "int", "float", "ite", "max", "min", "sqrt")),
    *("math.trunc", "math.floor", "math.ceil"),
}
"""Arithmetic of sizes; powers and shifts could be numbers of any length."""
GRAPH_OPERATORS = {"torch.ops.higher_order.wrap_with_set_grad_enabled", "torch.ops.higher_order.wrap_with_autocast"}
"""Their graphs are run as they stand."""
QUANTISING = "torch.ops.quantized_decomposed."
"""The namespace of what PyTorch's quantisers leave in a graph."""
QUANTISED = {
    f"{QUANTISING}{name}"
    for name in (
        *("quantize_per_tensor.default", "dequantize_per_tensor.default"),
        *("quantize_per_tensor.tensor", "dequantize_per_tensor.tensor"),
        *("quantize_per_channel.default", "dequantize_per_channel.default"),
    )
}
HOUSEKEEPING = {
    *("lift_fresh_copy.default", "lift_fresh.default", "lift.default", "detach.default", "alias.default"),
    *("item.default", "sym_size.int", "sym_stride.int", "sym_numel.default", "sym_storage_offset.default"),
    *("sym_constrain_range.default", "sym_constrain_range_for_size.default", "_assert_scalar.default"),
    *("_assert_tensor_metadata.default", "_assert_async.msg", "_local_scalar_dense.default", "fill.Scalar"),
    *("fill.Tensor", "zero.default", "copy.default", "index_put.default", "contiguous.default"),
    *("view_as_real.default", "view_as_complex.default"),  # complex tensors have a sentence of their own
}
RANDOM = {
    *("rand.default", "rand_like.default", "randint.default", "randint.low", "randint_like.default"),
    *("randint_like.low_dtype", "randperm.default", "multinomial.default", "poisson.default", "bernoulli.float"),
    *("bernoulli.Tensor", "random.default", "random.to", "random.from", "geometric.default", "cauchy.default"),
    *("log_normal.default", "normal.float_float", "normal.Tensor_Tensor", "normal.Tensor_float", "normal.float_Tensor"),
}
"""Networks that draw random numbers are refused as that, once they are read."""
UNCHECKED = re.compile(
    r"_(reshape_alias|reshape_from|sparse|validate|test|cufft|wrapped|debug|nnpack)|(set|set_data|resize|resize_as)_?\."
)
"""Operators that PyTorch doesn't check the arguments of, or that reach beyond their tensors."""


def clean_program(document: Any, weights: Mapping[str, tuple[int, list]]) -> dict[str, Any]:
    """A copy of `models/model.json`. `weights` are (dtype, sizes) of the tensors that are there, by their names.

    Raises ValueError that says what was seen, and UnsupportedOperatorError.
    """
    _check_depth(document)
    _refuse_operators(document)
    program = PROGRAM(document)
    graph, signature = program["graph_module"]["graph"], program["graph_module"]["signature"]
    for entry in signature["input_specs"]:
        ((kind, spec),) = entry.items()
        fields = {"parameter": "parameter_name", "buffer": "buffer_name", "tensor_constant": "tensor_constant_name"}
        if kind not in fields:
            continue
        weight, tensor = spec[fields[kind]], graph["tensor_values"].get(spec["arg"]["name"])
        if weight not in weights:
            raise ValueError(f"a graph that takes the weight {weight!r}, which isn't there")
        if tensor is None or (tensor["dtype"], tensor["sizes"]) != weights[weight]:
            raise ValueError(f"a weight {weight!r} of another shape or dtype than its graph takes")
    return program


def clean_payloads(document: Any) -> dict[str, dict[str, Any]]:
    """A copy of what a `…_config.json` says of each tensor, by its name. Raises ValueError."""
    _check_depth(document)
    return record(config=dict_of(path, PAYLOAD))(document)["config"]


# ------------------------------------------------------------------------------------------------------------- values


def record(**fields: Check) -> Check:
    """A dict with these keys; others are left out, and missing ones left to PyTorch."""

    def check(value: Any) -> dict[str, Any]:
        _expect(value, dict)
        return {key: field(value[key]) for key, field in fields.items() if key in value}

    return check


def union(**fields: Check) -> Check:
    """A dict with one of these keys."""

    def check(value: Any) -> dict[str, Any]:
        _expect(value, dict)
        if len(value) != 1 or next(iter(value)) not in fields:
            raise ValueError(f"a part of a graph, {_short(value)}, where one of {', '.join(fields)} belongs")
        ((key, inner),) = value.items()
        return {key: fields[key](inner)}

    return check


def list_of(entry: Check) -> Check:
    return lambda value: [entry(one) for one in _expect(value, list)]


def dict_of(key: Check, entry: Check) -> Check:
    return lambda value: {key(name): entry(one) for name, one in _expect(value, dict).items()}


def optional(check: Check) -> Check:
    return lambda value: None if value is None else check(value)


def later(check: str) -> Check:
    """A check that is defined below."""
    return lambda value: globals()[check](value)


def integer(value: Any) -> int:
    if type(value) is not int or abs(value) > INTEGERS:
        raise ValueError(f"{_short(value)} where an integer of 64 bits belongs")
    return value


def number(value: Any) -> float:
    """JSON has no infinities; PyTorch writes them as words."""
    if isinstance(value, str) and value in {"Infinity", "-Infinity", "NaN", "inf", "-inf", "nan"}:
        return float(value.replace("Infinity", "inf"))
    if type(value) not in (int, float) or (type(value) is int and abs(value) > INTEGERS):
        raise ValueError(f"{_short(value)} where a number belongs")
    return value


def boolean(value: Any) -> bool:
    return _expect(value, bool)


def identifier(value: Any) -> str:
    """Names become variables of Python code."""
    if (
        not isinstance(value, str)
        or len(value) > limits.TEXT_CHARACTERS
        or not value.isidentifier()
        or keyword.iskeyword(value)
    ):
        raise ValueError(f"the name {_short(value)}, which is no identifier of Python")
    return value


def argument_name(value: Any) -> str:
    """Of an operator's schema; empty for arguments that have none."""
    return value if value == "" or (isinstance(value, str) and keyword.iskeyword(value)) else identifier(value)


def path(value: Any) -> str:
    if not isinstance(value, str) or len(value) > limits.TEXT_CHARACTERS or not PATH.fullmatch(value):
        raise ValueError(f"the name {_short(value)} of a module or weight; quotes, brackets and the like aren't taken")
    return value


def text(value: Any) -> str:
    if (
        not isinstance(value, str)
        or len(value) > limits.TEXT_CHARACTERS
        or not pt2_expressions.TEXT_IN_QUOTES.fullmatch(value)
    ):
        raise ValueError(f"the text {_short(value)}; quotes, backslashes, braces and control characters aren't taken")
    return value


def message(value: Any) -> str:
    """A text for an operator: messages of assertions quote the names of nodes."""
    return text(re.sub(pt2_expressions.QUOTING, " ", _expect(value, str)))


def operator(value: Any) -> str:
    """The target of a node; `_refuse_operators` reports all that are unknown, this lets none through."""
    if not known_operator(value):
        raise ValueError(f"the operator {_short(value)}, which isn't known")
    return value


def device(value: Any) -> dict[str, Any]:
    if _expect(value, dict).get("type") != "cpu":
        raise ValueError(f"tensors on {_short(value.get('type'))}: export the network after .to('cpu')")
    return {"type": "cpu", "index": None}


def symbol(value: Any) -> str:
    if not isinstance(value, str) or not pt2_expressions.SYMBOL.fullmatch(value):
        raise ValueError(f"the symbol {_short(value)}, which is none of PyTorch's")
    return value


def one_of(values: Collection[str]) -> Check:
    def check(value: Any) -> str:
        if not isinstance(value, str) or value not in values:
            raise ValueError(f"{_short(value)} where one of {', '.join(values)} belongs")
        return value

    return check


def metadata(value: Any) -> dict[str, str]:
    """Only the modules around a node, which its kernels are named after; entries of `key,path,class`."""
    stack = _expect(value, dict).get("nn_module_stack")
    if not isinstance(stack, str) or len(stack) > 10 * limits.TEXT_CHARACTERS:
        return {}
    entries = [entry.split(",") for entry in stack.split(";")]
    if any(len(entry) != 3 or not PATH.fullmatch(entry[1]) or "*/" in entry[1] for entry in entries):
        return {}
    return {"nn_module_stack": ";".join(f"{number},{entry[1]},Module" for number, entry in enumerate(entries))}


def nesting(value: Any) -> str:
    """How arguments or results are nested: JSON in a text, which names classes. Those that import are not taken."""
    if not isinstance(value, str) or len(value) > limits.GRAPH.bytes:
        raise ValueError(f"{_short(value)} where the nesting of arguments belongs")
    pair = json.loads(value)
    _check_depth(pair)
    if not isinstance(pair, list) or len(pair) != 2 or pair[0] != 1:
        raise ValueError("a nesting of arguments of another version than 1")
    return json.dumps([1, _nested(pair[1])])


def arguments_nesting(value: Any) -> str:
    """As `nesting`; names of arguments by keyword become variables of Python code."""
    clean = nesting(value)
    _, tree = json.loads(clean)
    children = tree["children_spec"]
    if len(children) == 2 and children[1]["type"] == "builtins.dict":
        for name in json.loads(children[1]["context"]):
            identifier(name)
    return clean


def _nested(tree: Any) -> dict[str, Any]:
    _expect(tree, dict)
    kind, context, children = tree.get("type"), tree.get("context"), _expect(tree.get("children_spec"), list)
    if kind is None:
        context = None
    elif not isinstance(kind, str):
        raise ValueError(f"{_short(kind)} where the name of a class belongs")
    elif kind in {"builtins.tuple", "builtins.list"}:
        context = "null"
    elif kind in {"builtins.dict", "collections.OrderedDict"}:
        keys = json.loads(context) if isinstance(context, str) else None
        context = json.dumps([key if type(key) is int else text(key) for key in _expect(keys, list)])
    elif kind == "collections.namedtuple":
        context = text(context)  # looked up among the classes that are registered already
    else:
        raise ValueError(f"arguments or results in {_short(kind)}; tuples, lists, dicts and named tuples are taken")
    return {"type": kind, "context": context, "children_spec": [_nested(child) for child in children]}


# -------------------------------------------------------------------------------------------------------- the schema


def _symbolic(**plain: Check) -> Check:
    return union(as_expr=record(expr_str=pt2_expressions.dimension, hint=optional(HINT)), **plain)


def _named(**plain: Check) -> Check:
    return union(as_name=identifier, **plain)


HINT = union(as_int=integer, as_bool=boolean, as_float=number)
SYM_INT, SYM_FLOAT, SYM_BOOL = _symbolic(as_int=integer), _symbolic(as_float=number), _symbolic(as_bool=boolean)
TENSOR_META = record(
    dtype=integer,
    sizes=list_of(SYM_INT),
    requires_grad=boolean,
    device=device,
    strides=list_of(SYM_INT),
    storage_offset=SYM_INT,
    layout=integer,
)
PLAIN = union(as_int=integer)
PAYLOAD = record(
    path_name=identifier,
    is_param=boolean,
    use_pickle=boolean,
    tensor_meta=record(
        dtype=integer,
        sizes=list_of(PLAIN),
        requires_grad=boolean,
        device=device,
        strides=list_of(PLAIN),
        storage_offset=PLAIN,
        layout=integer,
    ),
)
TENSOR = record(name=identifier)
SYM_INT_NAME, SYM_FLOAT_NAME, SYM_BOOL_NAME = _named(as_int=integer), _named(as_float=number), _named(as_bool=boolean)
OPTIONAL_TENSOR = union(as_tensor=TENSOR, as_none=boolean)
ARGUMENT = union(
    as_none=boolean,
    as_tensor=TENSOR,
    as_tensors=list_of(TENSOR),
    as_nested_tensors=list_of(list_of(TENSOR)),
    as_optional_tensor=OPTIONAL_TENSOR,
    as_optional_tensors=list_of(OPTIONAL_TENSOR),
    as_int=integer,
    as_ints=list_of(integer),
    as_int_lists=list_of(list_of(integer)),
    as_float=number,
    as_floats=list_of(number),
    as_float_lists=list_of(list_of(number)),
    as_complex=record(real=number, imag=number),
    as_bool=boolean,
    as_bools=list_of(boolean),
    as_string=message,
    as_strings=list_of(message),
    as_sym_int=SYM_INT_NAME,
    as_sym_ints=list_of(SYM_INT_NAME),
    as_sym_float=SYM_FLOAT_NAME,
    as_sym_floats=list_of(SYM_FLOAT_NAME),
    as_sym_bool=SYM_BOOL_NAME,
    as_sym_bools=list_of(SYM_BOOL_NAME),
    as_scalar_type=integer,
    as_memory_format=integer,
    as_layout=integer,
    as_device=device,
    as_graph=record(name=identifier, graph=later("GRAPH")),
)
CONSTANT = union(as_none=boolean, as_int=integer, as_float=number, as_string=text, as_bool=boolean)
NODE = record(
    target=operator,
    inputs=list_of(record(name=argument_name, arg=ARGUMENT, kind=optional(integer))),
    outputs=list_of(ARGUMENT),
    metadata=metadata,
    is_hop_single_tensor_return=optional(boolean),
    name=optional(identifier),
)
GRAPH = record(
    inputs=list_of(ARGUMENT),
    outputs=list_of(ARGUMENT),
    nodes=list_of(NODE),
    tensor_values=dict_of(identifier, TENSOR_META),
    sym_int_values=dict_of(identifier, SYM_INT),
    sym_bool_values=dict_of(identifier, SYM_BOOL),
    sym_float_values=dict_of(identifier, SYM_FLOAT),
    is_single_tensor_return=boolean,
)
INPUT = union(
    user_input=record(arg=ARGUMENT),
    parameter=record(arg=TENSOR, parameter_name=path),
    buffer=record(arg=TENSOR, buffer_name=path, persistent=boolean),
    tensor_constant=record(arg=TENSOR, tensor_constant_name=path),
    constant_input=record(name=identifier, value=CONSTANT),
)
OUTPUT = union(
    user_output=record(arg=ARGUMENT),
    loss_output=record(arg=TENSOR),
    buffer_mutation=record(arg=TENSOR, buffer_name=path),
    parameter_mutation=record(arg=TENSOR, parameter_name=path),
    gradient_to_parameter=record(arg=TENSOR, parameter_name=path),
    gradient_to_user_input=record(arg=TENSOR, user_input_name=identifier),
    user_input_mutation=record(arg=TENSOR, user_input_name=identifier),
)
CALL = record(
    inputs=list_of(ARGUMENT),
    outputs=list_of(ARGUMENT),
    in_spec=arguments_nesting,
    out_spec=nesting,
    forward_arg_names=optional(list_of(identifier)),
)


def calls(value: Any) -> list[dict[str, Any]]:
    """Only the network's own, which is the first; those of its modules aren't needed."""
    if not _expect(value, list):
        raise ValueError("a network without the nesting of its arguments")
    return [{"fqn": "", **record(signature=CALL)(value[0])}]


PROGRAM = record(
    graph_module=record(
        graph=GRAPH,
        signature=record(input_specs=list_of(INPUT), output_specs=list_of(OUTPUT)),
        module_call_graph=calls,
        treespec_namedtuple_fields=dict_of(text, record(field_names=list_of(identifier))),
    ),
    opset_version=dict_of(identifier, integer),
    range_constraints=dict_of(symbol, record(min_val=optional(integer), max_val=optional(integer))),
    schema_version=record(major=integer, minor=integer),
    verifiers=list_of(one_of(("TRAINING", "ATEN", ""))),
    torch_version=text,
    guards_code=list_of(pt2_expressions.guard),
)


# ---------------------------------------------------------------------------------------------------------- operators


@functools.cache
def _operators() -> frozenset[str]:
    """ATen's operators that something here computes, or that PyTorch takes apart, as `conv2d.default`."""
    import torch
    from torch._decomp import decomposition_table

    from tvmflow.network.pytorch_operators import torch_importer

    apart = [*torch.export.default_decompositions().keys(), *decomposition_table]
    names = {getattr(operator, "__name__", "") for operator in apart}
    for name in torch._C._dispatch_get_all_op_names():  # what PyTorch takes apart while it traces has no decomposition
        if torch._C._dispatch_has_kernel_for_dispatch_key(name, "CompositeImplicitAutograd"):
            namespace, _, rest = name.partition("::")
            if namespace == "aten" and not rest.startswith("_"):
                names.add(rest if "." in rest else f"{rest}.default")
    names |= {name for name in torch_importer()().convert_map if isinstance(name, str)}
    return frozenset(name for name in names | set(OPERATORS) | HOUSEKEEPING | RANDOM if not UNCHECKED.match(name))


def known_operator(target: Any) -> bool:
    """Whether a node may call what PyTorch finds by the name `target`."""
    if not isinstance(target, str):
        return False
    if target in SIZE_OPERATORS or target in GRAPH_OPERATORS or target in QUANTISED:
        return True
    found = re.fullmatch(r"torch\.ops\.aten\.(\w+)\.(\w+)", target)
    if found is None:
        return False
    name, overload = found.groups()
    in_place = name.endswith("_") and not name.endswith("__")
    return f"{name}.{overload}" in _operators() or (in_place and f"{name[:-1]}.{overload}" in _operators())


def _refuse_operators(document: Any) -> None:
    missing: defaultdict[str, list[str]] = defaultdict(list)
    for node in _nodes(document):
        target = node.get("target")
        if not known_operator(target):
            stack = metadata(node.get("metadata", {})).get("nn_module_stack", "").split(";")[-1].split(",")
            where = stack[1] if len(stack) == 3 else ""
            missing[_shown_operator(target)].append(where or _short(node.get("name")).strip("'"))
    report_unsupported(missing)


def _nodes(document: Any) -> Iterator[dict[str, Any]]:
    """Whatever has the shape of a node, at any depth."""
    left = [document]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            if "target" in value and "inputs" in value:
                yield value
            left.extend(value.values())
        elif isinstance(value, list):
            left.extend(value)


def _shown_operator(target: Any) -> str:
    return _short(target).strip("'").removeprefix("torch.ops.aten.")


# -------------------------------------------------------------------------------------------------------------- tools


def _check_depth(document: Any) -> None:
    layer = [document]
    for _ in range(limits.GRAPH.depth):
        layer = [
            inner
            for value in layer
            if isinstance(value, (dict, list))
            for inner in (value.values() if isinstance(value, dict) else value)
        ]
        if not layer:
            return
    raise ValueError(f"lists and dicts in one another, deeper than {limits.GRAPH.depth}")


def _expect(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise ValueError(f"{_short(value)} where a {kind.__name__} belongs")
    return value


def _short(value: Any) -> str:
    shown = repr(value) if isinstance(value, (str, int, float, bool, type(None))) else f"a {type(value).__name__}"
    return f"{shown[:60]}…" if len(shown) > 60 else shown
