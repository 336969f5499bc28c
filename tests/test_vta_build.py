"""From a quantised network to a bundle for VTA, what is said of it, and the search for better tilings."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import data_sets
import jsonschema
import numpy as np
import pytest
from conftest import ROOT
from integer_networks import POOL, conv, dense, depthwise, random_network

from benchmarks import vta as benchmark
from tvmflow.bundles.build import build
from tvmflow.bundles.bundle import open_bundle
from tvmflow.bundles.evaluate import evaluate_quantised
from tvmflow.integer import file
from tvmflow.integer.network import IntegerNetwork
from tvmflow.report import collect
from tvmflow.report.render import render_html, report_text
from tvmflow.report.search import search_of
from tvmflow.report.survey import survey
from tvmflow.spec import UserError, VerificationError
from tvmflow.system.text import to_json
from tvmflow.targets import TARGETS
from tvmflow.targets.vta import backend, search
from tvmflow.targets.vta.bounds import Bounds
from tvmflow.targets.vta.compile import compile_network, prepare
from tvmflow.targets.vta.config import Config
from tvmflow.targets.vta.driver.fake import FakeBoard
from tvmflow.targets.vta.driver.vta_driver import Device, self_test
from tvmflow.targets.vta.program import read
from tvmflow.targets.vta.space import tasks_of
from tvmflow.targets.vta.tiles import Tiling
from tvmflow.tune import command as tuning
from tvmflow.tune.apply import find_records
from tvmflow.tune.store import Store

BOARD = TARGETS["pynq-z1"]
VTAS = [name for name, board in TARGETS.items() if board.kind == "vta"]
NETWORK = random_network(
    np.random.default_rng(0),
    "power-of-two",
    shapes=(depthwise(dilation=5), depthwise(stride=2), conv(40), POOL, dense(10)),
    input_shape=(1, 20, 9, 9),
)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model") / "small.safetensors"
    file.save(NETWORK, path)
    return path


@pytest.fixture(scope="module")
def built(model, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("vta") / "small"
    build(backend.import_network(str(model)), BOARD, out)
    return out


@pytest.mark.parametrize("name", VTAS)
def test_every_board(name, model, tmp_path):
    """Verified bit for bit, timed at the board's own clock and bus, and described as the schema says."""
    out = tmp_path / "small.tar"
    build(backend.import_network(str(model)), TARGETS[name], out)
    with open_bundle(out) as bundle:
        assert bundle.target == TARGETS[name]
    report = survey(out)
    assert report["verify"]["passed"] is True
    assert report["verify"]["method"] == "simulated"
    latency = report["latency"]
    assert latency["basis"] == "simulated"
    assumed = latency["simulation"]
    assert assumed["clock_mhz"] == TARGETS[name].facts.clock_mhz
    assert latency["p50"] == pytest.approx(assumed["cycles"] / assumed["clock_mhz"] / 1e3)
    assert sum(layer["details"]["cycles"] for layer in report["layers"]) == assumed["cycles"]
    assert all(layer["details"]["times_bound"] >= 1 for layer in report["layers"])
    low, high = assumed["band_ms"]
    assert low <= latency["p50"] <= high
    assert sum(row["latency"]["p50"] for row in report["layers"]) == pytest.approx(1e3 * latency["p50"], rel=0.05)
    document = collect([report])
    jsonschema.validate(json.loads(to_json(document)), json.loads((ROOT / "docs" / "report.schema.json").read_text()))
    assert "simulated" in render_html(document)
    text = report_text(report)
    assert f"{TARGETS[name].facts.latency_cycles} cycles of memory latency" in text
    assert "µs (simulated)" in text


def test_a_bundle_runs_on_the_boards_own_driver(built):
    """The driver's Python, as it lies in the bundle, on a device that is a register file and a simulator."""
    core, base = "hls", 0x43C00000
    board = FakeBoard(Config(), core, base)
    hardware = {"window": board.window, "memory": board.allocate}
    self_test(str(built / "runner" / "selftest"), core, base, **hardware)
    vector = sorted((built / "vectors").iterdir())[0]
    with Device(str(built), core, base, **hardware) as device:
        found = device.run(np.load(vector / "input-0.npy"))
    assert np.array_equal(found.reshape(1, -1), np.load(vector / "output-0.npy"))
    assert (built / "runner" / "run").exists()


