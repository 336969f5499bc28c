"""What benchmarks say of a library that isn't there or is wrong, and the tables and plots that they make of figures."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import integer_networks
import numpy as np
import pytest

from benchmarks import (
    arm_instructions,
    convert,
    depthwise,
    experiments,
    libraries,
    library_calls,
    networks,
    peers,
    plots,
    published_mcu,
    runners,
    variants,
)
from tvmflow import report
from tvmflow.bundles.bundle import open_bundle
from tvmflow.integer import qdq
from tvmflow.measure import device
from tvmflow.models.dilated_net import DilatedNetConfig
from tvmflow.spec import Vector


@pytest.fixture(scope="module")
def folder(host_bundle, tmp_path_factory):
    """A network as `benchmarks.convert` leaves it, for tvmflow alone."""
    made = tmp_path_factory.mktemp("runners")
    shutil.copytree(host_bundle, made / "bundle")
    with open_bundle(host_bundle) as bundle:
        (vector, *_) = bundle.vectors()
    np.save(made / "input.npy", vector.inputs[0])
    np.save(made / "expected.npy", vector.outputs[0])
    return made


def runner(name, folder, *options, said=""):
    """The lines of JSON that a runner answers."""
    command = [sys.executable, "-m", "benchmarks.runners", name, str(folder), "1", *options]
    done = subprocess.run(command, input=said, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_runner_checks_its_answer_and_times_single_inferences(folder):
    first, *turns = runner("tvmflow", folder, said="0.01\n0.01\n")
    assert first["error"] <= 3e-5
    assert len(turns) == 2
    assert all(turn["p50"] > 0 for turn in turns)


def test_a_wrong_answer_is_told(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "wrong")
    expected = np.load(folder / "expected.npy")
    np.save(tmp_path / "wrong" / "expected.npy", expected + np.abs(expected).max())
    ((first),) = runner("tvmflow", tmp_path / "wrong", "--inferences", "0")
    assert first["error"] > runners.tolerance("tvmflow")


def test_a_library_that_has_nothing_to_run_is_absent(folder):
    ((first),) = runner("onnxruntime", folder)
    assert "model.onnx" in first["absent"]


def test_tables_and_plots(tmp_path):
    limits = {"gflops": 100.0, "gbps": 30.0, "gbps_l2": 60.0, "gbps_memory": 10.0}
    around = {"cpu": "a CPU", "cores": 2, "date": "2026-01-01", "versions": {"tvmflow": "1", "openvino": "2"}}
    libraries = {
        "tvmflow": {"p50": 2.0, "rounds": [2.0, 1.0, 4.0], "times_tvmflow": [1.0, 1.0, 1.0]},
        "openvino": {"p50": 3.0, "rounds": [3.0, 2.0, 4.0], "times_tvmflow": [1.5, 2.0, 1.0]},
    }
    layer = {"modules": ["stem"], "schedule": "lanes", "us": 1.0, "gflops": 50.0, "of_peak": 0.5, "gbps": 3.0}
    network = {
        "model": "dilated-net",
        "environment": around,
        "rounds": 3,
        "seconds": 0.1,
        "load_after": 0.5,
        "limits": limits,
        "absent": {"ncnn": "pnnx is not installed"},
        "rows": [{"threads": threads, "libraries": libraries} for threads in (1, 2)],
        "layers": [{**layer, "of_bandwidth": 0.1, "intensity": 8.0}, {**layer, "of_bandwidth": 0.1, "intensity": 0}],
    }
    document = {"networks": [network]}
    text = peers.markdown(document, "peers")
    figures = "3.000 (2.000–4.000) | 1.50 (1.00–2.00)"
    assert f"| openvino | 2 | {figures} | {figures} |" in text
    assert "Not measured: ncnn (pnnx is not installed)." in text
    for name, draw in plots.PLOTS.items():
        assert f"![{name}](peers-{name}.svg)" in text
        models = [f"net-{place}" for place in range(9)]
        draw({"networks": [{**network, "model": model} for model in models]}, tmp_path / "plot.svg")
        drawn = (tmp_path / "plot.svg").read_text()
        assert all(model in drawn for model in models)


@pytest.fixture(scope="module")
def ten():
    """A made-up document of ten networks, two of them the registry's; a library is absent for one of them."""

    def libraries(**times):
        return {name: {"p50": value, "rounds": [value], "times_tvmflow": [value / 2]} for name, value in times.items()}

    around = {
        "cpu": "a CPU",
        "cores": 2,
        "date": "2026-01-01",
        "versions": {"tvmflow": "1", "onnxruntime": "2", "ncnn": "3"},
    }
    layer = {"modules": ["stem"], "schedule": "lanes", "us": 1.0, "gflops": 50.0, "of_peak": 0.5, "gbps": 3.0}
    networks = []
    for place, model in enumerate(("dilated-net", "resnet-8", *(f"net-{number}" for number in range(8)))):
        rows = [
            {"threads": 1, "libraries": libraries(tvmflow=2.0, onnxruntime=16.0 / 2**place, ncnn=4.0)},
            {"threads": 2, "libraries": libraries(tvmflow=2.0, onnxruntime=4.0, ncnn=8.0)},
        ]
        if place == 3:
            for row in rows:
                del row["libraries"]["ncnn"]
        networks.append(
            {
                "model": model,
                "description": f"about {model}",
                "input_shape": [1, 9, 128],
                "multiply_adds": 4_600_000,
                "batch": 1,
                "environment": around,
                "rounds": 1,
                "seconds": 0.1,
                "load_after": 0.5,
                "limits": {"gflops": 100.0, "gbps": 30.0, "gbps_l2": 60.0, "gbps_memory": 10.0} if place < 2 else {},
                "absent": {"ncnn": "no such operator"} if place == 3 else {},
                "rows": rows,
                "layers": [{**layer, "of_bandwidth": 0.1, "intensity": 8.0}] if place < 2 else [],
            }
        )
    return {"networks": networks}


