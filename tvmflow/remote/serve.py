"""The board's side of RPC: TVM's server loop behind a door that knows who may come in.

TVM's own server lets in whoever reaches its port, stays deaf after a session has crashed, and waits for ever for a
peer that says nothing. This one listens on this computer only, so that whoever comes from elsewhere comes through SSH,
which authenticates and encrypts; and it wants a token, so that not everyone on this computer comes in either. Each
session is a process with limits and a folder of its own, and ends without a trace; peers have a few seconds to say who
they are.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import secrets
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tvmflow import __version__
from tvmflow.remote import tracker as trackers
from tvmflow.remote.handshake import Challenges
from tvmflow.remote.rpc_session import RECORD
from tvmflow.spec import UserError
from tvmflow.system import children, scratch, untrusted

log = logging.getLogger(__name__)

PORT = 9090
PREFIX = "tvmflow-serve-"
MAGIC = 0xFF271
SUCCESS, DENIED = MAGIC, MAGIC + 2
"""TVM's protocol (tvm/rpc/base.py): the magic number, the length of a key and the key; the answer is one of these."""

LONGEST_KEY = 256
LONGEST_TOKEN = 128
LONGEST_TOKEN_FILE = 4096
LONGEST_REQUEST = 4096
HANDSHAKE_SECONDS = 5.0
FIRST_BYTE_SECONDS = 1.0
"""What a peer may take to say who it is, and to say anything at all."""
FAREWELL_SECONDS = 10.0
"""How long a session may go on once its client has left."""
MOST_STRANGERS = 64
"""Connections that are saying who they are; for another, the one that has taken longest is closed."""
MOST_WAITING = 16
"""Clients that wait for their turn; more are closed at once."""
LEAST_CHARACTERS = 8
"""How many different ones a token has. What a server proves to anybody lets a weak one be guessed."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a session may take; memory is all of its address space. None is no limit."""

    seconds: float = 600.0
    cpu_seconds: int | None = 1200
    memory_bytes: int | None = 2 << 30


def default_token_file() -> Path:
    """$XDG_CONFIG_HOME/tvmflow/rpc-token."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config", "tvmflow", "rpc-token")


def read_token(path: Path, *, make: bool = False) -> str:
    """The token in a file that nobody else can read; with `make`, a new one if there is no file. Raises UserError."""
    try:
        if make and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with scratch.beside(path) as made:
                with os.fdopen(os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                    file.write(secrets.token_hex(16) + "\n")
                with contextlib.suppress(FileExistsError):  # another server was first, whose token it is then
                    os.link(made, path)
        # what is looked at is what is read, and a pipe or a device is neither waited for nor read without end
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as opened:
            status = os.fstat(opened.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise UserError(f"The token file {path} is no plain file.")
            token = opened.read(LONGEST_TOKEN_FILE).decode().strip()
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise UserError(f"The token file {path} can't be used: {error}.") from error
    if status.st_uid not in (os.geteuid(), 0):
        raise UserError(f"The token file {path} is another user's, who knows what is in it; make one of your own.")
    if stat.S_IMODE(status.st_mode) & 0o077:
        raise UserError(f"The token file {path} can be read by others; `chmod 600 {path}` mends that.")
    return check_token(token, f"The token file {path}")


def check_token(token: str, what: str) -> str:
    """The token, if it is one that can't be guessed. Raises UserError."""
    if len(token) < 16 or len(token) > LONGEST_TOKEN or not (token.isascii() and token.isalnum()):
        raise UserError(f"{what} needs 16 to {LONGEST_TOKEN} letters and digits.")
    if len(set(token)) < LEAST_CHARACTERS:
        raise UserError(
            f"{what} needs {LEAST_CHARACTERS} different characters or more, for others can be guessed; without a file, "
            "`tvmflow serve` makes a good one."
        )
    return token


