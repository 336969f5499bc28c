"""The door of a board: who may not come in does nothing, what goes wrong in a session ends with it."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from boards import TOKEN, free_port, greeting, running, wait_for

from tvmflow.remote import rpc, serve
from tvmflow.remote.serve import MAGIC, Limits, Server, read_token
from tvmflow.spec import DeviceError, UserError, VerificationError
from tvmflow.system import toolchain
from tvmflow.targets import TARGETS


@pytest.fixture
def server(tmp_path) -> Iterator[Server]:
    (tmp_path / "serve").mkdir()
    with running(tmp_path / "serve") as found:
        yield found


@pytest.fixture(scope="module")
def lasting(tmp_path_factory) -> Iterator[Server]:
    """A server that every test leaves as it was, but for its counts: the next finds a session that has imported TVM."""
    with running(tmp_path_factory.mktemp("lasting")) as found:
        yield found


@pytest.fixture(scope="module")
def untouched(tmp_path_factory) -> Iterator[Server]:
    """A server for peers that reach no session, as which it can be shared: a new one imports TVM for its first."""
    with running(tmp_path_factory.mktemp("untouched")) as found:
        yield found


def deploy(server: Server, bundle: Path, token_file: Path):
    address = f"127.0.0.1:{server.port}"
    return rpc.deploy(bundle, address=address, token_file=token_file, threads=1, seconds=0.1)


def health(server: Server) -> dict:
    return ask(server.port)


def ask(port: int) -> dict:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=10) as answer:
        return json.loads(answer.read())


def session_folders(server: Server) -> list[str]:
    spare = server.spare and server.spare.folder
    return [path.name for path in server.folder.iterdir() if path.is_dir() and path != spare]


def is_ready(watcher: int) -> bool:
    """Whether the session that a process has begun is past its imports, but for the smallest."""
    with contextlib.suppress(OSError, psutil.Error):  # it may be replaced at the moment
        sessions = psutil.Process(watcher).children(recursive=True)
        return any("tvm_runtime_extra" in Path(f"/proc/{session.pid}/maps").read_text() for session in sessions)
    return False


# ---------------------------------------------------------------------------------------------------------- it works


def test_a_bundle_is_verified_and_measured(lasting, host_bundle, token_file):
    report = deploy(lasting, host_bundle, token_file)
    assert report["verify"]["passed"] is True
    assert report["verify"]["method"] == "device"
    assert report["latency"]["basis"] == "measured"
    assert report["latency"]["threads"] == 1
    assert report["device"]["before"]["machine"] == os.uname().machine


def test_through_ssh_with_the_token_of_the_board(board, lasting, host_bundle, monkeypatch):
    (board.home / ".config" / "tvmflow").mkdir(parents=True)
    (board.home / ".config" / "tvmflow" / "rpc-token").write_text(TOKEN)
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    report = rpc.deploy(host_bundle, ssh="board", ssh_config=board.config, port=lasting.port, seconds=0.1)
    assert report["verify"]["passed"] is True
    assert report["device"]["host"] == "board"


def test_several_inputs_and_outputs(lasting, token_file, tmp_path):
    from tvmflow.bundles.build import build
    from tvmflow.network.frontend import import_model, parse_input_shape

    program = import_model("networks:two_in_two_out", [parse_input_shape("2x6"), parse_input_shape("2x5")])
    build(program, TARGETS["host"], tmp_path / "two")
    assert deploy(lasting, tmp_path / "two", token_file)["verify"]["passed"] is True


def test_sessions_take_turns_and_leave_nothing(server, host_bundle, token_file):
    descriptors = len(os.listdir("/proc/self/fd"))
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(deploy(server, host_bundle, token_file))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [report["verify"]["passed"] for report in results] == [True] * 3
    wait_for(lambda: session_folders(server) == [] and not server.busy.locked())
    assert server.counts["failed"] == 0
    wait_for(lambda: len(os.listdir("/proc/self/fd")) <= descriptors + 2)


def test_commands(tvmflow, host_bundle, tmp_path):
    """`tvmflow serve` makes a token that only its user can read, serves, and ends with SIGTERM."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    token = tmp_path / "config" / "token"
    command = [sys.executable, "-m", "tvmflow", "serve", "--port", str(port), "--token-file", str(token)]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        assert f"127.0.0.1:{port}" in process.stderr.readline()
        assert token.stat().st_mode & 0o777 == 0o600
        done = tvmflow("deploy", host_bundle, "--host", f"127.0.0.1:{port}", "--token-file", token, "--seconds", "0.1")
        assert done.code == 0, done.err
        assert "passed (device, 12 vectors)" in done.out
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
    assert not list(tmp_path.rglob("tvmflow-serve-*"))


