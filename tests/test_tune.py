"""The search: deterministic, resumable after any death, and never won by a candidate that is wrong or lies."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import tvm
from conftest import ROOT
from kernels import TASK, adding, as_candidate, bound_to_threads, calling
from tvm.s_tir import meta_schedule

from tvmflow.bundles import build as building
from tvmflow.measure.local import run_vectors
from tvmflow.passes import schedule_kernels
from tvmflow.passes.records import expand, normalized, replay, tuned_kernel
from tvmflow.report import assemble
from tvmflow.report.render import schedules_text
from tvmflow.schedules import ReplayError, is_default, spell
from tvmflow.schedules import registry as rules
from tvmflow.schedules.cpu import RULES, choices
from tvmflow.spec import MissingDependencyError, UserError
from tvmflow.targets import TARGETS
from tvmflow.targets.kind import Timing, layer_rows
from tvmflow.targets.search import Options, Result, select
from tvmflow.tune import apply, measure, processes, space
from tvmflow.tune.builders import Builders, LocalPool
from tvmflow.tune.command import list_tasks, parse_duration
from tvmflow.tune.kernels import Kernels
from tvmflow.tune.measure import LocalMeasurer, choose_runner
from tvmflow.tune.session import Session, State
from tvmflow.tune.store import Store
from tvmflow.tune.tasks import Task, extract, identity

HOST = TARGETS["host"]


@pytest.fixture(scope="module")
def tasks(tiny) -> tuple[Task, ...]:
    return extract(tiny, HOST)


@pytest.fixture(scope="module", autouse=True)
def _cost_model_that_is_trained_quickly() -> Iterator[None]:
    """It learns from every batch as ever, but gives up after 5 rounds without a gain, where it has 50 to go on."""
    make = space.CostModel.__init__

    def make_impatient(self) -> None:
        make(self)
        self.model.early_stopping_rounds = 5

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(space.CostModel, "__init__", make_impatient)
        yield


@pytest.fixture(scope="module")
def unscheduled() -> tuple[Task, ...]:
    """Kernels that no rule serves: element-wise work alone is left to LLVM."""
    from tvmflow.network.frontend import import_model, parse_input_shape

    found = extract(import_model("networks:rectifier", [parse_input_shape("1x3x9x7")]), HOST)
    assert not any(RULES[rule](task.func, HOST) for task in found for rule in HOST.schedules)
    return found


def recorded_ms(candidate) -> float:
    """A time between 1 and 2 ms that depends on the candidate alone."""
    digest = hashlib.sha256(f"{candidate.task} {candidate.text}".encode()).digest()
    return 1 + digest[0] / 256


@dataclass
class Recorded:
    """A measurer that replays times, or what `answers` has for a candidate's text, and takes `pause_s` for each."""

    answers: dict[str, Result] = field(default_factory=dict)
    pause_s: float = 0.0
    name: str = "recorded"
    seconds: dict[str, float] = field(default_factory=lambda: {"build": 0.0, "run": 0.0})

    def measure(self, task, candidates, best_ms) -> Iterator[Result]:
        for candidate in candidates:
            time.sleep(self.pause_s)
            yield self.answers.get(candidate.text) or Result(outcome="ok", ms=(recorded_ms(candidate),))

    def compare(self, task, candidates, rounds) -> list[tuple[float, ...]]:
        return [(recorded_ms(candidate),) * rounds for candidate in candidates]


def search(tasks, folder: Path, measurer=None, check=lambda: None, **options) -> tuple[State, Store]:
    given = Options(**{"trials": 30, "budget_s": 600.0, "batch": 4, "min_gain": 0.0, "population": 6, **options})
    with Store(folder, identity(HOST), writable=True) as store:
        kernels = Kernels(tasks=tasks, target=HOST, measurer=measurer or Recorded())
        session = Session(kernels, store, given, lambda state: None, check=check)
        return session.run(), store


def decisions(folder: Path) -> list[tuple[str, str]]:
    rows = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    return [(row["task"], row["candidate"]) for row in rows if row["kind"] in ("trial", "winner")]


