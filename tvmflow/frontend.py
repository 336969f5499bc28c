"""A trained network, in whatever form it comes, becomes a Program: Relax module, interface and reference vectors.

Four forms are taken: a name in `tvmflow.models.MODELS`, `package.module:factory` (a function without arguments that
returns an `nn.Module`), a `.pt2` file of `torch.export.save`, and an `.onnx` file. PyTorch networks go through
`torch.export`; every Relax binding is named after the module (or ONNX node) that it came from, so that reports can
speak of `joint.3.pointwise` instead of `fused_conv2d9_add3_relu3`.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import itertools
import json
import re
import sys
import warnings
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tvmflow.models import MODELS, accuracy
from tvmflow.rounding import rounding_of
from tvmflow.spec import Preprocessing, Program, TensorSpec, TvmflowError, UnsupportedOperatorError, UserError, Vector

if TYPE_CHECKING:
    import onnx
    import torch
    import tvm

PICKLES = {".pt", ".pth", ".pkl", ".pickle", ".bin", ".ckpt"}
PATH_SEPARATOR, NUMBER_SEPARATOR = "/", "~"
"""`joint.3.bn` names its second binding `joint/3/bn~2`: TVM turns dots in names into underscores."""

Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class InputShape:
    """A shape the user gave: for the input of that name, or, without one, for the next input in order."""

    name: str | None
    shape: Shape


def parse_input_shape(text: str) -> InputShape:
    """Read `1x3x32x32`, `1,3,32,32` or `name=1x3x32x32`. Raises UserError."""
    name, _, dims = text.rpartition("=")
    if not re.fullmatch(r"[1-9]\d*([x,][1-9]\d*)*", dims):
        raise UserError(f"--input-shape takes positive whole numbers such as 1x3x32x32 or x=1x3x32x32, not {text!r}.")
    return InputShape(name=name or None, shape=tuple(int(dim) for dim in re.split("[x,]", dims)))


def import_model(model: str, input_shapes: Sequence[InputShape] = ()) -> Program:
    """Import `model` (see the module's docstring) with its weights as constants.

    `input_shapes` are needed for a factory and for ONNX inputs without a fixed shape, and refused where they differ
    from what the file says. Raises UserError, UnsupportedOperatorError.
    """
    if model in MODELS:
        return _from_registry(model, input_shapes)
    path = Path(model)
    if path.suffix in PICKLES:
        raise UserError(
            f"{model} is a pickle by its name, and loading one runs whatever code it holds; "
            "save the network with torch.export.save as .pt2, or export it to .onnx."
        )
    if path.suffix in {".pt2", ".onnx"}:
        if not path.is_file():
            raise UserError(f"There is no file {model}; --model takes a path to a .pt2 or .onnx file that exists.")
        return (_from_pt2 if path.suffix == ".pt2" else _from_onnx)(path, input_shapes)
    if re.fullmatch(r"[\w.]+:\w+", model):
        return _from_factory(model, input_shapes)
    raise UserError(
        f"--model {model!r} is neither a known network ({', '.join(MODELS)}), nor package.module:factory, "
        "nor a .pt2 or .onnx file."
    )


# ---------------------------------------------------------------------------------------------------------- PyTorch


def _from_registry(name: str, input_shapes: Sequence[InputShape]) -> Program:
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


def _from_factory(text: str, input_shapes: Sequence[InputShape]) -> Program:
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
            raise UserError(f"--model {text} failed with {type(error).__name__}: {_first_line(error)}.") from error
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
        raise UserError(f"{source} can't run on an input of {shown}: {_first_line(error)}.") from error
    try:
        with _quiet():
            exported = torch.export.export(network, arguments)
    except Exception as error:
        raise UserError(f"torch.export can't take {source}: {_first_line(error)}.") from error
    return _from_exported(exported, name, source, preprocessing)


def _from_pt2(path: Path, input_shapes: Sequence[InputShape]) -> Program:
    import torch

    _refuse_pickles_inside(path)
    try:
        with _quiet():
            exported = torch.export.load(path)
    except Exception as error:
        raise UserError(
            f"{path} can't be read as a .pt2 file of torch.export.save ({_first_line(error)}); "
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
        raise UserError(f"{path} is no intact .pt2 file of torch.export.save: {_first_line(error)}.") from error


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
    with _quiet():
        exported = exported.run_decompositions()
        try:
            module = _torch_importer()().from_exported_program(exported, False, True, False, None)
        except TvmflowError:
            raise
        except Exception as error:
            raise UserError(f"TVM's importer can't take {source}: {_first_line(error)}.") from error
        network = exported.module()

    def reference(*arrays: np.ndarray) -> tuple[np.ndarray, ...]:
        with torch.no_grad():
            results = network(*(torch.from_numpy(array) for array in arrays))
        return tuple(result.numpy() for result in (results if isinstance(results, tuple | list) else (results,)))

    vectors = make_vectors(inputs, reference, preprocessing)
    return Program(
        name=name,
        source=source,
        module=_name_outputs(module),
        inputs=inputs,
        outputs=_output_specs(vectors),
        vectors=vectors,
        parameters=sum(parameter.numel() for _, parameter in exported.named_parameters()),
    )


def _torch_importer() -> type:
    """TVM's importer, with every binding named after the PyTorch module it comes from."""
    from tvm.relax.frontend.torch.exported_program_translator import ExportedProgramImporter

    class Importer(ExportedProgramImporter):
        def __init__(self) -> None:
            self.names = _BindingNames()
            super().__init__()
            self.convert_map: dict[Any, Callable] = {op: self._named(make) for op, make in self.convert_map.items()}

        def _named(self, convert: Callable) -> Callable:
            def named(node: torch.fx.Node) -> Any:
                self.names.current = _module_path(node)
                return convert(node)

            return named

        def __setattr__(self, attribute: str, value: Any) -> None:
            if attribute == "block_builder" and value is not None:
                value.emit = self.names.wrap(value.emit)
            super().__setattr__(attribute, value)

        def _check_unsupported_func_type(self, nodes: list[torch.fx.Node]) -> None:
            missing = defaultdict(list)
            for node in nodes:
                operator = getattr(node.target, "__name__", str(node.target))
                if node.op == "call_function" and operator not in self.convert_map:
                    missing[operator].append(_module_path(node))
            _report_unsupported(missing)

    return Importer


def _module_path(node: torch.fx.Node) -> str:
    stack = list(node.meta.get("nn_module_stack", {}).values())
    path = stack[-1][0] if stack else ""
    return path or node.name


# ------------------------------------------------------------------------------------------------------------- ONNX


def _from_onnx(path: Path, input_shapes: Sequence[InputShape]) -> Program:
    import onnx
    from onnx.reference import ReferenceEvaluator

    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except Exception as error:  # protobuf, checker and file errors share no base class
        raise UserError(f"{path} is no valid ONNX model: {_first_line(error)}.") from error
    initializers = {tensor.name: tensor for tensor in model.graph.initializer}
    inputs = _onnx_inputs(model, set(initializers), input_shapes, path)
    with _quiet():
        importer = _onnx_importer()(
            {spec.name: list(spec.shape) for spec in inputs}, {spec.name: spec.dtype for spec in inputs}
        )
        opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 1)
        try:
            module = importer.from_onnx(model.graph, opset)
        except TvmflowError:
            raise
        except Exception as error:
            raise UserError(f"TVM's importer can't take {path}: {_first_line(error)}.") from error
        evaluator = ReferenceEvaluator(model)

    def reference(*arrays: np.ndarray) -> tuple[np.ndarray, ...]:
        feeds = {spec.name: array for spec, array in zip(inputs, arrays, strict=True)}
        return tuple(np.asarray(result) for result in evaluator.run(None, feeds))

    try:
        vectors = make_vectors(inputs, reference, None)
    except Exception as error:
        raise UserError(f"{path} can't be run by ONNX's reference evaluator: {_first_line(error)}.") from error
    return Program(
        name=path.stem,
        source=str(path),
        module=_name_outputs(module),
        inputs=inputs,
        outputs=_output_specs(vectors),
        vectors=vectors,
        parameters=sum(
            int(np.prod(tensor.dims)) for tensor in initializers.values() if tensor.data_type in (1, 10, 11)
        ),
    )


