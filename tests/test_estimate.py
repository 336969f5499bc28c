"""`tvmflow estimate`: what is counted is right, and bounds are bounds."""

from __future__ import annotations

import json
from dataclasses import replace

import jsonschema
import networks
import pytest
import torch
from conftest import ROOT
from torch import nn

from tvmflow.measure.roof import measure_roof
from tvmflow.network.frontend import from_module, import_model, parse_input_shape
from tvmflow.report import networks as networks_report
from tvmflow.report.estimate import analyse, describe, describe_model, estimate, least_text, roof_of, text
from tvmflow.spec import Roof, UnsupportedOperatorError
from tvmflow.targets import TARGETS, kind

PI = TARGETS["raspberry-pi-4b"]


@pytest.fixture(scope="module")
def network():
    return analyse(import_model("networks:plain", [parse_input_shape("1x3x21x26")]))


def test_multiply_adds_with_padding_are_not_counted(network):
    """Beside convolutions of ones, whose results are how many products met the input."""
    model, wanted = networks.plain(), {}

    def count(name):
        def hook(layer, inputs, _):
            ones = torch.ones_like(inputs[0], dtype=torch.float64)
            weights = torch.ones_like(layer.weight, dtype=torch.float64)
            options = (None, layer.stride, layer.padding, layer.dilation, layer.groups)
            wanted[name] = int(nn.functional.conv2d(ones, weights, *options).sum())

        return hook

    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(count(name))
    model(torch.zeros(1, 3, 21, 26))
    found = {name: work.layer.live_macs for work in network.works for name in work.layer.modules if name in wanted}
    assert found == wanted
    assert all(work.layer.live_macs <= work.layer.macs for work in network.works)


def test_bounds_hold_for_winograds_algorithm():
    """A quarter of the multiply-adds, where the board has the rule and computes in float32."""
    torch.manual_seed(0)
    program = from_module(nn.Conv2d(64, 64, 3, padding=1).eval(), "one", "one", [(1, 64, 16, 16)])
    (row,) = (row for row in estimate(analyse(program), PI)["layers"] if row["macs"])
    without = replace(PI, schedules=tuple(rule for rule in PI.schedules if rule != "winograd"))
    (direct,) = (row for row in estimate(analyse(program), without)["layers"] if row["macs"])
    assert row["macs"] == direct["macs"] == 16 * 16 * 9 * 64 * 64
    assert row["us"] == pytest.approx(1e6 * row["macs"] / 4 / roof_of(PI).macs_per_s)
    assert direct["us"] == pytest.approx(1e6 * direct["live_macs"] / roof_of(PI).macs_per_s)


def test_elements_are_counted(network):
    model = networks.plain()
    by_name = {name: work for work in network.works for name in work.layer.modules}
    stem = by_name["stem"]
    assert stem.weights == sum(parameter.numel() for parameter in model.stem.parameters())
    assert (stem.inputs, stem.output) == (3 * 10 * 13, 32 * 5 * 7)
    assert network.weights == sum(work.weights for work in network.works)


@pytest.mark.parametrize("name", TARGETS)
def test_every_board_has_an_estimate(network, name):
    target = TARGETS[name]
    found = estimate(network, target)
    assert (found["basis"], found["meaning"]) == ("modelled", "lower bound")
    assert (found["latency_ms"] is None) is (roof_of(target) is None)
    assert found["fits"]["fits"] is True
    if (roof := roof_of(target)) is not None:
        least = sum(work.layer.live_macs for work in network.works) / roof.macs_per_s
        assert found["latency_ms"] >= 1e3 * least * (1 - 1e-9)
        assert found["latency_ms"] <= 1e-3 * sum(row["us"] for row in found["layers"]) * (1 + 1e-9)
        assert {row["bound"] for row in found["layers"]} <= {"compute", "memory"}


