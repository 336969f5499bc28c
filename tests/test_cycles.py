"""Modelled cycles: llvm-mca is asked the right thing, layers get their own instructions, and gaps are named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from conftest import ROOT, needs_commands, needs_emulator

from benchmarks import cycles as benchmark
from tvmflow.bundles.bundle import open_bundle
from tvmflow.measure import cycles, emulate, latency
from tvmflow.report import collect, networks, views
from tvmflow.report.render import render_html, report_text
from tvmflow.report.survey import survey
from tvmflow.spec import MissingDependencyError, VerificationError
from tvmflow.system.text import to_json
from tvmflow.targets import TARGETS, kind

BOARD = TARGETS["raspberry-pi-4b"]
AARCH64 = "aarch64-linux-gnu"

pytestmark = pytest.mark.packages


@pytest.fixture(scope="module")
def needs_llvm():
    needs_commands(*cycles.tools(kind.tracing(BOARD)[1]))


@pytest.fixture(scope="module")
def bundle(needs_llvm, tiny, tmp_path_factory) -> Path:
    from tvmflow.bundles.build import build

    needs_emulator(BOARD)
    out = tmp_path_factory.mktemp("cycles") / "tiny"
    build(tiny, BOARD, out)
    return out


@pytest.fixture(scope="module")
def larger(needs_llvm, tmp_path_factory) -> Path:
    """The same network, of more than what surrounds its kernels."""
    from tvmflow.bundles.build import build
    from tvmflow.network.frontend import import_model, parse_input_shape

    needs_emulator(BOARD)
    out = tmp_path_factory.mktemp("cycles") / "larger"
    build(import_model("networks:tiny", [parse_input_shape("1x3x96x96")]), BOARD, out)
    return out


@pytest.mark.parametrize(
    ("triple", "core", "instructions", "cycles_each"),
    [
        # Arm's guide to the Cortex-A57: an addition of four float32 takes 5 cycles, and one can begin in each
        (AARCH64, "cortex-a72", ["fadd v0.4s, v0.4s, v1.4s"], 5),
        (AARCH64, "cortex-a72", [f"fadd v{n}.4s, v30.4s, v31.4s" for n in range(20)], 1),
        ("thumbv7em-none-eabihf", "cortex-m7", ["adds r0, r0, r1"], 1),
    ],
)
def test_cycles_of_a_known_sequence(needs_llvm, triple, core, instructions, cycles_each):
    sequence = (instructions * 1000)[:1000]
    both = cycles.simulate([sequence, sequence[:500]], cycles.Core(mcpu=core), triple)
    assert both == pytest.approx([1000 * cycles_each, 500 * cycles_each], rel=0.05)


def test_a_report_with_modelled_cycles(bundle):
    report = survey(bundle, timed=False, cycles=True)
    schema = json.loads((ROOT / "docs" / "report.schema.json").read_text())
    jsonschema.validate(json.loads(to_json(report)), schema)
    assert report["latency"] is None
    whole, details = report["cycles"], [layer["details"] for layer in report["layers"]]
    assert (whole["basis"], whole["core"], whole["threads"]) == ("modelled", "cortex-a72", 1)
    assert whole["instructions"] == sum(row["instructions"] for row in details)
    assert whole["cycles"] == pytest.approx(sum(row["modelled_cycles"] for row in details), abs=len(details))
    # three instructions are the most that this core begins in a cycle
    assert all(row["modelled_cycles"] > row["instructions"] / 3 > 0 for row in details)
    assert "modelled, and no latency" in report_text(report, layers=False)
    assert "cycles (modelled)" in report_text(report, layers=True)
    assert "Cycles (modelled)" in render_html(collect([report]))


def test_a_modelled_latency_where_published_ones_bear_it_out(larger):
    report = survey(larger, timed=False, cycles=True)
    jsonschema.validate(json.loads(to_json(report)), json.loads((ROOT / "docs" / "report.schema.json").read_text()))
    found = report["cycles"]["latency"]
    assert (found["basis"], found["threads"], found["clock_mhz"]) == ("modelled", 1, BOARD.cpu.clock_mhz)
    assert found["interval"][0] < found["p50"] < found["interval"][1]
    # what surrounds the kernels is in it, and no core is faster than its pipelines
    assert found["p50"] > report["cycles"]["cycles"] / BOARD.cpu.clock_mhz * 1e-3
    assert f"{latency.text(found)}, for this computer is no {BOARD.name}" in report_text(report, layers=False)
    assert latency.sentence(found) in report["latency_note"]
    assert latency.text(found) in render_html(collect([report]))
    (row,) = views.devices([report])
    assert row["latency_ms"] == found["p50"]
    (entry,) = networks.entries(collect([report]))
    assert (entry["latency_ms"], entry["latency_basis"]) == (found["p50"], "modelled")
    assert row["basis"].startswith("modelled, 90 % within ")


def test_no_milliseconds_of_a_core_that_missed_its_bars(larger, monkeypatch):
    monkeypatch.setattr(latency, "MEDIAN_ERROR", 0.0)
    report = survey(larger, timed=False, cycles=True)
    assert "latency" not in report["cycles"]
    assert "not good enough for milliseconds" in report["latency_note"]
    assert report_text(report, layers=False).count(" ms") == 0
    (row,) = views.devices([report])
    assert row["latency_ms"] is None


def test_bench_models_what_it_cannot_time(larger, tvmflow):
    done = tvmflow("bench", larger, "--cycles")
    assert done.code == 0, done.err
    assert "), modelled, for this computer is no" in done.out


def test_bench_says_why_it_models_nothing(bundle, tvmflow):
    tvmflow("bench", bundle, "--cycles").failed_with(5, "can't be timed here", "what is assumed")


def test_counts_of_a_bundle_are_those_of_one_inference(bundle):
    with open_bundle(bundle) as opened:
        followed = emulate.follow(opened, latency.CORES[BOARD.tvm["mcpu"]].hierarchy)
        traced = emulate.trace_calls(opened)
    counted = sum(cost.instructions for cost in cycles.model(traced, cycles.CORES["cortex-a72"], AARCH64))
    # the runtime's own instructions are in it, and nothing of loading
    assert counted < followed.counts["instructions"] < counted + 1_000_000
    assert followed.counts["first_misses"] >= followed.counts["outer0_misses"] >= followed.counts["outer5_misses"]


def test_blocks_of_a_call_are_those_until_the_next():
    trace = cycles.Trace(
        starts=np.array([100, 200, 300, 50]), sizes=np.array([4, 2, 3, 9]), order=np.array([3, 0, 1, 1, 2, 3, 0, 1])
    )
    calls = cycles.split(trace, {100: "first", 300: "second"}, ["first", "second", "first"])
    assert [call.tolist() for call in calls] == [[0, 1, 1], [2, 3], [0, 1]]
    with pytest.raises(VerificationError, match="ran 3 kernels where its manifest names 1"):
        cycles.split(trace, {100: "first", 300: "second"}, ["first"])


def test_windows_are_spread_over_a_long_call():
    assert cycles.windows(np.full(100, 10)) == [slice(0, 100)]
    found = cycles.windows(np.full(100_000, 10))
    assert [window.stop - window.start for window in found] == pytest.approx(
        [cycles.WINDOW / 10] * cycles.WINDOWS, abs=1
    )
    assert [window.start for window in found] == pytest.approx([16_462, 49_795, 83_129], abs=2)


def test_what_is_missing_is_said(bundle, monkeypatch, tvmflow):
    which = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name, *rest: None if name == cycles.MCA else which(name, *rest))
    with open_bundle(bundle) as opened, pytest.raises(MissingDependencyError, match=r"apt-get install .* llvm-22"):
        cycles.profile(opened, *kind.tracing(BOARD))
    report = survey(bundle, timed=False, must_run=False, cycles=True)
    assert "cycles" not in report
    assert cycles.MCA in report["latency_note"]
    (gap,) = report["not_shown"]
    assert (gap["what"], gap["packages"]) == ("cycles", ["llvm-22"])
    assert gap["reason"] in report["latency_note"]


def test_other_kinds_are_refused(tvmflow, host_bundle):
    tvmflow("profile", host_bundle, "--cycles", "--repeats", "1").failed_with(4, "arm_cpu and cortex_m")


def test_the_band_is_the_benchmarks():
    document = json.loads(benchmark.RESULTS.read_text())
    assert len(document["kernels"]) >= 30
    assert benchmark.markdown(document) == benchmark.RESULTS.with_suffix(".md").read_text()
    assert benchmark.validation(document) == cycles.VALIDATION
