"""A PyTorch network's arguments and results, however they are nested, as flat lists of named tensors.

Tensors in tuples, lists, dicts and whatever else PyTorch's pytrees know become inputs and outputs of their own, named
by where they are: `x`, `state.0`, `options.mask`; `logits`, `boxes.0`. A result that is no dict is called `output`, the
second of a tuple `output1`, and so on. Numbers, strings and None among the arguments were fixed when the network was
exported: they are constants of it and no inputs, and among the results they are no outputs.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tvmflow.network.foreign import contained
from tvmflow.network.shapes import DTYPES, shown
from tvmflow.spec import TensorSpec, UserError
from tvmflow.system.tensors import BFLOAT16

if TYPE_CHECKING:
    import torch
    from torch.utils._pytree import TreeSpec

log = logging.getLogger(__name__)

RESULT = "output"
LONGEST_NAME = 200
"""Characters; a device without Python keeps 255."""


@dataclass(frozen=True, kw_only=True)
class Interface:
    """What an exported network takes and gives.

    `inputs` may have dimensions that are symbols of PyTorch. `arguments` are all leaves of the arguments, None in place
    of the tensors; `tensors` and `results` are where the inputs and the outputs stand among the leaves.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[str, ...]
    arguments: tuple[Any, ...]
    tensors: tuple[int, ...]
    results: tuple[int, ...]
    nesting: TreeSpec

    def nest(self, tensors: Iterable[torch.Tensor]) -> tuple[tuple, dict[str, Any]]:
        """Positional arguments and those by keyword, made of a tensor for each input."""
        from torch.utils._pytree import tree_unflatten

        leaves = list(self.arguments)
        for place, tensor in zip(self.tensors, tensors, strict=True):
            leaves[place] = tensor
        return tree_unflatten(leaves, self.nesting)

    def reference(self, network: Callable[..., Any]) -> Callable[..., tuple[np.ndarray, ...]]:
        """The network as a function of arrays, which it gets copies of: it may write into its arguments."""
        import torch
        from torch.utils._pytree import tree_leaves

        def call(*arrays: np.ndarray) -> tuple[np.ndarray, ...]:
            arguments, by_keyword = self.nest(to_torch(array) for array in arrays)
            with torch.no_grad(), contained():
                leaves = tree_leaves(network(*arguments, **by_keyword))
            return tuple(to_numpy(leaves[place]) for place in self.results)

        return call


def read_interface(exported: torch.export.ExportedProgram, source: str) -> Interface:
    """Raises UserError for dtypes and kinds of arguments that no device is given, and if there are no tensors."""
    from torch.export.graph_signature import InputKind, OutputKind, TensorArgument

    placeholders = {node.name: node.meta["val"] for node in exported.graph.nodes if node.op == "placeholder"}
    nesting, results = exported.call_spec.in_spec, exported.call_spec.out_spec
    given = [entry.arg for entry in exported.graph_signature.input_specs if entry.kind is InputKind.USER_INPUT]
    paths = [_argument_name(path, exported) for path in _paths(nesting)]
    tensors = tuple(place for place, argument in enumerate(given) if isinstance(argument, TensorArgument))
    for place, argument in enumerate(given):
        if place not in tensors and not hasattr(argument, "value"):
            raise UserError(
                f"{source} takes {paths[place]!r}, a number that is left open; export it with the value that it has "
                "on the device, which then is a constant of the network."
            )
    names = unique([paths[place] for place in tensors])
    inputs = tuple(
        TensorSpec(
            name=name,
            shape=tuple(placeholders[given[place].name].shape),
            dtype=_dtype(placeholders[given[place].name], f"{source} takes {name!r}"),
        )
        for name, place in zip(names, tensors, strict=True)
    )
    if not inputs:
        raise UserError(f"{source} takes no tensor, so there is nothing to run it on.")
    fixed = {paths[place]: argument.value for place, argument in enumerate(given) if place not in tensors}
    if fixed:
        shown_values = ", ".join(f"{name} = {value!r}" for name, value in fixed.items())
        log.info(f"Constants of {source}, and no inputs: {shown_values}")

    made = [entry.arg for entry in exported.graph_signature.output_specs if entry.kind is OutputKind.USER_OUTPUT]
    kept = tuple(place for place, result in enumerate(made) if isinstance(result, TensorArgument))
    titles = [_result_name(path) for path in _paths(results)]
    if left_out := [titles[place] for place in range(len(made)) if place not in kept]:
        log.info(f"No tensors, and so no outputs of {source}: {', '.join(left_out)}")
    if not kept:
        raise UserError(f"{source} gives no tensor; a network has at least one output.")
    nodes = {node.name: node.meta.get("val") for node in exported.graph.nodes}
    for place in kept:
        _dtype(nodes[made[place].name], f"{source} gives {titles[place]!r}")
    leaves = tuple(None if place in tensors else argument.value for place, argument in enumerate(given))
    return Interface(
        inputs=inputs,
        outputs=tuple(unique([titles[place] for place in kept])),
        arguments=leaves,
        tensors=tensors,
        results=kept,
        nesting=nesting,
    )