def test_deploying_to_a_fake_board(built, board):
    """The bundle goes over SSH to a board and runs there on a fake VTA, which gives a verdict and no latency."""
    fake = f"PYTHONPATH={ROOT} VTA_HARDWARE=tvmflow.targets.vta.driver.fake:rehearsal"
    board.command("python3", f'export {fake}; exec {sys.executable} "$@"')
    report = board.deploy(built)
    assert report["verify"]["passed"]
    assert report["device"]["basis"] == "emulated"
    assert report["latency"] is None
    assert "tvmflow.targets.vta.driver.fake:rehearsal" in report["latency_note"]


def test_a_damaged_program_is_found_out(built, model, tmp_path, monkeypatch):
    """What computes something else is no bundle."""
    original = backend.compiled_of

    def spoiled(program):
        compiled = original(program)
        image = compiled.executable.image.copy()
        image[256:512] ^= 1
        return replace(compiled, executable=replace(compiled.executable, image=image))

    monkeypatch.setattr(backend, "compiled_of", spoiled)
    with pytest.raises(VerificationError, match="computes something else"):
        build(backend.import_network(str(model)), BOARD, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_disassembly(built, tvmflow):
    whole = tvmflow("vta", "disasm", str(built))
    lines = [line for line in whole.out.splitlines() if line[:6].strip().isdigit()]
    assert len(lines) == len(read(built).instructions)
    assert lines[-1].split()[1] == "finish"
    tvmflow("vta", "disasm", str(built), "--layer", "nothing").failed_with(4, "nothing", "layers.0")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"linker": "zig"}, "--linker"),
        ({"runner": True}, "--runner"),
    ],
)
def test_options_that_mean_nothing_here(arguments, words, tmp_path):
    with pytest.raises(UserError, match=words):
        backend.check(BOARD, **arguments)


def test_float_networks_are_refused(model, tmp_path):
    program = replace(backend.import_network(str(model)), integer=None)
    with pytest.raises(UserError, match="has to be quantised"):
        build(program, BOARD, tmp_path / "out")


def test_stages_are_dumped(model, tmp_path):
    build(backend.import_network(str(model)), BOARD, tmp_path / "out", dump_dir=tmp_path / "dump", verify=False)
    names = [path.name for path in sorted((tmp_path / "dump").iterdir())]
    assert names == ["0-cut_layers.txt", "1-emit_program.txt", "2-check_program.txt", "3-describe_layers.txt"]
    assert "finish" in (tmp_path / "dump" / "1-emit_program.txt").read_text()


def test_bounds_hold():
    """No program is faster than its bound, layer by layer; products are those of taps that read the map."""
    from tvmflow.targets.vta import timing

    for work in prepare(NETWORK, Config()):
        layer = work.layer
        alone = IntegerNetwork.chain(
            name="alone",
            scheme="power-of-two",
            input_shape=layer.input_shape,
            input_scale=1.0,
            layers=(replace(layer, inputs=("input",)),),
        )
        cycles = timing.simulate(compile_network(alone, Config()).executable, timing.Hardware()).cycles
        bounds = Bounds.of(work, 8)
        assert bounds.gemm <= bounds.compute <= bounds.least <= cycles


# ------------------------------------------------------------------------------------------------------------ searching


def searched(model: Path, folder: Path, trials: int) -> dict:
    plan = tuning.prepare(
        BOARD, str(model), [], trials=trials, time_budget="10m", runner="auto", seed=0, work_dir=folder, min_gain=0.0,
        builders=None, transfer=True,
    )  # fmt: skip
    _, content = tuning.tune(plan, None)
    return content


def test_search_build_and_resume(model, tmp_path):
    """Found tilings make the network faster, a build uses them, and what was tried isn't tried again."""
    first = searched(model, tmp_path / "a", 24)
    assert first["trials"] == 24
    assert first["basis"] == "simulated"
    assert first["network_ms"] <= first["network_untuned_ms"]
    records = find_records(BOARD, tmp_path / "a")
    assert {row["key"] for row in first["tasks"]} <= set(records)
    bundle = build(backend.import_network(str(model)), BOARD, tmp_path / "out", records=records)
    assert all(layer.schedule.endswith(", searched") for layer in bundle.layers)
    found = survey(tmp_path / "out", profiled=False)
    assert found["latency"]["p50"] == pytest.approx(first["network_ms"])

    again = searched(model, tmp_path / "a", 24)
    assert again["trials_of_this_run"] == 0
    assert [row["winner"] for row in again["tasks"]] == [row["winner"] for row in first["tasks"]]
    more = searched(model, tmp_path / "a", 32)
    assert more["trials_of_this_run"] == 8
    (folder,) = (tmp_path / "a").iterdir()
    assert search_of(Store(folder))["basis"] == "simulated"


