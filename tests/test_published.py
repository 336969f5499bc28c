"""Modelled latencies beside published ones: what judges was never fitted on, and tvmflow takes what was judged."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from conftest import ROOT

from benchmarks import published
from tvmflow.measure import latency, memory


@pytest.fixture(scope="module")
def document() -> dict:
    return json.loads(published.RESULTS.read_text())


@pytest.fixture(scope="module")
def rows(document) -> list[published.Row]:
    return published.rows(document)


@pytest.fixture(scope="module")
def judged(rows) -> list[published.Judged]:
    return published.judge(rows)


@pytest.fixture(scope="module")
def accepted(judged) -> list[published.Judged]:
    good = published.accurate(judged)
    return [one for one in judged if one.row.board.core in good]


def test_no_constant_is_fitted_on_a_row_that_it_judges(rows):
    fitted_on: list[list[published.Row]] = []

    def fit(given):
        fitted_on.append(list(given))
        return np.array([1.0, len(fitted_on)])  # so that a judgement tells which fit it comes from

    some = [row for row in rows if row.family in ("squeezenet", "mobilenet", "resnet18", "googlenet")]
    for one in published.judge(some, fit):
        (which,) = [
            number
            for number in range(1, len(fitted_on) + 1)
            if one.row.modelled(np.array([1.0, number])) == one.modelled_ms
        ]
        known = fitted_on[which - 1]
        assert one.row.board.name not in {row.board.name for row in known}
        assert one.row.network.removesuffix("_int8") not in {row.network.removesuffix("_int8") for row in known}
        assert {row.board.core for row in known} == {one.row.board.core}


def test_an_interval_does_not_know_its_board(rows):
    """A board's own latencies change nothing of the intervals of its rows, beside what is modelled."""
    board, families = published.BOARDS[0], ("squeezenet", "mobilenet", "resnet18", "googlenet")
    some = [row for row in rows if row.family in families and row.board.core == board.core]
    slower = [replace(row, published_ms=1.2 * row.published_ms) if row.board == board else row for row in some]
    before, after = (
        [(one.modelled, one.interval) for one in published.judge(given) if one.row.board == board]
        for given in (some, slower)
    )
    assert after == before
    assert all(0 < low < high < np.inf for _, (low, high) in before)


def test_enough_was_judged(accepted):
    assert len(accepted) >= 150
    assert len({one.row.board.name for one in accepted}) >= 4
    assert len({one.row.network for one in accepted}) >= 20


def test_the_bars_are_met(accepted):
    court = published.court(accepted)
    assert court.median_error <= 0.15
    assert court.within >= 0.9
    assert 0.85 <= court.coverage <= 0.95


def test_cores_that_miss_the_bars_have_no_milliseconds(judged):
    for core in published.CORES:
        court = published.court([one for one in judged if one.row.board.core == core])
        met = court.median_error <= 0.15 and court.within >= 0.9 and court.coverage >= 0.85
        assert (latency.why_not(core, clock_mhz=1000, cache_bytes=1 << 20) == "") == met, core


def test_tvmflow_takes_what_was_judged(document):
    assert json.loads(latency.FILE.read_text()) == json.loads(json.dumps(published.constants(document)))


def test_the_page_is_of_these_results(document):
    assert published.markdown(document) == published.RESULTS.with_suffix(".md").read_text()


def test_the_documentation_says_the_same(document):
    said = " ".join((ROOT / "docs" / "method.md").read_text().split())
    assert published.sentence(document) in said


def test_other_cores_have_no_milliseconds():
    assert "cortex-a78" in latency.why_not("cortex-a78", clock_mhz=2000, cache_bytes=1 << 20)


@pytest.mark.parametrize(("clock_mhz", "cache_bytes"), [(0, 1 << 20), (1000, 0)])
def test_boards_of_unknown_figures_have_no_milliseconds(clock_mhz, cache_bytes):
    assert "isn't known" in latency.why_not("cortex-a72", clock_mhz=clock_mhz, cache_bytes=cache_bytes)


def test_constants_are_found_again(rows):
    some = [row for row in rows if row.board.core == "cortex-a53"]
    made = [replace(row, published_ms=row.modelled(np.array([1.25, 6.0]))) for row in some]
    assert published.fit(made) == pytest.approx([1.25, 6.0], rel=1e-6)


def test_a_cycle_costs_no_less_than_one(rows):
    fast = [replace(row, published_ms=row.published_ms / 10) for row in rows if row.board.core == "cortex-a53"]
    assert published.fit(fast) == pytest.approx([1, 0])


