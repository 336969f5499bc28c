"""Deploying over SSH, to an SSH server on this computer that stands for a board: what works, and what goes wrong."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import psutil
import pytest
from boards import Board
from conftest import ROOT
from integer_networks import ONE_JOINT_MODULE, random_network

from tvmflow.bundles.build import build
from tvmflow.bundles.bundle import Bundle, open_bundle
from tvmflow.integer.frontend import integer_program
from tvmflow.remote.deploy import changes, connect, deploy, doubts, facts, parse_facts, upload, window_seconds
from tvmflow.report.render import report_text
from tvmflow.spec import DeviceError, UserError, VerificationError
from tvmflow.system.limits import RESULT
from tvmflow.system.text import to_json
from tvmflow.targets import TARGETS, compute_in


@pytest.fixture(scope="module")
def bundle(tiny, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("deploy") / "tiny.tar"
    build(tiny, TARGETS["host"], out, runner=True)
    return out


def left_on(board: Board) -> list[str]:
    return sorted(path.name for path in board.home.rglob("*") if path.name != ".cache")


def test_a_bundle_is_carried_verified_measured_and_reported(board, bundle):
    board.command("vcgencmd", "echo throttled=0x50000")
    report = board.deploy(bundle, threads=1)
    assert report["verify"]["passed"] is True
    assert report["verify"]["method"] == "device"
    assert report["verify"]["argmax_agreement"] == 1
    assert report["latency"]["basis"] == "measured"
    assert report["latency"]["threads"] == 1
    assert any("0x50000" in warning for warning in report["latency"]["warnings"])
    assert any("Built for host, measured on" in warning for warning in report["latency"]["warnings"])
    assert report["device"]["before"]["machine"] == os.uname().machine
    assert report["device"]["basis"] == "measured"
    jsonschema.validate(json.loads(to_json(report)), json.loads((ROOT / "docs" / "report.schema.json").read_text()))
    assert (board.home / report["device"]["folder"] / "manifest.json").is_file()


def test_int8_is_exact_on_the_board(board, tmp_path):
    network = random_network(np.random.default_rng(2), "per-channel", shapes=ONE_JOINT_MODULE)
    build(integer_program(network), compute_in(TARGETS["host"], "int8"), tmp_path / "int8.tar", runner=True)
    report = board.deploy(tmp_path / "int8.tar", threads=1)
    assert report["verify"]["passed"] is True
    assert (report["verify"]["method"], report["verify"]["max_abs_error"]) == ("device", 0)
    assert report["target"]["arithmetic"] == "int8"
    assert report["latency"]["basis"] == "measured"


def test_what_is_there_is_not_sent_again(board, bundle):
    board.carry(bundle)
    board.command("tar", "echo sent again >&2; exit 1")
    board.deploy(bundle)


@pytest.mark.parametrize("damage", ["model.so", "manifest.json"])
def test_a_damaged_copy_in_the_bundles_own_place_is_replaced(board, bundle, damage):
    folder = board.carry(bundle)
    with (folder / damage).open("r+b") as file:
        file.truncate(1000)
    assert board.deploy(bundle)["verify"]["passed"] is True
    assert os.listdir(folder.parent) == [folder.name]


@pytest.fixture
def other_bundle(bundle, tmp_path) -> Path:
    """The same with another README."""
    root = tmp_path / "other"
    root.mkdir()
    subprocess.run(["tar", "xf", bundle, "-C", root], check=True)
    (root / "README.md").write_text("another")
    manifest = json.loads((root / "manifest.json").read_text())
    digest = hashlib.sha256(b"another").hexdigest()
    manifest["members"]["README.md"] = {"bytes": 7, "sha256": digest}
    (root / "manifest.json").write_text(json.dumps(manifest))
    return root


def test_a_bundle_is_replaced_by_another(board, bundle, other_bundle):
    """So is an empty folder, which loses nothing."""
    (board.home / "net").mkdir()
    board.carry(bundle, "net")
    (board.home / "net" / "runner" / "example.c").unlink()  # what is lacking doesn't matter
    board.deploy(other_bundle, folder="net/")
    assert (board.home / "net" / "README.md").read_text() == "another"
    assert os.listdir(board.home) == ["net"]


def _photo(home: Path) -> None:
    (home / "net" / "photo.jpg").write_bytes(b"the only one")


def _foreign(home: Path) -> None:
    shutil.rmtree(home / "net")
    (home / "net").mkdir()
    (home / "net" / "manifest.json").write_text('{"name": "an extension"}')
    _photo(home)


def _changed(home: Path) -> None:
    (home / "net" / "README.md").write_text("notes of mine")


def _link(home: Path) -> None:
    (home / "net").rename(home / "real")
    (home / "net").symlink_to("real")


def _inner_link(home: Path) -> None:
    (home / "net" / "README.md").rename(home / "README.md")
    (home / "net" / "README.md").symlink_to("../README.md")


def _folder(home: Path) -> None:
    (home / "net" / "photos").mkdir()


def _file(home: Path) -> None:
    shutil.rmtree(home / "net")
    (home / "net").write_text("a list")


@pytest.mark.parametrize(
    ("spoil", "folder", "words"),
    [
        (_foreign, "net", r"holds '(manifest\.json|photo\.jpg)', which is of no bundle"),
        (_photo, "net", r"holds 'photo\.jpg', which is of no bundle"),
        (_changed, "net", r"holds 'README\.md', which isn't as tvmflow wrote it"),
        (_link, "net", "is a symbolic link"),
        (_link, "net/", "is a symbolic link"),
        (_inner_link, "net", r"holds 'README\.md', which is of no bundle"),
        (_folder, "net", "holds 'photos', which is of no bundle"),
        (_file, "net", "is no folder"),
        (lambda home: None, ".", "is or holds the home folder"),
        (lambda home: None, "..", "is or holds the home folder"),
        (lambda home: None, "/", "is or holds the home folder"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_is_no_bundle_of_ours_is_not_replaced(board, bundle, other_bundle, spoil, folder, words):
    board.carry(bundle, "net")
    spoil(board.home)
    before = _content(board.home)
    with pytest.raises(UserError, match=words):
        board.deploy(other_bundle, folder=folder)
    assert _content(board.home) == before


def test_a_stranger_in_the_bundles_own_place_stays(board, bundle):
    folder = board.carry(bundle)
    (folder / "model.so").write_bytes(b"")
    (folder / "photo.jpg").write_bytes(b"the only one")
    with pytest.raises(UserError, match=r"photo\.jpg"):
        board.deploy(bundle)
    assert (folder / "photo.jpg").read_bytes() == b"the only one"


def test_what_comes_into_the_place_meanwhile_stays(board, bundle, other_bundle):
    board.carry(bundle, "net")
    board.command("tar", f'echo mine > {board.home}/net/photo.jpg; exec {shutil.which("tar")} "$@"')
    with pytest.raises(DeviceError, match="something in it has changed meanwhile"):
        board.deploy(other_bundle, folder="net")
    assert (board.home / "net" / "photo.jpg").read_text() == "mine\n"
    assert (board.home / "net" / "README.md").exists()
    assert os.listdir(board.home) == ["net"]


@pytest.mark.parametrize("signal", ["HUP", "TERM"])
def test_an_upload_that_is_interrupted_puts_back_what_went_aside(board, bundle, other_bundle, signal):
    board.carry(bundle, "net")
    board.command("tar", f'echo mine > {board.home}/net/photo.jpg; exec {shutil.which("tar")} "$@"')
    board.command("cmp", f"kill -{signal} $PPID; exit 0")
    with pytest.raises(DeviceError, match="can't be put into net"):
        board.deploy(other_bundle, folder="net")
    assert (board.home / "net" / "photo.jpg").read_text() == "mine\n"
    assert os.listdir(board.home) == ["net"]


def test_only_what_an_upload_left_is_cleared_away(board, bundle):
    """Folders an hour old: one that a board left which lost power, and two of somebody's with names like that.

    So is kept what went aside and wasn't looked through before the power was lost.
    """
    for name, mark in (("01234567", "made by tvmflow deploy\n"), ("89abcdef", "mine"), ("photos", "")):
        (board.home / f"net.tvmflow-{name}").mkdir()
        (board.home / f"net.tvmflow-{name}" / ".tvmflow-upload").write_text(mark)
        os.utime(board.home / f"net.tvmflow-{name}", (0, 0))
    (board.home / "net.tvmflow-aaaaaaaa" / "old").mkdir(parents=True)
    (board.home / "net.tvmflow-aaaaaaaa" / ".tvmflow-upload").write_text("made by tvmflow deploy\n")
    os.utime(board.home / "net.tvmflow-aaaaaaaa", (0, 0))
    board.carry(bundle, "net")
    kept = ["net", "net.tvmflow-89abcdef", "net.tvmflow-aaaaaaaa", "net.tvmflow-photos"]
    assert sorted(os.listdir(board.home)) == kept


def _content(folder: Path) -> dict[str, bytes]:
    """Of all files, links as where they lead."""
    return {
        path.relative_to(folder).as_posix(): os.readlink(path).encode() if path.is_symlink() else path.read_bytes()
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }


def test_a_bundle_of_two_thousand_files(board, bundle, tmp_path):
    """Whose names are more than a command line may hold."""
    root = tmp_path / "many"
    (root / "vectors").mkdir(parents=True)
    names = [f"vectors/{number:04}-{'x' * 60}.npy" for number in range(2000)]
    for name in names:
        (root / name).write_text(name)
    members = {name: {"bytes": len(name), "sha256": hashlib.sha256(name.encode()).hexdigest()} for name in names}
    manifest = {"format": "tvmflow-bundle", "model": {"name": "many"}, "members": members}
    (root / "manifest.json").write_text(json.dumps(manifest))
    made = Bundle(path=root, root=root, manifest=manifest)
    with connect("board", board.config) as connection:
        upload(made, connection, "many")
        board.command("tar", "echo sent again >&2; exit 1")
        upload(made, connection, "many")
    assert len(list((board.home / "many" / "vectors").iterdir())) == 2000


def test_many_deploys_leave_nothing(board, bundle, tmp_path, monkeypatch, deploys):
    """No file, process or descriptor more than after one, and 20 of which only the check is made."""

    def left() -> tuple:
        started = psutil.Process().children(recursive=True)
        files = os.listdir(tmp_path / "tmp")
        return len(os.listdir("/proc/self/fd")), len(started), files, sorted(board.home.rglob("*"))

    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    board.deploy(bundle)
    before = left()
    for _ in range(deploys):
        board.deploy(bundle)
    with open_bundle(bundle) as opened, connect("board", board.config) as connection:
        for _ in range(20):
            upload(opened, connection, f".cache/tvmflow/{opened.digest[:16]}")
    assert left() == before


def test_names_with_spaces_and_quotes(board, bundle):
    assert board.deploy(bundle, folder="my 'net' $HOME")["verify"]["passed"] is True
    assert os.listdir(board.home) == ["my 'net' $HOME"]


def test_two_clients_at_once(board, bundle):
    results = []
    threads = [threading.Thread(target=lambda: results.append(board.deploy(bundle))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [report["verify"]["passed"] for report in results] == [True, True]
    assert len(os.listdir(board.home / ".cache" / "tvmflow")) == 1


# ------------------------------------------------------------------------------------------------------------ faults


def test_code_of_another_machine_is_not_sent(board, bundle):
    board.command("uname", "echo armv7l")
    with pytest.raises(UserError, match="Nothing was sent"):
        board.deploy(bundle)
    assert left_on(board) == []


def test_a_32_bit_system_on_a_64_bit_kernel(board, bundle):
    board.command("getconf", '[ "$1" = LONG_BIT ] && echo 32')
    with pytest.raises(UserError, match="32-bit system"):
        board.deploy(bundle)


@pytest.mark.parametrize("version", ["glibc 2.27", "", "musl 1.2"])
def test_a_c_library_that_is_too_old_or_another(board, bundle, version):
    board.command("getconf", f'case "$1" in LONG_BIT) echo 64;; GNU*) echo {version};; esac')
    with pytest.raises(UserError, match=r"glibc 2\.28 or newer"):
        board.deploy(bundle)


def test_wrong_answers(board, bundle, tmp_path):
    (tmp_path / "wrong").mkdir()
    subprocess.run(["tar", "xf", bundle, "-C", tmp_path / "wrong"], check=True)
    name = "vectors/002-noise-2/output-0.npy"
    np.save(tmp_path / "wrong" / name, np.load(tmp_path / "wrong" / name) * np.float32(1.01))
    manifest = json.loads((tmp_path / "wrong" / "manifest.json").read_text())
    manifest["members"][name]["sha256"] = hashlib.sha256((tmp_path / "wrong" / name).read_bytes()).hexdigest()
    (tmp_path / "wrong" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(VerificationError, match="noise-2"):
        board.deploy(tmp_path / "wrong")


@pytest.mark.parametrize(("name", "words"), [("SEGV", "crashed with SIGSEGV"), ("ILL", "other instructions")])
def test_a_network_that_crashes(board, bundle, name, words):
    board.rewrite.write_text(f"s#^.*runner/run --.*#sh -c 'kill -{name} $$'#\n")
    with pytest.raises(VerificationError, match=words):
        board.deploy(bundle)


@pytest.mark.parametrize("stream", ["1", "2"])
def test_a_board_that_prints_without_end(board, bundle, monkeypatch, stream):
    monkeypatch.setattr(RESULT, "bytes", 1 << 20)
    board.rewrite.write_text(f"s#^.*runner/run --.*#exec yes >\\&{stream}#\n")
    with pytest.raises(
        DeviceError, match="board printed more than 1,048,576 bytes while running the network; it was cut off"
    ):
        board.deploy(bundle)


def test_a_board_that_reads_nothing(board, bundle, monkeypatch):
    monkeypatch.setattr("tvmflow.remote.deploy.UPLOAD_SECONDS", 2.0)
    board.command("tar", "sleep 60")
    with pytest.raises(DeviceError, match="didn't finish uploading in 2 s"):
        board.deploy(bundle)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("hello", "prints something else than its results: 'hello'"),
        ("[1]", "prints something else than its results"),
        ("{}", "gives no verdict: it has no vectors"),
        ('{"vectors": []}', "gives no verdict: it has 0 vectors, and the bundle 12"),
        ("[" * 4000, "prints something else than its results"),
    ],
    ids=["text", "list", "nothing", "empty", "deep"],
)
def test_a_runner_that_says_something_else(board, bundle, said, words):
    (board.home / "said").write_text(said)
    board.rewrite.write_text("s#^.*runner/run --.*#cat said#\n")
    with pytest.raises(VerificationError, match=words):
        board.deploy(bundle)


def test_an_exit_code_that_is_no_signal(board, bundle):
    board.rewrite.write_text("s#^.*runner/run --.*#echo no way >\\&2; exit 222#\n")
    with pytest.raises(VerificationError, match="can't be run on board: no way"):
        board.deploy(bundle)


def test_a_runner_without_times(board, bundle):
    (board.home / "said").write_text('{"samples": [], "warmup": [], "setup": 1, "first": 1, "threads": 1}')
    board.rewrite.write_text("s#^.*runner/run --samples.*#cat said#\n")
    with pytest.raises(VerificationError, match="it took no time"):
        board.deploy(bundle)


def test_facts_that_cannot_be_read_are_left_out(board, bundle):
    """The measurement stays, with a note for each."""
    board.command("vcgencmd", "echo VCHI initialization failed")
    report = board.deploy(bundle, threads=1)
    assert report["latency"]["basis"] == "measured"
    assert "throttled" not in report["device"]["after"]
    assert any("throttled can't be read ('VCHI init" in warning for warning in report["latency"]["warnings"])
    jsonschema.validate(json.loads(to_json(report)), json.loads((ROOT / "docs" / "report.schema.json").read_text()))


@pytest.mark.parametrize(
    "said",
    [
        "throttled=VCHI",
        "cores=nan",
        "cores=0",
        "cores=1e9",
        "load=inf",
        "clock_khz=no",
        "temperature_mc=1e999",
        "memory_kib=-",
    ],
)
def test_a_fact_that_cannot_be_read(said):
    found = parse_facts(f"machine=x86_64\n{said}\n")
    assert list(found) == ["machine", "unread"]
    assert len(found["unread"]) == 1


def test_facts_are_plain_and_of_ours():
    found = parse_facts("model=Pi\x1b[2J\nsecret=1\nno line\ncpu=" + "x" * 5000 + "\n=5\n")
    assert sorted(found) == ["cpu", "model"]
    assert found["model"] == r"Pi\x1b[2J"
    assert len(found["cpu"]) <= 201


def test_a_board_that_is_lost_after_the_run(board, bundle, monkeypatch):
    """What it said before stands."""
    asked = []

    def facts_once(connection):
        asked.append(connection)
        if len(asked) > 1:
            raise DeviceError("board was lost.", "lost")
        return facts(connection)

    monkeypatch.setattr("tvmflow.remote.deploy.facts", facts_once)
    report = board.deploy(bundle, threads=1)
    assert report["latency"]["basis"] == "measured"
    assert any("After the run the board's facts couldn't be read" in row for row in report["latency"]["warnings"])


def test_a_network_that_hangs(board, bundle, monkeypatch):
    board.rewrite.write_text("s#^.*runner/run --.*#sleep 600#\n")
    monkeypatch.setattr("tvmflow.remote.deploy.TEST_SECONDS", 2.0)
    with pytest.raises(DeviceError, match="didn't finish") as caught:
        board.deploy(bundle)
    assert caught.value.kind == "timeout"


def test_a_transfer_that_is_corrupted(board, bundle):
    board.command("tar", f'{shutil.which("tar")} "$@" && echo >> bundle/model.so')
    with pytest.raises(DeviceError, match="isn't what was sent") as caught:
        board.deploy(bundle)
    assert caught.value.kind == "upload"
    assert os.listdir(board.home / ".cache" / "tvmflow") == []


def test_a_full_disk_on_the_board(board, bundle):
    board.command("tar", "cat >/dev/null; echo 'tar: model.so: No space left on device' >&2; exit 2")
    with pytest.raises(DeviceError, match="No space left on device") as caught:
        board.deploy(bundle)
    assert caught.value.kind == "upload"
    assert os.listdir(board.home / ".cache" / "tvmflow") == []


def test_a_board_that_is_lost_during_the_upload(board, bundle):
    board.command("tar", f"head -c 1000 >/dev/null; pkill -KILL -P {board.process.pid}; sleep 2")
    with pytest.raises(DeviceError, match="was lost while uploading") as caught:
        board.deploy(bundle)
    assert caught.value.kind == "lost"
    for _ in range(100):  # what the board had of it is removed by the board
        if not any((board.home / ".cache" / "tvmflow").iterdir()):
            return
        time.sleep(0.1)
    assert os.listdir(board.home / ".cache" / "tvmflow") == []


def test_a_board_that_is_not_there(board, bundle, monkeypatch):
    monkeypatch.setattr("tvmflow.remote.deploy.RETRIES_AFTER", (0.1,))
    board.process.kill()
    board.process.wait()
    with pytest.raises(DeviceError, match="can't be reached") as caught:
        board.deploy(bundle)
    assert caught.value.kind == "unreachable"


def test_a_peer_that_says_nothing(board, bundle, monkeypatch):
    monkeypatch.setattr("tvmflow.remote.deploy.RETRIES_AFTER", ())
    monkeypatch.setattr("tvmflow.remote.deploy.CONNECT_SECONDS", 1)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        text = board.config.read_text()
        port = next(line for line in text.splitlines() if "Port" in line)
        board.config.write_text(text.replace(port, f" Port {silent.getsockname()[1]}"))
        with pytest.raises(DeviceError, match=r"can't be reached|didn't finish connecting"):
            board.deploy(bundle)


def test_who_may_not_come_in(board, bundle):
    (board.home.parent / "authorized").write_text("")
    with pytest.raises(DeviceError, match="can't be logged into") as caught:
        board.deploy(bundle)
    assert caught.value.kind == "auth"
    assert left_on(board) == []


def test_a_host_that_is_another_than_it_was(board, bundle):
    known = board.home.parent / "known"
    known.write_text(known.read_text().split()[0] + " " + (board.home.parent / "client.pub").read_text())
    with pytest.raises(DeviceError, match="can't be logged into: Host key verification failed") as caught:
        board.deploy(bundle)
    assert caught.value.kind == "auth"


def test_bundles_without_a_runner_and_hosts_that_are_none(host_bundle, bundle, tmp_path):
    with pytest.raises(UserError, match="build it with --runner c"):
        deploy(host_bundle, "board")
    for host in ("-oProxyCommand=touch x", "", "two words"):
        with pytest.raises(UserError, match="--ssh takes user@host"):
            deploy(bundle, host)
    with pytest.raises(UserError, match="no SSH configuration"):
        deploy(bundle, "board", ssh_config=tmp_path / "missing")


CALM = {"p50": 1.0, "p90": 1.1, "min": 0.9, "repeats": 100}


def test_doubts(host_bundle):
    pi = {"model": "Raspberry Pi 4 Model B Rev 1.4", "load": 0.1, "cores": 4.0}
    with open_bundle(host_bundle) as opened:
        target = {**opened.manifest["target"], "identity": "Raspberry Pi 4 Model B"}
        known = replace(opened, manifest={**opened.manifest, "target": target})
    assert doubts(known, pi, {"governor": "performance", "throttled": "0x0"}, CALM) == []
    disturbed = {**CALM, "p90": 2.0, "min": 0.5}
    assert len(doubts(known, {**pi, "model": "Raspberry Pi 5", "load": 3.0}, {"governor": "ondemand"}, disturbed)) == 5


def test_a_sustained_run_has_windows(board, bundle):
    """It is said what clock, temperature and throttling did meanwhile, and where the pace changed."""
    board.command("vcgencmd", "echo throttled=0x50005")
    report = deploy(bundle, "board", ssh_config=board.config, threads=1, seconds=2.5, sustained=True)
    windows = report["latency"]["windows"]
    assert 1 <= len(windows) <= 3
    assert {window["throttled"] for window in windows} == {"0x50005"}
    assert any("throttled or its voltage low at the end of" in line for line in report["latency"]["warnings"])
    assert "sustained over" in report_text(report)
    jsonschema.validate(json.loads(to_json(report)), json.loads((ROOT / "docs" / "report.schema.json").read_text()))


def test_changes():
    def window(at_s: float, p50: float, p90: float, **facts: str) -> dict:
        return {"at_s": at_s, "p50": p50, "p90": p90, **facts}

    assert changes([]) == []
    assert changes([window(0, 1.0, 1.1, throttled="0x50000"), window(30, 1.05, 1.1)]) == []
    found = changes([window(0, 1.0, 1.1), window(30, 1.5, 3.0, throttled="0x5")])
    assert [line.split(":")[0] for line in found] == [
        "The pace changed",
        "1 of 2 windows were unstable",
        "The board was throttled or its voltage low at the end of 1 of 2 windows.",
    ]
    assert [window_seconds(seconds) for seconds in (1, 600, 1800, 1e6)] == [1, 10, 30, 60]


def test_command_line(tvmflow, board, bundle, tmp_path):
    arguments = ["deploy", bundle, "--ssh", "board", "--ssh-config", board.config, "--seconds", "0.2"]
    done = tvmflow(*arguments, "--json", tmp_path / "report.json")
    assert done.code == 0, done.err
    assert "passed (device, 12 vectors)" in done.out
    assert json.loads((tmp_path / "report.json").read_text())["device"]["host"] == "board"
    board.process.kill()
    tvmflow(*arguments).failed_with(7, "board can't be reached")
