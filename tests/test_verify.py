"""A wrong answer, however small or strange, is found."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tvmflow.bundles.build import build
from tvmflow.network.agreement import TOLERANCE, compare
from tvmflow.network.rounding import rounding_of
from tvmflow.report.render import verdict_text
from tvmflow.spec import Vector, VerificationError
from tvmflow.targets import TARGETS

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


def of(*outputs: np.ndarray, rounding: float = 0.0) -> list[Vector]:
    """Vectors of a network with one output."""
    return [
        Vector(name=f"v{place}", inputs=(), outputs=(output,), rounding=(rounding,))
        for place, output in enumerate(outputs)
    ]


@pytest.mark.parametrize("dtype", ["int8", "int32", "int64", "uint8", "bool"])
def test_integers_have_to_be_equal(dtype):
    vectors = of(np.array([1, 0, 1], dtype))
    assert compare(vectors, [(np.array([1, 0, 1], dtype),)])["passed"]
    wrong = compare(vectors, [(np.array([1, 1, 1], dtype),)])
    assert (wrong["passed"], wrong["max_abs_error"]) == (False, 1)


def test_large_integers_have_to_be_equal():
    assert not compare(of(np.array([2**53])), [(np.array([2**53 + 1]),)])["passed"]


@pytest.mark.parametrize(("dtype", "near", "far"), [("float64", 5e-7, 5e-6), ("float16", 1e-2, 5e-2)])
def test_each_dtype_has_its_tolerance(dtype, near, far):
    reference = np.array([[1, 8]], dtype)
    for share, passed in ((near, True), (far, False)):
        assert compare(of(reference), [(reference + np.array(8 * share, dtype),)])["passed"] is passed


def test_bfloat16_has_its_tolerance():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    reference = np.array([[1, 8]]).astype(ml_dtypes.bfloat16)
    for change, passed in ((0.125, True), (1, False)):
        assert compare(of(reference), [((reference + change).astype(reference.dtype),)])["passed"] is passed


@pytest.mark.parametrize("scale", [1e-30, 1e-5, 1e8])
def test_small_and_large_outputs_are_held_against_themselves(scale):
    references = [np.float32(scale) * np.float32([[1, 2, place]]) for place in range(4)]
    for share, passed in ((1e-5, True), (1e-4, False)):
        found = compare(of(*references), [(reference + np.float32(2 * scale * share),) for reference in references])
        assert found["passed"] is passed
        assert found["max_rel_error"] == pytest.approx(share, rel=0.5)
    wrong = compare(of(*references), [(reference[:, ::-1],) for reference in references])
    assert not wrong["passed"]
    assert wrong["argmax_agreement"] == pytest.approx(2 / 3)  # one is a tie


def test_one_huge_vector_excuses_no_other():
    references = [np.float32([[1, 2]]), np.float32([[2, 1]]), np.float32([[1e6, 1]])]
    results = [(references[0] + np.float32(1e-3),), (references[1],), (references[2],)]
    assert not compare(of(*references), results)["passed"]


def test_what_rounding_has_left_may_be_rounded_otherwise():
    """A vector of noise passes as far as the reference itself moves, but by no more than a share of the output."""
    noise, signal = np.float32([[1e-7, 0]]), np.float32([[1, -1]])
    for rounding, error, passed in ((0, 1e-6, True), (0, 1e-4, False), (2e-4, 1e-4, True), (9.0, 0.1, False)):
        vectors = of(noise, signal, signal, rounding=rounding)
        assert compare(vectors, [(noise + np.float32(error),), (signal,), (signal,)])["passed"] is passed


def test_classes_count_where_the_margin_is_clear():
    """Two that differ by less than the tolerance explains are a tie; other outputs have no classes."""
    tie, clear = np.float32([[1, 1 + 1e-6]]), np.float32([[1, 2]])
    found = compare(of(tie, clear), [(tie[:, ::-1],), (clear,)])
    assert (found["passed"], found["argmax_agreement"]) == (True, 1)
    assert [row["same_class"] for row in found["vectors"]] == [None, True]
    maps = np.zeros((1, 2, 3), np.float32)
    assert compare(of(maps), [(maps,)])["argmax_agreement"] is None
    same = [Vector(name="autoencoder", inputs=(clear,), outputs=(clear,))]
    assert compare(same, [(clear,)])["argmax_agreement"] is None
    assert "same class" not in verdict_text({"method": "native", **compare(same, [(clear,)])})


def test_an_output_that_never_changes_is_named():
    found = compare(of(REFERENCE, REFERENCE), [(REFERENCE,), (REFERENCE,)])
    assert found["constant_outputs"] == [0]
    assert "same in all vectors" in verdict_text({"method": "native", **found})
    assert compare(of(REFERENCE, -REFERENCE), [(REFERENCE,), (-REFERENCE,)])["constant_outputs"] == []


def test_infinities_keep_their_sign():
    vectors = of(np.float32([[np.inf, 1]]), np.float32([[-np.inf, 1]]))
    given = [(vector.outputs[0],) for vector in vectors]
    assert compare(vectors, given)["passed"]
    assert not compare(vectors, given[::-1])["passed"]


def test_rounding_shows_where_it_decides():
    """A constant less its mean is rounding alone; a clear comparison of what was given isn't."""
    import torch

    def normed(x):
        x = torch.from_numpy(x) + 0.3
        return (((x - x.mean()) * (x.var() + 1e-5).rsqrt()).numpy(),)

    constant, noise = np.full((1, 64), 0.5, np.float32), np.linspace(-1, 1, 64, dtype=np.float32)[None]
    for values, low, high in ((constant, 1e-5, 1e-2), (noise, 1e-8, 1e-5)):
        (moved,) = rounding_of(normed, [values], normed(values))
        assert low < moved < high
    weight = torch.ones(64)
    before = weight.clone()
    assert rounding_of(lambda x: ((weight.view(8, 8) > 0.5).numpy(),), [constant], (np.ones((8, 8), bool),)) == (0,)
    assert torch.equal(weight, before)


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