class Server:
    """Serves one session at a time until `stop`. `port` 0 takes a free one."""

    def __init__(self, token: str, *, port: int = PORT, limits: Limits = Limits(), folder: Path | None = None) -> None:
        self.token, self.limits = token, limits
        self.counts = {"served": 0, "failed": 0, "denied": 0}
        self.busy = threading.Lock()
        self.waiting = threading.BoundedSemaphore(MOST_WAITING)
        self.strangers: OrderedDict[socket.socket, None] = OrderedDict()
        self.door = threading.Lock()
        self.stopped = threading.Event()
        try:
            self.listener = socket.create_server(("127.0.0.1", port))
        except OSError as error:
            raise UserError(f"Port {port} can't be listened on: {error.strerror}; give another --port.") from error
        self.port: int = self.listener.getsockname()[1]
        self.challenges = Challenges(token, self.port)
        clear_remains(folder or Path(tempfile.gettempdir()))
        self.folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=folder))
        (self.folder / RECORD).write_text(json.dumps(identity(os.getpid())))
        self.spare: _Session | None = _Session(self)

    def run(self) -> None:
        """Accept peers until `stop` is called."""
        self.listener.settimeout(0.5)
        try:
            while not self.stopped.is_set():
                try:
                    connection, _ = self.listener.accept()
                except TimeoutError:
                    continue
                self._let_in(connection)
                threading.Thread(target=self._attend, args=(connection,), daemon=True).start()
        finally:
            self.close()

    def stop(self) -> None:
        self.stopped.set()

    def close(self) -> None:
        """End the spare and a session that is still running, and remove all folders."""
        self.stopped.set()
        self.listener.close()
        if self.spare is not None:
            self.spare.end()
        _remove(self.folder)

    def _let_in(self, connection: socket.socket) -> None:
        """Let a stranger say who it is. Whoever means it does so at once; a crowd of silent ones is in nobody's way."""
        with self.door:
            if len(self.strangers) >= MOST_STRANGERS:
                longest, _ = self.strangers.popitem(last=False)
                with contextlib.suppress(OSError):
                    longest.shutdown(socket.SHUT_RDWR)  # its thread closes it
            self.strangers[connection] = None

    def _attend(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError, ValueError):
            try:
                is_client = self._is_client(connection)
            finally:
                with self.door:
                    self.strangers.pop(connection, None)
            if not is_client or not self.waiting.acquire(blocking=False):
                return
            with _released(self.waiting):
                connection.settimeout(None)
                while not self.busy.acquire(timeout=0.5):  # clients wait for their turn as long as they like
                    if self.stopped.is_set() or _has_left(connection):
                        return
                try:
                    self._serve(connection)
                finally:
                    self.busy.release()

    def _is_client(self, connection: socket.socket) -> bool:
        """Whether a peer shows that it may have a session. Others have been answered. Raises OSError, ValueError."""
        now = time.monotonic()
        until = now + HANDSHAKE_SECONDS
        start = _receive(connection, 1, now + min(FIRST_BYTE_SECONDS, HANDSHAKE_SECONDS))
        start += _receive(connection, 3, until)
        if start == b"GET ":
            self._answer(connection, _receive_request(connection, until))
            return False
        if struct.unpack("<i", start)[0] == MAGIC and self._is_known(connection, until):
            return True
        self.counts["denied"] += 1
        connection.sendall(struct.pack("<i", DENIED))
        return False

    def _is_known(self, connection: socket.socket, until: float) -> bool:
        (length,) = struct.unpack("<i", _receive(connection, 4, until))
        if not 0 < length <= LONGEST_KEY:
            return False
        key, _, _ = _receive(connection, length, until).decode(errors="replace").partition(" ")  # TVM's options follow
        if self.challenges.is_token_itself(key):
            log.warning(
                "A client showed the token itself, as before tvmflow's present handshake, and was refused: update "
                "tvmflow on its computer, and make a new token, for others may have seen this one."
            )
        return self.challenges.admits(key)

    def _answer(self, connection: socket.socket, path: str) -> None:
        """To whoever asks: how the server is, or that it knows the token."""
        if path.startswith("/challenge/"):
            self._tell(connection, self.challenges.answer(path.removeprefix("/challenge/")))
            return
        content = {
            "status": "ok",
            "busy": self.busy.locked(),
            "tvmflow": __version__,
            "session_seconds": self.limits.seconds,
            **self.counts,
        }
        self._tell(connection, content)

    def _tell(self, connection: socket.socket, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        head = f"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)

    def _serve(self, connection: socket.socket) -> None:
        session, self.spare = self.spare, None
        if session is not None and session.process.poll() is not None:  # it has died while it waited
            session.end()
            session = None
        session = session or _Session(self)
        try:
            name = b"server:tvmflow"
            session.hand_over(connection)
            connection.sendall(struct.pack("<ii", SUCCESS, len(name)) + name)
            outcome = session.wait(self.limits.seconds, self.stopped, connection)
        except OSError as error:
            outcome = str(error)
        finally:
            session.end()
            if not self.stopped.is_set():
                self.spare = _Session(self)
        self.counts["failed" if outcome else "served"] += 1
        log.info(f"A session ended{': ' + outcome if outcome else ''}")


class _Session:
    """A process that waits for a connection to serve, with a folder of its own."""

    def __init__(self, server: Server) -> None:
        self.folder = Path(tempfile.mkdtemp(dir=server.folder))
        self.control, inner = socket.socketpair()
        limits = {"memory_bytes": server.limits.memory_bytes, "cpu_seconds": server.limits.cpu_seconds}
        with inner:
            self.process = subprocess.Popen(
                children.python(
                    "tvmflow.remote.rpc_session", json.dumps(limits), ends_with_parent=False
                ),  # it clears away first
                stdin=inner.fileno(),
                stdout=subprocess.DEVNULL,
                cwd=self.folder,
                env={**children.environment(), "TMPDIR": str(self.folder)},
                start_new_session=True,  # so that whatever it starts can be ended with it
            )

    def hand_over(self, connection: socket.socket) -> None:
        socket.send_fds(self.control, [b"."], [connection.fileno()])

    def wait(self, seconds: float, stopped: threading.Event, connection: socket.socket) -> str:
        """ "" when the session has ended well, else what happened to it."""
        until = time.monotonic() + seconds
        left = 0.0
        while (code := self.process.poll()) is None:
            if stopped.wait(0.05):
                return "the server was stopped"
            if not left and _has_left(connection):
                left = time.monotonic()
            if left and time.monotonic() > left + FAREWELL_SECONDS:  # what it runs doesn't notice
                return "its client has left"
            if time.monotonic() > until:
                return f"it took longer than {seconds:g} s"
        with contextlib.suppress(ValueError):  # an exit code of its own
            if code < 0 or code > 128:
                return f"it was ended by {signal.Signals(-code if code < 0 else code - 128).name}"
        return "" if code == 0 else f"its process failed with exit code {code}"

    def end(self) -> None:
        """End the session and all that it started, first by its watcher, which knows what has left its group."""
        self.control.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=FAREWELL_SECONDS)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        _remove(self.folder)


