"""Files that others may have made are read whole or refused in one sentence, whatever is in them."""

from __future__ import annotations

import ast
import io
import json
import os
import struct
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import typer
from conftest import ROOT
from hostile import COLLECTION, ESTIMATE, REPORT, SEARCH, SIMULATED, mutations

from tvmflow import report as reports
from tvmflow.cli import outcome
from tvmflow.report import compare, networks, views
from tvmflow.report.render import FORMATS, render_html, report_text
from tvmflow.spec import TvmflowError, UserError
from tvmflow.system import limits, tensors, untrusted
from tvmflow.system.text import text_table
from tvmflow.system.untrusted import MalformedError, UnusableFileError


def one_sentence(error: BaseException) -> str:
    text = str(error)
    assert text == untrusted.printable(text), "no control characters, and one line"
    assert text.endswith(".")
    assert len(text) < 1000
    return text


# ------------------------------------------------------------------------------------------------------------- JSON


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 40_000, "nested too deeply"),
        ("[" * 100 + "]" * 100, "nested deeper than 64"),
        ('{"a":' * 40_000, "nested too deeply"),
        ("[" + "0," * 60_000 + "0]", "over 50,000 values"),
        ("[NaN]", "NaN is no number"),
        ("[-Infinity]", "-Infinity is no number"),
        ("[1e999]", "too large"),
        ("1" + "0" * 400, "beyond 64 bits"),
        ("[-1" + "0" * 5000 + "]", "beyond 64 bits"),
        ('{"a": 1, "a": 2}', "'a' is there twice"),
        (r'["\ud800"]', "surrogate"),
        (r'{"\udfff": 1}', "surrogate"),
        ("\ufeff{}", "Expecting"),
        ("{", "Expecting"),
    ],
)
def test_json_that_is_refused(tmp_path, text, words):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(UnusableFileError, match=words) as caught:
        untrusted.read_json(path)
    one_sentence(caught.value)


def test_json_in_another_encoding(tmp_path):
    (tmp_path / "x.json").write_bytes(b'["\xff"]')
    with pytest.raises(UnusableFileError, match="UTF-8 at byte 2"):
        untrusted.read_json(tmp_path / "x.json")


def test_a_file_without_an_end():
    with pytest.raises(UnusableFileError, match=r"/dev/zero is over 1,048,576 bytes"):
        untrusted.read_json(Path("/dev/zero"))


def test_what_json_may_say(tmp_path):
    content = {"text": "ä😀", "numbers": [0, -1, 1 << 63, 1.5, 1e300], "nested": [[[[{}]]]], "none": None}
    (tmp_path / "x.json").write_text(json.dumps(content))
    assert untrusted.read_json(tmp_path / "x.json") == content


def test_errors_show_no_control_characters(tmp_path):
    path = tmp_path / "a\x1b[31m\nb.json"
    path.write_text('{"schema_version": "\\u001b[2J\\n"}')
    with pytest.raises(UserError, match=r"a\\x1b\[31m\\x0ab\.json") as caught:
        reports.check_report({**REPORT, "schema_version": "\x1b[2J\n"}, path)
    assert r"\x1b[2J\x0a" in one_sentence(caught.value)


def test_one_key_of_many_that_is_there_twice():
    begin = time.process_time()
    text = "{" + ",".join(f'"k{number}": 0' for number in range(100_000)) + ', "k99999": 0}'
    with pytest.raises(MalformedError, match="'k99999' is there twice"):
        untrusted.parse_json(text, limits.MANIFEST)
    assert time.process_time() - begin < limits.READING_SECONDS