def _onnx_inputs(
    model: onnx.ModelProto, initializers: set[str], given: Sequence[InputShape], path: Path
) -> tuple[TensorSpec, ...]:
    from onnx.helper import tensor_dtype_to_np_dtype

    graph_inputs = [entry for entry in model.graph.input if entry.name not in initializers]
    by_name = {entry.name: entry.shape for entry in given if entry.name}
    in_order = [entry.shape for entry in given if not entry.name]
    if unknown := set(by_name) - {entry.name for entry in graph_inputs}:
        names = ", ".join(entry.name for entry in graph_inputs)
        raise UserError(f"{path} has no input {sorted(unknown)[0]!r}; its inputs are {names}.")
    specs = []
    for entry in graph_inputs:
        dims = [dim.dim_value if dim.HasField("dim_value") else 0 for dim in entry.type.tensor_type.shape.dim]
        shape = by_name.get(entry.name) or (in_order.pop(0) if in_order else None)
        if shape is None and not all(dims):
            raise UserError(
                f"{path} leaves the shape of its input {entry.name!r} open "
                f"({'×'.join(str(dim or '?') for dim in dims)}); give it with --input-shape {entry.name}=…."
            )
        if (
            shape is not None
            and dims
            and (len(shape) != len(dims) or any(dim and dim != ours for dim, ours in zip(dims, shape, strict=True)))
        ):
            raise UserError(
                f"{path} wants {'×'.join(str(dim or '?') for dim in dims)} for its input {entry.name!r}; "
                f"--input-shape {'x'.join(map(str, shape))} doesn't fit."
            )
        dtype = tensor_dtype_to_np_dtype(entry.type.tensor_type.elem_type)
        specs.append(TensorSpec(name=entry.name, shape=shape or tuple(dims), dtype=str(dtype)))
    return tuple(specs)


