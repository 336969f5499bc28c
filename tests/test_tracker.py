"""Boards in the list of TVM's tracker: found and used, and nobody who reaches it executes or learns anything."""

from __future__ import annotations

import contextlib
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator

import pytest
from boards import TOKEN, free_port, running, wait_for

from tvmflow.remote import rpc, tracker
from tvmflow.remote.serve import DENIED, MAGIC, Server
from tvmflow.remote.tracker import Registration, Tracker
from tvmflow.spec import DeviceError, UserError
from tvmflow.tune.remote import listed

KEY = "raspberry-pi-4b"


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """Where TVM's own tracker listens."""
    found = free_port()
    command = [sys.executable, "-m", "tvm.exec.rpc_tracker", "--host", "127.0.0.1"]
    command += ["--port", str(found), "--port-end", str(found + 1)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        wait_for(lambda: _answers(found))
        yield found
        process.terminate()


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), contextlib.closing(Tracker(port)):
        return True
    return False


@pytest.fixture
def server(tmp_path, port) -> Iterator[Server]:
    """A server in the tracker's list."""
    (tmp_path / "serve").mkdir()
    with running(tmp_path / "serve") as found:
        registration = Registration(port, KEY, found.port, found.busy.locked)
        wait_for(lambda: _free(port) == 1)
        yield found
        registration.close()
    wait_for(lambda: _free(port) == 0)


def _free(port: int) -> int:
    with contextlib.closing(Tracker(port)) as asked:
        return asked.ask(tracker.SUMMARY)[1]["queue_info"].get(KEY, {"free": 0})["free"]


def test_a_board_is_found_used_and_offered_again(server, port, host_bundle, token_file):
    where = {"tracker": f"127.0.0.1:{port}", "key": KEY, "token_file": token_file}
    for number in (1, 2):
        report = rpc.deploy(host_bundle, seconds=0.1, threads=1, **where)
        assert report["verify"]["passed"] is True
        assert report["device"]["host"] == f"127.0.0.1:{server.port}"
        wait_for(lambda number=number: server.counts["served"] == number)
    assert [row.name for row in listed(f"127.0.0.1:{port}", KEY, token_file)] == [f"127.0.0.1:{server.port}"]


def test_what_the_tracker_gives_to_anybody_opens_nothing(server, port, monkeypatch):
    monkeypatch.setattr(tracker, "UNUSED_SECONDS", 0.5)
    with contextlib.closing(Tracker(port)) as stranger:
        _, (host, found, match) = stranger.ask(tracker.REQUEST, KEY, "", 1)
    assert (host, found) == ("127.0.0.1", server.port)
    spare = server.spare
    for key in (match, f"{match} -timeout=10", KEY, ""):
        with socket.create_connection((host, found), timeout=10) as peer:
            said = f"client:{key}".encode()
            peer.sendall(struct.pack("<ii", MAGIC, len(said)) + said)
            assert peer.recv(4) == struct.pack("<i", DENIED)
    assert server.spare is spare
    assert server.counts["served"] == server.counts["failed"] == 0
    wait_for(lambda: _free(port) == 1)  # it is offered again


class Impostor:
    """Says of itself in the tracker's list that it is a board, and keeps what it is sent."""

    def __init__(self, tracker_port: int, host: str, answer: Callable[[str], bytes]) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.heard, self.answer = b"", answer
        self.connection = Tracker(tracker_port)
        port = self.listener.getsockname()[1]
        self.connection.ask(tracker.UPDATE_INFO, {"key": "server:fake", "addr": [host, port]})
        self.connection.ask(tracker.PUT, "fake", [port, "fake:0.1"], host)
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                peer, _ = self.listener.accept()
                with peer:
                    peer.settimeout(1)
                    said = peer.recv(4096)
                    self.heard += said
                    peer.sendall(b"HTTP/1.0 200 OK\r\n\r\n" + self.answer(said.split()[1].decode()))

    def close(self) -> None:
        self.connection.close()
        self.listener.close()


@pytest.mark.parametrize("kind", ["ignorant", "relaying", "elsewhere"])
def test_who_pretends_to_be_a_board_learns_nothing(server, port, host_bundle, token_file, kind):
    """One that passes the question on to a real board has the wrong port in its proof."""

    def ask_a_board(path: str) -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}", timeout=10) as answer:
            return answer.read()

    answers = {"relaying": ask_a_board, "ignorant": lambda path: b'{"status": "ok", "busy": false}'}
    host = "192.0.2.1" if kind == "elsewhere" else "127.0.0.1"
    impostor = Impostor(port, host, answers.get(kind, ask_a_board))
    expected = pytest.raises(DeviceError, match=r"of an older tvmflow|is the server of port|at 127\.0\.0\.1 only")
    with contextlib.closing(impostor), expected as caught:
        rpc.deploy(host_bundle, tracker=f"127.0.0.1:{port}", key="fake", token_file=token_file)
    assert caught.value.kind == "auth"
    assert impostor.heard or kind == "elsewhere"
    assert TOKEN.encode() not in impostor.heard


def test_a_tracker_that_is_none_or_elsewhere(tmp_path, host_bundle, token_file):
    for address in ("192.0.2.1:9190", "farm", "0.0.0.0:9190"):
        with pytest.raises(UserError, match="neither encrypts nor asks"):
            rpc.deploy(host_bundle, tracker=address, key=KEY, token_file=token_file)
    with pytest.raises(UserError, match="--key is a kind of board"):
        rpc.deploy(host_bundle, tracker="127.0.0.1", key="", token_file=token_file)
    with pytest.raises(DeviceError, match="No tracker answers"):
        rpc.deploy(host_bundle, tracker=f"127.0.0.1:{free_port()}", key=KEY, token_file=token_file)


@pytest.mark.parametrize("kind", ["deep", "long", "slow"])
def test_a_tracker_that_answers_without_end(kind, monkeypatch):
    """One that nests, one that announces two gigabytes, and one that sends a byte at a time."""
    monkeypatch.setattr(tracker, "ANSWER_SECONDS", 2.0)
    body = b"[" * 100_000

    def answer(peer: socket.socket) -> None:
        with peer, contextlib.suppress(OSError):
            peer.sendall(peer.recv(4))
            peer.recv(4096)
            peer.sendall(struct.pack("<i", 2**31 - 1 if kind == "long" else len(body)))
            for start in range(0, len(body), 1 if kind == "slow" else len(body)):
                peer.sendall(body[start : start + (1 if kind == "slow" else len(body))])
                time.sleep(0.1)

    words = {"deep": "nested too deeply", "long": "something else", "slow": "too slow|timed out"}
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=lambda: answer(listener.accept()[0]), daemon=True).start()
        started = time.monotonic()
        expected = pytest.raises((OSError, ValueError), match=words[kind])
        with contextlib.closing(Tracker(listener.getsockname()[1])) as asked, expected:
            asked.ask(tracker.SUMMARY, seconds=2.0)
        assert time.monotonic() - started < 10