def keep_tensors(exported: torch.export.ExportedProgram) -> None:
    """Take the arguments and results that are no tensors out of a graph, whose importer knows tensors only."""
    from torch.export.graph_signature import InputKind, OutputKind, TensorArgument

    signature, graph = exported.graph_signature, exported.graph
    constants = {
        entry.arg.name
        for entry in signature.input_specs
        if entry.kind is InputKind.USER_INPUT and not isinstance(entry.arg, TensorArgument)
    }
    for node in list(graph.nodes):
        if node.op == "placeholder" and node.name in constants:
            graph.erase_node(node)
    signature.input_specs[:] = [entry for entry in signature.input_specs if entry.arg.name not in constants]
    (output,) = (node for node in graph.nodes if node.op == "output")
    pairs = [
        (entry, result)
        for entry, result in zip(signature.output_specs, output.args[0], strict=True)
        if entry.kind is not OutputKind.USER_OUTPUT or isinstance(entry.arg, TensorArgument)
    ]
    signature.output_specs[:] = [entry for entry, _ in pairs]
    output.args = (tuple(result for _, result in pairs),)
    exported.graph_module.recompile()


def to_torch(array: np.ndarray) -> torch.Tensor:
    """A tensor with a copy of the array's values."""
    import torch

    if array.dtype == BFLOAT16:
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """An array of its own, in C's order, of what may be a view or a parameter."""
    import torch

    plain = tensor.detach().resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)
    return plain.view(torch.int16).numpy().view(BFLOAT16) if plain.dtype is torch.bfloat16 else plain.numpy()


def unique(names: Sequence[str]) -> list[str]:
    """Names that are fit for files, lines of text and programs: without spaces, none twice."""
    found: list[str] = []
    for name in names:
        plain = re.sub(r"[^\w.\-]+", "_", name, flags=re.ASCII)[:LONGEST_NAME] or "_"
        number, candidate = 1, plain
        while candidate in found:
            number, candidate = number + 1, f"{plain}_{number + 1}"
        found.append(candidate)
    return found


def _paths(nesting: TreeSpec) -> list[list[str | int]]:
    """Where each leaf stands: the keys, names and numbers on the way to it."""
    from torch.utils._pytree import tree_flatten_with_path, tree_unflatten

    numbered = tree_unflatten(list(range(nesting.num_leaves)), nesting)
    try:
        leaves, _ = tree_flatten_with_path(numbered)
    except ValueError:  # a class that was registered without names for its parts
        return [[number] for number in range(nesting.num_leaves)]
    return [[_key(part) for part in path] for path, _ in leaves]


def _key(part: Any) -> str | int:
    """`SequenceKey`, `MappingKey` and `GetAttrKey` each call it something else."""
    if hasattr(part, "idx"):
        return part.idx
    return str(getattr(part, "key", getattr(part, "name", part)))


def _argument_name(path: Sequence[str | int], exported: torch.export.ExportedProgram) -> str:
    """By the name of forward()'s parameter: the path begins in `(positional, by keyword)`."""
    signature = exported.module_call_graph[0].signature
    names = signature.forward_arg_names if signature is not None else None
    if len(path) < 2:
        return ".".join(map(str, ["input", *path]))
    first = path[1]
    if isinstance(first, int):
        first = names[first] if names is not None and first < len(names) else f"input{first or ''}"
    return ".".join(map(str, [first, *path[2:]]))


def _result_name(path: Sequence[str | int]) -> str:
    if not path:
        return RESULT
    first = path[0] if isinstance(path[0], str) else f"{RESULT}{path[0] or ''}"
    return ".".join(map(str, [first, *path[1:]]))


def _dtype(tensor: Any, what: str) -> str:
    """NumPy's name of a tensor's dtype. Raises UserError."""
    import torch

    name = str(tensor.dtype).removeprefix("torch.")
    if tensor.layout is not torch.strided or tensor.is_quantized or name not in DTYPES:
        kind = "quantised" if tensor.is_quantized else name if tensor.layout is torch.strided else "sparse"
        raise UserError(
            f"{what}, a {kind} tensor of {shown(tensor.shape)}; inputs and outputs are {', '.join(DTYPES)}."
        )
    return name


def nest_named(entries: Mapping[str, Any]) -> Any:
    """`{"0": a, "1": b}` → (a, b) and `{"mask": a, "state.0": b}` → {"mask": a, "state": (b,)}; `{"": a}` → a."""
    if set(entries) == {""}:
        return entries[""]
    groups: dict[str, dict[str, Any]] = {}
    for path, value in entries.items():
        first, _, rest = path.partition(".")
        groups.setdefault(first, {})[rest] = value
    nested = {key: nest_named(group) for key, group in groups.items()}
    if all(key.isdecimal() for key in nested) and sorted(map(int, nested)) == list(range(len(nested))):
        return tuple(nested[str(number)] for number in range(len(nested)))
    return nested