def _onnx_importer() -> type:
    """TVM's importer, with every binding named after the ONNX node it comes from."""
    from tvm import relax
    from tvm.relax.frontend.onnx.onnx_frontend import ONNXGraphImporter, _get_convert_map

    class Importer(ONNXGraphImporter):
        def __init__(self, shapes: dict[str, list[int]], dtypes: dict[str, str]) -> None:
            super().__init__(shapes, dtypes)
            self.names = _BindingNames()
            self.bb.emit = self.names.wrap(self.bb.emit)

        def _convert_operator(self, op_name: str, inputs: list, attrs: dict, opset: int) -> relax.Expr:
            self.names.current = attrs["tvm_custom"]["name"].strip("/").replace("/", ".") or op_name
            with contextlib.redirect_stdout(sys.stderr):  # the importer prints on errors
                result = super()._convert_operator(op_name, inputs, attrs, opset)
            return self._emit_calls(result)

        def _emit_calls(self, expr: relax.Expr) -> relax.Expr:
            """Bind a call and the calls inside it under names of their own; nested ones would get none."""
            if not isinstance(expr, relax.Call):
                return expr
            arguments = [self._emit_calls(argument) for argument in expr.args]
            return self.bb.emit(relax.Call(expr.op, arguments, expr.attrs, expr.ty_args))

        def _check_for_unsupported_ops(self, graph: onnx.GraphProto) -> None:
            missing = defaultdict(list)
            for node in graph.node:
                if node.op_type not in _get_convert_map() and node.op_type not in ("If", "Constant"):
                    missing[node.op_type].append(node.name or node.output[0])
            _report_unsupported(missing)

        def _sanitize_name(self, name: str) -> str:
            return name  # the module's interface keeps the names of the file

    return Importer


# ---------------------------------------------------------------------------------------------------- shared by both


class _BindingNames:
    """Gives each binding the name of the module or node that is being converted, unique by a running number."""

    def __init__(self) -> None:
        self.current = ""
        self.used: defaultdict[str, Iterator[int]] = defaultdict(lambda: itertools.count(1))

    def wrap(self, emit: Callable) -> Callable:
        def named(expr: Any, name_hint: str = "") -> Any:
            if name_hint or not self.current:
                return emit(expr, name_hint)
            name = self.current.replace(".", PATH_SEPARATOR)
            number = next(self.used[name])
            return emit(expr, name if number == 1 else f"{name}{NUMBER_SEPARATOR}{number}")

        return named


