"""PyTorch networks, from the registry, a factory or a .pt2 file, become Programs by way of torch.export."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import itertools
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from tvmflow.models import MODELS, accuracy
from tvmflow.network import pt2_archive
from tvmflow.network.foreign import contained, first_line, quiet
from tvmflow.network.interface import Interface, keep_tensors, nest_named, read_interface
from tvmflow.network.names import name_outputs
from tvmflow.network.pytorch_operators import decompose, module_path_of, torch_importer
from tvmflow.network.repeatable import refuse_randomness, refuse_state_outside, refuse_training_and_state
from tvmflow.network.shapes import InputShape, Shape, assign, check_dtypes, shown
from tvmflow.network.vectors import make_vectors
from tvmflow.spec import Preprocessing, Program, TensorSpec, TvmflowError, UserError
from tvmflow.system import limits, progress

if TYPE_CHECKING:
    import torch


def from_registry(name: str, input_shapes: Sequence[InputShape]) -> Program:
    entry = MODELS[name]
    network = entry()
    (tensor,), _ = _arguments(network, input_shapes or [InputShape(name=None, shape=entry.input_shape)], name)
    shape = tuple(tensor.shape)
    if shape[1:] != entry.input_shape[1:]:
        raise UserError(
            f"{name} takes one input of N×{'×'.join(map(str, entry.input_shape[1:]))}, "
            f"but --input-shape says {'×'.join(map(str, shape))}."
        )
    program = from_module(network, name, f"tvmflow.models:{name}", [shape], entry.preprocessing)
    check_dtypes(input_shapes, program.inputs, name)
    known = accuracy(name)
    return replace(program, labels=tuple(entry.labels), preprocessing=entry.preprocessing, accuracy=known)


def from_factory(text: str, input_shapes: Sequence[InputShape]) -> Program:
    if not input_shapes:
        raise UserError(f"A factory doesn't say its input's shape: give --input-shape 1x3x32x32 (or so) with {text}.")
    network = call_factory(text)
    positional, by_keyword = _arguments(network, input_shapes, text)
    return _from_network(network, text.rpartition(":")[2], text, positional, by_keyword, None)


def call_factory(text: str) -> torch.nn.Module:
    """The network, in eval mode, that `package.module:function` or `file.py:function` returns. Raises UserError."""
    import torch

    what = "a function that returns a torch.nn.Module"
    with imported_function(text, "--model", f"a factory is {what}") as factory:
        network = factory()
        if isinstance(network, torch.nn.Module):
            network = network.eval()
    if not isinstance(network, torch.nn.Module):
        raise UserError(f"--model {text} gave a {type(network).__name__}; a factory returns a torch.nn.Module.")
    return network


@contextlib.contextmanager
def imported_function(text: str, option: str, wanted: str) -> Iterator[Callable[[], Any]]:
    """What `package.module:function` or `file.py:function` names, for a block that calls it; errors become UserError.

    `option` gave it, and `wanted` says in a sentence what it has to be.
    """
    module_name, _, attribute = text.rpartition(":")
    folder = os.getcwd()
    if module_name.endswith(".py"):
        file = Path(module_name).absolute()
        if not file.is_file():
            raise UserError(f"{option} {text}: there is no file {module_name}.")
        module_name, folder = file.stem, str(file.parent)
    with _importable_from(folder, module_name.partition(".")[0]):
        try:
            with contained():
                function = getattr(importlib.import_module(module_name), attribute)
            if inspect.isbuiltin(function) or module_name == "builtins":  # os.abort ends any program
                raise UserError(f"{option} {text} is built into Python; {wanted}.")
            with contained():
                yield function
        except UserError:
            raise
        except ModuleNotFoundError as error:
            raise UserError(f"{option} {text}: no module named {error.name!r} on the Python path.") from error
        except AttributeError as error:
            raise UserError(f"{option} {text}: {error}.") from error
        except Exception as error:  # the user's code may raise anything
            raise UserError(f"{option} {text} failed with {type(error).__name__}: {first_line(error)}.") from error


def from_examples(
    network: torch.nn.Module, arguments: Sequence[Any], by_keyword: Mapping[str, Any], name: str | None = None
) -> Program:
    """Import a network as it is called with example inputs, tensors of any dtype, nested as `forward` takes them.

    Its own name is that of its class. Raises UserError, for a network in training mode as well, and
    UnsupportedOperatorError.
    """
    kind = type(network).__qualname__.rpartition(".")[2]
    if training := [path or kind for path, module in network.named_modules() if module.training]:
        more = f" and {len(training) - 3} more" if len(training) > 3 else ""
        raise UserError(
            f"{kind} is in training mode ({', '.join(training[:3])}{more}), in which dropout and batch normalisation "
            "compute something else than on a device; call .eval() on it first."
        )
    devices = {str(tensor.device) for tensor in (*network.parameters(), *network.buffers())} - {"cpu"}
    if devices:
        raise UserError(f"The weights of {kind} are on {', '.join(sorted(devices))}; call .cpu() on it first.")
    return _from_network(network, name or kind, f"{kind}()", tuple(arguments), dict(by_keyword), None)


def from_module(
    network: torch.nn.Module,
    name: str,
    source: str,
    shapes: Sequence[Shape],
    preprocessing: Preprocessing | None = None,
) -> Program:
    """Import a network in eval mode, for float32 inputs of `shapes`. Raises UserError, UnsupportedOperatorError."""
    import torch

    return _from_network(network, name, source, tuple(torch.zeros(shape) for shape in shapes), {}, preprocessing)


def _from_network(
    network: torch.nn.Module,
    name: str,
    source: str,
    arguments: tuple,
    by_keyword: dict[str, Any],
    preprocessing: Preprocessing | None,
) -> Program:
    import torch
    from torch.utils._pytree import tree_leaves, tree_map

    def run() -> Any:
        """The network on noise, the same each time."""
        generator = torch.Generator().manual_seed(0)

        def noise(leaf: Any) -> Any:
            if not isinstance(leaf, torch.Tensor) or not leaf.is_floating_point():
                return leaf.clone() if isinstance(leaf, torch.Tensor) else leaf
            return torch.randn(leaf.shape, generator=generator).to(leaf.dtype)

        given, named = tree_map(noise, (arguments, by_keyword))
        with contained():
            return network(*given, **named)

    try:
        refuse_state_outside(run, source)
    except UserError:
        raise
    except Exception as error:
        tensors = [leaf for leaf in tree_leaves((arguments, by_keyword)) if isinstance(leaf, torch.Tensor)]
        hint = ""
        if re.search(r"\b(Long|Int|long|int64|int32|dtype|scalar type)\b", str(error)):
            hint = "; if it takes another dtype than float32, say so as in --input-shape ids=1x16:int64"
        raise UserError(
            f"{source} can't run on an input of {', '.join(shown(tensor.shape) for tensor in tensors)}: "
            f"{first_line(error)}{hint}."
        ) from error
    progress.at("torch.export")
    try:
        with quiet(), contained():
            exported = torch.export.export(network, arguments, by_keyword)
    except Exception as error:
        raise UserError(f"torch.export can't take {source}: {first_line(error)}.") from error
    return _from_exported(exported, name, source, preprocessing, network)


def _arguments(
    network: torch.nn.Module, given: Sequence[InputShape], source: str
) -> tuple[tuple[torch.Tensor, ...], dict[str, Any]]:
    """Zeros of the shapes for forward(), positional and by keyword. `state.0` is the first of a tuple of that name.

    Raises UserError.
    """
    import torch

    parameters = inspect.signature(network.forward).parameters.values()
    ordered = [entry.name for entry in parameters if entry.kind in (entry.POSITIONAL_ONLY, entry.POSITIONAL_OR_KEYWORD)]
    keywords = [entry.name for entry in parameters if entry.kind is entry.KEYWORD_ONLY]
    several = any(entry.kind is entry.VAR_POSITIONAL for entry in parameters)
    roots = [entry.name.partition(".")[0] if entry.name else None for entry in given]
    if any(entry.kind is entry.VAR_KEYWORD for entry in parameters):
        keywords += [root for root in dict.fromkeys(roots) if root and root not in (*ordered, *keywords)]
    # each nested tensor stands in the place of its parameter
    places: dict[str, list[str]] = {name: [] for name in (*ordered, *keywords)}
    for entry, root in zip(given, roots, strict=True):
        if root in places and entry.name != root and entry.name not in places[root]:
            places[root].append(str(entry.name))
    names = [leaf for name, leaves in places.items() for leaf in leaves or [name]]
    extra = [f"the {number}th" for number in range(len(names) + 1, len(given) + 1)] if several else []
    found = assign(given, [*names, *extra], source)
    limits.check_inputs({name: entry.shape for name, entry in found.items()}, source)
    zeros = {
        name: torch.zeros(entry.shape, dtype=getattr(torch, entry.dtype or "float32")) for name, entry in found.items()
    }
    values: dict[str, Any] = {}
    for name, leaves in places.items():
        group = {leaf.removeprefix(name).removeprefix("."): zeros[leaf] for leaf in leaves or [name] if leaf in zeros}
        if group:
            values[name] = nest_named(group)
    needed = [entry.name for entry in parameters if entry.name in places and entry.default is entry.empty]
    last = max((ordered.index(name) for name in values if name in ordered), default=-1)
    missing = [name for name in places if name not in values and (name in needed or name in ordered[:last])]
    if missing:
        raise UserError(
            f"{source} takes {', '.join(needed) or ', '.join(names)}, and --input-shape says nothing of "
            f"{', '.join(missing)}; give it once for each input, in order or as {missing[0]}=1x3x32x32."
        )
    positional = [values.pop(name) for name in ordered if name in values]
    return (*positional, *(zeros[name] for name in extra if name in zeros)), values


def from_pt2(path: Path, input_shapes: Sequence[InputShape]) -> Program:
    """Read a file of torch.export.save without running anything it brings along (`pt2_archive`).

    Raises UserError, UnsupportedOperatorError.
    """
    if pt2_archive.is_quantised(path):
        raise UserError(
            f"{path} is quantised already, and this needs a network in float32; `tvmflow build --model {path}` takes "
            "it as it is."
        )
    exported = pt2_archive.load(path)
    interface = read_interface(exported, str(path))
    _give_sample_inputs(exported, interface, str(path))
    return _from_exported(_specialize(exported, interface, input_shapes, str(path)), path.stem, str(path), None)


def _give_sample_inputs(exported: torch.export.ExportedProgram, interface: Interface, source: str) -> None:
    """Zeros of the sizes that the network was exported with, without which PyTorch doesn't check its guards."""
    import torch

    shapes = [[dim if isinstance(dim, int) else dim.node.hint for dim in spec.shape] for spec in interface.inputs]
    for spec, shape in zip(interface.inputs, shapes, strict=True):
        if None in shape:
            raise UserError(f"{source} doesn't say for which size of {spec.name!r} it was exported; export it anew.")
    limits.check_inputs({spec.name: shape for spec, shape in zip(interface.inputs, shapes, strict=True)}, source)
    zeros = [
        torch.zeros(shape, dtype=getattr(torch, spec.dtype))
        for spec, shape in zip(interface.inputs, shapes, strict=True)
    ]
    try:
        exported.example_inputs = interface.nest(zeros)
    except Exception as error:
        raise UserError(f"{source} takes its arguments otherwise than it says: {first_line(error)}.") from error