# ---------------------------------------------------------------------------------------------------------- spaces


def test_equal_kernels_are_one_task():
    from tvmflow.network.frontend import import_model, parse_input_shape

    found = extract(import_model("networks:residual", [parse_input_shape("1x3x8x8")]), HOST)
    assert sorted(task.calls for task in found)[-1] == 2
    assert len({task.key for task in found}) == len(found)
    again = extract(import_model("networks:residual", [parse_input_shape("1x3x8x8")]), HOST)
    assert [task.key for task in again] == [task.key for task in found]


def test_tasks_of_any_board_are_listed(monkeypatch, tiny):
    monkeypatch.setattr("tvmflow.network.frontend.import_model", lambda model, shapes: tiny)
    text, content = list_tasks(TARGETS["raspberry-pi-4b"], "tiny", [])
    assert [row["name"] for row in content] == [task.name for task in extract(tiny, TARGETS["raspberry-pi-4b"])]
    assert "joint.0.pointwise" in text


def test_tasks_are_chosen_by_name(tasks):
    assert select(tasks, None) == tasks
    assert [task.name for task in select(tasks, tasks[1].name)] == [tasks[1].name]
    assert select(tasks, "*") == tasks
    with pytest.raises(UserError, match="no task 'nothing'"):
        select(tasks, "nothing")


def test_a_record_names_the_rule_and_its_knobs(tasks):
    task = next(task for task in tasks if "relu" in task.name)
    found = space.Space(task, HOST, space.CostModel(), seed=0, batch=4, population=16)
    assert found.default.text == "pointwise_nchw()"
    for candidate in found.propose(3, ()):
        name, knobs = rules.parse(candidate.text, HOST)
        assert knobs in choices(name, task.func, HOST)
        expected = normalized(RULES[name](task.func, HOST, **knobs).mod["main"])
        tvm.ir.assert_structural_equal(candidate.module, expected)
        tvm.ir.assert_structural_equal(found.replay(candidate.text, candidate.record).module, expected)


def test_no_kernel_is_proposed_twice(tasks):
    found = space.Space(tasks[-1], HOST, space.CostModel(), seed=0, batch=4, population=16)
    seen: set[str] = {found.default.text}
    for _ in range(4):
        candidates = found.propose(4, seen)
        assert not {candidate.text for candidate in candidates} & seen
        seen |= {candidate.text for candidate in candidates}
        found.learn([(candidate, recorded_ms(candidate)) for candidate in candidates])


def test_knobs_are_spelled_and_parsed():
    text = spell("pointwise_nchw", {"tile": (6, 4)})
    assert text == "pointwise_nchw(tile=(6, 4))"
    assert rules.parse(text, HOST) == ("pointwise_nchw", {"tile": (6, 4)})
    assert rules.parse("lanes()", HOST) == ("lanes", {})
    for wrong in ("", "lanes", "lanes(3)", "nothing()", "lanes(x=open('/'))", "1 +"):
        with pytest.raises(ValueError, match=r"rule|malformed"):
            rules.parse(wrong, HOST)


def test_a_record_of_another_kernel_cannot_be_replayed(tasks):
    first = space.Space(tasks[0], HOST, space.CostModel(), seed=0, batch=4, population=16)
    record = first.default.record
    with pytest.raises(ReplayError, match="doesn't serve"):
        expand(replay(tasks[-1].module, record).mod, tasks[-1].module, HOST)
    with pytest.raises(ReplayError):
        replay(tasks[0].module, [[[["SampleNothing", [], [], []]], []], [1.0], {}, []])


# ---------------------------------------------------------------------------------------------------------- search


def test_same_seed_and_times_give_the_same_decisions(tasks, tmp_path):
    for name in ("first", "second"):
        search(tasks, tmp_path / name, trials=20, seed=5)
    search(tasks, tmp_path / "third", trials=20, seed=6)
    first = decisions(tmp_path / "first")
    assert first == decisions(tmp_path / "second")
    assert first != decisions(tmp_path / "third")
    assert any(candidate.startswith("metaschedule-") for _, candidate in first)