# ------------------------------------------------------------------------------------------------------- who comes in


def connect(server: Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=10)


def hello(key: bytes) -> bytes:
    return struct.pack("<ii", MAGIC, len(key)) + key


@pytest.mark.parametrize(
    "said",
    [
        hello(b"client:wrong"),
        hello(b"client:" + TOKEN.encode()),
        hello(f"client:{'0' * 32}:{'0' * 80}:{'0' * 64}".encode()),
        hello(b"client:"),
        hello(b"server:" + TOKEN.encode()),
        hello(b""),
        struct.pack("<ii", MAGIC, 2**31 - 1) + b"x" * 4096,
        struct.pack("<ii", MAGIC, -1),
        struct.pack("<i", MAGIC + 7) + b"x" * 100,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"POST / HTTP/1.0\r\n\r\n",
        os.urandom(4096),
    ],
    ids=range(12),
)
def test_who_has_no_token_executes_nothing(untouched, said):
    """Whatever follows a refused greeting, such as a call of TVM's protocol, reaches no session."""
    spare = untouched.spare
    with connect(untouched) as peer:
        with contextlib.suppress(OSError):
            peer.sendall(said + b"\0" * 64)
        with contextlib.suppress(ConnectionResetError):
            answer = peer.recv(64)
            assert answer in (b"", struct.pack("<i", MAGIC + 2))
            assert peer.recv(64) == b""
    assert untouched.spare is spare, "no session was touched"
    assert untouched.counts["served"] == untouched.counts["failed"] == 0
    assert health(untouched)["status"] == "ok"


def test_peers_that_say_nothing_or_too_slowly_are_sent_away(untouched, monkeypatch):
    monkeypatch.setattr(serve, "HANDSHAKE_SECONDS", 0.5)
    with connect(untouched) as silent, connect(untouched) as slow:
        started = time.monotonic()
        with contextlib.suppress(OSError):
            for byte in greeting(untouched.port):
                slow.sendall(bytes([byte]))
                time.sleep(0.1)
        assert silent.recv(1) == b""
        assert time.monotonic() - started < 20
    assert untouched.counts["served"] == untouched.counts["failed"] == 0


@pytest.mark.parametrize("count", [40, 400])
def test_a_crowd_of_silent_peers_keeps_nobody_out(server, monkeypatch, count):
    """Not for a moment, though each has more time than the test takes."""
    monkeypatch.setattr(serve, "HANDSHAKE_SECONDS", 300.0)
    monkeypatch.setattr(serve, "FIRST_BYTE_SECONDS", 300.0)
    with contextlib.ExitStack() as stack:
        for number in range(count):
            peer = stack.enter_context(connect(server))
            if number % 2:
                peer.sendall(b"G")
        assert health(server)["status"] == "ok"
        with connect(server) as client:
            client.sendall(greeting(server.port))
            assert client.recv(4) == struct.pack("<i", MAGIC)
        assert threading.active_count() < 100


def test_a_peer_that_says_nothing_has_a_second(untouched):
    with connect(untouched) as silent:
        started = time.monotonic()
        assert silent.recv(1) == b""
        assert time.monotonic() - started < 4


