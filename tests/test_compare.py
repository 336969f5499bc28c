"""`tvmflow report diff`: what is noise and what isn't, what can't be compared, and the exit code."""

from __future__ import annotations

import copy
import json

import pytest

from tvmflow import report as reports
from tvmflow.backends import Timing, layer_rows
from tvmflow.bundle import open_bundle
from tvmflow.report.compare import compare, pairs, parse_share, regressions, text
from tvmflow.spec import Measurement, UserError

SAMPLES = (1.0,) * 8 + (1.02, 1.02)
"""Median 1 ms, and p90 at 1.02: 2 % of noise."""


@pytest.fixture(scope="module")
def report(host_bundle):
    with open_bundle(host_bundle) as bundle:
        measured = Measurement(basis="measured", samples_ms=SAMPLES, threads=1, setup_ms=1, first_ms=1, warmup_ms=(1,))
        rows = layer_rows([100.0] * len(bundle.layers))
        return reports.assemble(bundle, bundle.manifest["verify"], Timing(measurement=measured, layers=rows))


def slower(report, factor):
    """The same report of a network that takes so many times as long, all of it in its first layer."""
    changed = copy.deepcopy(report)
    for key in ("p50", "p90", "p99", "mean", "min", "max"):
        changed["latency"][key] *= factor
    changed["layers"][0]["latency"]["p50"] *= factor**2
    return changed


@pytest.mark.parametrize(
    ("factor", "verdict"), [(1.0, "the same"), (1.03, "within the noise"), (1.2, "slower"), (0.5, "faster")]
)
def test_both_spreads_are_the_noise(report, factor, verdict):
    found = compare(report, slower(report, factor))
    assert found["latency"]["verdict"] == verdict
    assert found["latency"]["noise"] == pytest.approx(0.04)
    assert found["latency"]["ratio"] == pytest.approx(factor)
    assert regressions([found], 0.1) == ([] if factor < 1.1 else ["tiny on host takes 1.200 times as long"])


def test_layers_are_the_same_by_their_modules(report):
    changed = slower(report, 1.2)
    changed["layers"] = changed["layers"][:1] + changed["layers"][2:]
    changed["layers"][0]["schedule"] = "another"
    found = compare(report, changed)
    first, *_, gone = found["layers"]
    assert first["latency"]["verdict"] == "slower"
    assert (first["in"], gone["in"], gone["modules"]) == ("both", "before", report["layers"][1]["modules"])
    shown = text(found)
    assert f"2 of {len(report['layers'])} changed" in shown
    assert "→ another" in shown
    assert "only before" in shown


def test_what_was_another_is_said(report):
    changed = copy.deepcopy(report)
    changed["environment"]["versions"]["tvm"] = "0.28"
    changed["memory"]["weights_bytes"] += 1024
    changed["verify"]["passed"] = False
    shown = text(compare(report, changed))
    assert "version of tvm: 0.27" in shown
    assert "→ 0.28" in shown
    assert "memory   weights" in shown
    assert "passed → FAILED" in shown


def test_another_basis_is_refused_unless_it_is_wanted(report):
    changed = slower(report, 2.0)
    changed["latency"]["basis"] = "simulated"
    with pytest.raises(UserError, match="is measured and tiny on host simulated"):
        compare(report, changed)
    found = compare(report, changed, any_basis=True)
    assert found["latency"]["verdict"] == "noise unknown"
    assert "1.000 ms (measured) → 2.000 ms (simulated)" in text(found)
    with pytest.raises(UserError, match="different bases"):
        regressions([found], 0.05)


def test_without_a_latency_nothing_is_judged(report):
    changed = {**report, "latency": None, "latency_note": "no board was there"}
    found = compare(report, changed)
    assert "no board was there" in text(found)
    with pytest.raises(UserError, match="no board was there"):
        regressions([found], 0.05)


def test_collections_are_compared_board_by_board(report, tmp_path):
    other = copy.deepcopy(report)
    other["target"]["name"] = "elsewhere"
    reports.write_json(tmp_path / "both.json", reports.collect([report, other]))
    reports.write_json(tmp_path / "one.json", reports.collect([other]))
    both, one = reports.read_reports(tmp_path / "both.json"), reports.read_reports(tmp_path / "one.json")
    assert [pair[1]["target"]["name"] for pair in pairs(both, one)] == ["elsewhere"]
    assert len(pairs(both, both)) == 2
    with pytest.raises(UserError, match="nothing to compare"):
        pairs([report, report], one)


@pytest.mark.parametrize(("given", "share"), [("5%", 0.05), ("0.05", 0.05), ("0", 0.0), ("12.5 %", 0.125)])
def test_shares(given, share):
    assert parse_share(given) == pytest.approx(share)


@pytest.mark.parametrize("given", ["", "%", "five", "-1%", "nan", "inf"])
def test_no_shares(given):
    with pytest.raises(UserError, match="--fail-over"):
        parse_share(given)


def test_command(tvmflow, report, tmp_path):
    for name, factor in (("a", 1.0), ("b", 1.2)):
        reports.write_json(tmp_path / f"{name}.json", slower(report, factor))
    done = tvmflow("report", "diff", tmp_path / "a.json", tmp_path / "b.json", "--json", tmp_path / "diff.json")
    assert done.code == 0, done.err
    assert "slower (noise 4.0%)" in done.out
    assert json.loads((tmp_path / "diff.json").read_text())[0]["latency"]["ratio"] == pytest.approx(1.2)
    done = tvmflow("report", "diff", tmp_path / "a.json", tmp_path / "b.json", "--fail-over", "5%")
    done.failed_with(6, "tiny on host takes 1.200 times as long")
    assert tvmflow("report", "diff", tmp_path / "b.json", tmp_path / "a.json", "--fail-over", "5%").code == 0
    tvmflow("report", "diff", tmp_path / "a.json", tmp_path / "c.json").failed_with(4, "can't be read")
