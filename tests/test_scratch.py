"""A file is written whole or not at all, and what a killed process left is removed by the next."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from conftest import ROOT
from integer_networks import conv, random_network

from tvmflow.integer import file
from tvmflow.models import train
from tvmflow.report import write_text
from tvmflow.spec import UserError
from tvmflow.system import scratch
from tvmflow.tune import store


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file can become larger than a kilobyte, as on a disk that is full but for that."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def save_weights(path: Path) -> None:
    network = random_network(np.random.default_rng(7), "per-channel", shapes=(conv(64, relu=False),))
    file.save(network, path)


WRITERS: dict[str, Callable[[Path], None]] = {
    "quantised weights": save_weights,
    "a checkpoint": lambda path: train.save_state({"weights": np.zeros(10_000)}, path),
    "a model card": lambda path: train.write_text(path, 10_000 * "x"),
    "a report": lambda path: write_text(path, 10_000 * "x"),
    "records": lambda path: store._replace(path, 10_000 * "x"),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_full_disk_leaves_the_file_as_it_was_and_no_other(tmp_path, write, small_files):
    path = tmp_path / "file"
    path.write_text("before")
    with pytest.raises((OSError, UserError), match=str(path)):
        write(path)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_names_of_processes_that_have_gone_are_removed_and_no_others(tmp_path):
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        gone = process.pid
    mark = scratch._owner()
    system, _, started, _ = mark.split("-")
    names = {
        "mine": f".tvmflow-{mark}a",
        "gone": f"tvmflow-{system}-{gone}-{started}-a",
        "its number is another's now": f".tvmflow-{system}-{os.getpid()}-{int(started) + 1}-a",
        "of another computer": f".tvmflow-{'0' * 6}-{gone}-{started}-a",
        "the user's": f"tvmflow-{gone}-{started}-a",
    }
    for name in names.values():
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    with scratch.beside(tmp_path / "result"):
        pass
    left = {path.name for path in tmp_path.iterdir()}
    assert left == set(names.values()) - {names["gone"], names["its number is another's now"]}


def test_a_killed_command_takes_its_worker_along_and_the_next_removes_its_folder(tvmflow, host_bundle, tmp_path):
    command = [sys.executable, "-m", "tvmflow", "bench", host_bundle, "--seconds", "300"]
    variables = {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, cwd=ROOT, env={**os.environ, **variables}) as process:
        until = time.monotonic() + 120
        workers: list[psutil.Process] = []
        while not workers and time.monotonic() < until:
            time.sleep(0.2)
            workers = psutil.Process(process.pid).children()
        process.send_signal(signal.SIGKILL)
    assert workers
    assert not psutil.wait_procs(workers, timeout=30)[1]
    assert list(tmp_path.iterdir())
    assert tvmflow("boards", **variables).code == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="needs prctl or pidfd_open")
def test_a_child_that_a_thread_has_started_lives_as_long_as_the_process(tmp_path):
    """And not as long as the thread, as Linux would have it."""
    program = """
import json, subprocess, sys, threading, time
from tvmflow.system import children
def start():
    global child
    child = subprocess.Popen(children.python("timeit", "-n1", "-r1", "import time; time.sleep(1000)"))
thread = threading.Thread(target=start)
thread.start()
thread.join()
time.sleep(3)
print(child.pid, child.poll(), flush=True)
time.sleep(1000)
"""
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        number, ended = process.stdout.readline().split()
        child = psutil.Process(int(number))
        process.kill()
    assert ended == "None"
    assert not psutil.wait_procs([child], timeout=30)[1]


def test_without_a_folder_for_temporary_files_one_sentence_says_so(tvmflow, tmp_path, host_bundle):
    """Root may write everywhere: that no folder serves is what Python is told here."""
    (tmp_path / "sitecustomize.py").write_text(
        "import tempfile\n"
        "def none():\n    raise FileNotFoundError(2, 'No usable temporary directory found in [...]')\n"
        "tempfile.gettempdir = tempfile._get_default_tempdir = none\n"
    )
    path = os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]])
    tvmflow("verify", host_bundle, PYTHONPATH=path).failed_with(4, "set TMPDIR")