def test_same_seed_same_decisions(model, tmp_path):
    rows = [searched(model, tmp_path / name, 16)["tasks"] for name in "ab"]
    assert rows[0] == rows[1]


def test_interrupted_search_keeps_its_trials(model, tmp_path, monkeypatch):
    """Ctrl-C in the middle of a batch loses nothing that was simulated."""
    done = []
    original = search.SimulatedMeasurer._measure

    def interrupted(self, task, candidate):
        if len(done) == 10:
            raise KeyboardInterrupt
        done.append(candidate.text)
        return original(self, task, candidate)

    monkeypatch.setattr(search.SimulatedMeasurer, "_measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        searched(model, tmp_path, 24)
    (folder,) = tmp_path.iterdir()
    assert sum(entry["kind"] == "trial" for entry in Store(folder).entries) == 10


def test_records_of_another_board_are_refused(model, tmp_path):
    searched(model, tmp_path, 6)
    with pytest.raises(UserError, match="board"):
        find_records(TARGETS["de10-nano"], tmp_path)


def test_what_does_not_fit_is_a_failed_trial():
    """Eighty blocks of 9×9 outputs are more than the accumulators."""
    wide = random_network(
        np.random.default_rng(0), "power-of-two", shapes=(conv(1280, relu=False),), input_shape=(1, 16, 9, 9)
    )
    works = prepare(wide, Config())
    measurer = search.SimulatedMeasurer(works, Config(), backend.hardware(BOARD))
    (task,) = tasks_of(works, Config())
    space = search.Space(task, Config(), {}, search.CostModel(), seed=0)
    huge = replace(space.default, tiling=Tiling(out_blocks=80, rows=9, in_blocks=1))
    assert [result.outcome for result in measurer.measure(task, [space.default, huge], None)] == ["ok", "build failed"]


def test_layers_alike_are_one_task():
    tasks = tasks_of(prepare(NETWORK, Config()), Config())
    assert sum(task.calls for task in tasks) == len(NETWORK.layers)
    assert len({task.key for task in tasks}) == len(tasks)


def test_boards_are_not_needed(tvmflow):
    tvmflow("tune", "--target", "vta", "--ssh", "pi").failed_with(4, "simulated on this computer")


def test_command_line(model, tvmflow, tmp_path):
    """build and bench, as the documentation has them."""
    out = tmp_path / "bundle"
    made = tvmflow(
        "build", "--target", "vta", "--board", "pynq-z1", "--model", str(model), "-o", str(out), "--no-tuned"
    )
    assert made.code == 0, made.err
    assert "passed (simulated" in made.out
    assert "simulated:" in tvmflow("bench", str(out)).out


def test_benchmark_page(monkeypatch, tmp_path):
    """Three programs and each layer beside its bounds; images that give other logits would be counted."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    document = {
        "board": BOARD.name,
        "model": NETWORK.name,
        "environment": {"date": "2026-01-01"},
        "vta": asdict(BOARD.facts),
        **benchmark.measure(NETWORK, BOARD, None),
    }
    assert document["cycles"]["untiled"] > document["cycles"]["default"]
    images, source = benchmark.read_images(NETWORK, None, 2)
    equal = benchmark.count_equal(NETWORK, BOARD, None, images)
    document["equality"] = {"images": 2, "source": source, "equal": equal}
    page = benchmark.markdown(document)
    assert "on 2 of 2 images (noise)" in page
    assert all(f"| {layer.name} |" in page for layer in NETWORK.layers)


def test_evaluated_on_the_simulator(monkeypatch, tmp_path):
    """The paper's network: every logit of twenty images is the integer reference's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("tvmflow.models.data.COUNTS", data_sets.COUNTS)
    data = data_sets.write_folder(tmp_path / "data")
    build(backend.import_network("dilated-net"), BOARD, tmp_path / "net", verify=False)
    result = evaluate_quantised(data, "dilated-net", "power-of-two", tmp_path / "net")
    assert result["compiled"]["identical"] == result["images"] == 20