def module_path(binding_name: str) -> str:
    """The path of the module or node that a binding of an imported network was named after."""
    return binding_name.partition(NUMBER_SEPARATOR)[0].replace(PATH_SEPARATOR, ".")


def _name_outputs(module: tvm.IRModule) -> tvm.IRModule:
    """An importer's last binding is `gv = <the result>`, and later passes keep `gv`: give it the result's name."""
    from tvm import relax

    from tvmflow.passes.rename import rename

    bindings = [binding for block in module["main"].body.blocks for binding in block.bindings]
    return rename(
        module,
        {
            binding.var: f"{binding.value.name}{NUMBER_SEPARATOR}out"
            for binding in bindings
            if isinstance(binding.value, relax.Var) and not isinstance(binding.var, relax.DataflowVar)
        },
    )


def _report_unsupported(missing: dict[str, list[str]]) -> None:
    if missing:
        shown = "; ".join(
            f"{operator} in {', '.join(sorted(set(where)))}" for operator, where in sorted(missing.items())
        )
        raise UnsupportedOperatorError(
            f"The network has operators that TVM's importer doesn't know: {shown}.",
            {operator: tuple(where) for operator, where in missing.items()},
        )


def make_vectors(
    inputs: Sequence[TensorSpec],
    reference: Callable[..., tuple[np.ndarray, ...]],
    preprocessing: Preprocessing | None,
) -> tuple[Vector, ...]:
    """Golden vectors: noise, and the edges where compiled code goes wrong (all zero, one value, the extremes).

    With `preprocessing`, the extremes are those of real pixels, 0 and 255; otherwise ±4. Integer inputs get 0 and 1.
    """
    rng = np.random.default_rng(20200401)

    def low_high(spec: TensorSpec) -> tuple[np.ndarray, np.ndarray]:
        if not np.issubdtype(np.dtype(spec.dtype), np.floating):
            return np.zeros((), spec.dtype), np.ones((), spec.dtype)
        if preprocessing is None:
            return np.array(-4.0), np.array(4.0)
        mean, std = (np.array(values).reshape(-1, 1, 1) for values in (preprocessing.mean, preprocessing.std))
        return (0 - mean) / std, (1 - mean) / std

    def noise(spec: TensorSpec) -> np.ndarray:
        floating = np.issubdtype(np.dtype(spec.dtype), np.floating)
        return rng.standard_normal(spec.shape) if floating else rng.integers(0, 2, spec.shape)

    def checkerboard(spec: TensorSpec) -> np.ndarray:
        low, high = low_high(spec)
        return np.where(np.indices(spec.shape).sum(0) % 2 == 0, low, high)

    kinds: dict[str, Callable[[TensorSpec], np.ndarray]] = {
        "noise-0": noise,
        "noise-1": noise,
        "noise-2": noise,
        "zeros": lambda spec: np.zeros(spec.shape),
        "constant": lambda spec: np.full(spec.shape, 0.5 if "float" in spec.dtype else 1),
        "lowest": lambda spec: np.broadcast_to(low_high(spec)[0], spec.shape),
        "highest": lambda spec: np.broadcast_to(low_high(spec)[1], spec.shape),
        "checkerboard": checkerboard,
    }
    vectors = []
    for name, make in kinds.items():
        arrays = tuple(np.array(make(spec), dtype=spec.dtype, order="C") for spec in inputs)
        outputs = reference(*arrays)
        vectors.append(
            Vector(name=name, inputs=arrays, outputs=outputs, rounding=rounding_of(reference, arrays, outputs))
        )
    return tuple(vectors)


def _output_specs(vectors: Sequence[Vector]) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(name=f"output{index}" if index else "output", shape=array.shape, dtype=str(array.dtype))
        for index, array in enumerate(vectors[0].outputs)
    )


@contextlib.contextmanager
def _user_path() -> Iterator[None]:
    """Let a factory be imported from the current directory, as `python -m` would."""
    sys.path.insert(0, "")
    try:
        yield
    finally:
        sys.path.remove("")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """PyTorch's exporter and TVM's importers warn of their own internals, which the user can do nothing about."""
    import logging

    logger = logging.getLogger("torch.export")
    level = logger.level
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            logger.setLevel(level)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".")
