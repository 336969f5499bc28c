"""PyTorch networks, from the registry, a factory or a .pt2 file, become Programs by way of torch.export."""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tvmflow.models import MODELS, accuracy
from tvmflow.network.foreign import first_line, quiet
from tvmflow.network.names import name_outputs
from tvmflow.network.pytorch_operators import decompose, torch_importer
from tvmflow.network.shapes import InputShape, Shape
from tvmflow.network.vectors import make_vectors, output_specs
from tvmflow.spec import Preprocessing, Program, TensorSpec, TvmflowError, UserError

if TYPE_CHECKING:
    import torch


def from_registry(name: str, input_shapes: Sequence[InputShape]) -> Program:
    entry = MODELS[name]
    shape = input_shapes[0].shape if input_shapes else entry.input_shape
    if len(input_shapes) > 1 or shape[1:] != entry.input_shape[1:]:
        raise UserError(
            f"{name} takes one input of N×{'×'.join(map(str, entry.input_shape[1:]))}, "
            f"but --input-shape says {'×'.join(map(str, shape))}."
        )
    program = from_module(entry(), name, f"tvmflow.models:{name}", [shape], entry.preprocessing)
    known = accuracy(name)
    return replace(program, labels=tuple(entry.labels), preprocessing=entry.preprocessing, accuracy=known)


def from_factory(text: str, input_shapes: Sequence[InputShape]) -> Program:
    if not input_shapes:
        raise UserError(f"A factory doesn't say its input's shape: give --input-shape 1x3x32x32 (or so) with {text}.")
    return from_module(call_factory(text), text.partition(":")[2], text, [entry.shape for entry in input_shapes])


def call_factory(text: str) -> torch.nn.Module:
    """The network, in eval mode, that `package.module:function` returns. Raises UserError."""
    import torch

    module_name, _, attribute = text.partition(":")
    with _user_path():
        try:
            factory = getattr(importlib.import_module(module_name), attribute)
            network = factory()
        except ModuleNotFoundError as error:
            raise UserError(f"--model {text}: no module named {error.name!r} on the Python path.") from error
        except AttributeError as error:
            raise UserError(f"--model {text}: {error}.") from error
        except Exception as error:  # the user's code may raise anything
            raise UserError(f"--model {text} failed with {type(error).__name__}: {first_line(error)}.") from error
    if not isinstance(network, torch.nn.Module):
        raise UserError(f"--model {text} gave a {type(network).__name__}; a factory returns a torch.nn.Module.")
    return network.eval()


def from_module(
    network: torch.nn.Module,
    name: str,
    source: str,
    shapes: Sequence[Shape],
    preprocessing: Preprocessing | None = None,
) -> Program:
    """Import a network in eval mode, for float32 inputs of `shapes`. Raises UserError, UnsupportedOperatorError."""
    import torch

    arguments = tuple(torch.zeros(shape) for shape in shapes)
    try:
        with torch.no_grad():
            network(*arguments)
    except Exception as error:
        shown = ", ".join("×".join(map(str, shape)) for shape in shapes)
        raise UserError(f"{source} can't run on an input of {shown}: {first_line(error)}.") from error
    try:
        with quiet():
            exported = torch.export.export(network, arguments)
    except Exception as error:
        raise UserError(f"torch.export can't take {source}: {first_line(error)}.") from error
    return _from_exported(exported, name, source, preprocessing)


def from_pt2(path: Path, input_shapes: Sequence[InputShape]) -> Program:
    import torch

    _refuse_pickles_inside(path)
    try:
        with quiet():
            exported = torch.export.load(path)
    except Exception as error:
        raise UserError(
            f"{path} can't be read as a .pt2 file of torch.export.save ({first_line(error)}); "
            f"it may be damaged or come from another PyTorch than {torch.__version__}."
        ) from error
    program = _from_exported(exported, path.stem, str(path), None)
    for spec, given in zip(program.inputs, input_shapes, strict=False):
        if given.shape != spec.shape:
            raise UserError(
                f"{path} was exported for an input of {'×'.join(map(str, spec.shape))}; "
                f"--input-shape {'x'.join(map(str, given.shape))} doesn't fit."
            )
    return program


def _refuse_pickles_inside(path: Path) -> None:
    """torch.export.load unpickles weights and custom objects that the archive marks so; such files are refused."""
    try:
        with zipfile.ZipFile(path) as archive:
            if broken := archive.testzip():
                raise UserError(f"{path} is damaged: its member {broken} doesn't match its checksum.")
            for member in archive.infolist():
                marked = member.filename.endswith("_config.json") and '"use_pickle": true' in json.dumps(
                    json.loads(archive.read(member))
                )
                if marked or "custom_obj" in Path(member.filename).name or Path(member.filename).suffix == ".so":
                    raise UserError(
                        f"{path} holds pickled or compiled objects ({member.filename}), and loading those runs code; "
                        "export the network with plain contiguous tensors as weights."
                    )
    except (zipfile.BadZipFile, EOFError, OSError, ValueError, NotImplementedError) as error:
        raise UserError(f"{path} is no intact .pt2 file of torch.export.save: {first_line(error)}.") from error


def _from_exported(
    exported: torch.export.ExportedProgram, name: str, source: str, preprocessing: Preprocessing | None
) -> Program:
    import torch

    user_inputs = {spec.arg.name for spec in exported.graph_signature.input_specs if spec.kind.name == "USER_INPUT"}
    inputs = tuple(
        TensorSpec(
            name=node.name,
            shape=tuple(node.meta["val"].shape),
            dtype=str(node.meta["val"].dtype).removeprefix("torch."),
        )
        for node in exported.graph.nodes
        if node.op == "placeholder" and node.name in user_inputs
    )
    for spec in inputs:
        if not all(isinstance(dim, int) for dim in spec.shape):
            raise UserError(
                f"{source} has an input {spec.name!r} of dynamic shape {'×'.join(map(str, spec.shape))}; "
                "export it with the fixed shape that the device will see."
            )
    with quiet():
        exported = decompose(exported)
        try:
            module = torch_importer()().from_exported_program(exported, False, True, False, None)
        except TvmflowError:
            raise
        except Exception as error:
            raise UserError(f"TVM's importer can't take {source}: {first_line(error)}.") from error
        network = exported.module()

    def reference(*arrays: np.ndarray) -> tuple[np.ndarray, ...]:
        with torch.no_grad():
            results = network(*(torch.from_numpy(array) for array in arrays))
        return tuple(result.numpy() for result in (results if isinstance(results, tuple | list) else (results,)))

    vectors = make_vectors(inputs, reference, preprocessing)
    return Program(
        name=name,
        source=source,
        module=name_outputs(module),
        inputs=inputs,
        outputs=output_specs(vectors),
        vectors=vectors,
        parameters=sum(parameter.numel() for _, parameter in exported.named_parameters()),
    )


@contextlib.contextmanager
def _user_path() -> Iterator[None]:
    """Let a factory be imported from the current directory, as `python -m` would."""
    sys.path.insert(0, "")
    try:
        yield
    finally:
        sys.path.remove("")
