"""Searching for a GPU that isn't there: the model, what is checked, who uses the choices."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import tvm
from boards import running
from cuda_kernels import joined
from tvm import relax
from tvm.script import tirx as T

import tvmflow.schedules.cuda
from benchmarks import cuda as benchmark
from tvmflow.passes.records import normalized
from tvmflow.pipeline import run_stages
from tvmflow.report.search import search_of
from tvmflow.schedules.cuda import RULES, choices
from tvmflow.schedules.cuda.dlight import one_thread
from tvmflow.spec import MissingDependencyError, TvmflowError, UserError
from tvmflow.targets import TARGETS
from tvmflow.targets.cuda import candidates, counts, nvrtc, rank, standin
from tvmflow.targets.cuda.model import Constants, load_constants, modelled_us, parts, save_constants
from tvmflow.targets.search import Options, Result
from tvmflow.tune import database, modelled
from tvmflow.tune.apply import find_records
from tvmflow.tune.apply import modelled as modelled_identity
from tvmflow.tune.measure import choose_runner
from tvmflow.tune.session import Session
from tvmflow.tune.space import Candidate
from tvmflow.tune.store import Store
from tvmflow.tune.tasks import extract, identity

BOARD = TARGETS["jetson-orin-nano"]


def pointwise(rows: int = 256, inputs: int = 64, size: int = 8):
    return joined(
        [(1, inputs, size, size), (rows, inputs, 1, 1)], lambda builder, data, weight: relax.op.nn.conv2d(data, weight)
    )


def scheduled(rule: str, func, tile=None) -> tvm.IRModule:
    return normalized(RULES[rule](func, BOARD, tile).mod["main"])


def ranked(module: tvm.IRModule) -> float:
    """A kernel's modelled time, its resources those of real machine code."""
    source, found = counts.lower(module, dict(BOARD.tvm))
    taken = nvrtc.compile_cuda(source, (BOARD.facts.architecture,)).resources[BOARD.facts.architecture]
    return modelled_us(BOARD.facts, found, taken)


# --------------------------------------------------------------------------------------------------------------- model


def test_multiply_adds_are_the_operators():
    tiles = [choice["tile"] for choice in choices("pointwise", pointwise(), BOARD)]
    for tile in (None, *tiles[::8]):
        _, (found,) = counts.lower(scheduled("pointwise", pointwise(), tile), dict(BOARD.tvm))
        assert found.multiply_adds == 256 * 64 * 64, tile
    depthwise = joined(
        [(1, 32, 16, 16), (32, 1, 3, 3)],
        lambda builder, data, weight: relax.op.nn.conv2d(data, weight, padding=(1, 1), groups=32),
    )
    _, (found,) = counts.lower(scheduled("depthwise_direct", depthwise), dict(BOARD.tvm))
    assert found.multiply_adds == 32 * 16 * 16 * 9
    assert (found.barriers, found.shared_accesses) == (0, 0)


def test_neighbours_share_sectors_and_banks():
    def copied(stride: int) -> counts.Counts:
        @T.prim_func(s_tir=True)
        def main(a: T.Buffer((1024,), "float32"), b: T.Buffer((32,), "float32")):
            T.func_attr({"global_symbol": "main", "tirx.noalias": True})
            with T.sblock("root"):
                shared = T.sblock_alloc_buffer((1024,), scope="shared")
                for i in T.thread_binding(32, thread="threadIdx.x"):
                    shared[i * stride] = a[i * stride]
                    b[i] = shared[31 - i]

        return counts.lower(tvm.IRModule({"main": main}), dict(BOARD.tvm))[1][0]

    together, apart = copied(1), copied(32)
    assert together.global_accesses == apart.global_accesses == 2
    assert together.sectors == 4 + 4
    assert apart.sectors == 32 + 4
    assert together.turns == 1 + 1
    assert apart.turns == 32 + 1


def test_what_cannot_be_good_sinks():
    one = counts.Counts(
        name="k", blocks=64, threads=128, multiply_adds=1e6, multiplies=500, others=20, global_accesses=20,
        sectors=80, shared_accesses=60, turns=60, barriers=4, rounds=4, argument_bytes=1 << 16,
    )  # fmt: skip
    taken = nvrtc.Resources(registers=40, shared_bytes=4096, stack_bytes=0, spill_bytes=0, barriers=1)
    time = parts(BOARD.facts, one, taken)["total"]
    alone = replace(one, blocks=1, multiplies=one.multiplies * 64, sectors=one.sectors * 64)
    assert parts(BOARD.facts, alone, taken)["total"] > 2 * time
    assert parts(BOARD.facts, one, replace(taken, spill_bytes=4096))["total"] > time
    assert parts(BOARD.facts, replace(one, turns=32 * one.turns), taken)["total"] > 2 * time
    assert parts(BOARD.facts, one, replace(taken, shared_bytes=BOARD.facts.shared_bytes_per_sm + 1))["total"] == float(
        "inf"
    )
    assert parts(TARGETS["h100"].facts, one, taken)["total"] < time


