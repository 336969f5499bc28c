"""Neither side of an RPC session learns the token from the other, nor anything that begins a session elsewhere."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from boards import TOKEN, greeting, running

from tvmflow.remote import handshake, peers, rpc
from tvmflow.remote.handshake import Challenges, prove, session_key
from tvmflow.remote.serve import DENIED, MAGIC, Server
from tvmflow.spec import DeviceError

CLIENT = "0123456789abcdef" * 2


@pytest.fixture
def server(tmp_path) -> Iterator[Server]:
    (tmp_path / "serve").mkdir()
    with running(tmp_path / "serve") as found:
        yield found


class Impostor:
    """Listens where a board's server should, keeps what it is sent, and answers a request by what it was asked."""

    def __init__(self, answer: Callable[[str], bytes]) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.heard, self.answer = b"", answer
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                peer, _ = self.listener.accept()
                with peer, contextlib.suppress(OSError):
                    peer.settimeout(1)
                    said = peer.recv(4096)
                    self.heard += said
                    if said.startswith(b"GET "):
                        peer.sendall(self.answer(said.split()[1].decode()))

    def __enter__(self) -> Impostor:
        return self

    def __exit__(self, *_: object) -> None:
        self.listener.close()


def http(content: object) -> bytes:
    return b"HTTP/1.0 200 OK\r\n\r\n" + json.dumps(content).encode()


def outcome(port: int, said: bytes) -> int:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as peer:
        peer.sendall(said)
        return struct.unpack("<i", peer.recv(4))[0]


HEALTHY = {"status": "ok", "busy": False, "tvmflow": "0.1.0", "session_seconds": 600.0}
FALSE = {
    "healthy": (lambda path: http(HEALTHY), "of an older tvmflow"),
    "guessing": (lambda path: http({"nonce": "0" * 80, "proof": "0" * 64, "port": 9090}), "doesn't know the token"),
    "reflecting": (lambda path: http({"nonce": "0" * 80, "proof": path[-32:], "port": 1}), "doesn't know the token"),
    "of another kind": (lambda path: http({"nonce": 5, "proof": ["x"], "port": "é"}), "doesn't know the token"),
    "without JSON": (lambda path: b"HTTP/1.0 200 OK\r\n\r\n<html>", "No `tvmflow serve` answers"),
    "deep": (lambda path: b"HTTP/1.0 200 OK\r\n\r\n" + b"[" * 8000, "nested too deeply"),
    "endless": (lambda path: b"HTTP/1.0 200 OK\r\n\r\n" + b" " * (1 << 20), "more than 16,384 bytes"),
    "elsewhere": (lambda path: b"HTTP/1.0 302 Found\r\nLocation: http://192.0.2.1/\r\n\r\n", "HTTP status 302"),
    "silent": (lambda path: b"", "No `tvmflow serve` answers"),
}


@pytest.mark.parametrize("kind", list(FALSE))
def test_who_holds_the_port_learns_nothing(host_bundle, token_file, kind):
    answer, words = FALSE[kind]
    with Impostor(answer) as impostor, pytest.raises(DeviceError, match=words):
        rpc.deploy(host_bundle, address=f"127.0.0.1:{impostor.port}", token_file=token_file)
    assert impostor.heard.startswith(b"GET /challenge/")
    assert TOKEN.encode() not in impostor.heard
    assert struct.pack("<i", MAGIC) not in impostor.heard


def test_who_holds_the_port_behind_ssh_learns_nothing(board, host_bundle, monkeypatch):
    """Another user of the board, who was there before its server."""
    (board.home / ".config" / "tvmflow").mkdir(parents=True)
    (board.home / ".config" / "tvmflow" / "rpc-token").write_text(TOKEN)
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    with Impostor(lambda path: http(HEALTHY)) as impostor, pytest.raises(DeviceError, match="nothing was sent"):
        rpc.deploy(host_bundle, ssh="board", ssh_config=board.config, port=impostor.port)
    assert impostor.heard.startswith(b"GET /challenge/")
    assert TOKEN.encode() not in impostor.heard


def test_who_passes_questions_on_is_at_another_port(server, host_bundle, token_file):
    relaying = Impostor(lambda path: http(peers.get(server.port, path.removeprefix("/"))))
    with relaying as impostor, pytest.raises(DeviceError, match=f"is the server of port {server.port}") as caught:
        rpc.deploy(host_bundle, address=f"127.0.0.1:{impostor.port}", token_file=token_file)
    assert caught.value.kind == "auth"
    assert struct.pack("<i", MAGIC) not in impostor.heard