def test_the_page_of_many_networks_begins_with_all_of_them(ten):
    text = peers.markdown(ten, "peers-all")
    head, *sections = text.split("\n## ")
    assert "![ratios](peers-all-ratios.svg)" in head
    assert sections[0].startswith("10 networks\n")
    rows = [line for line in sections[0].splitlines() if " / " in line]
    named = [line.split(" | ")[0].removeprefix("| ") for line in rows]
    # what another library is best at comes first
    assert named == [*(f"net-{number}" for number in range(7, 0, -1)), "dilated-net", "resnet-8", "net-0"]
    assert rows[0] == "| net-7 | 2.000 / 2.000 | **0.02** / 2.00 | 2.00 / 4.00 | **0.02** / 2.00 |"
    assert "| net-1 | 2.000 / 2.000 | 1.00 / 2.00 | – / – | 1.00 / 2.00 |" in rows
    assert "| dilated-net | 2.000 / 2.000 | 8.00 / 2.00 | 2.00 / 4.00 | 2.00 / 2.00 |" in rows
    assert "| onnxruntime | **0.35** | 6 of 10 | 2.00 | 0 of 10 |" in sections[0]
    assert "| ncnn | 2.00 | 0 of 9 | 4.00 | 0 of 9 |" in sections[0]
    assert "| fastest of them | **0.29** | 6 of 10 | 2.00 | 0 of 10 |" in sections[0]
    # then each, in the document's order, and layers of the registry's alone
    assert [section.partition("\n")[0] for section in sections[1:]] == [each["model"] for each in ten["networks"]]
    assert ["| stem | lanes |" in section for section in sections[1:]] == [True, True, *[False] * 8]
    assert "about net-1; 1×9×128, 4.6 M multiply-adds." in sections[4]
    assert "Not measured: ncnn (no such operator)." in sections[4]


def test_plots_of_many_networks(ten, tmp_path):
    assert plots.drawn(ten) == ["ratios", "latency", "roofline"]
    for name, draw in plots.PLOTS.items():
        draw(ten, tmp_path / f"{name}.svg")
        drawn = (tmp_path / f"{name}.svg").read_text()
        assert [network["model"] in drawn for network in ten["networks"]] == [True, True, *[name == "ratios"] * 8]
    without = {"networks": [*ten["networks"][2:], *ten["networks"][2:4]]}
    assert plots.drawn(without) == ["ratios"]
    assert "latency.svg" not in peers.markdown(without, "peers")


