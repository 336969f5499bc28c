"""Boards by their kind: TVM's RPC tracker as a list of what is free, trusted with nothing else.

The tracker speaks plain text, asks nobody who he is, and gives a board's match key to whoever asks. So it is used on
this computer only, the match key opens nothing, and a server that it names has to prove that it knows the token, as
every server has.
"""

from __future__ import annotations

import contextlib
import json
import logging
import secrets
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import Any

from tvmflow.remote import peers
from tvmflow.spec import DeviceError, UserError
from tvmflow.system.untrusted import shortened

log = logging.getLogger(__name__)

PORT = 9190
MAGIC = 0x2F271
SUCCESS, PUT, REQUEST, UPDATE_INFO, SUMMARY, PENDING = 0, 3, 4, 5, 6, 7
"""TVM's protocol (tvm/rpc/tracker.py): the magic number both ways, then JSON texts behind their lengths."""

LOOPBACK = "127.0.0.1"
ANSWER_SECONDS, WAIT_SECONDS = 10.0, 600.0
"""What the tracker may take to answer, and how long a board that is free is waited for."""
PERIOD_SECONDS, RETRY_SECONDS = 1.0, 5.0
UNUSED_SECONDS = 10.0
"""After which a board that was given to a client who didn't come is offered again."""
LONGEST_MESSAGE = 1 << 20


class Tracker:
    """A connection. Raises OSError and ValueError if the tracker has gone or is none."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection((LOOPBACK, port), timeout=ANSWER_SECONDS)
        try:
            self._socket.sendall(struct.pack("<i", MAGIC))
            if self._receive(4, time.monotonic() + ANSWER_SECONDS) != struct.pack("<i", MAGIC):
                raise ValueError("what answers there is no tracker")
        except BaseException:
            self.close()
            raise

    def ask(self, *message: Any, seconds: float = ANSWER_SECONDS) -> Any:
        until = time.monotonic() + seconds
        self._socket.settimeout(seconds)
        text = json.dumps(message).encode()
        self._socket.sendall(struct.pack("<i", len(text)) + text)
        (length,) = struct.unpack("<i", self._receive(4, until))
        if not 0 < length <= LONGEST_MESSAGE:
            raise ValueError("the tracker sends something else")
        return peers.parse_json(self._receive(length, until))

    def _receive(self, count: int, until: float) -> bytes:
        content = b""
        while len(content) < count:
            left = until - time.monotonic()
            if left <= 0:
                raise TimeoutError("the tracker is too slow")
            self._socket.settimeout(left)
            part = self._socket.recv(count - len(content))
            if not part:
                raise ConnectionError("the tracker has closed the connection")
            content += part
        return content

    def close(self) -> None:
        self._socket.close()


def parse_address(text: str) -> int:
    """The port in `127.0.0.1:9190`. Raises UserError for elsewhere: a tracker believes whoever reaches it."""
    host, _, port = text.partition(":")
    if host not in (LOOPBACK, "localhost"):
        raise UserError(
            f"--tracker {text}: TVM's tracker neither encrypts nor asks who comes, so it is used at {LOOPBACK} only; "
            f"`ssh -L {PORT}:{LOOPBACK}:{PORT}` leads to another computer's."
        )
    if port and not (port.isdigit() and 0 < int(port) < 65536):
        raise UserError(f"--tracker takes {LOOPBACK}:PORT, not {text!r}.")
    return int(port or PORT)


def check_key(key: str) -> str:
    """A kind of board as trackers take it. Raises UserError."""
    if not key or not all(character.isalnum() or character in "-_." for character in key) or len(key) > 64:
        raise UserError(f"--key is a kind of board such as raspberry-pi-4b, not {key!r}.")
    return key


def request(port: int, key: str, *, seconds: float = WAIT_SECONDS) -> int:
    """The port of a free board of that kind, waiting for one. Raises DeviceError."""
    with _talking(port) as tracker:
        try:
            code, (host, found, _) = tracker.ask(REQUEST, key, "", 1, seconds=seconds)
        except TimeoutError as error:
            raise DeviceError(f"No board of the kind {key} was free in {seconds:g} s.", "timeout") from error
        if code != SUCCESS:
            raise ValueError(f"the tracker answers {code}")
        return _on_this_computer(host, found)


def ports(port: int, key: str) -> list[int]:
    """The ports of all boards of that kind. Raises DeviceError if there is none."""
    with _talking(port) as tracker:
        _, summary = tracker.ask(SUMMARY)
        rows = [row["addr"] for row in summary["server_info"] if row["key"] == f"server:{key}"]
        if not rows:
            raise DeviceError(f"The tracker knows no board of the kind {key}.", "unreachable")
        return sorted({_on_this_computer(host, found) for host, found in rows})


@contextlib.contextmanager
def _talking(port: int) -> Any:
    try:
        with contextlib.closing(Tracker(port)) as tracker:
            yield tracker
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = shortened(str(error))
        raise DeviceError(f"No tracker answers at {LOOPBACK}:{port}: {reason}.", "unreachable") from error


def _on_this_computer(host: Any, port: Any) -> int:
    if host != LOOPBACK or not isinstance(port, int) or not 0 < port < 65536:
        raise DeviceError(f"The tracker names a board at {host}:{port}; boards are reached at {LOOPBACK} only.", "auth")
    return port


class Registration:
    """Keeps a server in a tracker's list while it is free. `is_busy` says whether it has a session."""

    def __init__(self, tracker_port: int, key: str, port: int, is_busy: Callable[[], bool]) -> None:
        self.tracker_port, self.key, self.port, self.is_busy = tracker_port, key, port, is_busy
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                with contextlib.closing(Tracker(self.tracker_port)) as tracker:
                    log.info(f"Registered with the tracker at {LOOPBACK}:{self.tracker_port} as {self.key}")
                    tracker.ask(UPDATE_INFO, {"key": f"server:{self.key}", "addr": [LOOPBACK, self.port]})
                    self._offer(tracker)
            except (OSError, ValueError) as error:
                log.info(f"The tracker at {LOOPBACK}:{self.tracker_port} can't be used: {error}")
            self._stopped.wait(RETRY_SECONDS)

    def _offer(self, tracker: Tracker) -> None:
        while not self._stopped.is_set():
            match = f"{self.key}:{secrets.randbits(52)}"  # in TVM's form; it opens nothing
            tracker.ask(PUT, self.key, [self.port, match], LOOPBACK)
            while match in tracker.ask(PENDING):
                if self._stopped.wait(PERIOD_SECONDS):
                    return
            # someone has it: he comes and goes, or doesn't come
            until, came = time.monotonic() + UNUSED_SECONDS, False
            while self.is_busy() or (not came and time.monotonic() < until):
                came = came or self.is_busy()
                if self._stopped.wait(PERIOD_SECONDS / 4):
                    return
