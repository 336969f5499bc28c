"""What a command is at, for people who wait: a line that renews itself on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import logging
import sys
import threading
import time
from typing import TextIO

from tvmflow.system import progress

SILENCE_S = 2.0
"""How long a terminal may show nothing new."""
ELSEWHERE_S = 30.0
"""How long a file or a pipe may get nothing new; then twice as long, and so on."""


class Waiting(logging.StreamHandler[TextIO]):
    """Writes the log and, where it has been silent for too long, what is being done and for how long."""

    def __init__(self, stream: TextIO | None = None, *, silence_s: float | None = None) -> None:
        super().__init__(stream or sys.stderr)
        self.terminal = self.stream.isatty()
        self.silence_s = silence_s or (SILENCE_S if self.terminal else ELSEWHERE_S)
        self._began = self._last = time.monotonic()
        self._pause = self.silence_s
        self._said = "Starting"
        self._drawn = self._over = False

    def start(self) -> None:
        """Begin to look at the clock."""
        threading.Thread(target=self._watch, daemon=True).start()

    def stop(self) -> None:
        """Write nothing more, and leave nothing behind on the terminal."""
        with self.lock or threading.RLock():
            self._over = True
            self._erase()

    def emit(self, record: logging.LogRecord) -> None:
        """Write what is logged, which is what is being done from now on."""
        self._erase()
        super().emit(record)
        progress.at("")
        self._began = self._last = time.monotonic()
        self._pause, self._said = self.silence_s, record.getMessage().strip().split("\n")[0]

    def _watch(self) -> None:
        while not self._over:
            time.sleep(min(0.5, self.silence_s / 4))
            self.tick()

    def tick(self) -> None:
        """Say what is being done if it is time to."""
        with self.lock or threading.RLock():
            now = time.monotonic()
            if progress.shown_elsewhere():
                self._last = now
            if self._over or not self._said or progress.shown_elsewhere():
                return
            if now - self._last < self._pause and not self._drawn:
                return
            line = f"{self._said}{f': {progress.stage}' if progress.stage else ''} ({now - self._began:.0f} s)"
            if self.terminal:
                self.stream.write(f"\r\x1b[2K{line}"[:200])
                self._drawn = True
            else:
                self.stream.write(f"{line}\n")
                self._last, self._pause = now, 2 * self._pause
            self.stream.flush()

    def _erase(self) -> None:
        if self._drawn:
            self.stream.write("\r\x1b[2K")
            self.stream.flush()
            self._drawn = False
