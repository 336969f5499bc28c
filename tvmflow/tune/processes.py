"""Processes that answer jobs and may end over them: a builder or a runner is started again, and the search goes on."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable
from typing import Any

START_LIMIT_S = 120.0
CHECK_S = 0.2


class WorkerError(Exception):
    """A worker ended ("crashed") or took too long ("hung") over its job; another has taken its place."""

    def __init__(self, outcome: str, message: str) -> None:
        super().__init__(message)
        self.outcome = outcome


class Worker:
    """A process that answers jobs, started again when it ends or has to be ended."""

    def __init__(self, command: Callable[[], list[str]], environment: dict[str, str], limit_s: float) -> None:
        self.command, self.environment, self.limit_s = command, environment, limit_s
        self.deadline = 0.0
        self.restarts = -1
        self._start()

    def _start(self) -> None:
        self.restarts += 1
        self._fresh = True
        self._buffer = b""
        self._process = subprocess.Popen(
            self.command(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # what compilers and kernels print
            env=self.environment,
            start_new_session=True,  # Ctrl-C is for the search, which ends its workers itself
        )
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)

    def fileno(self) -> int:
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    def send(self, job: dict[str, Any]) -> None:
        """Give it a job; `receive` or `poll` has the answer."""
        assert self._process.stdin is not None
        self.deadline = time.monotonic() + self.limit_s + (START_LIMIT_S if self._fresh else 0)
        try:
            self._process.stdin.write(json.dumps(job).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:  # it ended while it was idle, or at its start; poll says so
            pass

    def poll(self) -> dict[str, Any] | None:
        """Its answer if there is one. Raises WorkerError."""
        try:
            chunk = os.read(self.fileno(), 1 << 20)
        except BlockingIOError:
            chunk = None
        if chunk == b"":
            code = self._end()
            self._start()
            what = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            raise WorkerError("crashed", f"its process ended with {what}")
        self._buffer += chunk or b""
        if b"\n" in self._buffer:
            line, self._buffer = self._buffer.split(b"\n", 1)
            self._fresh = False
            return json.loads(line)
        if time.monotonic() > self.deadline:
            self._end()
            self._start()
            raise WorkerError("hung", f"it took longer than {self.limit_s:g} s")
        return None

    def receive(self, check: Callable[[], None]) -> dict[str, Any]:
        """Wait for its answer. Raises WorkerError, and what `check` raises."""
        with selectors.DefaultSelector() as selector:
            selector.register(self, selectors.EVENT_READ)
            while True:
                selector.select(min(CHECK_S, max(0.0, self.deadline - time.monotonic()) + 0.01))
                check()
                answer = self.poll()
                if answer is not None:
                    return answer

    def _end(self) -> int:
        self._process.kill()
        code = self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        return code

    def close(self) -> None:
        """End it for good."""
        self._end()