def test_weights_come_from_memory_if_no_cache_holds_them(network):
    kept = estimate(network, PI)
    streamed = estimate(network, replace(PI, cpu=replace(PI.cpu, l2_bytes=4096)))
    assert streamed["latency_ms"] > kept["latency_ms"]
    weights = 4 * network.weights / (1e6 * PI.cpu.memory_gbps)
    assert streamed["latency_ms"] >= weights - 4096 / (1e6 * PI.cpu.memory_gbps)
    assert "memory" in {row["bound"] for row in streamed["layers"]}


def test_what_does_not_fit_is_said(network):
    board = TARGETS["mps3-an547"]
    small = replace(board, facts=replace(board.facts, flash_bytes=1024))
    found = estimate(network, small)
    assert found["fits"]["fits"] is False
    assert "of 1 KiB flash" in text(network.program, [found])


def test_what_fills_the_memories_of_a_microcontroller_is_said(network):
    found = estimate(network, replace(TARGETS["rp2040"], arithmetic="int8"))
    flash, ram = found["fits"]["parts"]["flash"], found["fits"]["parts"]["RAM"]
    assert flash["needed_bytes"] == flash["weights_bytes"] + flash["code_bytes"]
    assert flash["weights_bytes"] == network.weights
    assert ram["needed_bytes"] == ram["arena_bytes"] + ram["stack_bytes"]
    assert ram["available_bytes"] == 264 << 10
    assert " of 264 KiB RAM (" in text(network.program, [found])


def test_buffers_of_a_vta_hold_the_smallest_tiles(network):
    board = TARGETS["pynq-z1"]
    parts = estimate(network, board)["fits"]["parts"]
    # in blocks of 16: five rows of 26 pixels that a dilated row reads, 3×3 weights, and a row of sums
    widest = max(work.tile.inputs for work in network.works)
    assert parts["input buffer"] == {"needed_bytes": 16 * widest, "available_bytes": 32 << 10}
    assert parts["weight buffer"] == {
        "needed_bytes": 256 * max(work.tile.taps for work in network.works),
        "available_bytes": 256 << 10,
    }
    small = {**board.facts.configuration, "LOG_INP_BUFF_SIZE": 9}
    found = estimate(network, replace(board, facts=replace(board.facts, configuration=small)))
    assert found["fits"]["fits"] is False
    assert "KiB input buffer" in text(network.program, [found])


def test_a_measured_roof_is_taken_for_this_computer(network):
    roof = measure_roof(TARGETS["host"].cpu, "float32", 1, 1 << 20)
    assert roof.macs_per_s > 1e8
    assert roof.bytes_per_s > 1e8
    found = estimate(network, TARGETS["host"], roof)
    assert found["roof"]["basis"] == "measured"
    assert found["latency_ms"] > 0
    assert measure_roof(TARGETS["host"].cpu, "int8", 1, 1 << 20) is None


def test_without_a_clock_there_is_no_time(network):
    board = replace(PI, cpu=replace(PI.cpu, clock_mhz=0))
    found = estimate(network, board)
    assert found["latency_ms"] is None
    assert "clock isn't known" in text(network.program, [found])
    assert describe(roof_of(board)) is None


@pytest.fixture(scope="module")
def odd():
    """A network with a branch, an addition and two operators that have no integer form, of which one is used twice."""

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.first, self.second = nn.Conv2d(3, 4, 1), nn.LocalResponseNorm(3), nn.LocalResponseNorm(3)
            self.last = nn.AdaptiveMaxPool3d(3)

        def forward(self, x):
            x = self.stem(x)
            return self.last(self.second(self.first(x)) + x).mean((2, 3))

    return analyse(from_module(Odd().eval(), "odd", "odd", [(1, 3, 8, 8)]))


