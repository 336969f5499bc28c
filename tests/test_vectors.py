"""Golden vectors: which a network has, and what becomes of those with values that aren't numbers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from tvmflow.bundles.build import build
from tvmflow.bundles.bundle import open_bundle
from tvmflow.bundles.verify import verify_bundle
from tvmflow.network.agreement import compare
from tvmflow.network.frontend import from_module
from tvmflow.report.render import verdict_text
from tvmflow.spec import Program, Vector, VerificationError
from tvmflow.targets import TARGETS

EVERYDAY = ["noise-0", "noise-1", "noise-2", "zeros", "constant", "lowest", "highest", "checkerboard"]


class Best(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.argmax(1)


def program(network: nn.Module, *shapes: tuple[int, ...]) -> Program:
    torch.manual_seed(0)
    return from_module(network.eval(), "network", "network", shapes)


def changed(given: Program, name: str, change) -> Program:
    """With one golden vector's output as if the original gave something else."""

    def other(vector: Vector) -> Vector:
        return replace(vector, outputs=tuple(map(change, vector.outputs))) if vector.name == name else vector

    return replace(given, vectors=tuple(map(other, given.vectors)))


@pytest.fixture(scope="module")
def convolution() -> Program:
    return program(nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU()), (1, 2, 6, 6))


def test_inputs_of_every_kind(convolution):
    assert [vector.name for vector in convolution.vectors] == [*EVERYDAY, "offset", "small", "nan", "infinite"]
    (nan,), (infinite,) = (vector.inputs for vector in convolution.vectors[-2:])
    assert np.isnan(nan).sum() == 1
    assert np.isinf(infinite).sum() == 2
    (output,) = convolution.vectors[-2].outputs
    assert 0 < np.isnan(output).sum() < output.size


def test_no_class_is_ahead_of_infinity_by_infinity():
    given = program(
        nn.Sequential(nn.Conv2d(2, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4)), (1, 2, 6, 6)
    )
    verdict = compare(given.vectors, [vector.outputs for vector in given.vectors])
    assert verdict["passed"]
    assert verdict["vectors"][-1]["same_class"] is None


def test_integers_have_no_nan():
    names = [vector.name for vector in program(Best(), (1, 9)).vectors]
    assert "nan" not in names
    assert "infinite" not in names


def test_a_build_that_differs_beyond_numbers_says_so(convolution, tmp_path, caplog):
    build(changed(convolution, "nan", np.nan_to_num), TARGETS["host"], tmp_path / "out", runner=True)
    assert "are left out: nan." in caplog.text
    with open_bundle(tmp_path / "out") as bundle:
        assert bundle.manifest["verify"]["passed"]
        assert bundle.manifest["verify"]["left_out"] == ["nan"]
        assert len(bundle.manifest["vectors"]) == len(bundle.vectors()) == 11
        verdict = verify_bundle(bundle)
    assert "11 vectors" in verdict_text(verdict)
    assert "unlike the original on nan" in verdict_text(verdict)


def test_a_build_that_differs_elsewhere_too_is_refused(convolution, tmp_path):
    wrong = changed(changed(convolution, "nan", np.nan_to_num), "small", lambda output: output + 1)
    with pytest.raises(VerificationError, match=r"2 of 12 vectors \(small, nan\)"):
        build(wrong, TARGETS["host"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