def test_wrong_token(untouched, host_bundle, tmp_path):
    (tmp_path / "wrong").write_text("0123456789abcdee" * 2)
    (tmp_path / "wrong").chmod(0o600)
    with pytest.raises(DeviceError, match="doesn't know the token; nothing was sent") as caught:
        deploy(untouched, host_bundle, tmp_path / "wrong")
    assert caught.value.kind == "auth"


def test_token_files(tmp_path):
    path = tmp_path / "deep" / "token"
    assert read_token(path, make=True) == read_token(path)
    path.chmod(0o644)
    with pytest.raises(UserError, match="chmod 600"):
        read_token(path)
    path.chmod(0o600)
    for text in ("short", "x" * 200, "with spaces and more of them", ""):
        path.write_text(text)
        with pytest.raises(UserError, match="16 to 128 letters and digits"):
            read_token(path)
    for text in ("f" * 32, "abcdefg" * 4):
        path.write_text(text)
        with pytest.raises(UserError, match="8 different characters"):
            read_token(path)
    with pytest.raises(UserError, match="can't be used"):
        read_token(tmp_path / "missing")


def test_token_files_that_are_none_or_others(tmp_path):
    """Nothing is waited for, and nothing read without end."""
    os.mkfifo(tmp_path / "pipe", 0o600)
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(UserError, match="is no plain file"):
            read_token(path)
    with pytest.raises(UserError, match="can't be used"):
        read_token(tmp_path)
    (tmp_path / "long").write_text("0123456789abcdef" * (1 << 20))
    (tmp_path / "long").chmod(0o600)
    with pytest.raises(UserError, match="16 to 128 letters and digits"):
        read_token(tmp_path / "long")
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    (tmp_path / "other").write_text(TOKEN)
    (tmp_path / "other").chmod(0o600)
    os.chown(tmp_path / "other", 12345, 12345)
    with pytest.raises(UserError, match="is another user's"):
        read_token(tmp_path / "other")


@pytest.mark.parametrize("address", ["192.0.2.1:9090", "raspberrypi", "0.0.0.0:9090"])
def test_rpc_is_spoken_on_this_computer_only(host_bundle, token_file, address):
    with pytest.raises(UserError, match="use --ssh"):
        rpc.deploy(host_bundle, address=address, token_file=token_file)