def clear_remains(place: Path) -> None:
    """Remove folders in `place` of servers that were killed: those whose record names a process that is gone."""
    found = list(place.glob(f"{PREFIX}*"))
    if place == scratch.root:  # a server's folder is in one for temporary files, and so were those of others
        found += place.parent.glob(f"tvmflow-*/{PREFIX}*")
    for folder in found:
        try:
            if folder.is_symlink() or folder.stat().st_uid != os.geteuid():
                continue
            record = untrusted.read_json(folder / RECORD)
            own = identity(int(record["pid"]))
            gone = record["host"] == own["host"] and record["started"] != own["started"]
        except (UserError, OSError, ValueError, KeyError, TypeError):
            continue
        if gone:
            log.info(f"Removing {folder}, of a server that was killed")
            _remove(folder)
            if folder.parent != place:
                with contextlib.suppress(OSError):  # as long as anything else is in it
                    folder.parent.rmdir()


def identity(pid: int) -> dict[str, Any]:
    """What tells a process from all others that have its number: the computer, and when the process began.

    On Linux that is counted from the system's start, since a board's clock may jump when it finds a time server, and
    the computer is its name and the namespace of its processes, which a container has for itself.
    """
    host, started = platform.node(), None
    with contextlib.suppress(OSError, psutil.Error):
        if sys.platform == "linux":
            host += f" {os.readlink('/proc/self/ns/pid')}"
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
            started = f"{boot} {Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[19]}"
        else:
            started = str(psutil.Process(pid).create_time())
    return {"pid": pid, "host": host, "started": started}


@contextlib.contextmanager
def _released(semaphore: threading.Semaphore) -> Iterator[None]:
    try:
        yield
    finally:
        semaphore.release()


def _remove(folder: Path) -> None:
    """Remove a folder, again while it is there: a process just killed may be writing to it until it has gone."""
    until = time.monotonic() + FAREWELL_SECONDS
    shutil.rmtree(folder, ignore_errors=True)
    while folder.exists() and time.monotonic() < until:
        time.sleep(0.05)
        shutil.rmtree(folder, ignore_errors=True)


def _receive(connection: socket.socket, count: int, until: float) -> bytes:
    """Exactly that many bytes before `until`. Raises OSError: a peer that sends a byte at a time has no more time."""
    content = b""
    while len(content) < count:
        connection.settimeout(max(0.01, until - time.monotonic()))
        part = connection.recv(count - len(content))
        if not part:
            raise ConnectionError("the peer has left")
        content += part
        if time.monotonic() > until:
            raise TimeoutError("the peer was too slow")
    return content


def _receive_request(connection: socket.socket, until: float) -> str:
    """The path of an HTTP request whose "GET " was read. Raises OSError, ValueError."""
    content = b""
    while not content.endswith(b"\r\n\r\n"):
        if len(content) > LONGEST_REQUEST:
            raise ValueError("the request is too long")
        content += _receive(connection, 1, until)
    return (content.split() or [b""])[0].decode("ascii")


def _has_left(connection: socket.socket) -> bool:
    try:
        return connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def serve(
    token_file: Path, *, port: int = PORT, limits: Limits = Limits(), tracker: str | None = None, key: str = ""
) -> None:
    """Serve until interrupted or terminated, listed by `tracker` as a `key` if there is one. Raises UserError."""
    registered = tracker is not None and (trackers.parse_address(tracker), trackers.check_key(key))
    server = Server(read_token(token_file, make=True), port=port, limits=limits)
    log.info(f"Serving on 127.0.0.1:{server.port}, token in {token_file}")
    signal.signal(signal.SIGTERM, lambda *_: server.stop())
    registration = registered and trackers.Registration(*registered, server.port, server.busy.locked)
    try:
        server.run()
    finally:
        if registration:
            registration.close()