@pytest.mark.slow
@pytest.mark.parametrize("kind", [limits.MANIFEST, limits.REPORT, limits.LINE, limits.DOCUMENT])
def test_the_largest_json_takes_no_longer_than_is_said(kind):
    begin = time.process_time()
    untrusted.parse_json("[" + "{}," * (kind.elements // 2 - 2) + "{}]", kind)
    assert time.process_time() - begin < limits.READING_SECONDS


# ---------------------------------------------------------------------------------------------------------- reports


def read(path: Path, content: object) -> None:
    """All that is done with a document that was read, or the error that says what is wrong with it."""
    path.write_text(json.dumps(content))
    found, estimates = reports.read_document(path)
    searches = content.get("searches", []) if isinstance(content, dict) else []
    document = reports.collect(found, searches, estimates)
    for write in (*FORMATS.values(), networks.to_csv):
        write(document)
    for report in document["reports"]:
        report_text(report)
        for pair in ((report, REPORT), (REPORT, report)):
            compare.text(compare.compare(*pair, any_basis=True))
    reports.not_shown(document["reports"])


@pytest.mark.parametrize("content", [REPORT, SIMULATED, ESTIMATE, COLLECTION])
def test_documents_with_all_that_they_can_have(tmp_path, content):
    read(tmp_path / "x.json", content)


def changed(path: str, value: object) -> dict:
    """REPORT with another value at a path."""
    content = json.loads(json.dumps(REPORT))
    *steps, last = [int(step) if step.isdigit() else step for step in path.split(".")]
    holder = content
    for step in steps:
        holder = holder[step]
    holder[last] = value
    return content


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("model", [], r"model is a list of 0, where an object belongs"),
        ("model.name", 5, r"model\.name is 5, where text belongs"),
        ("model.macs", True, r"model\.macs is True, where a whole number belongs"),
        ("model.parameters", 1.0, r"model\.parameters is 1\.0, where a whole number belongs"),
        ("target.cpu.model", None, r"target\.cpu\.model is None"),
        ("latency.p50", "fast", r"latency\.p50 is 'fast', where a number belongs"),
        ("latency.p50", -1, r"latency\.p50 is -1, where 0 or more belongs"),
        ("latency.windows", [], r"latency\.windows is a list of 0"),
        ("latency.histogram.counts", [1], r"latency\.histogram has not one edge more"),
        ("layers.0", None, r"layers\[0\] is None, where an object belongs"),
        ("layers.0.modules", "a", r"layers\[0\]\.modules is 'a', where a list belongs"),
        ("layers.0.details.kernels", [{}], r"layers\[0\]\.details\.kernels\[0\] lacks 'blocks'"),
        ("timeline.queues.compute.alu", [1], r"timeline\.queues has rows of different lengths"),
        ("timeline.end", 0, r"timeline\.end is 0"),
        ("environment.versions", None, r"environment\.versions is None"),
        ("verify.vectors", 3, r"verify\.vectors is 3"),
    ],
)
def test_reports_are_checked_below_the_top(tmp_path, path, value, words):
    with pytest.raises(UnusableFileError, match=words) as caught:
        read(tmp_path / "x.json", changed(path, value))
    one_sentence(caught.value)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("latency.warm", None),
        ("latency.interval", [0.0, 0.0]),
        ("layers.0.latency", None),
        ("layers.0.latency.p50", 5e-324),
        ("layers.0.bound.us", 0),
        ("layers.0.details.modelled_cycles", 0),
        ("target.roof", None),
    ],
)
def test_reports_with_what_is_rare(tmp_path, path, value):
    read(tmp_path / "x.json", changed(path, value))


def test_reports_without_what_newer_formats_have(tmp_path):
    layers = [
        {key: row[key] for key in ("kernel", "modules", "macs", "bytes", "schedule", "latency")} for row in LAYERS
    ]
    target = {key: value for key, value in REPORT["target"].items() if key not in ("roof", "arithmetic")}
    optional = ("not_shown", "cycles", "timeline", "device")
    content = {key: value for key, value in REPORT.items() if key not in optional}
    read(tmp_path / "x.json", {**content, "schema_version": "1.0", "layers": layers, "target": target})