def test_files_stay_in_the_sessions_folder(lasting):
    script = (
        "import sys; sys.modules['torch'] = None\nfrom tvm import rpc\n"
        "from tvmflow.remote.handshake import session_key\n"
        f"session = rpc.connect('127.0.0.1', {lasting.port}, key=session_key({lasting.port}, {TOKEN!r}))\n"
        "for name in ('../escape', '/tmp/tvmflow-escape', '..'):\n"
        "    try:\n        session.upload(bytearray(b'x'), target=name)\n"
        "    except Exception as error:\n        print('refused' if 'plain names' in str(error) else error)\n"
        "session.upload(bytearray(b'x'), target='inside')\nprint('taken')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["refused"] * 3 + ["taken"], done.stdout + done.stderr
    assert not (lasting.folder / "escape").exists()
    assert not Path("/tmp/tvmflow-escape").exists()


# ------------------------------------------------------------------------------------------------- what goes wrong


@pytest.fixture
def hostile(host_bundle, tmp_path):
    """`hostile(code)`: a bundle whose library does that as it is loaded."""
    import hashlib
    import shutil

    def make(code: str) -> Path:
        root = Path(shutil.copytree(host_bundle, tmp_path / "hostile"))
        (tmp_path / "hostile.c").write_text(
            "#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n#include <unistd.h>\n"
            f"__attribute__((constructor)) static void start(void) {{ {code} }}\n"
        )
        toolchain.link(toolchain.select_linker(TARGETS["host"]), root / "model.so", [tmp_path / "hostile.c"])
        manifest = json.loads((root / "manifest.json").read_text())
        content = (root / "model.so").read_bytes()
        manifest["members"]["model.so"] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        (root / "manifest.json").write_text(json.dumps(manifest))
        return root

    return make


EATS_MEMORY = "for (;;) { char *p = malloc(64 << 20); if (!p) abort(); memset(p, 1, 64 << 20); }"


@pytest.mark.parametrize(
    ("code", "limits"),
    [
        ("*(volatile int *)0 = 1;", {}),
        ("_exit(7);", {}),
        (EATS_MEMORY, {"memory_bytes": 1 << 30}),
        ("for (volatile int i = 0;; ++i);", {"cpu_seconds": 4}),
        ("sleep(600);", {"seconds": 5.0}),
    ],
    ids=["segfault", "exit", "memory", "processor", "hang"],
)
def test_a_session_that_goes_wrong_ends_alone(tmp_path, host_bundle, hostile, token_file, code, limits):
    with running(tmp_path, **limits) as server:
        with pytest.raises((VerificationError, DeviceError)):
            deploy(server, hostile(code), token_file)
        wait_for(lambda: server.counts["failed"] == 1 and session_folders(server) == [])
        server.limits = Limits()  # a good session may take its time
        assert deploy(server, host_bundle, token_file)["verify"]["passed"] is True


def test_a_client_that_leaves_in_the_middle(lasting, host_bundle, token_file):
    with connect(lasting) as peer:
        peer.sendall(greeting(lasting.port))
        assert peer.recv(4) == struct.pack("<i", MAGIC)
        assert health(lasting)["busy"] is True
    assert deploy(lasting, host_bundle, token_file)["verify"]["passed"] is True


def test_what_a_session_is_sent_harms_it_alone(server, host_bundle, token_file):
    """Peers with the token that then say nonsense, or nothing, as one whose computer was switched off."""
    unlimited, server.limits = server.limits, Limits(seconds=1.5)
    messages = [os.urandom(4096), struct.pack("<Q", 2**62) + b"x" * 4096, struct.pack("<QQ", 8, 2**63), b""]
    for number, said in enumerate(messages, 1):
        wait_for(lambda: server.spare is not None)
        watcher = server.spare.process.pid
        wait_for(lambda watcher=watcher: is_ready(watcher))
        with connect(server) as peer:
            peer.sendall(greeting(server.port))
            assert peer.recv(4) == struct.pack("<i", MAGIC)
            with contextlib.suppress(OSError):
                peer.sendall(said)
            wait_for(lambda number=number: server.counts["served"] + server.counts["failed"] == number)
    server.limits = unlimited
    wait_for(lambda: session_folders(server) == [])
    assert deploy(server, host_bundle, token_file)["verify"]["passed"] is True


def test_a_full_disk_on_the_board(lasting, host_bundle, token_file):
    """Files of the session end after a thousand bytes, and TVM doesn't notice."""
    wait_for(lambda: lasting.spare is not None)
    watcher = psutil.Process(lasting.spare.process.pid)
    wait_for(watcher.children)
    resource.prlimit(watcher.children()[0].pid, resource.RLIMIT_FSIZE, (1000, 1000))
    with pytest.raises(DeviceError, match="is its disk full") as caught:
        deploy(lasting, host_bundle, token_file)
    assert caught.value.kind == "upload"
    assert deploy(lasting, host_bundle, token_file)["verify"]["passed"] is True


def test_many_deploys_leave_nothing(host_bundle, token_file, tmp_path, monkeypatch, deploys):
    """After each, a server has the descriptors, threads, processes and folders that it had after the first."""
    for name in ("server", "client"):
        (tmp_path / name).mkdir()
    port = free_port()
    command = [sys.executable, "-m", "tvmflow", "serve", "--port", str(port), "--token-file", str(token_file)]
    environment = {**os.environ, "TMPDIR": str(tmp_path / "server")}
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "client"))
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment) as process:
        try:
            connect_to(port).close()
            watched, own = psutil.Process(process.pid), psutil.Process()

            def left() -> tuple:
                folders = [len(list((tmp_path / name).rglob("*"))) for name in ("server", "client")]
                children = len(watched.children(recursive=True))
                return watched.num_fds(), watched.num_threads(), children, own.num_fds(), *folders

            def memory_kib() -> int:
                return watched.memory_info().rss >> 10

            after, grown = [], []
            for number in range(1, deploys + 1):
                report = rpc.deploy(
                    host_bundle, address=f"127.0.0.1:{port}", token_file=token_file, threads=1, seconds=0.01
                )
                assert report["verify"]["passed"] is True
                wait_for(lambda number=number: ask(port)["served"] == number and not ask(port)["busy"])
                if number == 1:
                    wait_for(lambda: len(watched.children(recursive=True)) == 2)  # the next session and its parent
                    after.append(left())
                wait_for(lambda: left() == after[0])
                grown.append(memory_kib())
            assert ask(port)["failed"] == ask(port)["denied"] == 0
            print(f"after 1 and {deploys}: {after[0]} {left()}, server KiB {grown[0]} {grown[-1]}")
            assert grown[-1] - grown[0] < 8192
        finally:
            process.terminate()
            process.wait()


