"""Float networks in `.tflite` files become Programs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tvmflow.integer.tflite.model import FileGraph, read_model
from tvmflow.integer.tflite.values import plain_name
from tvmflow.network.foreign import first_line, quiet, report_unsupported
from tvmflow.network.interface import unique
from tvmflow.network.names import name_outputs
from tvmflow.network.shapes import InputShape, assign, shown
from tvmflow.network.tflite.graph import VALUES, Refused
from tvmflow.network.vectors import make_vectors, output_specs
from tvmflow.spec import Program, TensorSpec, TvmflowError, UnsupportedOperatorError, UserError
from tvmflow.system import limits, untrusted
from tvmflow.system.untrusted import MalformedError, UnusableFileError

if TYPE_CHECKING:
    import tvm

    from tvmflow.network.tflite.reference import Reference

REFERENCE = "PyTorch, by the kernels of TensorFlow Lite"


def from_tflite(path: Path, input_shapes: Sequence[InputShape] = ()) -> Program:
    """Read the float network of a `.tflite` file. Its inputs and outputs have the file's shapes, channels last.

    Raises UserError, UnsupportedOperatorError with all operators that aren't taken.
    """
    inputs, module, run = read_graph(path)
    _check_shapes(inputs, input_shapes, untrusted.printable(str(path)))
    with _one_sentence(path), quiet():
        vectors = make_vectors(inputs, run, None)
    return Program(
        name=path.stem,
        source=str(path),
        module=name_outputs(module),
        inputs=inputs,
        outputs=output_specs(vectors),
        vectors=vectors,
        parameters=sum(
            tensor.data.size
            for tensor in run.graph.tensors
            if tensor.data is not None and (tensor.dtype in ("float32", "float16") or len(tensor.scales))
        ),
        reference=REFERENCE,
        original=run,
    )


@contextlib.contextmanager
def _one_sentence(path: Path) -> Iterator[None]:
    """Whatever is raised inside becomes a UserError or an UnsupportedOperatorError of one sentence."""
    name = untrusted.printable(str(path))
    try:
        yield
    except Refused as refused:
        raise UnsupportedOperatorError(f"{name} isn't taken: it has {refused}.", {}) from refused
    except MalformedError as error:
        raise UnusableFileError(path, f"is no network that can be read: {error}") from error
    except TvmflowError:
        raise
    except Exception as error:  # of PyTorch and TVM, which have one each for operands that don't fit together
        raise UserError(f"{name} can't be imported: {first_line(error)}.") from error


def read_graph(path: Path) -> tuple[tuple[TensorSpec, ...], tvm.IRModule, Reference]:
    """A file's inputs, and what `import_graph` makes of it. Raises UserError, UnsupportedOperatorError."""
    graph = read_model(path)[0]
    with _one_sentence(path), quiet():
        inputs = _inputs(graph)
        return inputs, *import_graph(graph, inputs)


def import_graph(graph: FileGraph, inputs: Sequence[TensorSpec]) -> tuple[tvm.IRModule, Reference]:
    """A graph as a Relax module, whose function `main` has the file's inputs, and as PyTorch computes it.

    Raises UnsupportedOperatorError, MalformedError, Refused, and what PyTorch and TVM have against operands.
    """
    from tvmflow.network.tflite.operators import CONVERTERS
    from tvmflow.network.tflite.reference import Reference
    from tvmflow.network.tflite.walk import Walk

    missing: dict[str, list[str]] = {}
    for operator in graph.operators:
        if operator.kind not in (*CONVERTERS, "SHAPE"):
            where = graph.tensors[operator.outputs[0]].name if operator.outputs else operator.kind
            missing.setdefault(untrusted.shortened(operator.kind), []).append(plain_name(where))
    report_unsupported(missing)
    limits.check_inputs({spec.name: spec.shape for spec in inputs}, "A .tflite file")
    _check_values(graph)
    run = Reference(graph)
    known = {number: tensor.numpy() for number, tensor in run.known.items()}
    return Walk(graph, CONVERTERS).run(inputs, known), run


def _inputs(graph: FileGraph) -> tuple[TensorSpec, ...]:
    tensors = [graph.tensors[number] for number in graph.inputs]
    if not tensors or not graph.outputs:
        raise MalformedError("it has no inputs or no outputs")
    if len(set(graph.inputs)) != len(graph.inputs) or any(tensor.data is not None for tensor in tensors):
        raise MalformedError("an input is a constant, or one twice")
    for tensor in tensors:
        if 0 in tensor.shape:
            raise MalformedError(f"the input {untrusted.shown(tensor.name)} has no elements")
    names = unique([plain_name(tensor.name) for tensor in tensors])
    return tuple(
        TensorSpec(name=name, shape=tuple(tensor.shape), dtype=tensor.dtype)
        for name, tensor in zip(names, tensors, strict=True)
    )


def _check_shapes(inputs: Sequence[TensorSpec], given: Sequence[InputShape], name: str) -> None:
    wanted = assign(given, [spec.name for spec in inputs], name)
    for spec in inputs:
        entry = wanted.get(spec.name)
        if entry is not None and (tuple(entry.shape) != spec.shape or entry.dtype not in (None, spec.dtype)):
            raise UserError(
                f"{name} takes {shown(spec.shape)} of {spec.dtype} for its input {spec.name!r}, and --input-shape "
                f"{entry} doesn't fit; the shapes of such files are fixed."
            )


def _check_values(graph: FileGraph) -> None:
    """Raises Refused for tensors on the way that no operator is taken with."""
    computed = [number for operator in graph.operators for number in operator.outputs]
    for tensor in (graph.tensors[number] for number in (*graph.inputs, *computed)):
        if tensor.dtype not in VALUES:
            raise Refused(
                f"the tensor {untrusted.shown(tensor.name)} of {tensor.dtype}, where {', '.join(VALUES)} are taken"
            )