def test_resuming_spends_what_is_left(tasks, tmp_path):
    state, _ = search(tasks, tmp_path, trials=11)
    assert (state.spent, state.tried, state.reason) == (11, 11, "trials")
    state, store = search(tasks, tmp_path, trials=20)
    assert (state.spent, state.tried) == (20, 9)
    state, store = search(tasks, tmp_path, trials=20)
    assert (state.spent, state.tried) == (20, 0)
    trials = [entry for entry in store.entries if entry["kind"] == "trial"]
    assert len({(entry["task"], entry["candidate"]) for entry in trials}) == 20


def test_records_are_readable_by_tvm(tasks, tmp_path):
    _, store = search(tasks, tmp_path, trials=24)
    database = meta_schedule.database.JSONDatabase(work_dir=str(tmp_path))
    assert len(database) == sum(
        trial["outcome"] == "ok" for task in store.tasks for trial in store.trials(task).values()
    )
    for task in tasks:
        record = database.query_tuning_record(task.module, space.tvm_target(HOST), "main")
        # TVM doesn't give out a record whose trace has no steps, which the unscheduled kernel's hasn't
        times = [trial["ms"][0] for text, trial in store.trials(task.key).items() if text != "default"]
        assert float(record.run_secs[0]) == pytest.approx(min(times) / 1e3)


def test_time_budget_counts_all_runs(tasks, tmp_path):
    state, _ = search(tasks, tmp_path, Recorded(pause_s=0.05), trials=1000, budget_s=0.5)
    assert state.reason == "time"
    state, _ = search(tasks, tmp_path, trials=1000, budget_s=0.5)
    assert (state.reason, state.tried) == ("time", 0)


def test_stops_when_nothing_is_gained(tasks, tmp_path):
    measurer = Recorded(pause_s=0.01)
    state, _ = search(tasks, tmp_path, measurer, trials=1000, min_gain=1e9, window_s=0.2)
    assert state.reason == "gain"
    assert state.spent < 1000


def test_stops_when_nothing_is_left(tasks, tmp_path, monkeypatch):
    monkeypatch.setattr(space.Space, "_search", lambda self, count, known: [])
    state, _ = search(tasks, tmp_path, trials=1000)
    assert state.reason == "exhausted"
    assert all(row.exhausted for row in state.rows)