def test_which_networks_are_meant():
    known = ["a", "b", "c"]
    assert peers.chosen(["all"], known, ["b"]) == known
    assert peers.chosen(["missing"], known, ["b"]) == ["a", "c"]
    assert peers.chosen(["c", "missing"], known, ["b", "c"]) == ["c", "a"]
    with pytest.raises(ValueError, match="there is no network d"):
        peers.chosen(["a", "d"], known, [])


def test_results_are_there_after_each_network_and_kept(tmp_path, monkeypatch, capsys, ten):
    """A network that fails isn't in them, and is said at the end; `missing` is what they lack, and is named."""
    monkeypatch.setattr(report, "environment", lambda versions: {"cpu": "a CPU"})
    monkeypatch.setattr(peers.roofline, "limits", dict)
    monkeypatch.setattr(networks, "NETWORKS", dict.fromkeys(network["model"] for network in ten["networks"][2:5]))
    output = tmp_path / "all.json"

    def measure(model, *_):
        measured.append(model)
        if model == "net-1" and len(measured) < 4:
            raise peers.RunnerError("tvmflow can't be timed")
        assert len(json.loads(output.read_text())["networks"] if output.exists() else ()) == len(done)
        done.append(model)
        return next(network for network in ten["networks"] if network["model"] == model)

    def run(*options):
        monkeypatch.setattr(sys, "argv", ["peers", *options, "--output", str(output)])
        peers.main()

    measured, done = [], []
    monkeypatch.setattr(peers, "measure", measure)
    with pytest.raises(SystemExit, match=r"Not measured, for the reasons above: net-1\."):
        run("--models", "all")
    assert measured == ["net-0", "net-1", "net-2"]
    run("--models", "missing", "--append")
    assert measured[3:] == ["net-1"]
    assert "Missing from all.json: net-1." in capsys.readouterr().err
    assert [network["model"] for network in json.loads(output.read_text())["networks"]] == ["net-0", "net-1", "net-2"]
    with pytest.raises(SystemExit):
        run("--models", "missing")
    assert "--models missing goes with --append" in capsys.readouterr().err


def test_a_library_that_fails_while_it_is_timed_is_absent_and_ours_is_not(folder, monkeypatch):
    def turn(contestant, seconds):
        if contestant.name == failing:
            raise peers.RunnerError(f"{failing} failed while it was timed: exit code 1")
        return 1.0

    monkeypatch.setattr(peers.Contestant, "turn", turn)
    # the same runner by another name
    process = peers.process
    monkeypatch.setattr(peers, "process", lambda name, *others: process("tvmflow", *others))
    options = argparse.Namespace(dtype="float32", rounds=2, seconds=0.01)
    failing, absent = "ncnn", {}
    row = peers.compare(folder, ["tvmflow", "ncnn"], 1, options, {}, absent)
    assert row["libraries"].keys() == {"tvmflow"}
    assert absent == {"ncnn": "ncnn failed while it was timed: exit code 1"}
    failing = "tvmflow"
    with pytest.raises(peers.RunnerError):
        peers.compare(folder, ["tvmflow", "ncnn"], 1, options, {}, absent)


def test_every_output_is_held_against_the_original():
    one, other = np.ones((1, 3), np.float32), np.full((1, 2), 4, np.float32)
    assert runners.largest_error([one, other], [one, other]) == 0
    assert runners.largest_error([one, other], [one, other + 1]) == pytest.approx(0.2)
    assert runners.largest_error([one], [one, other]) == float("inf")


def test_what_a_converter_does_not_take_is_absent(tmp_path, monkeypatch):
    """For those that would run its file as well; and others have theirs, and what to answer."""

    def refuse(*_):
        raise ValueError("no such operator\nand more of it")

    one, other = np.ones((1, 3), np.float32), np.zeros((1, 2), np.float32)
    vector = Vector(name="ones", inputs=(one,), outputs=(one, other))
    monkeypatch.setattr(networks, "NETWORKS", {"tiny": lambda: None})
    monkeypatch.setattr(convert, "to_onnx", refuse)
    monkeypatch.setattr(convert, "to_ncnn", lambda *_: "")
    program = SimpleNamespace(name="tiny", vectors=[vector])
    absent = convert.convert(program, tmp_path, libraries=["openvino", "ncnn", "pytorch"])
    assert absent == dict.fromkeys(("onnxruntime", "openvino"), "ValueError: no such operator")
    assert runners.largest_error([one, other], runners.expected_of(tmp_path)) == 0