LAYERS = REPORT["layers"]


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_no_damage_to_a_report_makes_a_traceback(tmp_path, part):
    empty = {"schema_version": "1.3", "generator": "tvmflow", "reports": [], "searches": [], "estimates": []}
    documents = (
        REPORT,
        {**empty, "reports": [SIMULATED]},
        {**empty, "searches": [SEARCH], "estimates": [ESTIMATE]},
    )
    every = [change for document in documents for change in mutations(document)]
    for what, content in every[part::44]:
        try:
            read(tmp_path / "x.json", content)
        except TvmflowError as error:
            one_sentence(error)
        except Exception as error:
            raise AssertionError(what) from error


def test_a_report_writes_all_its_files_or_none(tvmflow, tmp_path):
    (tmp_path / "x.json").write_text(json.dumps(COLLECTION))
    out = tmp_path / "out"
    out.mkdir()
    (out / "report.html").write_text("the old one")
    (out / "networks.csv").mkdir()
    tvmflow("report", tmp_path / "x.json", "-o", out).failed_with(4, "networks.csv can't be written: Is a directory")
    assert sorted(path.name for path in out.iterdir()) == ["networks.csv", "report.html"]
    assert (out / "report.html").read_text() == "the old one"
    (out / "networks.csv").rmdir()
    assert tvmflow("report", tmp_path / "x.json", "-o", out).code == 0
    written = ["networks.csv", "report.csv", "report.html", "report.json", "report.md"]
    assert sorted(path.name for path in out.iterdir()) == written


def test_files_that_can_not_be_exchanged_are_as_before(tmp_path, monkeypatch):
    (tmp_path / "a").write_text("old")
    replace = os.replace

    def fail(source, destination):
        if Path(destination).name == "c" and "tvmflow" in Path(source).name:
            raise OSError(5, "Input/output error")
        replace(source, destination)

    monkeypatch.setattr(reports.os, "replace", fail)
    with pytest.raises(UserError, match="Input/output error"):
        reports.write_texts({tmp_path / name: "new" for name in "abc"})
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "old"}


# ----------------------------------------------------------------------------------------------- what is shown of it

NAME = "a\x1b]0;owned\x07\x9b31m\u202e\n<script>alert(1)</script>[x](javascript:1)"


def test_an_error_of_many_lines_is_one(capsys):
    with pytest.raises(typer.Exit):
        outcome.fail("No.\n\n  It said \x1b[31m:\n  a  b", 4)
    assert capsys.readouterr().err == "tvmflow: No. It said \\x1b[31m: a  b\n"


def test_a_terminal_is_told_nothing_by_names():
    report = changed("model.name", NAME)
    report["layers"][0]["modules"] = [NAME]
    shown = report_text(report) + compare.text(compare.compare(report, report)) + text_table([NAME], [[NAME]])
    assert not set(shown) & set("\x1b\x07\x9b\u202e")
    assert r"a\x1b]0;owned\x07\x9b31m\u202e\x0a<script>" in shown


def test_markdown_and_html_have_no_scripts_of_names():
    document = reports.collect([changed("model.name", NAME)])
    document["reports"][0]["layers"][0]["modules"] = [NAME]
    for write in (FORMATS[".md"], render_html):
        assert "<script>alert" not in write(document)
    assert "](javascript" not in FORMATS[".md"](document)


@pytest.mark.parametrize("value", ["=1+1", "+1", "-1", "@x", " =1+1", "\t=1", "\r=1", "\n-1"])
def test_no_cell_of_a_spreadsheet_is_a_formula(value):
    assert views.plain(value).startswith("'")


# ----------------------------------------------------------------------------------------------------------- arrays


def header(text: str, data: bytes = b"", version: tuple[int, int] = (1, 0), length: int | None = None) -> bytes:
    text += " " * (-(len(text) + 11) % 64) + "\n"
    size = len(text) if length is None else length
    return b"\x93NUMPY" + bytes(version) + struct.pack("<H" if version == (1, 0) else "<I", size) + text.encode() + data