LIES = {
    "nan": Result(outcome="ok", ms=(float("nan"),)),
    "zero": Result(outcome="ok", ms=(0.0, 1e-9)),
    "negative": Result(outcome="ok", ms=(-1.0,)),
    "infinite": Result(outcome="ok", ms=(float("inf"),)),
    "nothing": Result(outcome="ok", ms=()),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lying_runner_never_wins(tasks, tmp_path, lie):
    task = next(task for task in tasks if "relu" in task.name)
    found = space.Space(task, HOST, space.CostModel(), seed=0, batch=4, population=16)
    liars = [spell(found.rule, knobs) for knobs in choices(found.rule, task.func, HOST)][:3]
    state, store = search((task,), tmp_path, Recorded(answers=dict.fromkeys(liars, LIES[lie])), trials=12)
    assert dict(state.failures) == {"bad time": len(set(liars) & set(store.trials(task.key)))}
    assert store.best(task.key).candidate not in liars
    assert "NaN" not in (tmp_path / "ledger.jsonl").read_text()


@pytest.mark.parametrize("outcome", ["crashed", "hung", "wrong", "build failed", "build hung"])
def test_failures_are_kept_by_class(unscheduled, tmp_path, outcome):
    answers = {"default": Result(outcome=outcome, message="so it was")}
    state, _ = search(unscheduled, tmp_path, Recorded(answers=answers), trials=10)
    assert dict(state.failures) == {outcome: len(unscheduled)}
    again = Store(tmp_path)
    assert again.trials(unscheduled[0].key)["default"]["message"] == "so it was"
    assert all(again.best(task.key).candidate != "default" for task in unscheduled if again.best(task.key))


def test_winners_are_compared_in_turns(tasks, tmp_path):
    """A time that was too good to be true the first time is not believed."""
    task = next(task for task in tasks if "relu" in task.name)
    found = space.Space(task, HOST, space.CostModel(), seed=0, batch=4, population=16)
    lucky = found.propose(1, ())[0].text
    _, store = search((task,), tmp_path, Recorded(answers={lucky: Result(outcome="ok", ms=(0.001,))}), trials=40)
    good = {text: trial["ms"][0] for text, trial in store.trials(task.key).items()}
    assert min(good, key=good.get) == lucky
    best = store.best(task.key)
    assert best.compared
    assert best.ms >= 1


def test_killed_twenty_times_and_resumed_to_the_same_totals(tasks, tmp_path):
    """kill -9 at random moments; each run may lose the batch it was at, and nothing else."""
    trials, batch, moments = 32, 4, random.Random(3)
    folder, known = tmp_path / "killed", 0
    for _ in range(20):
        child = os.fork()
        if child == 0:
            try:
                search(tasks, folder, Recorded(pause_s=0.02), trials=trials, batch=batch)
            finally:
                os._exit(0)
        time.sleep(moments.uniform(0.02, 0.7))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with Store(folder, identity(HOST), writable=True) as store:
            spent = store.spent(task.key for task in tasks)
        assert spent >= known
        known = spent
    state, store = search(tasks, folder, trials=trials, batch=batch)
    whole, _ = search(tasks, tmp_path / "whole", trials=trials, batch=batch)
    assert state.spent == whole.spent == trials
    entries = [entry for entry in store.entries if entry["kind"] == "trial"]
    assert len({(entry["task"], entry["candidate"]) for entry in entries}) == len(entries) == trials
    database = meta_schedule.database.JSONDatabase(work_dir=str(folder))
    assert len(database) == sum(entry["outcome"] == "ok" for entry in entries)


def test_interrupted_batch_keeps_its_results(tasks, tmp_path):
    class Interrupted(Recorded):
        def measure(self, task, candidates, best_ms):
            for number, result in enumerate(super().measure(task, candidates, best_ms)):
                if number == 2:
                    raise KeyboardInterrupt
                yield result

    with pytest.raises(KeyboardInterrupt):
        search(tasks, tmp_path, Interrupted())
    store = Store(tmp_path)
    assert store.spent(store.tasks) == len(tasks) + 2
    assert store.entries[-1]["reason"] == "interrupted"


INTERRUPTED = """
    import sys
    from tvmflow.system import interrupt
    interrupt.watch()

    import itertools, os, signal, threading
    from pathlib import Path
    import test_tune
    from tvmflow.network.frontend import import_model, parse_input_shape

    tasks = test_tune.extract(import_model("networks:tiny", [parse_input_shape("1x3x9x7")]), test_tune.HOST)[-2:]
    options = {"check": interrupt.check, "trials": 100_000, "population": 12}
    for seconds in sys.argv[2:]:
        with interrupt.deferred():
            threading.Timer(float(seconds), os.kill, (os.getpid(), signal.SIGINT)).start()
            try:
                for number in itertools.count():  # one may have nothing left to try before Ctrl-C comes
                    folder = f"{seconds}-{number}"
                    test_tune.search(tasks, Path(sys.argv[1], folder), seed=number, **options)
            except KeyboardInterrupt:
                print(folder)
        assert signal.getsignal(signal.SIGINT) is interrupt._raise
"""


def test_ctrl_c_at_any_moment(tmp_path):
    """Also inside MetaSchedule, which doesn't survive an exception there, and inside Z3, which forgets the signal."""
    command = [sys.executable, "-c", textwrap.dedent(INTERRUPTED), str(tmp_path), "0.3", "0.8", "1.2", "1.7"]
    ended = subprocess.run(command, cwd=ROOT / "tests", capture_output=True, text=True, check=False, timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert len(ended.stdout.split()) == 4
    for folder in ended.stdout.split():
        with Store(tmp_path / folder, writable=True) as store:
            assert store.quarantined == 0
            assert store.entries[-1]["reason"] == "interrupted"


# ------------------------------------------------------------------------------------------------ processes and time


@pytest.fixture(scope="module")
def measurer():
    with (
        closing(Builders(LocalPool(HOST, identity(HOST).target, count=1))) as builders,
        closing(LocalMeasurer(HOST, builders)) as found,
    ):
        yield found


def test_candidates_that_crash_hang_or_compute_something_else(measurer, monkeypatch):
    modules = {
        "good": adding(1),
        "wrong": adding(2),
        "crash": calling("abort", 0),
        "good again": adding(1),
        "hang": calling("sleep", 1000),
        "missing": calling("there_is_no_such_function", 0),
        "good at last": adding(1),
    }
    candidates = [as_candidate(text, module) for text, module in modules.items()]
    list(measurer.measure(TASK, candidates[:1], None))  # it has started
    monkeypatch.setattr(measurer.runner, "limit_s", 1.0)
    monkeypatch.setattr(processes, "START_LIMIT_S", 20.0)
    results = dict(zip(modules, measurer.measure(TASK, candidates, None), strict=True))
    assert {text: result.outcome for text, result in results.items()} == {
        "good": "ok",
        "wrong": "wrong",
        "crash": "crashed",
        "good again": "ok",
        "hang": "hung",
        "missing": "crashed",
        "good at last": "ok",
    }
    assert "SIGABRT" in results["crash"].message
    assert len(results["good"].ms) >= measure.REPEATS
    assert measurer.runner.restarts == 3
    assert measurer.compare(TASK, [candidates[0], candidates[1]], 3) == []
    times = measurer.compare(TASK, [candidates[0], candidates[3]], 3)
    assert [len(row) >= 3 for row in times] == [True, True]


def test_candidate_that_cannot_be_built(measurer):
    (result,) = measurer.measure(TASK, [as_candidate("bound", bound_to_threads())], None)
    assert result.outcome == "build failed"
    assert result.message


@pytest.fixture(scope="module")
def searched(tasks, unscheduled, measurer, tmp_path_factory) -> Path:
    """A short search of the tiny network by real measurements, in a work dir."""
    work_dir = tmp_path_factory.mktemp("tune")
    folder = work_dir / identity(HOST).folder
    # whatever the times, a rule's knobs and MetaSchedule's space are both tried
    for chosen in ([task for task in tasks if "relu" in task.name], unscheduled):
        search(chosen, folder, measurer, trials=5)
    state, _ = search(tasks, folder, measurer, trials=24)
    assert state.spent == 24
    assert not state.failures
    assert state.seconds["run"] > 0
    return work_dir


# ---------------------------------------------------------------------------------------------------------- builds


def with_winners(work_dir: Path, out: Path, tasks) -> Path:
    """The records with winners other than the defaults, whichever was faster."""
    folder = out / identity(HOST).folder
    found = next(work_dir.glob("*/identity.json")).parent
    folder.mkdir(parents=True)
    for path in found.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    with Store(folder, identity(HOST), writable=True) as store:
        for task in tasks:
            others = [text for text, trial in store.trials(task.key).items() if not is_default(text)]
            if others:
                store.append(
                    [
                        {
                            "kind": "winner",
                            "run": 9,
                            "task": task.key,
                            "candidate": others[0],
                            "ms": [1],
                            "default_ms": [2],
                        }
                    ]
                )
    return out


def test_build_applies_records(tiny, tasks, searched, tmp_path):
    records = apply.find_records(HOST, with_winners(searched, tmp_path / "db", tasks))
    built = building.build(tiny, HOST, tmp_path / "net", records=records)
    schedules = [layer.schedule for layer in built.layers]
    assert any(schedule.startswith("pointwise_nchw(tile=") for schedule in schedules)
    assert built.manifest["verify"]["passed"] is True
    report = assemble(built, built.manifest["verify"], Timing())
    assert f"{sum('searched' in schedule for schedule in schedules)} searched, " in schedules_text(report["layers"])
    timed = assemble(built, built.manifest["verify"], Timing(layers=layer_rows([[1.0]] * len(schedules))))
    assert f"of their time), 0 default (0% of their time) of {len(schedules)} layers" in schedules_text(timed["layers"])


def test_build_applies_what_metaschedule_found(unscheduled, searched, tmp_path):
    from tvmflow.network.frontend import import_model, parse_input_shape

    records = apply.find_records(HOST, with_winners(searched, tmp_path / "db", unscheduled))
    program = import_model("networks:rectifier", [parse_input_shape("1x3x9x7")])
    built = building.build(program, HOST, tmp_path / "net", records=records)
    assert [layer.schedule for layer in built.layers] == ["searched"]
    assert built.manifest["verify"]["passed"] is True


def test_records_of_another_board_are_refused(searched, tmp_path):
    with pytest.raises(UserError, match="board host instead of raspberry-pi-4b"):
        apply.find_records(TARGETS["raspberry-pi-4b"], searched)
    with pytest.raises(UserError, match="no records"):
        apply.find_records(HOST, tmp_path)


def test_record_that_no_longer_fits_leaves_the_default(tiny, tasks, tmp_path, searched):
    records = apply.find_records(HOST, with_winners(searched, tmp_path / "db", tasks))
    pointwise = next(task for task in tasks if "relu" in task.name)
    broken = json.loads(json.dumps(records[pointwise.key].record).replace("pointwise_nchw(tile", "pointwise_nchw(tall"))
    records[pointwise.key] = replace(records[pointwise.key], record=broken)
    built = building.build(tiny, HOST, tmp_path / "net", records=records)
    layer = next(layer for layer in built.layers if layer.kernel == pointwise.name)
    assert layer.schedule == "pointwise_nchw"


@pytest.mark.parametrize("fault", ["wrong", "crash"])
def test_tuned_build_that_fails_falls_back_for_the_offender_alone(
    tiny, tasks, searched, tmp_path, monkeypatch, caplog, fault
):
    records = apply.find_records(HOST, with_winners(searched, tmp_path / "db", tasks))
    offender = next(task for task in tasks if "relu" in task.name)
    others = [task for task in tasks if task.key in records and task is not offender]
    assert others

    def spoiled(func, target, found):
        tuned = tuned_kernel(func, target, found)
        if tuned is None or tuned[1] != offender.key:
            return tuned
        kernel = tuned[0]
        call = tvm.tirx.Evaluate(tvm.tirx.call_extern("int32", "abort"))
        root = kernel.body.block
        body = call if fault == "wrong" else tvm.tirx.SeqStmt([call, root.body])
        if fault == "wrong":
            body = tvm.tirx.Evaluate(tvm.tirx.const(0))
        changed = tvm.s_tir.SBlock(
            root.iter_vars, root.reads, root.writes, root.name_hint, body, None, root.alloc_buffers
        )
        realized = tvm.s_tir.SBlockRealize([], True, changed)
        return kernel.with_body(realized), *tuned[1:]

    monkeypatch.setattr(schedule_kernels, "tuned_kernel", spoiled)
    with caplog.at_level("INFO"):
        built = building.build(tiny, HOST, tmp_path / "net", records=records)
    assert any(offender.name in line and "default schedule" in line for line in caplog.messages)
    by_kernel = {layer.kernel: layer.schedule for layer in built.layers}
    assert by_kernel[offender.name] == "pointwise_nchw"
    assert sum("searched" in schedule for schedule in by_kernel.values()) == sum(
        not is_default(records[task.key].candidate) for task in others
    )
    assert built.manifest["verify"]["passed"] is True
    results = run_vectors(built.library, [vector.inputs for vector in tiny.vectors], tiny.outputs)
    np.testing.assert_allclose(results[0][0], tiny.vectors[0].outputs[0], atol=1e-5)


# -------------------------------------------------------------------------------------------------------- command line


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--board", "raspberry-pi-4b"], 5, ["isn't this computer"]),
        (["--runner", "local", "--board", "raspberry-pi-5"], 5, ["--runner local"]),
        (["--runner", "rpc"], 4, ["--ssh user@host"]),
        (["--runner", "local", "--ssh", "pi"], 4, ["leave out --ssh"]),
        (["--host", "192.0.2.1"], 4, ["use --ssh"]),
        (["--runner", "modelled"], 5, ["--runner modelled"]),
        (["--runner", "magic"], 4, ["no runner 'magic'", "auto, local, rpc, modelled"]),
        (["--target", "fpga"], 4, ["no target 'fpga'"]),
        (["--time-budget", "soon"], 4, ["90s, 30m or 2h"]),
    ],
)
def test_what_cannot_be_tuned_is_said_at_once(tvmflow, arguments, code, words):
    tvmflow("tune", *arguments).failed_with(code, *words)