def _specialize(
    exported: torch.export.ExportedProgram, interface: Interface, input_shapes: Sequence[InputShape], source: str
) -> torch.export.ExportedProgram:
    """With the shapes that the user gives in place of dimensions that were left open. Raises UserError."""
    import torch

    given = assign(input_shapes, [spec.name for spec in interface.inputs], source)
    check_dtypes(input_shapes, interface.inputs, source)
    for spec in interface.inputs:
        if spec.name not in given:
            continue
        fits = len(given[spec.name].shape) == len(spec.shape) and all(
            ours == dim or not isinstance(dim, int)
            for dim, ours in zip(spec.shape, given[spec.name].shape, strict=True)
        )
        if not fits:
            raise UserError(
                f"{source} was exported for an input{_named(spec, interface)} of {_shown_open(spec)}; "
                f"--input-shape {given[spec.name]} doesn't fit."
            )
    limits.check_inputs(
        {spec.name: given[spec.name].shape if spec.name in given else spec.shape for spec in interface.inputs}, source
    )
    open_ones = [spec for spec in interface.inputs if not all(isinstance(dim, int) for dim in spec.shape)]
    for spec in open_ones:
        if spec.name not in given:
            raise UserError(
                f"{source} has an input {spec.name!r} of dynamic shape {_shown_open(spec)}; "
                f"give the shape that the device will see with --input-shape {spec.name}=…, or export it with that."
            )
    if not open_ones:
        return exported
    zeros = [
        torch.zeros(given[spec.name].shape if spec.name in given else spec.shape, dtype=getattr(torch, spec.dtype))
        for spec in interface.inputs
    ]
    arguments, by_keyword = interface.nest(zeros)
    try:
        with quiet():
            return torch.export.export(exported.module(), arguments, by_keyword)
    except Exception as error:
        raise UserError(
            f"{source} can't be had for {', '.join(map(str, given.values()))}: {first_line(error)}."
        ) from error