ARRAY = "{'descr': %r, 'fortran_order': False, 'shape': %s, }"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (header(ARRAY % ("<f4", "(1000000, 1000000)")), "elements of float32"),
        (header(ARRAY % ("<f4", "(100, 100)")), r"0 bytes of data where float32 100×100 takes 40,000"),
        (header(ARRAY % ("<f4", "(2,)"), bytes(9)), "9 bytes of data"),
        (header(ARRAY % ("<f4", "(-1,)")), "its shape is"),
        (header(ARRAY % ("<f4", "(True,)"), bytes(4)), "shape"),
        (header(ARRAY % ("|O", "(1,)"), b"cos\nsystem\n"), "which are no numbers"),
        (header(ARRAY % ("<U4", "(1,)"), bytes(16)), "which are no numbers"),
        (header(ARRAY % ("nonsense", "(1,)")), "header can't be read"),
        (header("(" * 9000), "header can't be read"),
        (header("{'a': 1}"), "header can't be read"),
        (header("", length=60_000), "its header has 60,000 bytes"),
        (header("", version=(2, 0), length=1 << 31), "its header has 2,147,483,648 bytes"),
        (header(ARRAY % ("<f4", "(1,)"), bytes(4), version=(9, 9)), "version 9.9"),
        (header(ARRAY % ("<f4", "(1,)"))[:40], "header can't be read"),
        (b"", "doesn't begin"),
        (b"\x93NUMPY", "doesn't begin"),
        (b"PK\x03\x04 and more than twelve bytes", "archive"),
    ],
)
def test_arrays_that_are_refused(tmp_path, content, words):
    path = tmp_path / "x.npy"
    path.write_bytes(content)
    for mode in (None, "r"):
        with pytest.raises(MalformedError, match=words):
            tensors.load(path, mode)


@pytest.mark.parametrize("dtype", [*tensors.DTYPES])
@pytest.mark.parametrize("shape", [(), (0,), (2, 3), (3, 1, 2)])
def test_arrays_that_are_read(tmp_path, dtype, shape):
    wanted = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(np.dtype(dtype))
    for array in (wanted, np.asfortranarray(wanted)):
        np.save(tmp_path / "x.npy", array)
        for mode in (None, "r"):
            found = tensors.load(tmp_path / "x.npy", mode)
            assert found.dtype == wanted.dtype
            np.testing.assert_array_equal(found.astype(float), wanted.astype(float))


# ------------------------------------------------------------------------------------------------------------- tars


def member(name: str, content: bytes = b"", **changes: object) -> bytes:
    """A member as it lies in a tar; `raw` changes its header's bytes."""
    raw: Callable[[bytearray], None] | None = changes.pop("raw", None)  # type: ignore[assignment]
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    for key, value in changes.items():
        setattr(entry, key, value)
    block = bytearray(entry.tobuf(tarfile.GNU_FORMAT))
    if raw is not None:
        raw(block)
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block[:512])
    return bytes(block) + content + bytes(-len(content) % 512)


def pax(key: bytes, value: bytes) -> bytes:
    record = b" %s=%s\n" % (key, value)
    text = b"%d%s" % (len(record) + len(str(len(record) + 2)), record)
    return member("pax", text, type=tarfile.XHDTYPE)