def test_many_strangers_leave_nothing(untouched):
    """Two hundred peers in a row that are refused, and as many that ask how the server is."""
    denied = untouched.counts["denied"]
    before = len(os.listdir("/proc/self/fd")), threading.active_count()
    for _ in range(200):
        with connect(untouched) as peer:
            peer.sendall(hello(b"client:wrong"))
            assert peer.recv(4) == struct.pack("<i", MAGIC + 2)
        assert health(untouched)["status"] == "ok"
    assert untouched.counts["denied"] == denied + 200
    wait_for(lambda: (len(os.listdir("/proc/self/fd")), threading.active_count()) <= before)


def test_a_spare_that_died_is_replaced(lasting, host_bundle, token_file):
    wait_for(lambda: lasting.spare is not None)
    lasting.spare.process.kill()
    lasting.spare.process.wait()
    assert deploy(lasting, host_bundle, token_file)["verify"]["passed"] is True


def test_nobody_there(host_bundle, token_file):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(DeviceError, match="No `tvmflow serve` answers") as caught:
        rpc.deploy(host_bundle, address=f"127.0.0.1:{port}", token_file=token_file)
    assert caught.value.kind == "unreachable"


def test_a_port_that_is_taken():
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(UserError, match="give another --port"):
        Server(TOKEN, port=taken.getsockname()[1])


def test_a_session_ends_with_a_killed_server(host_bundle, hostile, token_file, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tvmflow", "serve", "--port", str(port), "--token-file", str(token_file)]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment) as process:
        wait_for(lambda: next(iter(tmp_path.rglob("tvmflow-serve-*/*")), None))
        with connect_to(port) as peer:
            peer.sendall(greeting(port))
            assert peer.recv(4) == struct.pack("<i", MAGIC)
            wait_for(lambda: is_ready(process.pid))
            time.sleep(0.5)  # the session serves
            process.kill()
            while peer.recv(64):
                pass


OUTLIVES = """
  if (fork() == 0) {
    setsid();
    if (fork() == 0) for (;;) { FILE *f = fopen("%s", "w"); fprintf(f, "%%d", getpid()); fclose(f); usleep(100000); }
    _exit(0);
  }
  sleep(2);
"""
"""A grandchild in a session of its own, that says who it is."""


def test_what_leaves_a_sessions_group_ends_with_it(server, hostile, token_file, tmp_path):
    said = tmp_path / "said"
    with pytest.raises((VerificationError, DeviceError)):
        deploy(server, hostile(OUTLIVES % said), token_file)
    wait_for(lambda: server.counts["served"] + server.counts["failed"] == 1 and session_folders(server) == [])
    pid = said.read_text()  # nothing if it was ended before it could say its number
    wait_for(lambda: not pid or not psutil.pid_exists(int(pid)))


def test_a_killed_server_leaves_nothing(hostile, token_file, tmp_path):
    """Neither what hangs in a session, nor what has left it, nor folders."""
    (tmp_path / "tmp").mkdir()
    port, said = free_port(), tmp_path / "said"
    command = [sys.executable, "-m", "tvmflow", "serve", "--port", str(port), "--token-file", str(token_file)]
    environment = {**os.environ, "TMPDIR": str(tmp_path / "tmp")}
    bundle = hostile(OUTLIVES % said + "sleep(600);")
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment) as process:
        connect_to(port).close()

        def kill_while_it_hangs() -> None:
            wait_for(lambda: said.exists() and said.read_text())
            process.kill()

        killing = threading.Thread(target=kill_while_it_hangs)
        killing.start()
        with pytest.raises(DeviceError):
            rpc.deploy(bundle, address=f"127.0.0.1:{port}", token_file=token_file, threads=1, seconds=0.1)
        killing.join()
    wait_for(lambda: not psutil.pid_exists(int(said.read_text())))
    wait_for(lambda: not list((tmp_path / "tmp").iterdir()))


