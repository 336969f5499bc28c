"""A wrong answer, however small or strange, is found."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tvmflow.build import build
from tvmflow.spec import Vector, VerificationError
from tvmflow.targets import TARGETS
from tvmflow.verify import TOLERANCE, compare

REFERENCE = np.array([[1.0, -2.0, 8.0]], np.float32)
VECTORS = [Vector(name="only", inputs=(), outputs=(REFERENCE,))]


def verdict(output: np.ndarray) -> dict:
    return compare(VECTORS, [(output,)])


def test_the_same_passes():
    result = verdict(REFERENCE.copy())
    assert result["passed"]
    assert (result["max_abs_error"], result["max_rel_error"], result["argmax_agreement"]) == (0, 0, 1)


def test_error_is_relative_to_the_largest_output():
    result = verdict(REFERENCE + np.float32([[0, 0.5, 0]]))
    assert result["max_abs_error"] == 0.5
    assert result["max_rel_error"] == 0.5 / 8
    assert not result["passed"]


@pytest.mark.parametrize(("factor", "passed"), [(0.9, True), (1.1, False)])
def test_tolerance_is_the_limit(factor, passed):
    change = np.float32([[0, 0, 8 * TOLERANCE["float32"] * factor]])
    assert verdict(REFERENCE + change)["passed"] is passed


@pytest.mark.parametrize(
    "output",
    [
        np.full((1, 3), np.nan, np.float32),
        np.array([[1, -2, np.inf]], np.float32),
        REFERENCE.astype(np.float64),
        REFERENCE.ravel(),
        REFERENCE[:, :2],
        np.zeros_like(REFERENCE),
        REFERENCE[:, ::-1],
    ],
)
def test_wrong_outputs_fail(output):
    assert not verdict(output)["passed"]


def test_other_class_is_counted():
    assert verdict(REFERENCE[:, ::-1].copy())["argmax_agreement"] == 0


def test_infinity_has_to_stand_where_it_stood():
    reference = np.array([[np.inf, np.nan, 1]], np.float32)
    vectors = [Vector(name="only", inputs=(), outputs=(reference,))]
    assert compare(vectors, [(reference.copy(),)])["passed"]
    assert not compare(vectors, [(np.array([[np.nan, np.inf, 1]], np.float32),)])["passed"]


def test_integers_have_to_be_equal():
    vectors = [Vector(name="only", inputs=(), outputs=(np.array([3], np.int32),))]
    assert not compare(vectors, [(np.array([4], np.int32),)])["passed"]


@pytest.mark.parametrize("index", [0, 3])
def test_one_wrong_vector_stops_a_build(tiny, tmp_path, index):
    vectors = list(tiny.vectors)
    outputs = vectors[index].outputs[0].copy()
    outputs[0, 1] += 1e-3
    vectors[index] = replace(vectors[index], outputs=(outputs,))
    with pytest.raises(VerificationError, match=vectors[index].name):
        build(replace(tiny, vectors=tuple(vectors)), TARGETS["host"], tmp_path / "out")
    assert not any(tmp_path.iterdir())


def test_a_stage_that_computes_something_else_stops_a_build(tiny, tmp_path, monkeypatch):
    """The classifier's bias left out: plausible logits, the wrong ones."""
    import tvm
    from tvm import relax

    from tvmflow import pipeline

    def forget_the_bias(program, target):
        from tvm.relax.expr_functor import PyExprMutator, mutator

        @mutator
        class Forget(PyExprMutator):
            def visit_call_(self, call):
                call = super().visit_call_(call)
                if getattr(call.op, "name", "") == "relax.add" and len(call.ty.shape) == 2:
                    return relax.op.add(call.args[1], relax.const(0.0))
                return call

        module = tvm.IRModule(program.module.functions)
        module["main"] = Forget().visit_expr(module["main"])
        return replace(program, module=module)

    monkeypatch.setitem(pipeline.STAGES, "llvm", (forget_the_bias, *pipeline.CPU))
    with pytest.raises(VerificationError, match="something else than the original"):
        build(tiny, TARGETS["host"], tmp_path / "out")
