"""A child that comes from a server ends as one that began from nothing, for whoever waits for it and for its parent."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
import warm_children
from boards import wait_for

from tvmflow.system import children

pytestmark = pytest.mark.skipif(not warm_children.possible(), reason="servers of children need Linux")


@pytest.fixture(autouse=True)
def ready(child_servers) -> Path:
    """The socket of a server that has begun."""
    child_servers.start("libraries")
    path = Path(child_servers.folder, "libraries")
    wait_for(path.exists)
    return path


def runner() -> list[str]:
    """The command of a process that waits for jobs on its stdin."""
    return children.python("tvmflow.tune.worker", "run", '{"device": "cpu", "shortest_ms": 1}')


def served() -> list[psutil.Process]:
    """The children of servers, and of the processes that see to them."""
    found: list[psutil.Process] = []
    for process in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended since it was listed
            if "libraries" in process.cmdline():
                found += process.children(recursive=True)
    return found


def test_its_words_and_its_end_are_those_of_a_cold_one(tmp_path):
    command = children.python("tvmflow.measure.worker", tmp_path / "nothing.json", tmp_path / "result.json")
    warm_one, cold_one = (
        subprocess.run(words, capture_output=True, text=True, check=False)
        for words in (command, command[command.index(sys.executable, 1) :])
    )
    assert (warm_one.returncode, warm_one.stdout) == (cold_one.returncode, cold_one.stdout) == (1, "")
    assert warm_one.stderr.splitlines()[-1] == cold_one.stderr.splitlines()[-1]


def test_it_has_the_folder_and_the_variables_of_its_client(tmp_path, host_bundle):
    np.save(tmp_path / "input.npy", np.zeros((1, 1, 3, 9, 7), np.float32))
    job = f'{{"mode": "run", "library": "{host_bundle / "model.so"}", "inputs": ["input.npy"], "outputs": ["out.npy"]}}'
    (tmp_path / "job.json").write_text(job)
    command = children.python("tvmflow.measure.worker", "job.json", "result.json")
    assert subprocess.run(command, cwd=tmp_path, check=False, env=children.environment()).returncode == 0
    assert np.load(tmp_path / "out.npy").shape[0] == 1


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_it_ends_with_its_client(number):
    with subprocess.Popen(runner(), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as client:
        wait_for(served)
        client.send_signal(number)
        assert client.wait(10) == -number
        wait_for(lambda: not served())


def test_its_client_ends_as_it_does():
    with subprocess.Popen(runner(), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as client:
        wait_for(lambda: len(served()) == 2)
        minder, child = sorted(served(), key=lambda process: process.ppid() in {other.pid for other in served()})
        assert child.ppid() == minder.pid
        child.send_signal(signal.SIGSEGV)
        assert client.wait(10) == -signal.SIGSEGV


def test_without_a_server_it_begins_from_nothing(ready):
    command = [word if word != str(ready) else f"{word}-nowhere" for word in runner()]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as client:
        client.communicate(timeout=60)
    assert not served()
    assert client.returncode == 0