def test_c_of_the_instruction_counts_compiles(tmp_path):
    compiler = [sys.executable, "-m", "ziglang", "cc", "-Wall", "-Wextra", "-Werror", "-fPIC"]
    for name in ("count_instructions", "run_bundle"):
        options = [f"-I{device.HERE}", "-c", "-o", str(tmp_path / f"{name}.o")]
        subprocess.run([*compiler, *options, str(arm_instructions.HERE / f"{name}.c")], check=True)


def test_counts_are_said_to_be_no_latencies():
    counts = {
        "tvmflow": {"instructions": 2e6, "estimates": [2e6, 2e6], "times_tvmflow": 1.0},
        "ncnn": {"instructions": 3e6, "estimates": [2.9e6, 3.1e6], "times_tvmflow": 1.5},
    }
    network = {"model": "dilated-net", "multiply_adds": 4_000_000, "counts": counts, "absent": {"litert": "it is not"}}
    around = {"date": "2026-01-01T00:00", "versions": {"tvmflow": "1", "ncnn": "2"}}
    document = {"environment": around, "board": "b", "dtype": "float32", "qemu": "qemu 7", "networks": [network]}
    text = arm_instructions.markdown(document)
    assert "not latencies" in text
    assert "| dilated-net | ncnn | 2 | 3.00 | 2.90 and 3.10 | 1.50 | 0.750 |" in text
    assert "dilated-net: litert was not counted (it is not)." in text


def test_depthwise_layers_compute_the_same_in_each_layout_and_are_tabled():
    """With a border, a stride, and taps that meet nothing."""
    versions = {"tvmflow": "1", "tvmflow-nchw": "1", "onnxruntime": "2", "pytorch": "3"}
    us = depthwise.compare(32, 5, 2, 3, versions)
    assert us.keys() == versions.keys()
    assert all(value > 0 for value in us.values())
    us = {"tvmflow": 2.0, "tvmflow-nchw": 4.0, "onnxruntime": 3.0, "pytorch": 9.0}
    row = {"channels": 32, "size": 4, "stride": 1, "delta": 2, "us": us}
    row |= depthwise.ratios({**us, "litert": 1.0})
    assert (row["ratio"], row["nchw_ratio"]) == (0.5, 0.75)
    around = {"cpu": "a CPU", "date": "2026-01-01", "load": 0.1, "versions": versions}
    document = {"environment": around, "absent": {"ncnn": "ncnn is not installed"}, "rows": [row]}
    other = {"us": {**us, "tvmflow": 0.5}, "ratio": 2.0, "nchw_ratio": 3.0}
    document["summary"] = depthwise.summary([row, other])
    text = depthwise.markdown(document)
    assert "1.00 times tvmflow's time as geometric mean over 2 sizes, 0.50 at worst, less than once at 1." in text
    assert "0.50 times tvmflow's time as geometric mean over 1 sizes" in text
    assert "Not measured: ncnn (ncnn is not installed)." in text
    assert "| 32 | 4 | 1 | 2 | 2.0 | 4.0 | 3.0 | 9.0 | 0.50 | 0.75 |" in text


def test_the_page_of_libraries_says_how_many_have_the_same_bits():
    row = {"state": "same bits", "kernels": 3, "parallel_loops": 2, "serial_loops": 0}
    other = {**row, "state": "other bits", "said": "The C libraries differ in powf.", "parallel_loops": 1}
    networks = {"one": {"musl-arm32": row, "musl-x64": row}, "two": {"musl-arm32": other, "musl-x64": row}}
    text = libraries.page({"networks": networks, "environment": {"date": "2026-11-30"}})
    assert "- musl-x64: 2 same bits\n- musl-arm32: 1 same bits, 1 other bits\n" in text
    assert "| `two` | same bits | other bits | 3 | 1 / 2 | 0 |" in text
    assert "- The C libraries differ in powf. — two (musl-arm32)" in text