def _named(spec: TensorSpec, interface: Interface) -> str:
    return f" {spec.name!r}" if len(interface.inputs) > 1 else ""


def _shown_open(spec: TensorSpec) -> str:
    return shown([dim if isinstance(dim, int) else "?" for dim in spec.shape])


def _from_exported(
    exported: torch.export.ExportedProgram,
    name: str,
    source: str,
    preprocessing: Preprocessing | None,
    network: torch.nn.Module | None = None,
) -> Program:
    """`network` is what was exported, and gives the reference outputs; without it, the exported program does."""
    interface = read_interface(exported, source)
    _check_weights(exported, source)
    try:
        with quiet():
            reference = interface.reference(network or exported.module())
            exported = decompose(exported)
    except TvmflowError:
        raise
    except Exception as error:
        raise UserError(f"PyTorch can't take {source} apart into its core operators: {first_line(error)}.") from error
    refuse_training_and_state(exported, source, in_eval_mode=network is not None and not network.training)
    _check_results(exported, source)
    progress.at("running the original on golden vectors")
    try:
        vectors = make_vectors(interface.inputs, reference, preprocessing)
    except TvmflowError:
        raise
    except Exception as error:
        raise UserError(f"{source} can't be run by PyTorch: {first_line(error)}.") from error
    refuse_randomness(exported, reference, vectors[0], source)
    with quiet():
        keep_tensors(exported)
        try:
            module = torch_importer()().from_exported_program(exported, False, True, False, None)
        except TvmflowError:
            raise
        except Exception as error:
            raise UserError(f"TVM's importer can't take {source}: {first_line(error)}.") from error
    return Program(
        name=name,
        source=source,
        module=name_outputs(module),
        inputs=interface.inputs,
        outputs=tuple(
            TensorSpec(name=name, shape=array.shape, dtype=str(array.dtype))
            for name, array in zip(interface.outputs, vectors[0].outputs, strict=True)
        ),
        vectors=vectors,
        parameters=sum(parameter.numel() for _, parameter in exported.named_parameters()),
        original=reference,
    )


