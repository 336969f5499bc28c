"""Whatever a terminal can show, and whoever stops reading, a command says what it has to say and ends as it should."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import psutil
import pytest

from tvmflow.cli import streams
from tvmflow.system.text import text_table


@pytest.mark.parametrize(
    ("encoding", "shown"), [("ascii", "3x3 > d 2.5 us?"), ("cp1252", "3×3 > d 2·5 µs?"), ("utf-8", "3×3 → δ 2·5 µs网")]
)
def test_what_an_encoding_lacks_is_printed_plainly(monkeypatch, encoding, shown):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    streams.adapt()
    print(text_table(["layer", "of"], [["3×3 → δ 2·5 µs网", "one"], ["x" * 16, "two"]]))
    print("a name that is no text: \udcff", file=sys.stderr)
    assert streams.flush()
    _, first, second = sys.stdout.buffer.getvalue().decode(encoding).splitlines()
    assert first.split("  ")[0] == shown
    assert first.index("one") == second.index("two")
    assert sys.stderr.buffer.getvalue() == b"a name that is no text: ?\n".replace(b"\n", os.linesep.encode())


def test_json_on_stdout_is_ascii(tvmflow):
    done = tvmflow("boards", "--json", "-", PYTHONIOENCODING="ascii")
    assert done.code == 0, done.err
    assert done.out.isascii()
    assert json.loads(done.out) == tvmflow("boards", "--json", "-").json


@pytest.mark.parametrize("arguments", [["boards"], ["boards", "--json", "-"], ["--help"], ["nonsense"]])
def test_nobody_reads_on(arguments):
    """As with `tvmflow boards | head -1`: no word of it, and the exit code of a broken pipe."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "tvmflow", *arguments]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert done.returncode == (2 if arguments == ["nonsense"] else streams.BROKEN_PIPE)
    assert "Broken" not in done.stderr


def test_special_files_are_not_replaced(tvmflow, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    done = tvmflow("boards", "--json", tmp_path / "pipe")
    assert done.code == 0, done.err
    assert os.read(reader, 1 << 16).startswith(b"{")
    os.close(reader)
    (tmp_path / "link.json").symlink_to(tmp_path / "linked.json")
    assert tvmflow("boards", "--json", tmp_path / "link.json").code == 0
    assert (tmp_path / "link.json").is_symlink()
    assert "host" in json.loads((tmp_path / "linked.json").read_text())


# ---------------------------------------------------------------------------------------------------------- signals

PROGRAM = """
    import signal, subprocess, sys, tempfile, time
    from pathlib import Path
    import typer
    from tvmflow.system import scratch
    from tvmflow.cli import outcome

    def work() -> None:
        child = subprocess.Popen(["sh", "-c", "sleep 1000 & echo $!; wait"], stdout=subprocess.PIPE, text=True)
        grandchild = child.stdout.readline().strip()
        with tempfile.TemporaryDirectory() as folder, scratch.beside(Path("result")) as made:
            made.mkdir()
            (made / "half").write_text("half")
            Path(folder, "some").write_text("some")
            print(child.pid, grandchild, flush=True)
            try:
                time.sleep(1000)
            finally:
                {cleaning}

    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # who tests under nohup has it ignored, and so has every child
    app = typer.Typer()
    app.command()(outcome.guarded(work))
    outcome.run(lambda: app(args=[]))
"""


TAKEN = """
    from tvmflow.system import interrupt
    interrupt.watch()

    import ctypes, os, signal, time

    c = ctypes.CDLL(None)
    c.signal.argtypes, c.signal.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    taken = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda number: print("taken"))
    with interrupt.deferred():
        before = c.signal(signal.SIGINT, ctypes.cast(taken, ctypes.c_void_p))
        os.kill(os.getpid(), signal.SIGINT)
        c.signal(signal.SIGINT, before)
        time.sleep(0.1)
        try:
            interrupt.check()
        except KeyboardInterrupt:
            print("noted")
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1000)
    except KeyboardInterrupt:
        print("raised")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="its system has no such signals")
def test_a_library_that_takes_the_signal_for_itself_loses_none():
    """As Z3 does while it works, inside TVM; afterwards the handler of before is back."""
    command = [sys.executable, "-c", textwrap.dedent(TAKEN)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "noted\nraised\n", "")


@pytest.mark.parametrize(
    ("signals", "code", "words", "cleaning"),
    [
        ([signal.SIGINT], 130, "interrupted", "pass"),
        ([signal.SIGTERM], 143, "ended by SIGTERM", "child.kill()"),
        ([signal.SIGHUP], 129, "ended by SIGHUP", "pass"),
        ([signal.SIGINT, signal.SIGINT], 130, "interrupted", "time.sleep(1000)"),
    ],
)
def test_signals_leave_nothing_behind(tmp_path, signals, code, words, cleaning):
    """No temporary file, no half of a result, no child and no child's child; also if cleaning up is interrupted."""
    (tmp_path / "tmp").mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PROGRAM.replace("{cleaning}", cleaning))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "TMPDIR": str(tmp_path / "tmp")},
    ) as process:
        assert process.stdout is not None
        started = [psutil.Process(int(number)) for number in process.stdout.readline().split()]
        assert len(list((tmp_path / "tmp").iterdir())) == 1
        for number in signals:
            process.send_signal(number)
            time.sleep(0.5)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert errors == f"tvmflow: {words}\n"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["tmp"]
    assert not psutil.wait_procs(started, timeout=5)[1]