SPARSE_MAP = b"1000000000\n" + bytes(501)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (member("a", type=tarfile.GNUTYPE_SPARSE), "no plain file"),
        (pax(b"GNU.sparse.major", b"1") + pax(b"GNU.sparse.minor", b"0") + member("a", SPARSE_MAP), "GNU.sparse.major"),
        (pax(b"GNU.sparse.size", b"9999999999") + member("a"), "GNU.sparse.size"),
        (pax(b"size", b"9999999999") + member("a"), "'size'"),
        (member("long", b"x" * 70_000, type=tarfile.GNUTYPE_LONGNAME) + member("a"), "name or pax header of 70,000"),
        (member("a", type=tarfile.DIRTYPE), "no plain file"),
        (member("a", type=tarfile.FIFOTYPE), "no plain file"),
        (member("a", type=tarfile.BLKTYPE), "no plain file"),
        (member("a", type=tarfile.LNKTYPE, linkname="b"), "no plain file"),
        (member("a") + member("a"), "two members"),
        (member("a") + member("./a"), "two members"),
        (member("a") + member("a/b"), "can't be unpacked"),
        (member("a", raw=lambda block: block.__setitem__(slice(124, 136), b"\x80" + b"\x7f" * 11)), "tar"),
        (member("a", raw=lambda block: block.__setitem__(slice(124, 136), b"\xff" * 12)), "tar|bytes"),
        (member("a" * 90 + "\x1b[31m", type=tarfile.SYMTYPE), r"\\x1b\[31m' that is no plain file"),
    ],
)
def test_tars_that_are_refused(tmp_path, content, words):
    path, root = tmp_path / "x.tar", tmp_path / "root"
    path.write_bytes(content + bytes(1024))
    root.mkdir()
    with pytest.raises(UnusableFileError, match=words) as caught:
        untrusted.unpack(path, root, lambda *_: None)
    one_sentence(caught.value)


@pytest.mark.parametrize("kept", [100, 511, 513, 514, 600])
def test_a_torn_tar(tmp_path, kept):
    (tmp_path / "x.tar").write_bytes(member("a", b"x" * 1000)[:kept])
    (tmp_path / "root").mkdir()
    with pytest.raises(UnusableFileError) as caught:
        untrusted.unpack(tmp_path / "x.tar", tmp_path / "root", lambda *_: None)
    one_sentence(caught.value)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tars_that_are_read(tmp_path, form):
    path, root, name = tmp_path / "x.tar", tmp_path / "root", f"vectors/{'n' * 120}/input-0.npy"
    with tarfile.open(path, "w", format=form) as archive:
        for number, place in enumerate((name, "b")):
            entry = tarfile.TarInfo(place)
            entry.size, entry.mtime = 600 + number, 1.5 if form == tarfile.PAX_FORMAT else 1
            archive.addfile(entry, io.BytesIO(b"x" * entry.size))
    root.mkdir()
    seen: list[tuple[str, int, int, int]] = []
    untrusted.unpack(path, root, lambda *facts: seen.append(facts))
    assert seen == [(name, 600, 600, 1), ("b", 601, 1201, 2)]
    assert (root / name).stat().st_size == 600


# ------------------------------------------------------------------------------------------------------------- TOML


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (".".join("a" * 30_000) + " = 1", "more than 8 parts"),
        ("[" + ".".join("a" * 30) + "]", "more than 8 parts"),
        ("x = {" + " . ".join('"a"' for _ in range(30)) + " = 1}", "more than 8 parts"),
        ("x = " + "[" * 20_000, r"over 5,000 values|deeply"),
        ("x = " + "[" * 30 + "]" * 30, "nested deeper"),
        ("x = 1\n" * 2, "overwrite"),
        ("x = '" + "a" * 70_000 + "'", "over 65,536 bytes"),
        ("\x00", "no valid TOML"),
    ],
)
def test_toml_that_is_refused(tmp_path, text, words):
    path = tmp_path / "x.toml"
    path.write_text(text)
    begin = time.process_time()
    with pytest.raises(UnusableFileError, match=words) as caught:
        untrusted.read_toml(path)
    assert time.process_time() - begin < limits.READING_SECONDS
    one_sentence(caught.value)


# ------------------------------------------------------------------------------------------------- nothing else reads

BANNED = {
    *("json.load", "json.loads", "np.load", "numpy.load", "torch.load", "tarfile.open"),
    *("import tomllib", "import tomli", "import pickle", "import yaml", "import marshal", "import shelve"),
}
OF_ITS_OWN_PROCESS = "what a process that tvmflow started answers, or is told by it"