def _check_results(exported: torch.export.ExportedProgram, source: str) -> None:
    """Raises UserError if an operator's result is larger than is taken, before anything is computed."""
    import torch
    from torch.utils._pytree import tree_leaves

    for node in exported.graph.nodes:
        for value in tree_leaves(node.meta.get("val")) if node.op == "call_function" else ():
            if isinstance(value, torch.Tensor):
                limits.check_tensor(tuple(value.shape), f"{source}: the result of {module_path_of(node)}")


def _check_weights(exported: torch.export.ExportedProgram, source: str) -> None:
    """Raises UserError for weights of a kind that no device is given."""
    import torch

    weights = itertools.chain(exported.named_parameters(), exported.named_buffers(), exported.constants.items())
    for name, weight in weights:
        if not isinstance(weight, torch.Tensor):
            raise UserError(f"{source} holds an object of Python, {name!r} ({type(weight).__name__}), and no tensor.")
        if weight.layout is not torch.strided or weight.is_quantized or weight.is_complex():
            kind = "quantised" if weight.is_quantized else "complex" if weight.is_complex() else "sparse"
            raise UserError(f"{source} has a {kind} weight {name!r}; plain tensors of real numbers are taken.")


@contextlib.contextmanager
def _importable_from(folder: str, module: str) -> Iterator[None]:
    """Let a factory be imported from `folder`, as `python -m` would from the current one, and what it imports there.

    That folder comes first for the module that was asked for and last for all others: what this process still has to
    import of its own doesn't come from there.
    """
    finder = _Finder(module, folder)
    sys.meta_path.insert(0, finder)
    added = folder not in sys.path
    if added:
        sys.path.append(folder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        if added:
            with contextlib.suppress(ValueError):  # the factory may have done it
                sys.path.remove(folder)


class _Finder(MetaPathFinder):
    """Finds one module, in one folder."""

    def __init__(self, module: str, folder: str) -> None:
        self.module, self.folder = module, folder

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return PathFinder.find_spec(fullname, [self.folder]) if fullname == self.module else None
