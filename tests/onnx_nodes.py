"""ONNX's own tests of operators, which its package brings, and what tvmflow makes of each: an answer or a refusal."""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import tvm
from onnx import numpy_helper
from tvm import relax

from tvmflow.network import onnx_graph
from tvmflow.network.names import name_outputs
from tvmflow.network.onnx_file import INPUT_TYPES
from tvmflow.network.onnx_operators import import_graph
from tvmflow.pipeline import run_stages
from tvmflow.spec import Program, TensorSpec, TvmflowError, UnsupportedOperatorError, UserError
from tvmflow.system.toolchain import tvm_target_dict
from tvmflow.targets import TARGETS

HOST = TARGETS["host"]
KNOWN_NOW = "shapes and weights are fixed at build time"
"""A refusal says so where an operator needs an input as a constant; these tests have each of them as an input."""


ANSWERS = ("passed", "differs", "refused", "wrong", "crashed")
"""What differs is what ONNX Runtime answers too, where the test expects something else."""
NARROW = {"float16": 2**-10, "bfloat16": 2**-7}
"""From one number to the next, relative to itself: what is computed in such numbers may end one or two further on."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a test: one of ANSWERS, with the sentence behind it."""

    test: str
    operator: str
    answer: str
    sentence: str = ""

    @property
    def reason(self) -> str:
        """Why a test was refused, without whose node it was, as a clause."""
        said = self.sentence.rstrip(".")
        if "is not supported: " in said:
            return said.partition("is not supported: ")[2]
        if "not supported: " in said:
            return "it needs " + ", ".join(sorted(set(re.findall(r"([\w.]+) in ", said.partition("supported: ")[2]))))
        return f"inputs of {said.rpartition(' ')[2]}" if said.startswith("The input") else said


@functools.cache
def tests() -> dict[str, Any]:
    """By name; some ten seconds, in which ONNX makes them."""
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {test.name: test for test in load_model_tests(kind="node")}


def operator_of(test: Any) -> str:
    """Which operator a test is of: its node, or the one that its name has where several define it."""
    kinds = [node.op_type for node in test.model.graph.node if node.op_type != "Constant"]
    domains = {node.domain for node in test.model.graph.node} - {"", "ai.onnx"}
    return f"{min(domains)}.{kinds[-1]}" if domains else kinds[-1] if kinds else "Constant"


def outcome(test: Any) -> Outcome:
    """Of one test, with all its data."""
    operator = operator_of(test)
    try:
        answers = [_answers(test.model, _arrays(inputs)) for inputs, _ in test.data_sets]
        expected = [_arrays(wanted) for _, wanted in test.data_sets]
    except TvmflowError as error:
        return Outcome(test=test.name, operator=operator, answer="refused", sentence=str(error))
    except Exception as error:
        said = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        return Outcome(test=test.name, operator=operator, answer="crashed", sentence=said)
    for (inputs, _), wanted, found in zip(test.data_sets, expected, answers, strict=True):
        if fault := _fault(found, wanted, test.rtol, test.atol):
            alike = not _fault(found, _runtime(test.model, _arrays(inputs)), test.rtol, test.atol)
            return Outcome(test=test.name, operator=operator, answer="differs" if alike else "wrong", sentence=fault)
    return Outcome(test=test.name, operator=operator, answer="passed")


def _arrays(values: Sequence[Any]) -> list[np.ndarray]:
    """What a test reads or expects. Raises UserError where that is a sequence, or nothing."""
    made = []
    for value in values:
        array = numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value
        if not isinstance(array, np.ndarray | np.generic):
            raise UserError("Inputs and outputs of networks are tensors.")
        made.append(np.asarray(array))
    return made


def _answers(model: onnx.ModelProto, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """What the network gives as it is compiled here; inputs that have to be constants become such."""
    names = [entry.name for entry in model.graph.input]
    try:
        return _compiled(model, dict(zip(names, inputs, strict=False)))
    except UnsupportedOperatorError as error:
        if KNOWN_NOW not in str(error):
            raise
    constant, given = onnx.ModelProto(), dict(zip(names, inputs, strict=False))
    constant.CopyFrom(model)
    for name in names[1:] or names:  # what the one input is, is then all that there is to know
        constant.graph.initializer.append(numpy_helper.from_array(given.pop(name), name))
    return _compiled(constant, given)


def _compiled(model: onnx.ModelProto, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    known = {str(np.dtype(kind)) if kind != "bfloat16" else kind for kind in INPUT_TYPES.values()}
    for name, array in inputs.items():
        if str(array.dtype) not in known:
            raise UserError(f"The input {name!r} is of {array.dtype}.")
    specs = tuple(TensorSpec(name=name, shape=array.shape, dtype=str(array.dtype)) for name, array in inputs.items())
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    onnx_graph.fix_shapes(fixed, {spec.name: spec.shape for spec in specs})
    module = import_graph(onnx_graph.inline_functions(fixed, Path("model.onnx")), specs)
    program = Program(
        name="model", source="", module=name_outputs(module), inputs=specs, outputs=(), vectors=(), parameters=0
    )
    target = tvm.target.Target(tvm_target_dict(HOST))
    with target:
        executable = relax.build(run_stages(program, HOST).module, target, relax_pipeline=None)
    made = relax.VirtualMachine(executable, tvm.cpu())["main"](*map(tvm.runtime.tensor, inputs.values()))
    return [part.numpy() for part in ([made] if isinstance(made, tvm.runtime.Tensor) else made)]


def _runtime(model: onnx.ModelProto, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """ONNX Runtime's answers, none where it has none."""
    try:
        import onnxruntime

        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        names = [entry.name for entry in session.get_inputs()]
        return [np.asarray(part) for part in session.run(None, dict(zip(names, inputs, strict=False)))]
    except Exception:  # which has a class for each of its states
        return []


def _fault(found: Sequence[np.ndarray], wanted: Sequence[np.ndarray], rtol: float, atol: float) -> str:
    """What is wrong with answers, as a clause; empty where nothing is."""
    if len(found) != len(wanted):
        return f"{len(found)} results instead of {len(wanted)}"
    for number, (ours, theirs) in enumerate(zip(found, wanted, strict=True)):
        if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
            return f"result {number} is {ours.shape} of {ours.dtype} instead of {theirs.shape} of {theirs.dtype}"
        if ours.dtype.kind not in "fV":
            if not np.array_equal(ours, theirs):
                return f"result {number} differs in {np.count_nonzero(ours != theirs)} of {ours.size} places"
            continue
        left, right = ours.astype(np.float64), theirs.astype(np.float64)
        near = max(rtol, 2 * NARROW.get(str(ours.dtype), 0))
        if not np.allclose(left, right, rtol=near, atol=atol, equal_nan=True):
            return f"result {number} is off by {np.nanmax(np.abs(left - right)):.3g}"
    return ""