EXCEPTIONS: dict[str, tuple[str, set[str]]] = {
    "tvmflow/system/untrusted.py": ("the layer itself", {"tarfile.open", "import tomllib", "import tomli"}),
    "targets/vta/driver/vta_driver.py": ("runs on the board, without tvmflow", {"json.load", "np.load"}),
    "tvmflow/bundles/bundle.py": ("writes a tar", {"tarfile.open"}),
    "tvmflow/report/__init__.py": ("the schema, which tvmflow brings", {"json.loads"}),
    "tvmflow/tune/space.py": ("a record that was just made, as JSON would give it back", {"json.loads"}),
    "tvmflow/system/start_child.py": ("what its parent says", {"json.loads"}),
    "tvmflow/tune/worker.py": (OF_ITS_OWN_PROCESS, {"json.loads"}),
    "tvmflow/tune/processes.py": (OF_ITS_OWN_PROCESS, {"json.loads"}),
    "tvmflow/measure/cycles.py": (OF_ITS_OWN_PROCESS, {"json.loads"}),
    "tvmflow/measure/latency.py": ("constants, which tvmflow brings", {"json.loads"}),
    "tvmflow/measure/emulated_kernels.py": (OF_ITS_OWN_PROCESS, {"json.loads"}),
    "tvmflow/measure/device/__init__.py": (OF_ITS_OWN_PROCESS, {"json.loads"}),
    "tvmflow/measure/local.py": (OF_ITS_OWN_PROCESS, {"json.loads"}),
    "tvmflow/measure/worker.py": (OF_ITS_OWN_PROCESS, {"json.loads"}),
    "tvmflow/remote/rpc_worker.py": (OF_ITS_OWN_PROCESS, {"json.loads"}),
    "targets/cpu/library/backend.py": (OF_ITS_OWN_PROCESS, {"json.loads"}),
    "targets/cuda/standin/__init__.py": (OF_ITS_OWN_PROCESS, {"import pickle"}),
    "targets/cuda/standin/__main__.py": (OF_ITS_OWN_PROCESS, {"import pickle"}),
    "models/__init__.py": ("cards of weights, which tvmflow brings", {"json.loads"}),
    "benchmarks/experiment_page.py": ("results of the checkout", {"json.loads"}),
    "benchmarks/experiments.py": ("results of the checkout", {"json.loads"}),
    # readers with limits of their own, which are yet to come here
    "models/train.py": ("checkpoints of `tvmflow train`, of weights alone", {"json.loads", "torch.load"}),
    "models/archives.py": ("data sets, as a stream", {"tarfile.open"}),
    "models/data.py": ("the cache of data sets", {"np.load"}),
    "tvmflow/remote/deploy.py": ("writes a tar", {"tarfile.open"}),
    "tvmflow/remote/rpc.py": (OF_ITS_OWN_PROCESS, {"json.loads"}),
    "tvmflow/remote/rpc_session.py": ("what a board is told", {"json.loads"}),
}
"""Files that read otherwise: why, and what they use."""


def readers(path: Path) -> set[str]:
    """Those of BANNED that a file has in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            found.add(f"{node.value.id}.{node.attr}")
        if isinstance(node, ast.Import):
            found |= {f"import {alias.name}" for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            found |= {f"import {node.module}"} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found & BANNED


def test_nothing_else_reads_what_others_may_have_made():
    folders = ("tvmflow", "targets", "models", "schedules")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    network = ROOT / "tvmflow" / "network"  # .pt2 and .onnx files have limits of their own
    for path in files:
        if network in path.parents:
            continue
        _, allowed = EXCEPTIONS.get(path.relative_to(ROOT).as_posix(), ("", set()))
        assert readers(path) <= allowed, f"{path} reads files itself; tvmflow.system.untrusted has the readers"
