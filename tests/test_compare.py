"""`tvmflow report diff`: what is noise and what isn't, what can't be compared, and the exit code."""

from __future__ import annotations

import copy
import json

import pytest

from tvmflow import report as reports
from tvmflow.bundles.bundle import open_bundle
from tvmflow.measure.noise import median_interval
from tvmflow.report.compare import compare, judge, pairs, parse_share, text
from tvmflow.spec import InconclusiveError, Measurement, RegressionError, UserError
from tvmflow.targets.kind import Timing, layer_rows

SAMPLES = tuple(1.0 + 0.02 * (place % 2) for place in range(20))
"""20 blocks of one, half of them at 1.0 and half at 1.02: the median is in between."""


@pytest.fixture(scope="module")
def report(host_bundle):
    with open_bundle(host_bundle) as bundle:
        measured = Measurement(basis="measured", samples_ms=SAMPLES, threads=1, setup_ms=1, first_ms=1, warmup_ms=(1,))
        rows = layer_rows([[100.0] * 10] * len(bundle.layers))
        return reports.assemble(bundle, bundle.manifest["verify"], Timing(measurement=measured, layers=rows))


def slower(report, factor):
    """The same report of a network that takes so many times as long, all of it in its first layer."""
    changed = copy.deepcopy(report)
    for key in ("p50", "p90", "p99", "mean", "min", "max"):
        changed["latency"][key] *= factor
    for figures, times in ((changed["latency"], factor), (changed["layers"][0]["latency"], factor**2)):
        if figures.get("interval"):
            figures["interval"] = [times * end for end in figures["interval"]]
    changed["layers"][0]["latency"]["p50"] *= factor**2
    return changed


def old(report):
    """As formats before 1.3 have it."""
    changed = copy.deepcopy(report)
    for figures in (changed["latency"], *(layer["latency"] for layer in changed["layers"])):
        figures.pop("interval")
    return changed


@pytest.mark.parametrize(
    ("factor", "verdict"), [(1.0, "the same"), (1.01, "within the noise"), (1.2, "slower"), (0.5, "faster")]
)
def test_the_medians_intervals_decide(report, factor, verdict):
    found = compare(report, slower(report, factor))
    assert report["latency"]["interval"] == [1.0, 1.02]
    assert found["latency"]["verdict"] == verdict
    assert found["latency"]["interval"] == pytest.approx([factor / 1.02, factor * 1.02])
    assert found["latency"]["ratio"] == pytest.approx(factor)


def of(report, samples):
    """A report of the same network whose inferences took these ms."""
    timed = Measurement(basis="measured", samples_ms=tuple(samples), threads=1, setup_ms=1, first_ms=1, warmup_ms=(1,))
    return {**report, "latency": reports.latency(timed)}


def test_slow_runs_in_between_hide_no_regression(report):
    """A run whose p90 is ten times its median, and one that takes 5.4 times as long."""
    noisy = [10.0 if place % 8 == 0 else 1.0 + 0.01 * (place % 3) for place in range(800)]
    before, after = of(report, noisy), of(report, [5.4 * value for value in noisy])
    assert before["latency"]["spread"] > 9
    with pytest.raises(RegressionError, match=r"5\.400 times as long"):
        judge([compare(before, after)], 0.05)
    judge([compare(after, before), compare(before, before)], 0.05)


def test_what_noise_hides_is_not_judged(report):
    """A machine that changes its pace within the run: by blocks, the median is anywhere between the two."""
    halves = of(report, [1.0] * 500 + [3.0] * 500)
    assert halves["latency"]["interval"] == [1.0, 3.0]
    with pytest.raises(InconclusiveError, match=r"0\.334 to 3\.003"):
        judge([compare(halves, of(report, [1.001 * value for value in [1.0] * 500 + [3.0] * 500]))], 0.05)


def test_reports_without_blocks_get_the_widest_interval(report):
    """Of an old report nobody knows how its inferences followed each other."""
    noisy = old(of(report, [9.5 if place % 8 == 0 else 1.0 for place in range(800)]))
    with pytest.raises(InconclusiveError):
        judge([compare(noisy, slower(noisy, 5.4))], 0.05)
    with pytest.raises(RegressionError):
        judge([compare(noisy, slower(noisy, 11.0))], 0.05)
    assert compare(old(report), old(report))["layers"][0]["latency"]["verdict"] == "the same"
    assert compare(old(report), slower(old(report), 2.0))["layers"][0]["latency"]["verdict"] == "noise unknown"


@pytest.mark.parametrize(("count", "ends"), [(5, None), (6, [0, 5]), (20, [5, 14]), (2000, [549.5, 1449.5])])
def test_the_intervals_ranks_are_the_binomial_ones(count, ends):
    """P(X ≤ 5) is 0.021 and P(X ≤ 6) 0.058 for 20 blocks."""
    assert median_interval(range(count)) == ends


def test_kernels_that_were_renamed_or_fused_otherwise_are_matched(report):
    first, second, *rest = report["layers"]
    renamed = [{**layer, "kernel": f"other_{place}"} for place, layer in enumerate(report["layers"])]
    found = compare(report, {**report, "layers": renamed})
    assert [row["latency"]["verdict"] for row in found["layers"]] == ["the same"] * len(renamed)
    both = {**first, "modules": [*first["modules"], *second["modules"]], "macs": first["macs"] + second["macs"]}
    both |= {"latency": {**first["latency"], "p50": 150.0, "min": 150.0, "interval": [150.0, 150.0]}}
    fused, *others = compare(report, {**report, "layers": [both, *rest]})["layers"]
    assert (fused["in"], fused["modules"], len(others)) == ("both", both["modules"], len(rest))
    assert (fused["macs"]["before"], fused["latency"]["ratio"]) == (both["macs"], 0.75)
    assert fused["latency"]["verdict"] == "faster"
    unnamed = {**first, "modules": [], "kernel": "a"}
    (row,) = compare({**report, "layers": [unnamed]}, {**report, "layers": [{**unnamed, "kernel": "b"}]})["layers"]
    assert row["in"] == "both"


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
    assert "1.010 ms (measured) → 2.020 ms (simulated)" in text(found)
    with pytest.raises(UserError, match="different bases"):
        judge([found], 0.05)


def test_without_a_latency_nothing_is_judged(report):
    changed = {**report, "latency": None, "latency_note": "no board was there"}
    found = compare(report, changed)
    assert "no board was there" in text(found)
    with pytest.raises(UserError, match="no board was there"):
        judge([found], 0.05)


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
    assert "slower (1.176 to 1.224; fastest 1.000 → 1.200)" in done.out
    assert json.loads((tmp_path / "diff.json").read_text())[0]["latency"]["ratio"] == pytest.approx(1.2)
    done = tvmflow("report", "diff", tmp_path / "a.json", tmp_path / "b.json", "--fail-over", "5%")
    done.failed_with(6, "tiny on host takes 1.200 times as long")
    assert tvmflow("report", "diff", tmp_path / "b.json", tmp_path / "a.json", "--fail-over", "5%").code == 0
    done = tvmflow("report", "diff", tmp_path / "a.json", tmp_path / "b.json", "--fail-over", "20%")
    done.failed_with(9, "1.176 to 1.224), so it can't be said whether that is more than the 0.2 that was allowed")
    tvmflow("report", "diff", tmp_path / "a.json", tmp_path / "c.json").failed_with(4, "can't be read")