def test_runners_and_durations():
    assert choose_runner("auto", HOST)[0] == "local"
    with pytest.raises(MissingDependencyError):
        choose_runner("auto", TARGETS["raspberry-pi-4b"])
    assert [parse_duration(text) for text in ("90s", "30m", "1.5h")] == [90, 1800, 5400]
    for wrong in ("", "0s", "5", "-1m", "m"):
        with pytest.raises(UserError, match="duration"):
            parse_duration(wrong)


def signalled_after_a_batch(command: list[str], number: signal.Signals, cache: Path) -> tuple[int, str, int]:
    """Exit code, what stderr had after the signal, and the process's number."""
    with subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=ROOT / "tests",
        env={**os.environ, "XDG_CACHE_HOME": str(cache)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        assert any("/14 trials" in line for line in process.stderr)
        process.send_signal(number)
        errors = process.stderr.read()
    return process.returncode, errors, process.pid


def workers_of(search: int) -> list[psutil.Process]:
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if f'"parent": {search},' in " ".join(process.info["cmdline"] or ())
    ]


def test_tune_build_and_show(tvmflow, tmp_path):
    """Killed, interrupted, gone on with, and shown."""
    cache = {"XDG_CACHE_HOME": str(tmp_path)}
    model = ["--model", "networks:tiny", "--input-shape", "1x3x9x7"]
    command = ["tvmflow.tune", *model, "--trials", "14"]
    code, _, killed = signalled_after_a_batch(command, signal.SIGKILL, tmp_path)
    assert code == -signal.SIGKILL
    psutil.wait_procs(workers_of(killed), timeout=60)
    assert workers_of(killed) == []
    code, errors, _ = signalled_after_a_batch(command, signal.SIGINT, tmp_path)
    assert code == 130
    assert "To go on: tvmflow tune --model networks:tiny" in errors

    done = tvmflow("tune", *model, "--trials", "14", "--json", "-", cwd=ROOT / "tests", **cache)
    assert done.code == 0, done.err
    assert done.json["trials"] == 14
    assert 0 < done.json["trials_of_this_run"] < 14
    assert done.json["tuned_ms"] <= 1.01 * done.json["untuned_ms"]

    shown = tvmflow("db", "show", tmp_path / "tvmflow" / "tune", "--json", "-")
    assert shown.code == 0, shown.err
    assert shown.json[0]["trials"] == 14
    assert len(shown.json[0]["tasks"]) == len(done.json["tasks"])
    tvmflow("db", "show", tmp_path / "nothing").failed_with(4, "no records")


def test_no_search_of_int8_kernels_but_for_vta():
    from tvmflow.cli.tuning import tune as command

    for target, dtype in (("llvm", "int8"), ("cuda", "int8"), ("cortex_m", None)):
        with pytest.raises(UserError, match="no search of int8 kernels"):
            command(target, dtype=dtype)
    with pytest.raises(UserError, match="has no float32 arithmetic"):
        command("vta", dtype="float32")