def test_libraries_are_asked_for_by_names_and_files(tmp_path):
    (tmp_path / "a.tflite").touch()
    (tmp_path / "b.txt").touch()
    assert libraries.chosen(["lenet", str(tmp_path)]) == ["lenet", str(tmp_path / "a.tflite")]
    assert {"lenet", "squeezenet", "registry:squeezenet", "resnet-8"} <= {*libraries.chosen([])}
    with pytest.raises(SystemExit, match="nonesuch is no network"):
        libraries.chosen(["nonesuch"])


def test_a_library_is_a_fault_of_its_own():
    assert libraries.take("nonesuch.onnx", ["musl-x64"])["musl-x64"]["state"] == "refused"


def test_calls_of_libraries_stand_beside_their_kernels():
    found = {"module": [4.0, 6.0, 5.0], "library": [2.0, 2.0, 2.5], "kernels": [1.5, 1.25, 1.75]}
    row = {"network": "head", "kernels": 2, "rounds": 3, "seconds": 0.3, "threads": {"1": found}, "load_after": 0.5}
    around = {"cpu": "a CPU", "cores": 2, "date": "2026-11-30"}
    text = library_calls.page({"networks": [row], "environment": around})
    assert "| head | 2 | 5.00 (4.00–6.00) | 2.00 (2.00–2.50) | 2.00 (2.00–3.00) | 1.50 | 0.5 |" in text


def test_counts_of_microcontrollers_are_those_of_the_table():
    from benchmarks.mcu import RESULTS, markdown

    document = json.loads(RESULTS.read_text())
    assert markdown(document) == RESULTS.with_suffix(".md").read_text()
    assert all(row["exact"] == document["int8"]["images"] >= 200 for row in document["int8"]["boards"])
    assert all(row["max_rel_error"] < 3e-5 for row in document["float32"]["boards"])
    # all but the pool and the layer behind it
    assert all(all(row["exact"][:-2]) for row in document["cmsis-nn"]["boards"])


def test_counts_of_files_are_those_of_the_table():
    from benchmarks.mcu_files import RESULTS, markdown

    document = json.loads(RESULTS.read_text())
    assert markdown(document) == RESULTS.with_suffix(".md").read_text(encoding="utf-8")


def test_every_operator_of_the_peer_made_the_integers_of_the_file():
    from benchmarks.mcu_files import RESULTS

    rows = json.loads(RESULTS.read_text())["rows"]
    assert [call["name"] for row in rows for call in row["peer"] if not call["exact"]] == []


CALLED = {
    "conv-strided": ("CONVOLUTION", (7, 6, 3), (4, 3, 5)),
    "depthwise-multiplied": ("DEPTHWISE", (7, 6, 3), (4, 6, 6)),
    "dense-rows": ("DENSE", (1, 3, 10), (1, 3, 6)),
    "add": ("ADD", (3, 4, 5), (3, 4, 5)),
    "softmax-10": ("SOFTMAX", (1, 1, 10), (1, 1, 10)),
}


@pytest.mark.parametrize("name", CALLED)
def test_operators_of_a_file_become_calls_of_the_library(tmp_path, name):
    from tflite_cases import graphs_of
    from tflite_files import file_of

    from benchmarks.cmsis_nn_files import MAKERS
    from tvmflow.integer.tflite.model import read_model

    path = tmp_path / "case.tflite"
    path.write_bytes(file_of(*graphs_of(name)))
    graph = read_model(path)[0]
    (operator,) = graph.operators
    made = MAKERS[operator.kind](graph, operator)
    assert (made.kind, made.input_shape, made.output_shape) == CALLED[name]


