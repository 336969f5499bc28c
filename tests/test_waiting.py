"""What a command shows while it works: the stage and the time, once it has been silent, and nothing left behind."""

from __future__ import annotations

import io
import logging

import pytest

from tvmflow.cli.waiting import Waiting
from tvmflow.system import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("tvmflow.cli.waiting.time.monotonic", lambda: now[0])
    return now


def record(text: str) -> logging.LogRecord:
    return logging.LogRecord("tvmflow", logging.INFO, "", 0, text, (), None)


def test_a_terminal_is_told_after_two_seconds_and_each_time(clock):
    stream = Terminal()
    waiting = Waiting(stream)
    waiting.handle(record("Compiling net for host"))
    progress.at("schedule_kernels, 9 of 16 stages")
    clock[0] += 1.9
    waiting.tick()
    assert stream.getvalue() == "Compiling net for host\n"
    for seconds in (0.2, 1.0):
        clock[0] += seconds
        waiting.tick()
    shown = stream.getvalue().split("\r\x1b[2K")[1:]
    assert shown[0] == "Compiling net for host: schedule_kernels, 9 of 16 stages (2 s)"
    assert shown[1] == "Compiling net for host: schedule_kernels, 9 of 16 stages (3 s)"
    waiting.handle(record("Verifying net"))
    assert stream.getvalue().endswith("(3 s)\r\x1b[2KVerifying net\n")


def test_the_line_is_gone_before_results(clock):
    stream = Terminal()
    waiting = Waiting(stream)
    waiting.handle(record("Timing net"))
    clock[0] += 5
    waiting.tick()
    waiting.stop()
    clock[0] += 5
    waiting.tick()
    assert stream.getvalue().endswith("(5 s)\r\x1b[2K")


def test_a_file_gets_a_line_now_and_then(clock):
    stream = io.StringIO()
    waiting = Waiting(stream)
    waiting.handle(record("Surveying net"))
    for _ in range(200):
        clock[0] += 1
        waiting.tick()
    assert stream.getvalue().splitlines() == ["Surveying net", *(f"Surveying net ({s} s)" for s in (30, 90))]


def test_nothing_is_said_where_something_else_shows_it(clock):
    stream = Terminal()
    waiting = Waiting(stream)
    waiting.handle(record("Training"))
    with progress.own_line():
        clock[0] += 60
        waiting.tick()
    assert stream.getvalue() == "Training\n"
    assert not progress.shown_elsewhere()


def test_it_is_wanted_by_the_command_line_alone(caplog):
    with caplog.at_level(logging.WARNING, "tvmflow"):
        assert not progress.wanted()
    with caplog.at_level(logging.INFO, "tvmflow"):
        assert progress.wanted()