def test_a_tunnel_of_another_port_has_to_be_known(server):
    """As `--ssh` knows it, which opens the tunnel itself."""
    relaying = Impostor(lambda path: http(peers.get(server.port, path.removeprefix("/"))))
    with relaying as impostor:
        assert session_key(impostor.port, TOKEN, server_port=server.port)


def test_a_greeting_opens_one_session(server):
    """Recorded and said again, it is refused."""
    said = greeting(server.port)
    assert outcome(server.port, said) == MAGIC
    assert outcome(server.port, said) == DENIED
    assert TOKEN.encode() not in said


def test_a_greeting_to_one_server_opens_no_other(server, tmp_path):
    (tmp_path / "second").mkdir()
    with running(tmp_path / "second") as second:
        assert outcome(second.port, greeting(server.port)) == DENIED


def test_the_token_itself_opens_nothing(server, caplog):
    """That is how clients came in before this handshake."""
    key = f"client:{TOKEN}".encode()
    assert outcome(server.port, struct.pack("<ii", MAGIC, len(key)) + key) == DENIED
    assert "showed the token itself" in caplog.text
    assert TOKEN not in caplog.text


def test_a_servers_proof_is_no_clients():
    challenges = Challenges(TOKEN, 9090)
    said = challenges.answer(CLIENT)
    assert not challenges.admits(f"client:{CLIENT}:{said['nonce']}:{said['proof']}")
    assert challenges.admits(_key(said))


def _key(said: dict) -> str:
    return f"client:{CLIENT}:{said['nonce']}:{prove(TOKEN, 'client', CLIENT, said['nonce'], 9090)}"


def test_a_nonce_is_the_servers_own_short_lived_and_of_one_client(monkeypatch):
    challenges = Challenges(TOKEN, 9090)
    assert not Challenges(TOKEN, 9090).admits(_key(challenges.answer(CLIENT))), "one that was started again"
    said = challenges.answer("f" * 32)
    assert not challenges.admits(_key(said)), "another client's"
    later = {**said, "nonce": "f" * 16 + said["nonce"][16:]}
    assert not challenges.admits(_key(later)), "one whose end was moved"
    old = challenges.answer(CLIENT)
    now = time.monotonic()
    monkeypatch.setattr(handshake.time, "monotonic", lambda: now + handshake.NONCE_SECONDS + 1)
    assert not challenges.admits(_key(old)), "one that has ended"


def test_what_a_server_remembers_is_bounded(monkeypatch):
    monkeypatch.setattr(handshake, "MOST_USED", 3)
    challenges = Challenges(TOKEN, 9090)
    for _ in range(100):
        challenges.answer(CLIENT)
    assert [challenges.admits(_key(challenges.answer(CLIENT))) for _ in range(4)] == [True, True, True, False]
    now = time.monotonic()
    monkeypatch.setattr(handshake.time, "monotonic", lambda: now + handshake.NONCE_SECONDS + 1)
    assert challenges.admits(_key(challenges.answer(CLIENT)))
    assert len(challenges._used) == 1


@pytest.mark.parametrize("nonce", ["", "x" * 32, "0" * 31, "0" * 33, "A" * 32, "../health"])
def test_other_nonces_are_not_answered(nonce):
    with pytest.raises(ValueError, match="32 hexadecimal digits"):
        Challenges(TOKEN, 9090).answer(nonce)


def test_proofs_differ_by_all_that_they_are_of():
    proofs = {
        prove(token, role, client, server, port)
        for token in ("a", "b")
        for role in ("client", "server")
        for client in ("0", "1")
        for server in ("0", "1")
        for port in (1, 2)
    }
    assert len(proofs) == 32


def test_no_proxy_is_asked_about_a_board(server, monkeypatch):
    with Impostor(lambda path: http(HEALTHY)) as proxy:
        for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        place = rpc.Place(name="board", port=server.port, token=TOKEN)
        assert rpc.health(place)["busy"] is False
        rpc.check_proof(place)
    assert proxy.heard == b""


def test_a_slow_answer_has_one_deadline():
    """Not one for each byte."""

    def drip(peer: socket.socket) -> None:
        with peer, contextlib.suppress(OSError):
            for _ in range(100):
                peer.sendall(b"H")
                time.sleep(0.1)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=lambda: drip(listener.accept()[0]), daemon=True).start()
        started = time.monotonic()
        with pytest.raises(TimeoutError, match="longer than 2 s to answer"):
            peers.get(listener.getsockname()[1], "health", seconds=2)
        assert time.monotonic() - started < 6