def test_a_kernel_of_one_thread_ranks_behind():
    """By its machine code and its lowered loops, not by figures made up here."""
    func = pointwise(rows=16, inputs=64, size=4)
    assert ranked(normalized(one_thread(func).mod["main"])) > 5 * ranked(scheduled("pointwise", func))


def test_a_calibration_is_kept_and_checked(tmp_path):
    written = Constants(launch_us=2.5, source="a test")
    save_constants(written, tmp_path / "c.json")
    assert load_constants(tmp_path / "c.json") == written
    (tmp_path / "c.json").write_text('{"launch_us": 1}')
    with pytest.raises(UserError, match="no calibration"):
        load_constants(tmp_path / "c.json")
    modelled.keep_constants(tmp_path / "kept.json", written, candidates)
    modelled.keep_constants(tmp_path / "kept.json", written, candidates)
    with pytest.raises(UserError, match="the two orders can't be mixed"):
        modelled.keep_constants(tmp_path / "kept.json", Constants(), candidates)


def test_a_calibration_finds_the_constants_that_measured_times_follow():
    """Times that another model made: after the fit the model has their order and their size."""
    true = Constants(launch_us=1.5, global_cycles=900.0, l2_bytes_per_clock=20.0)
    taken = nvrtc.Resources(registers=40, shared_bytes=4096, stack_bytes=0, spill_bytes=0, barriers=1)
    samples = []
    for number in range(48):
        one = counts.Counts(
            name="k", blocks=8 << number % 5, threads=64 << number % 3, multiply_adds=1e6, multiplies=30 * number,
            others=20, global_accesses=20, sectors=40 * (1 + number % 7), shared_accesses=60, turns=60,
            barriers=number % 4, rounds=1 + number % 6, argument_bytes=1 << 16,
        )  # fmt: skip
        time_us = modelled_us(BOARD.facts, [one], {"k": taken}, true)
        samples.append(
            benchmark.Sample(
                kernel=f"k{number % 8}", candidate="", measured_us=time_us, launches=[one], resources={"k": taken}
            )
        )
    found = benchmark.fit(BOARD.facts, samples[::2], "a test")
    before, after = (benchmark.error(BOARD.facts, samples[1::2], constants) for constants in (Constants(), found))
    assert after["spread"] < 1.1 < before["spread"]
    assert after["median_ratio"] == pytest.approx(1, abs=0.05)
    assert found.source == "24 candidates of a test"


# -------------------------------------------------------------------------------------------------------------- search


class Falling:
    """A measurer for which every candidate beats those before it."""

    name = "modelled"

    def __init__(self) -> None:
        self.seconds = {"build": 0.0, "run": 0.0}
        self.last = 1.0

    def measure(self, task, candidates, best_ms):
        for _ in candidates:
            self.last *= 0.9
            yield Result(outcome="ok", ms=(self.last,))


@pytest.fixture(scope="module")
def tasks(tiny):
    return extract(tiny, BOARD)


def test_wrong_winners_are_left_out_and_choices_stay_apart(tasks, tiny, tmp_path, monkeypatch):
    asked: list[list[str]] = []

    def check(found, target):
        asked.append([candidate.text for _, candidate in found])
        return ["it is wrong"] * len(found) if len(asked) == 1 else [""] * len(found)

    monkeypatch.setattr(modelled, "check", check)
    monkeypatch.setattr(tvmflow.schedules.cuda, "MOST_CHOICES", 8)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "cache" / "tvmflow" / "tune"
    whose = modelled_identity(identity(BOARD))
    options = Options(trials=12, budget_s=600.0, batch=4, min_gain=0.0, population=6)
    with Store(folder / whose.folder, whose, writable=True) as store:
        kernels = modelled.ModelledKernels(tasks=tasks, target=BOARD, measurer=Falling())
        session = Session(kernels, store, options, lambda state: None)
        session.run()
        bests = {task.key: store.best(task.key) for task in tasks}
    assert len(asked) >= 2
    searched = [key for key in bests if len(session.store.trials(key)) > 2]
    assert searched
    for key in searched:
        assert bests[key].modelled
        assert bests[key].candidate not in asked[0]
    # a build takes them from --db alone, and says by whom they are
    assert not find_records(BOARD)
    records = find_records(BOARD, folder)
    assert set(records) == {key for key, best in bests.items() if best}
    with tvm.target.Target(dict(BOARD.tvm)):
        built = run_stages(replace(tiny, records=records), BOARD)
    schedules = [layer.schedule for layer in built.layers]
    assert any(text.endswith(", modelled choice") for text in schedules)
    assert not any("searched" in text for text in schedules)