def test_every_operator_in_the_way_is_named(odd):
    row = estimate(odd, TARGETS["raspberry-pi-4b"])
    assert row["build"]["possible"]
    for word in ("nn.avg_pool3d (first, second)", "max_pool (last)"):
        assert word in row["int8"]["reason"]
    shown = text(odd.program, [row, estimate(odd, TARGETS["pynq-z1"])])
    assert f"Not in int8 for raspberry-pi-4b: {row['int8']['reason']}" in shown
    assert f"Not built for pynq-z1: {row['int8']['reason']}" in shown


def test_graphs_can_be_built_in_int8():
    branched = analyse(import_model("networks:residual", [parse_input_shape("1x3x8x8")]))
    for name in ("host", "raspberry-pi-4b", "jetson-nano", "pynq-z1", "mps3-an547"):
        found = estimate(branched, TARGETS[name])["int8"]
        assert (found["possible"], found["reason"]) == (True, ""), name


def test_what_a_build_would_refuse_is_said():
    """By the code that refuses it."""
    branched = analyse(import_model("networks:residual", [parse_input_shape("1x3x8x8")]))
    rows = {name: estimate(branched, TARGETS[name]) for name in ("host", "raspberry-pi-4b", "jetson-nano")}
    assert all(row["build"]["possible"] for row in rows.values())
    across = nn.Sequential(nn.Conv2d(3, 4, 1), nn.LocalResponseNorm(2))
    refusing = analyse(from_module(across, "net", "net", [(1, 3, 8, 8)]))
    rows["pynq-z1"] = estimate(refusing, TARGETS["pynq-z1"])
    with pytest.raises(UnsupportedOperatorError) as refused:
        kind.of(TARGETS["pynq-z1"]).check_network(refusing.imported, TARGETS["pynq-z1"])
    assert rows["pynq-z1"]["build"] == {"possible": False, "reason": str(refused.value)}
    shown = text(branched.program, list(rows.values()))
    assert f"Not built for pynq-z1: {rows['pynq-z1']['build']['reason']}" in shown
    document = {
        "reports": [],
        "estimates": [{"model": describe_model(branched.program), "estimates": [rows["pynq-z1"]]}],
    }
    (entry,) = networks_report.entries(document)
    assert (entry["verified"], entry["latency_ms"]) == ("can't be built", None)


def test_figures_that_were_assumed_are_marked(network):
    """Where a board's figures were not looked up, its bound says so, in the table and beside the network."""
    found = estimate(network, PI)
    assert found["figures"] == "data sheet, but flops_per_cycle, memory_gbps assumed"
    assert found["figures"] in text(network.program, [found])
    known = replace(PI, cpu=replace(PI.cpu, unverified=()))
    assert estimate(network, known)["figures"] == "data sheet"
    roof = Roof(macs_per_s=1e9, bytes_per_s=1e9, cache_bytes=0, source="", basis="measured")
    assert estimate(network, TARGETS["host"], roof)["figures"] == "measured here"
    document = {"reports": [], "estimates": [{"model": describe_model(network.program), "estimates": [found]}]}
    (table, *_) = networks_report.tables(document)
    assert table.rows[0]["raspberry-pi-4b"].basis == f"modelled; {found['figures']}"


def test_command(tvmflow, tmp_path):
    options = ("--model", "networks:tiny", "--input-shape", "1x3x9x7", "--json", tmp_path / "out.json")
    done = tvmflow("estimate", "--board", "raspberry-pi-5", *options, PYTHONPATH=f"{ROOT}:{ROOT / 'tests'}")
    assert done.code == 0, done.err
    assert "modelled: lower bounds" in done.out
    content = json.loads((tmp_path / "out.json").read_text())
    schema = json.loads((ROOT / "docs" / "report.schema.json").read_text())
    jsonschema.validate(content, {"$ref": "#/$defs/estimate", "$defs": schema["$defs"]})
    tvmflow("estimate", "--board", "pi").failed_with(4, "There is no board")


def test_bounds_of_fast_boards_are_told_from_0():
    assert [least_text(ms) for ms in (None, 12.3456, 0.0123, 0.000213)] == ["?", "12.346", "0.012", "0.00021"]
