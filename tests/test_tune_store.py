"""The ledger and the database of a search: what is torn or foreign is set aside, what is good stays."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from tvmflow.spec import UserError
from tvmflow.targets.search import Identity
from tvmflow.tune import database, store
from tvmflow.tune.store import LEDGER, QUARANTINE, RECORDS, WORKLOADS, Store

TARGET = {"kind": "llvm", "mcpu": "somecpu", "num-cores": 2, "keys": ["cpu"], "tag": ""}
IDENTITY = Identity(board="host", cpu="Some CPU", target=TARGET, tvm="0.27.0", rules="12345678")
TASK = {"kind": "task", "task": f"{7:016x}", "name": "conv", "default": "rule()", "workload": ["7", "bm8="]}


def trial(candidate: str, ms: float | None = 1.0, **changes) -> dict:
    entry = {"kind": "trial", "run": 1, "task": TASK["task"], "candidate": candidate, "message": ""}
    if ms is None:
        return {**entry, "outcome": "crashed", "ms": [], **changes}
    trace = [
        changes.pop("instructions", [["Annotate", ["b0", f'"{candidate}"'], ["key"], []]]),
        changes.pop("decisions", []),
    ]
    seconds = ms / 1e3 if ms < 1e9 else 1.0
    record = [trace, [seconds], TARGET, changes.pop("arguments", [])]
    return {**entry, "outcome": "ok", "ms": [ms], "record": record, **changes}


@pytest.fixture
def folder(tmp_path) -> Path:
    """A store of four trials: 1 to 3 ms, and one that crashed."""
    with Store(tmp_path / "store", IDENTITY, writable=True) as opened:
        opened.append([{"kind": "run", "run": 1, "options": {}}, TASK])
        opened.append([trial("rule()", 2), trial("a", 3)])
        opened.append([trial("b", 1), trial("c", None)])
    return tmp_path / "store"


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def test_what_was_written_is_read(folder):
    opened = Store(folder)
    assert opened.identity == IDENTITY
    assert opened.spent([TASK["task"]]) == 4
    assert dict(opened.failures([TASK["task"]])) == {"crashed": 1}
    best = opened.best(TASK["task"])
    assert (best.candidate, best.ms, best.default_ms, best.compared) == ("b", 1, 2, False)
    assert len(lines(folder / WORKLOADS)) == 1
    assert len(lines(folder / RECORDS)) == 3


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_torn_lines_are_set_aside(folder, cut):
    """Any number of bytes may be missing at the end of any file."""
    for name in (LEDGER, WORKLOADS, RECORDS):
        with (folder / name).open("rb+") as file:
            file.truncate(max(0, file.seek(0, os.SEEK_END) - cut))
    with Store(folder, IDENTITY, writable=True) as opened:
        assert opened.spent([TASK["task"]]) == (4 if cut == 1 else 3)
        assert opened.quarantined == (0 if cut == 1 else len(lines(folder / QUARANTINE)))
        opened.append([trial("d", 0.5)])
    again = Store(folder)
    assert again.quarantined == 0
    assert again.best(TASK["task"]).candidate == "d"
    assert [json.loads(line)[1][1] for line in lines(folder / RECORDS)] == [[0.002], [0.003], [0.001], [0.0005]]


def test_missing_database_is_made_again(folder):
    before = (folder / RECORDS).read_text()
    (folder / RECORDS).unlink()
    (folder / WORKLOADS).unlink()
    with Store(folder, IDENTITY, writable=True) as opened:
        assert opened.quarantined == 0
    assert (folder / RECORDS).read_text() == before


@pytest.mark.parametrize(
    "line",
    [
        "not JSON",
        "[]",
        "{}",
        '{"kind": "unheard of"}',
        json.dumps(trial("x", task="unknown")),
        json.dumps(trial("x", outcome="fine")),
        json.dumps(trial("x", 0)),
        json.dumps(trial("x", -1)),
        json.dumps(trial("x", float("nan"))),
        json.dumps(trial("x", record=[[[], []], [1e-3], {**TARGET, "mcpu": "another"}, []])),
        json.dumps(trial("x", record=[1, 2])),
        json.dumps({**TASK, "task": "x", "workload": ["no digits", ""]}),
        "[" * 100_000,
        '{"kind": ' * 100_000,
        json.dumps(trial("x", 10**400, record=None)),
        json.dumps(trial("x", 10**15)),
        json.dumps({"kind": "batch", "run": 1, "task": "", "seconds": {"a": float("nan")}}),
        json.dumps({"kind": "batch", "run": 1, "task": "", "seconds": {"a": "long"}}),
        json.dumps({"kind": "winner", "run": 1, "task": TASK["task"], "candidate": "a", "ms": [], "default_ms": []}),
        json.dumps(
            {"kind": "winner", "run": 1, "task": TASK["task"], "candidate": "a", "ms": [1], "default_ms": ["a"]}
        ),
        json.dumps(trial("x", task="")),
        json.dumps(trial("x", merged="yes")),
        json.dumps({**TASK, "default": ["a"]}),
        json.dumps({**TASK, "task": "x", "workload": ["²", "bm8="]}),
        json.dumps({**TASK, "task": "x", "workload": ["9" * 5000, "bm8="]}),
        json.dumps({**TASK, "name": "\ud800"}),
        json.dumps({"kind": ["trial"]}),
        json.dumps(trial("x", instructions=[["Annotate", [None], ["key"], []]])),
        json.dumps(trial("x", instructions=[["Annotate", None, ["key"], []]])),
        json.dumps(trial("x", instructions=[["Annotate", ["b0", "v"], [None], []]])),
        json.dumps(trial("x", instructions=[[None, [], [], []]])),
        json.dumps(trial("x", instructions=[["GetSBlock", [], ["a", "main"], [3]]])),
        json.dumps(trial("x", instructions=[["Annotate", ["b0", {"a": 1}], ["key"], []]])),
        json.dumps(trial("x", instructions=[["Annotate", ["b0", "v"], ["key"]]])),
        json.dumps(trial("x", decisions=[None])),
        json.dumps(trial("x", decisions=[["0", [1]]])),
        json.dumps(trial("x", decisions=[[0, [None]]])),
        json.dumps(trial("x", arguments=[["TENSOR", "float32", [None]]])),
        json.dumps(trial("x", arguments=[3])),
    ],
)
def test_foreign_lines_are_set_aside(folder, line):
    with (folder / LEDGER).open("a") as file:
        file.write(line + "\n")
    with (folder / RECORDS).open("a") as file:
        file.write('[0, "no record"]\n')
    with Store(folder, IDENTITY, writable=True) as opened:
        assert opened.quarantined == 2
        assert opened.spent([TASK["task"]]) == 4
    assert [json.loads(row)["file"] for row in lines(folder / QUARANTINE)] == [LEDGER, RECORDS]
    assert Store(folder).quarantined == 0
    assert len(lines(folder / RECORDS)) == 3


def test_a_torn_line_beside_a_number_that_is_none(folder):
    """The ledger is written anew, which NaN must not keep it from."""
    with (folder / LEDGER).open("a") as file:
        file.write('{"kind":"batch","run":1,"task":"","seconds":{"a":NaN}}\n{"kind":"tri')
    with Store(folder, IDENTITY, writable=True) as opened:
        assert opened.quarantined == 2
        opened.append([trial("d", 0.5)])
    assert Store(folder).best(TASK["task"]).candidate == "d"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 40_000, "nested too deeply"),
        ("[]", "is a list of 0, where an object belongs"),
        ('{"schema_version": "1.0"}', "lacks 'board'"),
        ('{"schema_version": "2.0"}', "lacks|schema_version"),
    ],
)
def test_an_identity_that_is_none(folder, text, words):
    (folder / store.IDENTITY).write_text(text)
    with pytest.raises(UserError, match=words):
        Store(folder)


def test_records_that_tvmflow_brings_are_all_taken():
    from tvmflow.tune.apply import shipped_folders

    assert [Store(shipped).quarantined for shipped in shipped_folders()] == [0]


def test_one_writer_at_a_time(folder):
    with Store(folder, IDENTITY, writable=True):
        with pytest.raises(UserError, match=rf"process {os.getpid()}\) is writing"):
            Store(folder, IDENTITY, writable=True)
        assert Store(folder).spent([TASK["task"]]) == 4
    Store(folder, IDENTITY, writable=True).close()


@pytest.mark.parametrize("field", ["board", "cpu", "tvm", "rules", "target"])
def test_another_identity_is_refused(folder, field):
    other = replace(IDENTITY, **{field: {"kind": "c"} if field == "target" else "another"})
    assert other.folder != IDENTITY.folder
    with pytest.raises(UserError, match=field):
        Store(folder, other)


def test_no_store(tmp_path):
    with pytest.raises(UserError, match="holds no records"):
        Store(tmp_path)
    with pytest.raises(UserError, match="no records"):
        database.show(tmp_path)


def test_winner_of_a_comparison_comes_before_the_fastest(folder):
    winner = {"kind": "winner", "run": 1, "task": TASK["task"], "candidate": "a", "ms": [1.5], "default_ms": [1.6]}
    with Store(folder, IDENTITY, writable=True) as opened:
        opened.append([winner])
    best = Store(folder).best(TASK["task"])
    assert (best.candidate, best.ms, best.default_ms, best.compared) == ("a", 1.5, 1.6, True)


def test_merge(folder, tmp_path):
    with Store(tmp_path / "other", IDENTITY, writable=True) as other:
        other.append([TASK, trial("b", 9), trial("e", 0.25)])
    assert "1 trials added, 0 unusable" in database.merge(folder, [tmp_path / "other"])
    opened = Store(folder)
    assert opened.best(TASK["task"]).candidate == "e"
    assert opened.spent([TASK["task"]]) == 4  # what others paid for costs nothing here


def test_merge_of_a_database_of_metaschedule(folder, tmp_path):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    record = trial("f", 0.125)["record"]
    (foreign / WORKLOADS).write_text('["8","bm8="]\n["seven","bm8="]\n')
    (foreign / RECORDS).write_text(
        "\n".join(
            [
                json.dumps([0, record]),
                json.dumps([1, record]),
                json.dumps([5, record]),
                json.dumps([0, [*record[:2], {**TARGET, "mcpu": "another"}, []]]),
                json.dumps([0, [record[0], [1e300], *record[2:]]]),
                '[0, [[["torn',
            ]
        )
    )
    assert "1 trials added, 6 unusable" in database.merge(folder, [foreign])
    assert Store(folder).best(f"{8:016x}").ms == pytest.approx(0.125)


def test_merge_of_another_board_is_refused(folder, tmp_path):
    Store(tmp_path / "other", replace(IDENTITY, board="pi"), writable=True).close()
    with pytest.raises(UserError, match="board pi instead of host"):
        database.merge(folder, [tmp_path / "other"])
    with pytest.raises(UserError, match="no records"):
        database.merge(folder, [tmp_path / "nothing"])


def test_prune_keeps_the_count(folder):
    assert "2 records dropped" in database.prune(folder, 1)
    opened = Store(folder)
    assert opened.spent([TASK["task"]]) == 4
    assert opened.best(TASK["task"]).candidate == "b"
    assert len(lines(folder / RECORDS)) == 1


def test_export(folder, tmp_path):
    assert "of 1 tasks" in database.export(folder, tmp_path / "out")
    exported = Store(tmp_path / "out")
    assert exported.best(TASK["task"]) == Store(folder).best(TASK["task"])
    assert set(exported.trials(TASK["task"])) == {"b", "rule()"}
    with pytest.raises(UserError, match="isn't empty"):
        database.export(folder, tmp_path / "out")


def test_export_of_what_is_better(folder, tmp_path):
    assert "of 1 tasks" in database.export(folder, tmp_path / "better", better=True)
    with Store(folder, writable=True) as opened:
        opened.append(
            [{"kind": "winner", "run": 1, "task": TASK["task"], "candidate": "rule()", "ms": [1], "default_ms": [1]}]
        )
    assert "of 0 tasks" in database.export(folder, tmp_path / "none", better=True)


def test_show(folder):
    text, content = database.show(folder.parent)
    assert "4 trials" in text
    assert content[0]["tasks"][0]["best"] == "b"


def test_a_full_line_without_its_end_is_good(folder):
    text = (folder / LEDGER).read_text()
    (folder / LEDGER).write_text(text[:-1])
    with Store(folder, IDENTITY, writable=True) as opened:
        assert opened.quarantined == 0
    assert (folder / LEDGER).read_text() == text


def test_latency_is_the_lower_quartile():
    assert store.typical([9, 1, 2, 3, 100, 4, 5]) == 2
    assert store.typical([3]) == 3