def test_what_computes_something_else_is_found():
    func = pointwise(16, 8, 4)
    task = type("Task", (), {"module": normalized(func)})()
    good = Candidate(task="t", text="good", module=scheduled("pointwise", func), record=[])
    other = joined(
        [(1, 8, 4, 4), (16, 8, 1, 1)],
        lambda builder, data, weight: relax.op.nn.relu(builder.emit(relax.op.nn.conv2d(data, weight))),
    )
    bad = Candidate(task="t", text="bad", module=scheduled("pointwise", other), record=[])
    assert modelled.check([(task, good), (task, bad)], BOARD) == [
        "",
        "it computes something else than the unscheduled kernel",
    ]


def test_tune_without_a_gpu(tvmflow, tmp_path):
    """From the command line; no time and no speed-up is shown."""
    done = tvmflow(
        "tune", "--target", "cuda", "--board", BOARD.name, "--model", "networks:tiny", "--input-shape", "1x3x9x7",
        "--trials", "5", "--work-dir", tmp_path / "work", cwd=Path(__file__).parent, CUDA_VISIBLE_DEVICES="",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "Nothing was measured" in done.out
    assert "would measure them" in done.out
    assert "modelled runner" in done.err
    assert not re.search(r"\d\s*(ms|µs|us)\b|faster|×", done.out + done.err)
    text, (content,) = database.show(tmp_path / "work")
    assert "modelled" in text
    assert "µs" not in text
    assert all(row["best_ms"] is None for row in content["tasks"])
    (folder,) = (tmp_path / "work").iterdir()
    with pytest.raises(UserError, match="a model's choices"):
        search_of(Store(folder))


def test_over_rpc(tvmflow, token_file, tmp_path, monkeypatch):
    """The way to a Jetson, rehearsed: machine code is made here, loaded, checked and timed there, by the stand-in.

    Its times are kept as an emulated board's, shown nowhere, and no build takes these records.
    """
    board = TARGETS["t4"]
    monkeypatch.setenv("TVMFLOW_STANDIN_IMAGES", str(tmp_path / "images"))
    for name, value in standin.environment(board.facts.architecture).items():
        monkeypatch.setenv(name, value)
    (tmp_path / "serve").mkdir()
    with running(tmp_path / "serve") as server:
        done = tvmflow(
            "tune", "--target", "cuda", "--board", board.name, "--model", "networks:tiny", "--input-shape", "1x3x9x7",
            "--trials", "6", "--runner", "rpc", "--host", f"127.0.0.1:{server.port}", "--token-file", token_file,
            "--min-gain", "0", "--work-dir", tmp_path / "work", "--json", tmp_path / "tune.json",
            cwd=Path(__file__).parent,
        )  # fmt: skip
    assert done.code == 0, done.err
    assert "6/6 trials (6 in this run), failed: none" in done.out
    assert not re.search(r"\d\s*(ms|µs|us)\b|faster|×", done.out + done.err)
    summary = json.loads((tmp_path / "tune.json").read_text())
    assert summary["basis"] == "emulated"
    assert {row["best_ms"] for row in summary["tasks"]} == {None}
    assert {path.read_bytes()[:4] for path in (tmp_path / "images").glob("*.image")} == {b"\x7fELF"}
    with pytest.raises(UserError, match="emulated by the stand-in for CUDA"):
        find_records(board, tmp_path / "work")


def test_runners_of_a_board_with_a_gpu(monkeypatch):
    monkeypatch.setattr("tvmflow.targets.cuda.backend.missing_device", lambda target: "there is no driver")
    assert choose_runner("modelled", BOARD)[0] == "modelled"
    chosen, reason = choose_runner("auto", BOARD)
    assert chosen == "modelled"
    assert "there is no driver" in reason
    assert "a GPU would" in reason
    with pytest.raises(MissingDependencyError, match="there is no driver"):
        choose_runner("local", BOARD)
    monkeypatch.setattr("tvmflow.targets.cuda.backend.missing_device", lambda target: None)
    assert choose_runner("auto", BOARD)[0] == "local"


def test_code_that_nobody_compiled_is_refused(monkeypatch):
    """Without a driver TVM would embed CUDA C."""
    monkeypatch.setattr(rank.tvm, "cuda", lambda number: type("Device", (), {"exist": False}))
    candidate = scheduled("pointwise", pointwise(16, 8, 4))
    with pytest.raises(TvmflowError, match="finds no GPU"):
        rank.compile_for_gpu(candidate, tvm.target.Target(dict(BOARD.tvm)))
