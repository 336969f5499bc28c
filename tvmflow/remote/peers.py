"""Reading from boards and their servers: how much, how long, and whose words they are.

A board may be broken or another's. Whatever it says is read up to a limit and a deadline, both from here, and what is
beyond either ends the process or the connection with one sentence.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import math
import os
import selectors
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any

from tvmflow.system import children, untrusted
from tvmflow.system.limits import ANSWER_BYTES, ANSWER_SECONDS, PEER, RESULT, SESSION

LOOPBACK = "127.0.0.1"


class TooMuchError(Exception):
    """A peer said more than it may; the message says how much that is."""


class TimeUpError(Exception):
    """A peer took longer than it may."""


def run(
    command: Sequence[str],
    *,
    seconds: float,
    most_bytes: int | None = None,
    send: Callable[[IO[bytes]], Any] | None = None,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command that says what a peer says, fed by `send` meanwhile.

    It is ended when it has printed more than `most_bytes`, which are PEER's without it, to either stream, or after
    `seconds`. Raises TooMuchError, TimeUpError, and what `send` raises but for a BrokenPipeError.
    """
    most_bytes = PEER.bytes if most_bytes is None else most_bytes
    until = time.monotonic() + seconds
    failures: list[BaseException] = []

    def feed(stream: IO[bytes]) -> None:
        try:
            with contextlib.suppress(BrokenPipeError), stream:  # it has gone; its exit code says why
                if send:
                    send(stream)
        except BaseException as error:
            failures.append(error)

    said: dict[Any, bytearray] = {}
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE if send else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=children.environment() if env is None else env,
    )
    feeder = threading.Thread(target=feed, args=(process.stdin,), daemon=True) if send else None
    try:
        if feeder:
            feeder.start()
        with selectors.DefaultSelector() as selector:
            for stream in (process.stdout, process.stderr):
                assert stream is not None
                os.set_blocking(stream.fileno(), False)
                selector.register(stream, selectors.EVENT_READ)
                said[stream] = bytearray()
            # The end of the process is the end of what it says: who keeps its connection open holds the pipes as well.
            ended = False
            while selector.get_map():
                ready = selector.select(0 if ended else 0.05)
                if ended and not ready:
                    break
                for key, _ in ready:
                    part = os.read(key.fd, 1 << 16)
                    said[key.fileobj] += part
                    if not part:
                        selector.unregister(key.fileobj)
                    if len(said[key.fileobj]) > most_bytes:
                        raise TooMuchError(f"more than {most_bytes:,} bytes")
                if time.monotonic() > until:
                    raise TimeUpError(f"longer than {seconds:g} s")
                ended = ended or process.poll() is not None
        try:
            code = process.wait(timeout=max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired as error:
            raise TimeUpError(f"longer than {seconds:g} s") from error
    finally:
        process.kill()
        process.wait()
        if feeder:
            feeder.join(timeout=ANSWER_SECONDS)
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()
    if failures:
        raise failures[0]
    output, errors = (content.decode(errors="replace") for content in said.values())
    return subprocess.CompletedProcess(list(command), code, output, errors)


def get(port: int, path: str, *, seconds: float = ANSWER_SECONDS) -> dict[str, Any]:
    """The JSON object at `http://127.0.0.1:port/path`, never through a proxy. Raises OSError, ValueError."""
    until = time.monotonic() + seconds
    content = bytearray()
    with socket.create_connection((LOOPBACK, port), timeout=seconds) as connection:
        connection.sendall(f"GET /{path} HTTP/1.0\r\nHost: {LOOPBACK}:{port}\r\n\r\n".encode("ascii"))
        while True:
            left = until - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"it took longer than {seconds:g} s to answer")
            connection.settimeout(left)
            try:
                part = connection.recv(1 << 14)
            except TimeoutError as error:
                raise TimeoutError(f"it took longer than {seconds:g} s to answer") from error
            if not part:
                break
            content += part
            if len(content) > ANSWER_BYTES:
                raise ValueError(f"it answers with more than {ANSWER_BYTES:,} bytes")
    response = http.client.HTTPResponse(_Received(bytes(content)))  # type: ignore[arg-type]
    try:
        response.begin()
        if response.status != 200:
            raise ValueError(f"it answers with HTTP status {response.status}")
        said = parse_json(response.read(ANSWER_BYTES))
    except http.client.HTTPException as error:
        raise ValueError("it answers with something else than HTTP") from error
    if not isinstance(said, dict):
        raise ValueError("it answers with something else than a JSON object")
    return said


class _Received:
    """What was received, as http.client takes it: a socket."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def makefile(self, _mode: str) -> IO[bytes]:
        return io.BytesIO(self.content)


def parse_json(text: str | bytes) -> Any:
    """A peer's JSON, with None for what is no number. Raises ValueError."""
    return untrusted.parse_json(text, RESULT, surrogates=True, non_finite=True)


def is_number(value: Any) -> bool:
    """Whether JSON has a finite number there."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def limit_memory() -> None:
    """Bound what this process may allocate from now on by SESSION, whatever lengths a peer names."""
    with contextlib.suppress(ImportError, OSError, ValueError):  # systems that know no such limit
        import resource

        import psutil

        limit = psutil.Process().memory_info().vms + SESSION.bytes
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        limit = limit if most == resource.RLIM_INFINITY else min(limit, most)
        resource.setrlimit(resource.RLIMIT_AS, (limit, most))
