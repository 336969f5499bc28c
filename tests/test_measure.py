"""Timing gives what it was asked for, in a process that a bad library can't take down with it."""

from __future__ import annotations

import shutil
import sys

import numpy as np
import pytest

from tvmflow.bundles import bundle as bundles
from tvmflow.measure.local import profile_library, run_vectors, time_library
from tvmflow.measure.noise import disturbances
from tvmflow.report.survey import survey
from tvmflow.spec import UserError, VerificationError


@pytest.fixture
def opened(host_bundle):
    with bundles.open_bundle(host_bundle) as bundle:
        yield bundle


def test_measurement(opened):
    result = time_library(opened.library, opened.vectors()[0].inputs, threads=1, repeats=7)
    assert result.basis == "measured"
    assert len(result.samples_ms) == 7
    assert len(result.warmup_ms) >= 10
    assert result.threads == 1
    assert min(*result.samples_ms, result.setup_ms, result.first_ms) > 0


def test_threads_and_repeats_that_are_impossible(opened):
    inputs = opened.vectors()[0].inputs
    for options in ({"threads": 0}, {"threads": 4096}, {"repeats": 0}):
        with pytest.raises(UserError, match="--"):
            time_library(opened.library, inputs, **options)


def test_profile_has_one_time_for_each_layer(opened):
    times = profile_library(opened.library, opened.vectors()[0].inputs, opened.layers, threads=1, repeats=3)
    assert len(times) == len(opened.layers)
    assert all(len(samples) == 3 and min(samples) > 0 for samples in times)


def test_vectors_are_run_in_order(opened):
    vectors = opened.vectors()
    results = run_vectors(opened.library, [vector.inputs for vector in reversed(vectors)], opened.outputs)
    for vector, result in zip(reversed(vectors), results, strict=True):
        np.testing.assert_allclose(result[0], vector.outputs[0], atol=1e-5)


def test_library_that_crashes(tmp_path):
    """A constructor that dereferences null: the worker dies, the sentence says of what."""
    source, library = tmp_path / "crash.c", tmp_path / "crash.so"
    source.write_text("__attribute__((constructor)) void crash(void) { *(volatile int *)0 = 1; }")
    from tvmflow.system import toolchain
    from tvmflow.targets import TARGETS

    toolchain.link(toolchain.select_linker(TARGETS["host"]), library, [source])
    with pytest.raises(VerificationError, match="crashed with SIGSEGV"):
        run_vectors(library, [(np.zeros(1, np.float32),)], ())


def test_library_that_is_none(tmp_path):
    (tmp_path / "x.so").write_bytes(b"nothing")
    with pytest.raises(VerificationError, match="can't be run"):
        run_vectors(tmp_path / "x.so", [(np.zeros(1, np.float32),)], ())


def test_wrong_answers_are_never_timed(host_bundle, tmp_path):
    """A bundle whose golden output was changed, with a manifest to match: opened, found wrong, not timed."""
    import hashlib
    import json

    root = shutil.copytree(host_bundle, tmp_path / "wrong")
    name = "vectors/000-noise-0/output-0.npy"
    np.save(root / name, np.load(root / name) + np.float32(0.01))
    manifest = json.loads((root / "manifest.json").read_text())
    manifest["members"][name]["sha256"] = hashlib.sha256((root / name).read_bytes()).hexdigest()
    (root / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(VerificationError, match="noise-0"):
        survey(root, repeats=1)
    report = survey(root, repeats=1, must_run=False)
    assert report["verify"]["passed"] is False
    assert report["latency"] is None
    assert all(layer["latency"] is None for layer in report["layers"])


def test_a_disturbed_run_is_repeated_and_the_calmest_is_taken(opened, tmp_path, monkeypatch):
    """By a clock of our own: the first run is disturbed, the second isn't."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torch", sys.modules.get("torch"))  # a worker keeps it out of its process
        from tvmflow.measure import worker
    warmup, calm, disturbed = [1.0] * 1000, [1.0 + place % 2 / 100 for place in range(20)], [1.0, 5.0] * 10
    left: list[float] = []
    monkeypatch.setattr(worker, "_ms_since", lambda started: left.pop(0) if left else 1.0)
    np.save(tmp_path / "input.npy", opened.vectors()[0].inputs[0])
    job = {"library": str(opened.library), "inputs": [str(tmp_path / "input.npy")], "repeats": 20, "seconds": 0}
    monkeypatch.setattr(worker, "WARMUP_SECONDS", 0)
    before = [20.0, 3.0, *warmup[: worker.WARMUP_RUNS]]
    for runs, count, samples in (
        ([disturbed, calm], 2, calm),
        ([calm], 1, calm),
        ([disturbed, [1.0, 9.0] * 10, [1.0, 6.0] * 10], 3, disturbed),
    ):
        left[:] = [*before, *(value for run in runs for value in run)]
        found = worker.measure(job)
        assert (found["attempts"], found["samples_ms"], left) == (count, samples, [])


def test_what_a_disturbed_run_says():
    assert disturbances(1.0, 1.2, 0.9, 100) == []
    assert "half of the inferences took 3.72 times" in disturbances(3.57, 3.9, 0.96, 100)[0]
    assert "p90 is 1.50 times p50" in disturbances(1.0, 1.5, 0.9, 100)[0]
    assert disturbances(1.0, 9.0, 0.1, 5) == []