def test_a_quantised_network_for_onnxruntime_has_its_numbers(tmp_path):
    """But for the rounding of halves, and what a library makes of scales in floating point."""
    shapes = (
        integer_networks.conv(12),
        integer_networks.depthwise(dilation=2),
        integer_networks.conv(9, relu=False),
    )
    network = integer_networks.random_network(
        np.random.default_rng(4),
        "per-channel",
        shapes=shapes,
        input_shape=(1, 3, 9, 7),
    )
    # without VNNI the library adds two products in 16 bits, where those of larger weights saturate
    layers = tuple(replace(layer, weight=layer.weight // 2) for layer in network.layers)
    network = replace(network, layers=layers)
    qdq.write(network, tmp_path / "model.onnx", integers=True)
    images = integer_networks.random_input(np.random.default_rng(5), network.input_shape, 1)
    np.save(tmp_path / "input.npy", images)
    run, _ = runners.run_onnxruntime(tmp_path, 1)
    assert runners.largest_error(run(), [network.run(images)]) <= runners.tolerance("onnxruntime-int8")
    assert runners.largest_error(run(), [-network.run(images)]) > runners.tolerance("onnxruntime-int8")


def test_table_of_int8():
    around = {"cpu": "a CPU", "cores": 2, "date": "2026-01-01", "versions": {"tvmflow-int8": "1"}}
    libraries = {"tvmflow-int8": {"p50": 0.5, "rounds": [0.5, 0.6], "times_tvmflow": [1.0, 1.0]}}
    network = {
        "model": "dilated-net",
        "batch": 1,
        "environment": around,
        "rounds": 2,
        "seconds": 1,
        "load_after": 0.1,
        "absent": {"onnxruntime-int8": "no such library"},
        "rows": [{"threads": 1, "libraries": libraries}],
        "layers": [{"modules": ["a", "b"], "schedule": "integer convolution", "us": 10.0, "gmacs": 200.0}],
    }
    text = peers.markdown_int8({"networks": [network]}, "peers-int8")
    assert "| a, b | integer convolution | 10.0 | 200.0 |" in text
    assert "Not measured: onnxruntime-int8 (no such library)." in text
    assert "--dtype int8`" in text
    assert "--dtype int8 --cpu znver3`" in peers.markdown_int8(
        {"networks": [{**network, "compiled_for": "znver3"}]}, ""
    )


def test_variants_take_turns(tmp_path, monkeypatch):
    monkeypatch.setattr(experiments, "VARIANTS", {"tiny": DilatedNetConfig(widths=(4, 8), strides=(2, 2))})
    variants.prepare("tiny", tmp_path / "tiny")
    (rounds,) = variants.compare({"tiny": tmp_path / "tiny"}, threads=1, rounds=2, seconds=0.01).values()
    assert len(rounds) == 2
    assert all(median > 0 for median in rounds)


def test_another_cpu_goes_with_int8_alone(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["peers", "--cpu", "znver3"])
    with pytest.raises(SystemExit):
        peers.main()
    assert "--cpu goes with --dtype int8" in capsys.readouterr().err


def test_an_input_whose_answer_is_certain_is_timed():
    given, answer = (np.zeros((1, 2), "float32"),), np.array([[3.0, 400.0]], "float32")
    infinite = np.full_like(answer, np.inf)
    vectors = [
        Vector(name=str(place), inputs=given, outputs=(output,), rounding=(moved,))
        for place, (output, moved) in enumerate([(answer, 1.0), (infinite, 0.0), (answer, 1e-6)])
    ]
    assert convert.certain(vectors).name == "2"
    assert convert.certain(vectors[:2]).name == "0"


def test_published_figures_of_microcontrollers_stand_beside_counts_and_cite_their_source():
    counts = {("mlperf_kws_ref_model", "stm32l4r5"): {"instructions": 4_000_000, "ram_bytes": 9_000}}
    lines = published_mcu.page(counts).splitlines()
    rows = [line for line in lines if line.startswith("| keyword spotting | NUCLEO-L4R5ZI, 120 MHz | X-CUBE-AI 8.0.0")]
    assert rows == ["| keyword spotting | NUCLEO-L4R5ZI, 120 MHz | X-CUBE-AI 8.0.0 | 13.759 | 8.72 | 4.00 |"]
    assert any("github.com/mlcommons/tiny_results_v1.1" in line for line in lines)
    assert any("github.com/mit-han-lab/tinyengine" in line for line in lines)
    assert "| mcunet-vww1 | TinyEngine @0363956 | 51 ms | 92 kB | – |" in lines