def test_ninety_of_a_hundred_are_within_the_band():
    assert published.band([float(value) for value in range(1, 100)]) == (5.0, 95.0)


def test_few_ratios_bound_nothing():
    assert published.band([1.0] * 10) == (0.0, np.inf)


def test_milliseconds_by_hand():
    found = latency.Quantities(cycles=3e6, unforeseen=1000, mispredicted=500, lines=2000)
    core = latency.Core(hierarchy=latency.CORES["cortex-a72"].hierarchy, hit=20, branch=10)
    # (1.5 · 3,000,000 + 20 · 1,000 + 10 · 500) cycles at 1,000 MHz, and 2,000 lines of 8 ns
    took = latency.milliseconds(found, core, cycles=1.5, line_ns=8, clock_mhz=1000)
    assert took == pytest.approx(4.525 + 0.016)


def test_the_cache_that_is_taken_is_no_larger_than_the_core_has():
    counts = {"first_misses": 100, "first_streamed": 60, "mispredicted": 3}
    for index, _ in enumerate(memory.OUTER_BYTES):
        counts |= {f"outer{index}_misses": 50 - index, f"outer{index}_streamed": 40 - index}
    found = latency.quantities(counts, 1000.0, 600 << 10)  # of 512 KiB, the third
    assert found == latency.Quantities(cycles=1000.0, unforeseen=40 - 10, mispredicted=3, lines=48)


def predicted(monkeypatch, *, hits: int, lines: int) -> latency.Estimate:
    """Of a million cycles, on a Cortex-A72 with a cache of 128 KiB."""
    counts = {"instructions": 1_000_000, "mispredicted": 0, "first_misses": hits + lines, "first_streamed": lines}
    counts |= {f"outer{index}_{of}": lines for index in range(len(memory.OUTER_BYTES)) for of in ("misses", "streamed")}
    monkeypatch.setattr(memory.Followed, "cycles", lambda *_: 1e6)
    followed = memory.Followed(counts=counts, windows=[])
    return latency.predict(followed, "cortex-a72", clock_mhz=1000, cache_bytes=128 << 10)


def test_a_network_like_those_that_judged_has_milliseconds(monkeypatch):
    found = predicted(monkeypatch, hits=1000, lines=10_000)
    assert found.doubt == ""
    known = latency.constants()["cortex-a72"]
    assert found.p50 == pytest.approx(known.cycles + 18 * 0.001 + known.line_ns * 0.01)
    assert found.interval[0] == pytest.approx(known.band[0] * (known.cycles + known.line_ns * 0.01))
    assert found.interval[1] == pytest.approx(known.band[1] * (known.cycles + 36 * 0.001 + known.line_ns * 0.01))


def test_a_network_that_waits_for_memory_as_none_that_judged_has_no_milliseconds(monkeypatch):
    assert "waits more for memory" in predicted(monkeypatch, hits=0, lines=200_000).doubt


def test_milliseconds_that_hang_on_what_is_assumed_are_not_shown(monkeypatch):
    assert "what is assumed" in predicted(monkeypatch, hits=100_000, lines=0).doubt


TABLE = """### Raspberry Pi 4 Model B Broadcom BCM2711B0, Cortex-A72 (ARMv8) (1.8GHz x 4)
```
loop_count = 10
num_threads = 4
powersave = 0
gpu_device = -1
cooling_down = 1
          squeezenet  min =   46.28  max =   46.91  avg =   46.65

loop_count = 10
num_threads = 1
powersave = 0
gpu_device = -1
cooling_down = 1
          squeezenet  min =   73.35  max =   75.00  avg =   74.00
           mobilenet  min =  123.76  max =  124.00  avg =  123.90

loop_count = 10
num_threads = 1
powersave = 0
gpu_device = 0
cooling_down = 1
          squeezenet  min =  500.00  max =  510.00  avg =  505.00
```
### Another board
loop_count = 10
num_threads = 1
powersave = 0
gpu_device = -1
          squeezenet  min =    1.00  max =    1.00  avg =    1.00
"""


def test_tables_are_read_of_one_thread_on_the_cpu():
    assert published.read_tables(TABLE) == {"Raspberry Pi 4B": {"squeezenet": 73.35, "mobilenet": 123.76}}


def test_shapes_are_read():
    source = """
        benchmark("squeezenet", ncnn::Mat(227, 227, 3), opt, squeezenet_param_data);
        // benchmark("mobilenet_v2_int8", ncnn::Mat(224, 224, 3), opt, mobilenet_v2_int8_param_data);
    """
    assert published.read_shapes(source) == {"squeezenet": "227,227,3"}
