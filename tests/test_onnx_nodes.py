"""ONNX's own tests of operators: some by chance, and those that found something; `benchmarks.onnx_nodes` runs all."""

from __future__ import annotations

import os

import numpy as np
import onnx_nodes
import pytest
from conftest import ROOT

from benchmarks import onnx_nodes as benchmark
from tvmflow.network.onnx_operators import OPERATORS

COUNT = 24
"""Drawn by TVMFLOW_ONNX_SEED, of those of operators that are taken."""
FOUND = {
    "test_bitshift_left_int32_shift_ge_width": "passed",
    "test_bitshift_right_int8_negative_shift": "passed",
    "test_dequantizelinear_axis": "passed",
    "test_l2normalization_axis_0": "passed",
    "test_mod_float_edge_cases_fmod_0_float32": "passed",
    "test_qlinearmatmul_2D_int8_float16": "passed",
    "test_reduce_max_empty_set_bool": "passed",
    "test_reshape_allowzero_reordered": "refused",
    "test_resize_downsample_scales_linear_align_corners": "differs",
    "test_resize_downsample_sizes_linear_pytorch_half_pixel": "passed",
    "test_tile": "passed",
}
"""Where answers were wrong once, or an error of another library, and what becomes of them."""


@pytest.mark.parametrize("name", FOUND)
def test_what_was_wrong_once_is_right(name):
    found = onnx_nodes.outcome(onnx_nodes.tests()[name])
    assert found.answer == FOUND[name], found


def test_each_passes_or_is_refused_in_a_sentence():
    rng = np.random.default_rng(int(os.environ.get("TVMFLOW_ONNX_SEED", "0")))
    taken = [name for name, test in onnx_nodes.tests().items() if onnx_nodes.operator_of(test) in OPERATORS]
    outcomes = [onnx_nodes.outcome(onnx_nodes.tests()[name]) for name in rng.choice(taken, COUNT, replace=False)]
    assert [found for found in outcomes if found.answer in ("wrong", "crashed")] == []
    assert sum(found.answer == "passed" for found in outcomes) > COUNT // 2


def test_the_page_counts_what_it_is_given():
    outcomes = [
        onnx_nodes.Outcome(test="a", operator="Relu", answer="passed"),
        onnx_nodes.Outcome(
            test="b", operator="Relu", answer="refused", sentence="The network's Relu (y) is not supported: it is odd."
        ),
        onnx_nodes.Outcome(
            test="c",
            operator="Det",
            answer="refused",
            sentence="The network has operators that are not supported: Det in y.",
        ),
    ]
    page = benchmark.page(outcomes)
    assert "passed 1; differs 0; refused 2; wrong 0; crashed 0." in page
    assert "| `Relu` | 1 | 1 | it is odd |" in page
    assert "`Det` (1)." in page


def test_the_page_has_no_wrong_answer():
    page = (ROOT / "docs" / "onnx-nodes.md").read_text(encoding="utf-8")
    assert "; wrong 0; crashed 0." in page