def test_a_restart_clears_away_what_is_provably_a_killed_servers(tmp_path):
    records = {
        "killed": {**serve.identity(os.getpid()), "started": "before"},
        "gone": {**serve.identity(os.getpid()), "pid": 2**22 + 5},
        "running": serve.identity(os.getpid()),
        "elsewhere": {**serve.identity(2**22 + 5), "host": "another", "started": "before"},
        "strange": ["pid"],
    }
    for name, record in records.items():
        (tmp_path / f"tvmflow-serve-{name}").mkdir()
        (tmp_path / f"tvmflow-serve-{name}" / serve.RECORD).write_text(json.dumps(record))
    (tmp_path / "tvmflow-serve-photos").mkdir()
    (tmp_path / "tvmflow-serve-link").symlink_to("tvmflow-serve-killed")
    with running(tmp_path) as server:
        left = sorted(path.name for path in tmp_path.iterdir() if path != server.folder)
    names = ("elsewhere", "link", "photos", "running", "strange")
    assert left == [f"tvmflow-serve-{name}" for name in names]


def connect_to(port: int) -> socket.socket:
    for _ in range(100):
        with contextlib.suppress(OSError):
            return socket.create_connection(("127.0.0.1", port), timeout=30)
        time.sleep(0.1)
    raise AssertionError("nothing listens there")


def test_a_server_that_is_lost_during_a_session(tmp_path, host_bundle, hostile, token_file):
    with running(tmp_path) as server:

        def stop_while_it_loads() -> None:
            wait_for(lambda: any(server.folder.glob("*/model.so")))
            server.stop()

        threading.Thread(target=stop_while_it_loads).start()
        with pytest.raises(DeviceError) as caught:
            deploy(server, hostile("sleep(600);"), token_file)
    assert caught.value.kind in ("lost", "timeout")
    assert list(tmp_path.rglob("tvmflow-serve-*")) == []


def test_layers_are_timed_in_a_run_of_their_own(lasting, host_bundle, token_file):
    wait_for(lambda: not lasting.busy.locked())
    address, served = f"127.0.0.1:{lasting.port}", lasting.counts["served"]
    report = rpc.deploy(host_bundle, address=address, token_file=token_file, threads=1, seconds=0.1, profiled=True)
    assert all(layer["latency"]["basis"] == "measured" for layer in report["layers"])
    assert all(layer["modules"] for layer in report["layers"])
    wait_for(lambda: lasting.counts["served"] == served + 2)


def test_a_sustained_run_has_windows(lasting, host_bundle, token_file):
    address = f"127.0.0.1:{lasting.port}"
    report = rpc.deploy(host_bundle, address=address, token_file=token_file, threads=1, seconds=2.0, sustained=True)
    windows = report["latency"]["windows"]
    assert len(windows) >= 1
    assert [window["at_s"] for window in windows] == sorted(window["at_s"] for window in windows)
    assert sum(window["repeats"] for window in windows) >= report["latency"]["repeats"]
    assert report["latency"]["max"] == max(window["max"] for window in windows)
